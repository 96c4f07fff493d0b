"""The bus's parts without a bus: guard, limits, leases, outbox, replay, settings of the broker, run state."""

import os
from dataclasses import dataclass
from datetime import timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import SecretStr
from sqlmodel import select

from schemas.inbox_pages import InboxPage
from schemas.settings import DeadLetterSettings, KafkaSettings
from schemas.tables import Audit, DeadLetter, Inbox, Outbox
from schemas.topics import LABEL, TOPICS
from services.runtime import dead_letters, lease, outbox
from services.runtime.backoff import backoff
from services.runtime.bus import connection_options, group_id, to_record
from services.runtime.consumer import process
from services.runtime.database import Database
from services.runtime.embedded import BrokerMissing, broker_binary
from services.runtime.errors import InvalidInput
from services.runtime.guard import OffsetGuard
from services.runtime.limits import WINDOW, DeadLetterLimit
from services.runtime.messages import Record
from services.runtime.run_state import AlreadyRunning, lock, read_state, running
from tests.bus_world import POISON, Joiner, emit, handle, label, send_all


@dataclass
class At:
    offset: int
    topic: str = "t"
    partition: int = 0


def test_the_guard_goes_back_to_a_gap_and_drops_what_follows() -> None:
    guard = OffsetGuard()
    guard.expect(("t", 0), 5)
    admission = guard.admit([[At(5), At(6), At(8), At(9)], [At(0, partition=1)]])
    assert [(record.partition, record.offset) for run in admission.runs for record in run] == [(0, 5), (0, 6), (1, 0)]
    assert admission.rewinds == {("t", 0): 7}


def test_the_guard_sees_a_gap_before_the_first_message() -> None:
    guard = OffsetGuard()
    guard.expect(("t", 0), 0)
    assert guard.admit([[At(3)]]).rewinds == {("t", 0): 0}


def test_the_guard_takes_what_was_delivered_before() -> None:
    guard = OffsetGuard()
    guard.expect(("t", 0), 10)
    assert guard.admit([[At(4), At(5)]]).runs == [[At(4), At(5)]]


def test_the_guard_gives_up_after_its_looks() -> None:
    guard = OffsetGuard(retries=3)
    guard.expect(("t", 0), 0)
    looks = [bool(guard.admit([[At(1)]]).rewinds) for _ in range(4)]
    assert looks == [True, True, True, False]


@given(st.data())
def test_a_reader_behind_the_guard_misses_nothing(data: st.DataObject) -> None:
    """A broker hides any not yet stored offsets at each poll; every one must be handled in the end, each in order."""
    total = data.draw(st.integers(1, 30))
    guard, position, handled = OffsetGuard(retries=10_000), 0, []
    guard.expect(("t", 0), 0)
    for _ in range(200):
        hidden = data.draw(st.sets(st.integers(0, total - 1))) if len(handled) < total and _ < 100 else set()
        polled = [At(offset) for offset in range(position, total) if offset not in hidden]
        admission = guard.admit([polled] if polled else [])
        handled += [record.offset for run in admission.runs for record in run]
        guard.advance(admission.runs)
        position = admission.rewinds.get(("t", 0), polled[-1].offset + 1 if polled else position)
        if len(handled) == total:
            break
    assert handled == list(range(total))


def test_a_run_of_rejections_stops_and_one_good_message_ends_it() -> None:
    limit = DeadLetterLimit(DeadLetterSettings(max_consecutive=10))
    assert not limit.exceeded_by(9, 9)
    assert not limit.exceeded_by(2, 1)
    assert not limit.exceeded_by(9, 9)
    assert "in a row" in limit.exceeded_by(1, 1)


def test_the_ratio_counts_only_a_full_window() -> None:
    limit = DeadLetterLimit(DeadLetterSettings(max_consecutive=10_000, max_ratio=0.5))
    assert not limit.exceeded_by(WINDOW - 1, WINDOW - 100)
    assert "of the last" in limit.exceeded_by(1, 0)


def test_a_lease_has_one_holder_until_it_expires(database: Database, clock: object) -> None:
    with database.transaction() as tx:
        assert lease.hold(tx, "role", "a", 10)
        assert not lease.hold(tx, "role", "b", 10)
        assert lease.hold(tx, "role", "a", 10)
    clock.advance(11)
    with database.transaction() as tx:
        assert lease.hold(tx, "role", "b", 10)
        assert not lease.hold(tx, "role", "a", 10)
        lease.release(tx, "role", "a")
        assert not lease.hold(tx, "role", "a", 10)
        lease.release(tx, "role", "b")
        assert lease.hold(tx, "role", "a", 10)


@pytest.mark.parametrize("by", ["row", "page"])
def test_a_new_broker_gets_what_its_readers_still_need(database: Database, clock: object, by: str) -> None:
    read, unread, broken = emit(database, 3)
    with database.transaction() as tx:
        record = Record(LABEL.name, 0, 0, "k", {"ce_id": broken}, b"")
        tx.reject("ground_truth", record, "InvalidInput", "no")
    assert len(send_all(database, "one")) == 4
    handle(database, read, by=by)
    assert outbox.unsend_lost(database, "one", clock.now() - timedelta(days=1)) == 0
    assert outbox.unsend_lost(database, "two", clock.now() - timedelta(days=1)) == 2
    with database.read() as session:
        again = outbox.unsent(session, 10)
    assert [row.event_id for row in again if row.topic == LABEL.name] == [unread]
    assert [row.topic for row in again] == [LABEL.name, LABEL.dead_letter], "strangers' topics are sent again as well"


def test_after_a_long_pause_what_is_unread_is_sent_and_strangers_get_no_old_news(database: Database, clock: object) -> None:
    """A machine that was off for longer than the outbox keeps read events: its memory of a broker is gone, the labels are not."""
    (unread,) = emit(database)
    with database.transaction() as tx:
        tx.reject("inference", Record(LABEL.name, 0, 0, "k", {"ce_id": "other"}, b""), "InvalidInput", "for strangers")
    assert len(send_all(database, "one")) == 2
    clock.advance(1000)
    assert outbox.unsend_lost(database, "two", clock.now() - timedelta(seconds=10)) == 1
    with database.read() as session:
        assert [row.event_id for row in outbox.unsent(session, 10)] == [unread]


def test_an_event_that_is_not_read_is_sent_once_more_and_no_more(database: Database, clock: object) -> None:
    (event_id,) = emit(database)
    send_all(database, "one")
    outcomes = []
    for _ in range(3):
        clock.advance(100)
        outcomes.append(outbox.unsend_unread(database, "one", clock.now() - timedelta(seconds=50)))
        send_all(database, "one")
    assert outcomes == [1, 0, 0]
    assert outbox.unsend_lost(database, "one", clock.now() - timedelta(days=1)) == 0, "the same broker still"
    assert outbox.unsend_lost(database, "two", clock.now() - timedelta(days=1)) == 1, event_id


@pytest.mark.parametrize("by", ["row", "page"])
def test_only_read_events_are_forgotten(database: Database, clock: object, by: str) -> None:
    read, _ = emit(database, 2)
    send_all(database, "one")
    handle(database, read, by=by)
    clock.advance(1000)
    emit(database)
    assert outbox.forget_read(database, clock.now() - timedelta(seconds=10)) == 1
    with database.read() as session:
        assert len(session.exec(select(Outbox)).all()) == 2


def test_what_a_consumer_refuses_stands_in_no_page(database: Database) -> None:
    with database.transaction() as tx:
        tx.reject("ground_truth", Record(LABEL.name, 0, 0, "k", {"ce_id": "bad"}, b""), "InvalidInput", "no")
        tx.note("ground_truth", ["good", "bad"])
        tx.note("ground_truth", ["bad"])
    with database.read() as session:
        assert [page.event_ids for page in session.exec(select(InboxPage))] == ['["good"]']


def test_a_letter_of_a_consumer_that_keeps_pages_is_dealt_with_once_it_was(database: Database) -> None:
    _reject_one(database, {"ce_id": "foreign"})
    dead_letters.replay(database, actor="user:test")
    said = []
    for handled in (["another"], ["foreign"]):
        handle(database, *handled, by="page")
        with database.read() as session:
            said.append(dead_letters.outcome(session, 1))
    assert said == ["on its way", "dealt with"]


def _reject_one(database: Database, headers: dict[str, str], body: bytes = b"rubbish") -> None:
    assert process(database, Joiner(), [Record(LABEL.name, 1, 7, "k", headers, body)]) == 1


def test_a_foreign_letter_is_entered_again_as_it_was(database: Database) -> None:
    _reject_one(database, {"ce_id": "foreign", "x": "y"})
    assert dead_letters.replay(database, actor="user:test") == 1
    with database.read() as session:
        rows = [row for row in outbox.unsent(session, 10) if row.topic == LABEL.name]
        assert session.exec(select(Audit)).one().action == "dead_letter.replayed"
        assert dead_letters.list_letters(session) == []
        assert len(dead_letters.list_letters(session, include_replayed=True)) == 1
    assert [(row.headers, row.body, row.key) for row in rows] == [({"ce_id": "foreign", "x": "y"}, b"rubbish", "k")]


def test_a_letter_that_fails_again_waits_again_and_is_announced_again(database: Database) -> None:
    for _ in range(2):
        _reject_one(database, {"ce_id": "foreign"})
        _reject_one(database, {"ce_id": "foreign"})
        dead_letters.replay(database, actor="user:test")
    _reject_one(database, {"ce_id": "foreign"})
    with database.read() as session:
        (letter,) = dead_letters.list_letters(session)
        announced = [row for row in outbox.unsent(session, 10) if row.topic == LABEL.dead_letter]
    assert letter.replays == 2
    assert len(announced) == 3


def test_our_own_letter_uses_its_outbox_row_and_leaves_other_readers_alone(database: Database) -> None:
    with database.transaction() as tx:
        event_id = tx.emit(LABEL, label(POISON))
    handle(database, event_id, consumer="another")
    with database.read() as session:
        (row,) = outbox.unsent(session, 10)
    send_all(database, "one")
    assert process(database, Joiner(), [Record(row.topic, 0, 0, row.key, row.headers, row.body)]) == 1
    dead_letters.replay(database, consumer="ground_truth", actor="user:test")
    with database.read() as session:
        assert [again.event_id for again in outbox.unsent(session, 10) if again.topic == LABEL.name] == [event_id]
        assert [entry.consumer for entry in session.exec(select(Inbox).where(Inbox.event_id == event_id))] == ["another"]


def test_replay_names_ids_that_do_not_exist(database: Database) -> None:
    with pytest.raises(InvalidInput, match="42"):
        dead_letters.replay(database, ids=[42], actor="user:test")


def test_what_no_broker_takes_is_put_aside_once(database: Database) -> None:
    emit(database)
    with database.read() as session:
        (row,) = outbox.unsent(session, 10)
    with database.transaction() as tx:
        outbox.put_aside(tx, row, "MessageSizeTooLargeError", "too large")
        at = row_time(tx)
    assert outbox.unsend_lost(database, "two", at) == 0
    with database.read() as session:
        assert session.exec(select(DeadLetter)).one().consumer == "relay"
        assert outbox.unsent(session, 10) == []


def row_time(tx: object) -> object:
    return tx.clock.now() - timedelta(days=1)


def test_every_topic_has_a_reader_of_ours() -> None:
    assert all(topic.readers for topic in TOPICS)


@given(st.integers(0, 10_000))
def test_backoff_grows_to_its_limit(failures: int) -> None:
    assert 0.15 <= backoff(failures) <= 37.5


@dataclass
class Raw:
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]
    topic: str = "t"
    partition: int = 0
    offset: int = 3


@given(st.none() | st.binary(), st.none() | st.binary(), st.lists(st.tuples(st.text(), st.none() | st.binary())))
def test_any_bytes_become_a_record(key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes | None]]) -> None:
    record = to_record(Raw(key, value, headers))
    assert record.body == (value or b"")
    assert len(record.key) <= 255
    assert record.event_id


NAMES = st.sampled_from(["ce_id", "traceparent", "a", "a\0", "a\ufffd", ""]) | st.text(max_size=3)


@given(st.lists(st.tuples(NAMES, st.none() | st.binary() | st.sampled_from([b"x\0", b"\xff", b"y"]))), NAMES)
@example([("a\ufffd", None), ("a\0", None), ("a\ufffd", b"\0")], "ce_id")
def test_headers_say_one_by_one_what_they_say_all_together(raw: list[tuple[str, bytes | None]], absent: str) -> None:
    wanted = {name.replace("\0", "\ufffd"): (value or b"").decode(errors="replace").replace("\0", "\ufffd") for name, value in raw}
    assert {name: to_record(Raw(b"", b"", raw)).headers.get(name) for name in wanted} == wanted
    headers = to_record(Raw(b"", b"", raw)).headers
    assert headers.get(absent, "none") == wanted.get(absent, "none")
    assert dict(headers) == wanted == {**headers}
    assert headers == wanted
    assert [headers[name] for name in wanted] == list(wanted.values())
    assert len(headers) == len(wanted)


def test_groups_of_an_embedded_broker_end_with_its_life() -> None:
    assert group_id("a", KafkaSettings(bootstrap="h:1")) == "reclaim.a"
    assert group_id("a", KafkaSettings(bootstrap="h:1", embedded=True, incarnation="0123456789abcdef")) == "reclaim.a.0123456789ab"


def test_security_reaches_the_client() -> None:
    secret = {"sasl_username": "u", "sasl_password": SecretStr("p")}
    options = connection_options(KafkaSettings(bootstrap="a:1, b:2", security_protocol="SASL_SSL", **secret))
    assert options["bootstrap_servers"] == ["a:1", "b:2"]
    assert (options["security_protocol"], options["sasl_mechanism"]) == ("SASL_SSL", "SCRAM-SHA-512")
    assert (options["sasl_plain_username"], options["sasl_plain_password"]) == ("u", "p")
    assert options["ssl_context"].check_hostname
    plain = connection_options(KafkaSettings(bootstrap="a:1"))
    assert "security_protocol" not in plain


def test_a_missing_broker_binary_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.runtime.embedded.import_module", _missing)
    with pytest.raises(BrokerMissing, match=r"reclaim\[embedded\].*RECLAIM_KAFKA_BOOTSTRAP"):
        broker_binary()


def _missing(name: str) -> None:
    raise ImportError(name)


def test_a_state_folder_has_one_supervisor(tmp_path: object) -> None:
    assert read_state(tmp_path) is None
    with lock(tmp_path):
        assert running(tmp_path)
        with pytest.raises(AlreadyRunning, match=str(os.getpid())), lock(tmp_path):
            pass
    assert not running(tmp_path)

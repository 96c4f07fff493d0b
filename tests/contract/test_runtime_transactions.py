"""What a transaction and a batch consumer promise, on both engines: once, together, or not at all."""

import threading
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlmodel import Session, col, func, select

from schemas import topics
from schemas.agent_runs import AgentRun
from schemas.events import AgentReply
from schemas.tables import Audit, DeadLetter, Inbox, Lease, Outbox
from services.runtime.consumer import BatchConsumer, process
from services.runtime.database import Database
from services.runtime.errors import InvalidInput, Transient
from services.runtime.messages import Received, Record, headers_of
from services.runtime.migrations import upgrade

AT = datetime(2026, 3, 2, tzinfo=UTC)
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def reply(text: str = "done") -> AgentReply:
    return AgentReply(command_id="c1", thread="console", text=text)


def record(event_id: str, text: str = "done", offset: int = 0) -> Record:
    headers = headers_of(topics.AGENT_REPLY, event_id, AT, TRACE)
    return Record(topics.AGENT_REPLY.name, 0, offset, "console", headers, reply(text).model_dump_json().encode())


def count(session: Session, table: Any) -> int:
    return int(session.exec(select(func.count()).select_from(table)).one())


class Recorder(BatchConsumer[None]):
    """Writes one run and one event per reply; says no to the text `poison`."""

    name = "recorder"
    topics = (topics.AGENT_REPLY,)

    def __init__(self, before: Callable[[], None] = lambda: None) -> None:
        self.before = before

    def apply(self, tx: Any, batch: Sequence[Received[Any]], prepared: None) -> None:
        self.before()
        for event in batch:
            if event.data.text == "poison":
                raise InvalidInput("the reply is poison")
            tx.session.add(AgentRun(run_id=event.event_id, cause=event.event_id, planner="rules", created_at=tx.clock.now()))
            tx.emit(topics.AGENT_REPLY, reply(), cause=event)


def test_an_event_with_a_natural_id_is_emitted_once(database: Database) -> None:
    for _ in range(3):
        with database.transaction() as tx:
            assert tx.emit(topics.AGENT_REPLY, reply(), event_id="natural", cause=TRACE) == "natural"
    with database.read() as session:
        row = session.exec(select(Outbox)).one()
    assert row.headers["ce_id"] == "natural"
    assert row.headers["ce_type"] == "org.reclaim.agent.reply.v1"
    assert row.headers["traceparent"] == TRACE
    assert AgentReply.model_validate_json(row.body) == reply()
    assert row.key == "console"


def test_events_without_a_natural_id_are_all_emitted(database: Database) -> None:
    with database.transaction() as tx:
        assert tx.emit(topics.AGENT_REPLY, reply()) != tx.emit(topics.AGENT_REPLY, reply())
    with database.read() as session:
        assert count(session, Outbox) == 2


def test_a_rollback_leaves_nothing(database: Database) -> None:
    with pytest.raises(RuntimeError, match="power cut"), database.transaction() as tx:
        tx.claim("recorder", ["e1"])
        tx.emit(topics.AGENT_REPLY, reply())
        tx.reject("recorder", record("e2"), "InvalidInput", "bad")
        tx.audit("user:tester", "tested", "subject")
        raise RuntimeError("power cut")
    with database.read() as session:
        assert [count(session, table) for table in (Inbox, Outbox, DeadLetter, Audit)] == [0, 0, 0, 0]


def test_insert_new_returns_only_what_is_new(database: Database) -> None:
    def leases(*names: str) -> list[Lease]:
        return [Lease(name=name, owner="o", expires_at=AT) for name in names]

    with database.transaction() as tx:
        assert sorted(tx.insert_new(Lease, leases("a", "b"), returning="name")) == ["a", "b"]
        assert tx.insert_new(Lease, leases("b", "c"), returning="name") == ["c"]
        assert tx.insert_new(Lease, [], returning="name") == []
        many = leases(*(f"n{i}" for i in range(1200)))
        assert len(tx.insert_new(Lease, many, returning="name")) == 1200


def test_a_rejection_is_recorded_and_announced_once(database: Database) -> None:
    for _ in range(2):
        with database.transaction() as tx:
            tx.reject("recorder", record("e1", offset=7), "InvalidInput", "unreadable" * 200)
    with database.read() as session:
        letter, announced = session.exec(select(DeadLetter)).one(), session.exec(select(Outbox)).one()
    assert (letter.topic, letter.offset, letter.error) == (topics.AGENT_REPLY.name, 7, "InvalidInput")
    assert len(letter.reason) == 1000
    assert announced.topic == "agent.reply.v1.dlq"
    assert announced.headers["dlq_offset"] == "7"
    assert announced.headers["ce_id"] == "e1"
    assert announced.body == letter.body


def test_four_threads_and_duplicates_have_each_effect_once(database: Database) -> None:
    barrier = threading.Barrier(4)
    faults: list[BaseException] = []

    def consume(seed: int) -> None:
        ids = [f"event-{(i * (seed + 1)) % 10}" for i in range(40)]
        barrier.wait()
        try:
            for start in range(0, 40, 8):
                process(database, Recorder(), [record(identity) for identity in ids[start : start + 8]])
        except BaseException as fault:  # noqa: BLE001 - shown by the assertion below
            faults.append(fault)

    threads = [threading.Thread(target=consume, args=(seed,)) for seed in (0, 2, 6, 8)]
    [thread.start() for thread in threads]
    [thread.join(60) for thread in threads]
    assert faults == []
    with database.read() as session:
        assert [count(session, table) for table in (AgentRun, Outbox, Inbox)] == [10, 10, 10]


def test_a_handler_that_fails_leaves_the_batch_unhandled(database: Database) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        process(database, Recorder(fail), [record("e1")])
    with database.read() as session:
        assert count(session, Inbox) == 0
    assert process(database, Recorder(), [record("e1")]) == 0
    with database.read() as session:
        assert count(session, AgentRun) == 1


def test_one_poisonous_event_does_not_hold_up_its_batch(database: Database) -> None:
    batch = [record("e1"), record("e2", "poison", 1), record("e3", offset=2)]
    assert process(database, Recorder(), batch) == 1
    assert process(database, Recorder(), batch) == 0
    with database.read() as session:
        assert sorted(session.exec(select(AgentRun.run_id))) == ["e1", "e3"]
        assert session.exec(select(DeadLetter.reason)).one() == "the reply is poison"
        assert count(session, Inbox) == 3


@pytest.mark.parametrize("body", [b"", b"{", b"null", b"\xff\xfe", b'{"command_id": 1}', b"[" * 5000])
def test_rubbish_is_rejected_with_a_reason_and_without_its_value(database: Database, body: bytes) -> None:
    bad = Record(topics.AGENT_REPLY.name, 0, 3, "k", headers_of(topics.AGENT_REPLY, "bad", AT), body)
    assert process(database, Recorder(), [bad, record("good")]) == 1
    with database.read() as session:
        letter = session.exec(select(DeadLetter)).one()
        assert letter.reason.startswith("the body breaks its contract")
        assert letter.body == body
        assert session.exec(select(AgentRun.run_id)).one() == "good"


def test_an_event_without_id_is_rejected_at_its_position(database: Database) -> None:
    assert process(database, Recorder(), [Record(topics.AGENT_REPLY.name, 2, 5, "k", {}, b"{}")]) == 1
    with database.read() as session:
        assert session.exec(select(DeadLetter.event_id)).one() == "agent.reply.v1/2/5"


def test_times_come_back_aware_and_in_utc(database: Database) -> None:
    with database.transaction() as tx:
        tx.emit(topics.AGENT_REPLY, reply())
    with database.read() as session:
        assert session.exec(select(Outbox.created_at)).one() == database.clock.now()
        assert session.exec(select(Outbox.created_at)).one().utcoffset().total_seconds() == 0


def test_foreign_keys_are_enforced(database: Database) -> None:
    columns = "model, version, state, bundle, sha256, origin, dataset, classes, metrics, created_at"
    values = "'none', 1, 'candidate', '', '', '', '', '[]', '{}', '2026-01-01 00:00:00'"
    statement = f"INSERT INTO model_version ({columns}) VALUES ({values})"
    with pytest.raises(Exception, match=r"(?i)foreign key"), database.transaction() as tx:
        tx.session.execute(text(statement))


def test_a_reader_does_not_wait_for_a_writer(database: Database) -> None:
    with database.transaction() as tx:
        tx.emit(topics.AGENT_REPLY, reply())
        tx.session.flush()
        with database.read() as session:
            assert count(session, Outbox) == 0


@pytest.mark.postgres
def test_a_stopped_server_is_transient_and_comes_back(postgres_server: Any) -> None:
    database = Database(postgres_server.url)
    upgrade(database)
    with pytest.raises(Transient), database.transaction() as tx:
        tx.emit(topics.AGENT_REPLY, reply(), event_id="lost")
        postgres_server.stop()
        tx.emit(topics.AGENT_REPLY, reply(), event_id="lost too")
    with pytest.raises(Transient):
        process(database, Recorder(), [record(uuid.uuid4().hex)])
    postgres_server.start()
    assert process(database, Recorder(), [record("after")]) == 0
    with database.read() as session:
        assert session.exec(select(Outbox.event_id).where(col(Outbox.event_id).like("lost%"))).all() == []
        assert session.exec(select(AgentRun.run_id)).one() == "after"
    database.close()


def test_a_locked_sqlite_file_is_transient(sqlite_database: Database) -> None:
    hasty = Database(sqlite_database.engine.url.render_as_string())
    with hasty.engine.connect() as connection:
        connection.rollback()
        connection.connection.driver_connection.execute("PRAGMA busy_timeout=50")
    with sqlite_database.transaction() as holder:
        holder.emit(topics.AGENT_REPLY, reply())
        with pytest.raises(Transient), hasty.transaction() as tx:
            tx.emit(topics.AGENT_REPLY, reply())
    hasty.close()


def test_a_database_that_may_only_be_read_is_transient(sqlite_database: Database, tmp_path: Path) -> None:
    """A file system that was mounted read-only after a fault, or a restored file with another owner: somebody will mend it."""
    with sqlite_database.read() as session:
        file = session.connection().engine.url.database
    reader = Database(f"sqlite:///file:{file}?mode=ro&uri=true")
    with pytest.raises(Transient, match="readonly"), reader.transaction() as tx:
        tx.audit("somebody", "tried", "it")
    reader.close()


@pytest.mark.postgres
def test_a_server_that_takes_no_writes_is_transient(postgres_server: Any) -> None:
    """A standby during a failover."""
    database = Database(postgres_server.url)
    upgrade(database)
    with pytest.raises(Transient, match="read-only"), database.transaction() as tx:
        tx.session.execute(text("SET TRANSACTION READ ONLY"))
        tx.audit("somebody", "tried", "it")
        tx.session.flush()
    database.close()


def test_a_statement_that_fails_does_not_name_its_values(database: Database) -> None:
    """What is logged of an unforeseen fault holds no value: a row of the archive's index has UIDs."""
    statement = text("SELECT 1 FROM nowhere WHERE patient = :patient")
    with pytest.raises(DBAPIError) as failed, database.read() as session:
        session.connection().execute(statement, {"patient": "KANARIE"})
    assert "KANARIE" not in str(failed.value)

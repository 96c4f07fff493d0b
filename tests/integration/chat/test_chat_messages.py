"""Messages on their way, on both databases: claimed once, fenced, edited, in order, forgotten."""

import threading
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlmodel import col, select

from listeners.chat import repository
from listeners.chat.cards import Card
from schemas.chat import ChatMessage, ChatThread
from schemas.chat_settings import ChatSettings
from services.runtime.database import Database

CHAT = ChatSettings(first_delay_s=5.0, max_attempts=3)


def put(database, key, text="x", *, thread="slack:T:C:1", channel="slack", **options):
    with database.transaction() as tx:
        repository.remember(tx, thread, channel, {"channel": "C"})
        tx.session.flush()
        repository.put(tx, tx.session.get_one(ChatThread, thread), key, "reply", Card(text=text), **options)


def claim(database, owner="one", channel="slack"):
    with database.transaction() as tx:
        return repository.claim_next(tx, owner, channel, CHAT)


def sent(database, taken, name="ts"):
    with database.transaction() as tx:
        repository.sent(tx, taken, name, {})


def rows(database):
    with database.read() as session:
        return list(session.exec(select(ChatMessage).order_by(col(ChatMessage.id))))


def test_a_message_is_one_worker_s_at_a_time(database):
    for number in range(20):
        put(database, f"k{number}", thread=f"slack:T:C:{number}")
    taken: list[str] = []

    def work(owner):
        while (mine := claim(database, owner)) is not None:
            taken.append(mine.message_id)
            sent(database, mine)

    workers = [threading.Thread(target=work, args=(f"w{number}",)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    while (mine := claim(database, "last")) is not None:
        taken.append(mine.message_id)
        sent(database, mine)
    assert len(taken) == len(set(taken)) == 20


def test_a_dead_worker_s_message_is_taken_over_and_the_dead_may_not_write(database, clock):
    put(database, "k")
    first = claim(database)
    assert claim(database, "two") is None
    clock.advance(CHAT.lease_s + 1)
    second = claim(database, "two")
    assert (first.uncertain, second.uncertain) == (False, True)
    with pytest.raises(repository.DeliveryLost):
        sent(database, first)
    sent(database, second, "ts2")
    assert rows(database)[0].external_id == "ts2"


def test_an_edit_while_it_is_being_sent_is_sent_afterwards(database):
    put(database, "k", "one")
    taken = claim(database)
    put(database, "k", "two")
    sent(database, taken)
    again = claim(database)
    assert (again.card.text, again.external_id, again.revision) == ("two", "ts", 2)
    sent(database, again)
    assert claim(database) is None


def test_edits_wait_for_their_time_and_become_one(database, clock):
    put(database, "k", "0")
    sent(database, claim(database))
    for number in range(1, 6):
        put(database, "k", str(number), not_before_s=10.0)
        clock.advance(1)
    assert claim(database) is None
    clock.advance(6)
    assert claim(database).card.text == "5"


def test_the_same_text_is_no_edit(database):
    put(database, "k", "same")
    sent(database, claim(database))
    put(database, "k", "same")
    assert claim(database) is None


def test_a_pause_holds_the_whole_channel_and_no_other(database, clock):
    put(database, "a", thread="slack:1")
    put(database, "b", thread="slack:2")
    put(database, "c", thread="teams:1", channel="teams")
    taken = claim(database)
    with database.transaction() as tx:
        repository.hold_channel(tx, "slack", 30.0)
        repository.postpone(tx, taken, "429", CHAT, wait_s=30.0, uncertain=False)
    assert claim(database) is None
    assert claim(database, channel="teams") is not None
    clock.advance(31)
    assert claim(database) is not None


def test_an_attempt_that_was_given_back_does_not_count(database):
    put(database, "k")
    for _ in range(10):
        taken = claim(database)
        with database.transaction() as tx:
            repository.release(tx, taken)
    assert (rows(database)[0].attempt, rows(database)[0].uncertain) == (0, False)


def test_after_the_last_attempt_it_is_given_up_and_audited(database, clock):
    put(database, "k")
    gave_up = []
    for _ in range(CHAT.max_attempts):
        clock.advance(3600)
        taken = claim(database)
        with database.transaction() as tx:
            gave_up.append(repository.postpone(tx, taken, "away", CHAT, wait_s=None, uncertain=False))
    assert gave_up == [False, False, True]
    with database.read() as session:
        assert repository.waiting(session) == (0, 1)


def test_a_message_that_keeps_failing_holds_its_thread_up_for_a_while_only(database, clock):
    patient = ChatSettings(first_delay_s=1.0, longest_delay_s=2.0)
    put(database, "stuck")
    put(database, "behind")
    seen = []
    for _ in range(repository.PATIENCE + 3):
        clock.advance(10)
        taken = claim(database)
        seen.append(taken.message_id)
        with database.transaction() as tx:
            repository.postpone(tx, taken, "odd", patient, wait_s=None, uncertain=False)
    stuck = repository.message_id("slack:T:C:1", "stuck")
    assert set(seen[: repository.PATIENCE]) == {stuck}
    assert repository.message_id("slack:T:C:1", "behind") in seen


def test_what_nobody_brings_is_kept_for_those_who_look(database):
    put(database, "k", thread="http:ada:main", channel="http")
    assert claim(database, channel="http") is None
    with database.read() as session:
        assert [Card.model_validate(row.content).text for row in repository.messages_of(session, "http:ada:main")] == ["x"]


def test_old_messages_and_threads_are_forgotten_and_waiting_ones_are_not(database, clock):
    put(database, "old", thread="slack:old")
    sent(database, claim(database))
    put(database, "waits", thread="slack:waits")
    clock.advance(100 * 86_400)
    put(database, "new", thread="slack:new")
    with database.transaction() as tx:
        assert repository.forget(tx, clock.now() - timedelta(days=90)) == 1
    with database.read() as session:
        assert {row.thread for row in session.exec(select(ChatThread))} == {"slack:waits", "slack:new"}


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(st.tuples(st.sampled_from(["put", "edit", "send", "lose", "fail", "restart"]), st.integers(0, 3)), max_size=25)
)
def test_whatever_happens_each_message_ends_as_it_was_last_written(sqlite_url, clock, steps):
    """A channel that remembers by message id, as Slack lets us ask: posts never double, order in a thread is kept."""
    database = Database(sqlite_url, clock)
    with database.transaction() as tx:
        for table in (ChatMessage, ChatThread):
            for row in tx.session.exec(select(table)):
                tx.session.delete(row)
    posted: dict[str, str] = {}
    wanted: dict[str, str] = {}
    for number, (step, which) in enumerate(steps):
        if step in {"put", "edit"}:
            wanted[str(which)] = str(number)
            put(database, str(which), str(number))
        else:
            _bring(database, clock, posted, step)
    for _ in range(40):
        clock.advance(1000)
        _bring(database, clock, posted, "send")
    names = {repository.message_id("slack:T:C:1", key): text for key, text in wanted.items()}
    given_up = {row.message_id for row in rows(database) if row.state == "given_up"}
    assert {name: text for name, text in posted.items() if name not in given_up} == {
        name: text for name, text in names.items() if name not in given_up
    }
    database.close()


def _bring(database, clock, posted, step):
    taken = claim(database, f"owner-{len(posted)}-{step}")
    if taken is None:
        return
    if not taken.external_id and not taken.uncertain:
        assert taken.message_id not in posted, "posted twice"
    if step in {"send", "lose", "restart"}:
        posted[taken.message_id] = taken.card.text
    if step == "send":
        sent(database, taken, taken.message_id)
    elif step == "restart":
        clock.advance(CHAT.lease_s + 1)
    else:
        with database.transaction() as tx:
            repository.postpone(tx, taken, step, CHAT, wait_s=None, uncertain=step == "lose")
        clock.advance(1000)

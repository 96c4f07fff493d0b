"""What a clock that ran ahead has written holds nothing back once the clock is right again, on SQLite and PostgreSQL.

A machine that boots with a wrong clock is put right by NTP minutes later; a process that was killed in between has left
leases and times that lie hours or years ahead.
"""

import json
from datetime import timedelta

import pytest

from agents import repository as agents
from listeners.chat import repository as chat
from schemas.chat import ChatMessage, ChatThread
from schemas.chat_settings import ChatSettings
from schemas.results import ResultJob
from schemas.settings import ResultsSettings
from schemas.tables import Job, ModelVersion, Order
from schemas.vocabulary import JobState, MessageState, OrderKind, OrderState, Remedy, ResultState
from services.assembly import announcement_repository as commitments
from services.assembly.commitments import Request
from services.remediation import jobs as repairs
from services.results import jobs as results
from services.runtime import lease, registry

AHEAD = timedelta(days=400)
KILLED = "host:1:killed"


def rows(database, *these):
    with database.transaction() as tx:
        tx.session.add_all(these)


def result(at, **changes):
    facts = {"job_id": "r1", "state": ResultState.QUEUED, "destination": "pacs", "study_key": "a" * 32, "model": "m"}
    facts |= {"version": 1, "revision": 1, "topic": "t", "partition": 0, "offset": 0, "key": "k", "headers": {}}
    facts |= {"body": json.dumps(BODY).encode(), "created_at": at, "updated_at": at, "due_at": at}
    return ResultJob(**facts | changes)


BODY = {
    "study_key": "a" * 32,
    "patient_key": "b" * 32,
    "revision": 1,
    "model": "m",
    "version": 1,
    "serving": True,
    "task": "t",
    "probabilities": {"a": 1.0},
    "predicted": "a",
    "acquired_at": "2026-03-02T00:00:00Z",
    "scored_at": "2026-03-02T00:00:00Z",
}


@pytest.mark.parametrize("seconds", [5.0, 60.0])
def test_a_lease_from_the_future_is_taken_over(database, clock, seconds):
    clock.at += AHEAD
    with database.transaction() as tx:
        assert lease.hold(tx, "relay", KILLED, seconds)
    clock.at -= AHEAD
    with database.transaction() as tx:
        assert lease.hold(tx, "relay", "next", seconds)
        assert not lease.hold(tx, "relay", "third", seconds)


def test_a_lease_of_a_host_whose_clock_is_a_little_ahead_is_respected(database, clock):
    clock.at += timedelta(seconds=50)
    with database.transaction() as tx:
        lease.hold(tx, "relay", "other host", 10)
    clock.at -= timedelta(seconds=50)
    with database.transaction() as tx:
        assert not lease.hold(tx, "relay", "ours", 10)


def test_a_repair_under_way_is_taken_up(database, clock):
    now = clock.now()
    order = {"kind": OrderKind.REMEDY, "state": OrderState.RUNNING, "model": "m", "reason": "r", "actor": "a"}
    rows(database, Order(order_id="o1", idempotency_key="o1", created_at=now, updated_at=now, **order))
    job = {"order_id": "o1", "model": "m", "remedy": Remedy.PARTIAL, "created_at": now, "updated_at": now}
    rows(database, Job(job_id="o1", state=JobState.RUNNING, owner=KILLED, attempt=1, lease_until=now + AHEAD, **job))
    with database.transaction() as tx:
        claim = repairs.claim_next(tx, "next", 300, 5)
    assert claim is not None
    assert claim.attempt == 2


@pytest.mark.parametrize("state", [ResultState.QUEUED, ResultState.SENDING])
def test_a_result_for_the_pacs_is_sent(database, clock, state):
    sending = state is ResultState.SENDING
    now, lease_until = clock.now(), clock.now() + AHEAD if sending else None
    waits = now if sending else now + AHEAD
    rows(database, result(now, state=state, owner=KILLED if sending else "", attempt=1, lease_until=lease_until, due_at=waits))
    with database.transaction() as tx:
        claim = results.claim_next(tx, "next", ResultsSettings(destination="pacs"))
    assert claim is not None
    assert claim.attempt == 2


def test_a_chat_message_is_delivered(database, clock):
    now = clock.now()
    rows(database, ChatThread(thread="slack:t", channel="slack", used_at=now))
    message = {"message_id": "m1", "thread": "slack:t", "kind": "reply", "content": {"text": "x"}, "created_at": now, "due_at": now}
    rows(database, ChatMessage(state=MessageState.SENDING, owner=KILLED, attempt=1, lease_until=now + AHEAD, **message))
    with database.transaction() as tx:
        assert chat.claim_next(tx, "next", "slack", ChatSettings()) is not None


def test_a_commitment_report_is_delivered(database, clock):
    clock.at += AHEAD
    with database.transaction() as tx:
        assert commitments.insert_commitment(tx, Request("1.2.3", "PEER", "OURS", ()))
    clock.at -= AHEAD
    with database.read() as session:
        assert commitments.has_reports_due(session, clock.now())
    with database.transaction() as tx:
        assert [each.transaction_uid for each in commitments.claim_reports(tx, timedelta(minutes=10), 5)] == ["1.2.3"]
        assert commitments.claim_reports(tx, timedelta(minutes=10), 5) == []


def test_the_next_repair_has_neither_to_cool_down_nor_to_wait_for_the_budget(database, clock):
    with database.transaction() as tx:
        registry.register_model(tx, "m", "t", ["a", "b"], {})
        row = ModelVersion(model="m", version=1, bundle="b", sha256="0", created_at=clock.now())
        registry.add_version(tx, row, [], actor="test")
    now, ahead = clock.now(), clock.now() + AHEAD
    order = {"kind": OrderKind.REMEDY, "state": OrderState.DONE, "model": "m", "reason": "r", "actor": "a", "remedy": Remedy.FULL}
    rows(database, Order(order_id="o1", idempotency_key="o1", created_at=ahead, updated_at=ahead, **order))
    with database.read() as session:
        found = agents.facts(session, "m", now, label_request_after=now - timedelta(days=7))
    assert (found.last_remedy, found.last_remedy_at, found.remedies_last_day) == (Remedy.FULL, None, 0)


def test_labels_are_asked_for_although_a_request_is_dated_ahead(database, clock):
    with database.transaction() as tx:
        registry.register_model(tx, "m", "t", ["a", "b"], {})
        row = ModelVersion(model="m", version=1, bundle="b", sha256="0", created_at=clock.now())
        registry.add_version(tx, row, [], actor="test")
    order = {"kind": OrderKind.LABEL_REQUEST, "state": OrderState.DONE, "model": "m", "reason": "r", "actor": "a"}
    for name, at in (("ahead", clock.now() + AHEAD), ("now", clock.now())):
        rows(database, Order(order_id=name, idempotency_key=name, created_at=at, updated_at=at, **order))
        with database.read() as session:
            found = agents.facts(session, "m", clock.now(), label_request_after=clock.now() - timedelta(days=7))
        assert found.open_label_request == (None if name == "ahead" else "now")

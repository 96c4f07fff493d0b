"""The overview reads the same on both databases."""

from datetime import timedelta
from typing import Any

import pytest

from agents.overview.facts import Consumer
from agents.overview.reading import LOOKED_AT, read
from schemas.inbox_pages import InboxPage
from schemas.settings import Settings
from schemas.tables import Case, DeadLetter, Evaluation, Inbox, ModelVersion, Outbox, RegisteredModel, Study
from services.runtime.database import Database

STUDIES, PREDICTIONS = "imaging.study.received.v1", "inference.prediction.v1"


def event(name: str, topic: str, at: Any, **facts: Any) -> Outbox:
    return Outbox(event_id=name, topic=topic, key="k", headers={"ce_id": name}, body=b"{}", created_at=at, **facts)


def consumers(database: Database, clock: Any) -> dict[str, Consumer]:
    with database.read() as session:
        return {each.name: each for each in read(session, Settings(), clock.now()).consumers}


def test_an_empty_database_has_an_overview(database: Database, clock: Any) -> None:
    with database.read() as session:
        found = read(session, Settings(), clock.now())
    assert (found.studies.received, found.studies.last_received_at, found.models, found.work) == (0, None, (), ())
    assert (found.letters.waiting, found.outgoing.waiting) == (0, 0)
    assert {each.waiting for each in found.consumers} == {0}
    assert [each.name for each in found.consumers][:2] == ["inference", "ground_truth"]


def test_what_waits_for_a_consumer_is_what_it_has_not_dealt_with(database: Database, clock: Any) -> None:
    now = clock.now()
    sent = {"sent_at": now, "sent_to": "b"}
    with database.transaction() as tx:
        tx.session.add_all(event(f"v{number}", STUDIES, now - timedelta(minutes=number), **sent) for number in range(1, 6))
        tx.session.add(Inbox(consumer="inference", event_id="v5", handled_at=now - timedelta(minutes=4)))
        tx.session.add(Inbox(consumer="another", event_id="v4", handled_at=now))
        letter = {"topic": STUDIES, "partition": 0, "offset": 0, "body": b"", "error": "e", "reason": "r", "created_at": now}
        tx.session.add(DeadLetter(consumer="inference", event_id="v3", **letter))
        refused = event("v6", STUDIES, now, sent_at=now, sent_to="refused")
        foreign = event("replay-1-1", STUDIES, now, **sent)
        foreign.headers = {"ce_id": "of a stranger"}
        tx.session.add_all([refused, foreign])
    found = consumers(database, clock)
    inference = found["inference"]
    assert (inference.waiting, inference.at_least) == (3, False)
    assert inference.oldest_waiting == now - timedelta(minutes=4)
    assert inference.last_active_at == now - timedelta(minutes=4)
    assert found["ground_truth"].waiting == 0
    assert found["ground_truth"].last_active_at is None


def test_what_stands_in_a_page_is_dealt_with(database: Database, clock: Any) -> None:
    now = clock.now()
    with database.transaction() as tx:
        tx.session.add_all(event(f"v{number}", PREDICTIONS, now, sent_at=now, sent_to="b") for number in range(5))
        for number, consumer in enumerate(["ground_truth", "ground_truth", "another"]):
            tx.session.add(
                InboxPage(consumer=consumer, handled_at=now - timedelta(minutes=number), event_ids=f'["v{number}", "x"]')
            )
    found = consumers(database, clock)
    assert (found["ground_truth"].waiting, found["drift"].waiting) == (3, 5)
    assert (found["ground_truth"].last_active_at, found["drift"].last_active_at) == (now, None)


def test_a_long_backlog_is_told_as_at_least_so_many(database: Database, clock: Any) -> None:
    with database.transaction() as tx:
        tx.session.add_all(event(f"v{number}", PREDICTIONS, clock.now()) for number in range(LOOKED_AT + 1))
    found = consumers(database, clock)
    assert all((found[name].waiting, found[name].at_least) == (LOOKED_AT, True) for name in ("ground_truth", "results", "drift"))
    with database.read() as session:
        assert read(session, Settings(), clock.now()).outgoing.waiting == LOOKED_AT + 1


@pytest.mark.parametrize(("order", "since"), [(["healthy", "degraded", "degraded"], 2), (["degraded", "healthy", "degraded"], 1)])
def test_a_status_holds_since_it_came(database: Database, clock: Any, order: list[str], since: int) -> None:
    now = clock.now()
    with database.transaction() as tx:
        tx.session.add(RegisteredModel(name="lung", task="t", classes=["a"], champion=1, created_at=now))
        tx.session.flush()
        tx.session.add(ModelVersion(model="lung", version=1, state="champion", bundle="x", sha256="0", created_at=now))
        counts = {"cases": 9, "metrics": [], "evidence": {}, "reclaim_rule": False, "summary": "", "diagnosis": "none"}
        for number, status in enumerate(order, 1):
            at = now - timedelta(days=len(order) - number + 1)
            shared = {"model": "lung", "version": 1, "status": status, "stream_cases": number, "evaluated_at": at}
            tx.session.add(Evaluation(evaluation_id=f"e{number}", batch_id=f"b{number}", **shared, **counts))
        key = {"study_key": "s", "patient_key": "p", "model": "lung", "version": 1, "task": "t", "role": "trigger"}
        tx.session.add(Case(**key, predicted="a", probabilities={}, acquired_at=now, scored_at=now))
        times = {"acquired_at": now, "first_instance_at": now, "last_instance_at": now}
        tx.session.add(Study(study_uid="1.2", study_key="s", patient_key="p", state="open", **times))
    with database.read() as session:
        found = read(session, Settings(), now)
    (lung,) = found.models
    assert (lung.status, lung.since) == ("degraded", now - timedelta(days=since))
    assert (lung.unlabelled, lung.last_scored_at, lung.judged_cases) == (1, now, 3)
    assert lung.outlook is not None
    assert (lung.outlook.ready, lung.outlook.missing) == (0, 100)
    assert (found.studies.received, found.studies.open, found.studies.last_day) == (1, 1, 1)

"""Orders and jobs on both engines: carried out once, claimed once, fenced, withdrawn, given up."""

import asyncio
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import select

from schemas.events import MaintenanceOrder, MaintenancePromotion
from schemas.tables import Audit, Job, ModelVersion, Order, Outbox, RegisteredModel
from schemas.topics import ORDER, PROMOTION, RUN
from schemas.vocabulary import JobState, OrderKind, OrderState, Remedy, VersionState
from services.remediation import jobs
from services.remediation.app import build
from services.remediation.handlers import Remediation
from services.remediation.worker import JobWorker
from services.runtime import registry
from services.runtime.consumer import process
from services.runtime.messages import Record, headers_of
from services.runtime.service import Context, StopSignal

AT = datetime(2026, 3, 2, tzinfo=UTC)
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def order(kind: OrderKind, order_id: str = "o1", **changes: Any) -> MaintenanceOrder:
    fields = {"order_id": order_id, "kind": kind, "model": "chest", "reason": "recall fell", "actor": "agent:orchestrator"}
    return MaintenanceOrder(**(fields | {"ordered_at": AT} | changes))


def record(each: MaintenanceOrder, event: str) -> Record:
    headers = headers_of(ORDER, f"{event}{each.order_id}", AT, TRACE)
    return Record(ORDER.name, 0, 0, each.model, headers, each.model_dump_json().encode())


def give(context: Context, *orders: MaintenanceOrder, event: str = "") -> int:
    return process(context.database, Remediation(context.settings), [record(each, event) for each in orders])


def remedy(order_id: str = "o1", **changes: Any) -> MaintenanceOrder:
    return order(OrderKind.REMEDY, order_id, **({"remedy": Remedy.PARTIAL} | changes))


@pytest.fixture
def chest(context: Context) -> Context:
    """Model `chest`: version 1 archived behind champion 2."""
    with context.database.transaction() as tx:
        registry.register_model(tx, "chest", "pneumonia", ["a", "b"], {})
        for number, state in ((1, VersionState.CANDIDATE), (2, VersionState.CHALLENGER)):
            row = ModelVersion(model="chest", version=number, state=state, bundle="b", sha256="0", created_at=tx.clock.now())
            registry.add_version(tx, row, [], actor="test")
        registry.promote(tx, "chest", 2, actor="test")
    return context


def stored(context: Context, table: Any, key: Any) -> Any:
    with context.database.read() as session:
        return session.get_one(table, key)


def emitted(context: Context, topic: str) -> list[bytes]:
    with context.database.read() as session:
        return list(session.exec(select(Outbox.body).where(Outbox.topic == topic).order_by(Outbox.id)))


def claim(context: Context, owner: str = "worker", lease_s: float = 60) -> jobs.Claim | None:
    with context.database.transaction() as tx:
        return jobs.claim_next(tx, owner, lease_s, context.settings.remediation.max_attempts)


def test_a_rollback_is_carried_out_once_and_announced(chest: Context) -> None:
    for event in ("first", "again"):
        assert give(chest, order(OrderKind.ROLLBACK), event=event) == 0
    assert stored(chest, RegisteredModel, "chest").champion == 1
    row = stored(chest, Order, "o1")
    assert (row.state, row.explanation) == (OrderState.DONE, "Version 1 serves again; version 2 was taken out.")
    (body,) = emitted(chest, PROMOTION.name)
    said = MaintenancePromotion.model_validate_json(body)
    assert (said.champion_before, said.champion_after, said.origin, said.order_id) == (2, 1, "rollback", "o1")


def test_a_rollback_goes_to_the_version_that_the_order_names(chest: Context) -> None:
    give(chest, order(OrderKind.ROLLBACK, settings={"to_version": 1}))
    give(chest, order(OrderKind.ROLLBACK, "o2", settings={"to_version": 2}))
    assert stored(chest, RegisteredModel, "chest").champion == 2, "what was taken out may come back"
    give(chest, order(OrderKind.ROLLBACK, "o3", settings={"to_version": 7}))
    assert "no version 7" in stored(chest, Order, "o3").explanation


def test_an_order_about_a_retired_model_says_why(chest: Context) -> None:
    with chest.database.transaction() as tx:
        registry.retire(tx, "chest", actor="test")
    give(chest, remedy(version=2), remedy("o2"))
    assert "retired" in stored(chest, Order, "o1").explanation


def test_a_rollback_without_an_earlier_champion_fails_with_its_reason(chest: Context) -> None:
    give(chest, order(OrderKind.ROLLBACK), order(OrderKind.ROLLBACK, "o2"))
    assert stored(chest, Order, "o1").state == OrderState.DONE
    row = stored(chest, Order, "o2")
    assert row.state == OrderState.FAILED
    assert "no earlier champion" in row.explanation


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (order(OrderKind.ROLLBACK, version=1), "does not serve any more"),
        (remedy(version=1), "does not serve any more"),
        (remedy(remedy=Remedy.FIX_FEED), "possible are rethreshold, recalibrate"),
        (remedy(settings={"epoch": 3}), "epoch"),
        (remedy(model="brain"), "registered: chest"),
        (order(OrderKind.STOP_SERVING, model="brain"), "registered: chest"),
    ],
)
def test_an_order_that_cannot_be_carried_out_says_why(chest: Context, bad: MaintenanceOrder, why: str) -> None:
    assert give(chest, bad) == 0
    row = stored(chest, Order, "o1")
    assert row.state == OrderState.FAILED
    assert why in row.explanation
    assert stored(chest, RegisteredModel, "chest").champion == 2
    assert claim(chest) is None


def test_an_order_outside_the_change_control_plan_is_refused_with_the_clause(chest: Context) -> None:
    example = Path(__file__).parents[2] / "docs" / "examples" / "change-plan.yaml"
    folder = chest.settings.state_dir / "plans"
    folder.mkdir(parents=True)
    (folder / "chest.yaml").write_text(example.read_text().replace("model: brain-mri", "model: chest"))
    give(chest, remedy("o1", remedy=Remedy.FULL), remedy("o2", settings={"epochs": 99}), remedy("o3", settings={"epochs": 9}))
    assert "full is no modification of the change control plan 1.0" in stored(chest, Order, "o1").explanation
    assert "epochs 99 is outside 1 to 30" in stored(chest, Order, "o2").explanation
    assert "clause M3" in stored(chest, Order, "o2").explanation
    assert [stored(chest, Order, name).state for name in ("o1", "o2")] == [OrderState.FAILED] * 2
    taken = claim(chest)
    assert taken is not None
    assert taken.order_id == "o3"


def test_a_plan_that_has_ended_or_cannot_be_read_stops_every_repair_and_no_rollback(chest: Context) -> None:
    example = Path(__file__).parents[2] / "docs" / "examples" / "change-plan.yaml"
    file = chest.settings.state_dir / "plans" / "chest.yaml"
    file.parent.mkdir(parents=True)
    text = example.read_text().replace("model: brain-mri", "model: chest")
    faults = {"o1": (f"{text}\nvalid_until: 2026-03-02\n", "was valid until 2026-03-02"), "o2": ("model: [", "cannot be read")}
    chest.clock.advance(86_400)
    for name, (written, words) in faults.items():
        file.write_text(written)
        give(chest, remedy(name, settings={"epochs": 9}))
        assert (stored(chest, Order, name).state, words in stored(chest, Order, name).explanation) == (OrderState.FAILED, True)
    give(chest, order(OrderKind.ROLLBACK, "o3"))
    assert stored(chest, Order, "o3").state == OrderState.DONE


def test_serving_stops_and_resumes(chest: Context) -> None:
    give(chest, order(OrderKind.STOP_SERVING))
    assert not stored(chest, RegisteredModel, "chest").serving
    give(chest, order(OrderKind.RESUME_SERVING, "o2"))
    assert stored(chest, RegisteredModel, "chest").serving
    assert stored(chest, Order, "o2").state == OrderState.DONE


def test_other_orders_are_left_to_others(chest: Context) -> None:
    give(chest, order(OrderKind.REPORT), order(OrderKind.LABEL_REQUEST, "o2"))
    with chest.database.read() as session:
        assert session.exec(select(Order)).all() == []


def test_a_remedy_becomes_one_job_however_often_it_is_delivered(chest: Context) -> None:
    for event in ("first", "again"):
        give(chest, remedy(settings={"epochs": 2}), event=event)
    with chest.database.read() as session:
        job = session.exec(select(Job)).one()
    assert (job.state, job.remedy, job.settings, job.attempt) == (JobState.QUEUED, "partial", {"epochs": 2}, 0)
    assert job.traceparent.startswith("00-0af7651916cd43dd8448eb211c80319c")


def test_eight_claimers_get_four_jobs_once(chest: Context) -> None:
    give(chest, *(remedy(f"o{number}") for number in range(4)))
    barrier, found = threading.Barrier(8), []

    def take(number: int) -> None:
        barrier.wait()
        claimed = claim(chest, f"worker{number}")
        if claimed:
            found.append(claimed.job_id)

    threads = [threading.Thread(target=take, args=(number,)) for number in range(8)]
    [thread.start() for thread in threads]
    [thread.join(60) for thread in threads]
    assert sorted(found) == ["o0", "o1", "o2", "o3"]


def test_an_expired_lease_is_taken_over_and_the_first_owner_is_shut_out(chest: Context, clock: Any) -> None:
    give(chest, remedy())
    first = claim(chest, "first")
    assert claim(chest, "second") is None
    clock.advance(61)
    second = claim(chest, "second")
    assert (first.attempt, second.attempt) == (1, 2)
    with pytest.raises(jobs.JobStopped), chest.database.transaction() as tx:
        jobs.report(tx, first, "epoch 1 of 2", epoch=1)
    with chest.database.transaction() as tx:
        jobs.report(tx, second, "epoch 1 of 2", epoch=1, epochs=2, metrics={"valid_loss": 0.5})
        jobs.succeed(tx, second, {"verdict": "promote"}, "done")
    with pytest.raises(jobs.JobStopped), chest.database.transaction() as tx:
        jobs.fail(tx, first, "late")
    assert stored(chest, Job, "o1").state == JobState.SUCCEEDED
    assert stored(chest, Job, "o1").progress["epoch"] == 1
    assert stored(chest, Order, "o1").state == OrderState.DONE
    assert len(emitted(chest, RUN.name)) == 2


def test_a_job_is_given_up_after_its_last_attempt(chest: Context, clock: Any) -> None:
    give(chest, remedy())
    for _ in range(chest.settings.remediation.max_attempts):
        held = claim(chest)
        with chest.database.transaction() as tx:
            jobs.note_fault(tx, held, "MemoryError")
        clock.advance(61)
    assert claim(chest) is None
    job = stored(chest, Job, "o1")
    assert job.state == JobState.FAILED
    assert "3 attempts" in job.error
    assert "MemoryError" in job.error
    assert stored(chest, Order, "o1").state == OrderState.FAILED


def test_a_released_job_is_free_at_once_and_has_lost_no_attempt(chest: Context) -> None:
    give(chest, remedy())
    with chest.database.transaction() as tx:
        jobs.release(tx, jobs.claim_next(tx, "first", 60, 3))
    assert claim(chest, "second").attempt == 1


def refuse(context: Context, order_id: str) -> None:
    with context.database.transaction() as tx:
        row = tx.session.get_one(Order, order_id)
        row.state, row.explanation = OrderState.REFUSED, "Taken back by user:ml."
        tx.session.add(row)


def test_a_queued_job_of_a_withdrawn_order_never_starts(chest: Context) -> None:
    give(chest, remedy(), remedy("o2"))
    refuse(chest, "o1")
    assert claim(chest).job_id == "o2"
    job = stored(chest, Job, "o1")
    assert (job.state, job.error) == (JobState.FAILED, "The order was withdrawn: Taken back by user:ml.")
    assert stored(chest, Order, "o1").state == OrderState.REFUSED


def until(condition: Any) -> None:
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert condition()


def test_the_lease_is_renewed_by_its_own_thread_and_sees_a_withdrawal(chest: Context, clock: Any) -> None:
    give(chest, remedy())
    held = claim(chest, lease_s=0.3)
    with jobs.LeaseKeeper(chest.database, held, 0.3, lambda: False) as keeper:
        clock.advance(30)
        until(lambda: stored(chest, Job, "o1").lease_until >= clock.now() + timedelta(seconds=0.3))
        keeper.check()
        refuse(chest, "o1")
        until(keeper.must_end)
        with pytest.raises(jobs.OrderWithdrawn):
            keeper.check()


def test_the_lease_keeper_notices_a_successor(chest: Context, clock: Any) -> None:
    give(chest, remedy())
    held = claim(chest, "first")
    clock.advance(61)
    claim(chest, "second")
    with jobs.LeaseKeeper(chest.database, held, 0.3, lambda: False) as keeper:
        until(keeper.must_end)
        with pytest.raises(jobs.JobStopped):
            keeper.check()


def test_a_run_that_cannot_start_fails_with_its_reason(chest: Context) -> None:
    give(chest, remedy())
    assert JobWorker(chest).run_one()
    job = stored(chest, Job, "o1")
    assert job.state == JobState.FAILED
    assert "cannot be read" in job.error
    assert not JobWorker(chest).run_one()


async def test_the_worker_takes_jobs_until_it_is_told_to_stop(chest: Context) -> None:
    stop = StopSignal()
    working = asyncio.create_task(JobWorker(chest).run(stop))
    give(chest, remedy())
    for _ in range(200):
        if stored(chest, Job, "o1").state == JobState.FAILED:
            break
        await asyncio.sleep(0.05)
    stop.set()
    await asyncio.wait_for(working, 10)
    assert stored(chest, Job, "o1").state == JobState.FAILED


def test_the_service_has_its_consumer_and_worker(chest: Context) -> None:
    service = build(chest)
    assert service.name == "remediation"
    assert [each.name for each in service.consumers] == ["remediation"]
    assert len(service.workers) == 1


def test_every_decision_is_on_record(chest: Context) -> None:
    give(chest, remedy(), order(OrderKind.ROLLBACK, "o2"), order(OrderKind.STOP_SERVING, "o3", model="brain"))
    with chest.database.read() as session:
        actions = set(session.exec(select(Audit.action)))
    assert {"job.queued", "version.rolled_back", "order.done", "order.failed"} <= actions

"""The end of a run: verdict, version, order, job, events and audit in one transaction, or none of them."""

import math
from dataclasses import dataclass
from typing import Any

from schemas.events import MaintenanceOrder, MaintenancePromotion
from schemas.tables import BaselineCase, ModelVersion, Order
from schemas.topics import ORDER, PROMOTION
from schemas.vocabulary import OrderKind, OrderState, Verdict, VersionState
from services.remediation import jobs, repository
from services.remediation.ids import natural_id
from services.remediation.material import Material
from services.remediation.plan import TooFew, labels_for
from services.remediation.provenance import code_digest
from services.remediation.run import Outcome, covering
from services.runtime import registry, telemetry
from services.runtime.change_plans import require_unchanged
from services.runtime.service import Context
from services.runtime.signatures import reference_rows, replace_reference
from services.runtime.transaction import Transaction

WORDS = {
    Verdict.PROMOTE: "Version {number} passed the gate and serves.",
    Verdict.REJECT: "Version {number} did not pass the gate; version {champion} goes on serving.",
    Verdict.NEED_LABELS: "Version {number} waits in the shadow: the gate needs more labelled cases.",
}


def conclude(context: Context, claim: jobs.Claim, material: Material, outcome: Outcome) -> Verdict | None:
    """Write the outcome of a run; None when another version has begun to serve meanwhile and the run is void.

    Raises InvalidInput when another change control plan has come into force, or the one has ended.
    """
    require_unchanged(context.settings, claim.model, material.change_plan, context.clock.now().date())
    with context.database.transaction() as tx:
        job = jobs.held(tx, claim)
        owner = repository.lock_model(tx.session, claim.model)
        if owner.champion != material.plan.champion:
            jobs.fail(
                tx,
                claim,
                f"{_now(owner.champion)} during the run; the repair of version {material.plan.champion} is void.",
            )
            return None
        verdict, number = outcome.judgement.verdict, registry.next_version(tx.session, claim.model)
        evidence = _evidence(claim, material, outcome)
        _enter(tx, context, claim, material, outcome, number)
        _decide(tx, claim, material.plan.champion, number, verdict, evidence)
        _announce(tx, claim, material, number, outcome, job.traceparent)
        if verdict == Verdict.NEED_LABELS:
            share = context.settings.join.gate_share
            missing = outcome.judgement.needed_cases - len(material.plan.gate)
            asked = Shortage(claim.model, material.plan.champion, labels_for(missing, share), outcome.judgement.reasons[-1])
            request_labels(tx, claim.job_id, asked, cause=claim.traceparent)
        words = WORDS[verdict].format(number=number, champion=material.plan.champion)
        result = evidence | {"verdict": verdict, "challenger": number, "champion_before": material.plan.champion}
        jobs.succeed(tx, claim, result, words)
    telemetry.count("reclaim.gate.verdicts", verdict=verdict)
    return verdict


def _now(champion: int | None) -> str:
    return "The champion was retired" if champion is None else f"Version {champion} began to serve"


def conclude_too_few(context: Context, claim: jobs.Claim, few: TooFew) -> None:
    """End a run that cannot start: the order becomes a label request with the number needed."""
    shares = context.settings.join
    cases = max(labels_for(few.missing["tune"], shares.tune_share), labels_for(few.missing["gate"], shares.gate_share))
    with context.database.transaction() as tx:
        champion = repository.lock_model(tx.session, claim.model).champion
        request_labels(tx, claim.job_id, Shortage(claim.model, champion, cases, few.reason), cause=claim.traceparent)
        numbers = {"tune_cases": few.tune, "gate_cases": few.gate, "labels_needed": cases, "labels_of_no_class": few.foreign}
        result = {"verdict": Verdict.NEED_LABELS, "reasons": [few.reason], "numbers": numbers}
        jobs.succeed(tx, claim, result, f"{few.reason} About {cases} more labels were asked for.")


@dataclass(frozen=True)
class Shortage:
    """How many more labelled cases a judgement of a model takes, beside the version that serves, and why."""

    model: str
    champion: int | None
    cases: int
    reason: str


def request_labels(tx: Transaction, run_id: str, lack: Shortage, *, actor: str = jobs.ACTOR, cause: str = "") -> str:
    """Order labels, once per run; returns the order's id."""
    now, order_id = tx.clock.now(), natural_id("labels", run_id)
    shared: dict[str, Any] = {"order_id": order_id, "kind": OrderKind.LABEL_REQUEST, "model": lack.model, "version": lack.champion}
    shared |= {"settings": {"cases": lack.cases}, "actor": actor}
    row = Order(
        **shared,
        idempotency_key=f"labels:{order_id}",
        state=OrderState.ACCEPTED,
        reason=lack.reason[:1000],
        created_at=now,
        updated_at=now,
    )
    if tx.insert_new(Order, [row], returning="order_id"):
        event = MaintenanceOrder(**shared, reason=lack.reason, ordered_at=now)
        tx.emit(ORDER, event, event_id=order_id, cause=cause or None)
        tx.audit(actor, "labels.requested", lack.model, order=order_id, cases=lack.cases, reason=lack.reason)
    return order_id


def _evidence(claim: jobs.Claim, material: Material, outcome: Outcome) -> dict[str, Any]:
    return {
        "run": claim.job_id,
        "attempt": claim.attempt,
        "remedy": str(claim.remedy),
        "reasons": list(outcome.judgement.reasons),
        "numbers": finite(outcome.judgement.numbers),
        "best_epoch": outcome.repaired.best_epoch,
        "choices": outcome.repaired.record,
        "unchanged": outcome.repaired.unchanged,
        "judged": outcome.judged,
        "data_sha256": material.data_sha256,
        "code_sha256": code_digest(),
        "weights_sha256": outcome.bundle.sha256,
        "seed": material.options.seed,
        "tune_cases": len(material.plan.tune),
        "returning_patients": material.returning,
        "labels_of_no_class": material.plan.foreign,
        "options": material.options.model_dump(),
        "change_plan": covering(material, claim.remedy),
    }


def finite(numbers: dict[str, float | None]) -> dict[str, float | None]:
    """Numbers that JSON can hold; what is not defined becomes None."""
    return {name: value if value is None or math.isfinite(value) else None for name, value in numbers.items()}


def _enter(tx: Transaction, context: Context, claim: jobs.Claim, material: Material, outcome: Outcome, number: int) -> None:
    """The challenger; with its baseline once it serves: the gate's cases, because they show what it meets (decision 0007).

    A baseline uses its patients up, so one that waits or is rejected has none: they go on judging.
    """
    row = ModelVersion(
        model=claim.model,
        version=number,
        state=VersionState.CHALLENGER,
        bundle=str(outcome.bundle.folder.relative_to(context.settings.models_dir)),
        sha256=outcome.bundle.sha256,
        parent=material.plan.champion,
        origin=claim.job_id,
        dataset=material.dataset,
        classes=list(material.champion.spec.classes),
        metrics=finite(outcome.judgement.numbers),
        created_at=tx.clock.now(),
    )
    kept = outcome.gate_cases if outcome.judgement.verdict == Verdict.PROMOTE else ()
    rows = [
        BaselineCase(
            model=claim.model,
            version=number,
            case_key=case.case_key,
            patient_key=case.patient,
            truth=case.truth,
            predicted=case.predicted,
            probabilities=dict(case.probabilities),
            findings=list(case.findings),
        )
        for case in kept
    ]
    registry.add_version(tx, row, rows, actor=jobs.ACTOR)
    replace_reference(tx, claim.model, number, reference_rows(claim.model, number, kept, [case.case_key for case in kept]))


def _decide(tx: Transaction, claim: jobs.Claim, champion: int, number: int, verdict: Verdict, evidence: dict[str, Any]) -> None:
    tx.audit(jobs.ACTOR, "gate.judged", f"{claim.model}:{number}", order=claim.order_id, verdict=verdict, **evidence)
    for older in registry.versions(tx.session, claim.model):
        if older.state == VersionState.CHALLENGER and older.version != number and older.parent == champion:
            registry.reject(tx, claim.model, older.version, actor=jobs.ACTOR, superseded_by=number)
    if verdict == Verdict.PROMOTE:
        registry.promote(tx, claim.model, number, actor=jobs.ACTOR, order=claim.order_id)
    elif verdict == Verdict.REJECT:
        registry.reject(tx, claim.model, number, actor=jobs.ACTOR, order=claim.order_id)


def _announce(tx: Transaction, claim: jobs.Claim, material: Material, number: int, outcome: Outcome, traceparent: str) -> None:
    judgement, champion = outcome.judgement, material.plan.champion
    event = MaintenancePromotion(
        model=claim.model,
        challenger=number,
        champion_before=champion,
        champion_after=number if judgement.verdict == Verdict.PROMOTE else champion,
        verdict=judgement.verdict,
        reasons=judgement.reasons,
        numbers=finite(judgement.numbers),
        order_id=claim.order_id,
        actor=jobs.ACTOR,
        change_plan=covering(material, claim.remedy),
    )
    tx.emit(PROMOTION, event, event_id=natural_id("promotion", claim.job_id), cause=traceparent or None)

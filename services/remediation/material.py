"""What a run starts from: the champion, the cases that teach and the cases that judge, the options.

The choice of cases is frozen into the job, so that a later attempt uses the same data even when new labels have come.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sqlmodel import Session

from models.bundle import LoadedModel
from models.data import LabelledStudy
from models.remedies import UNLABELLED
from models.spec import SelectionRule
from schemas.settings import RemediationSettings
from schemas.tables import Job, ModelVersion, Order, RegisteredModel
from schemas.vocabulary import CaseRole
from services.remediation import data, jobs, options, repository
from services.remediation.plan import (
    Plan,
    TooFew,
    choose,
    from_json,
    looks,
    require_disjoint,
    start_of_decline,
    to_json,
    with_recent,
)
from services.remediation.provenance import data_digest
from services.runtime import registry
from services.runtime.change_plans import ReadPlan, plan_of, require_planned, tightened
from services.runtime.errors import InvalidInput
from services.runtime.service import Context

LOOKS = "looks"
"""Where a frozen plan keeps how many earlier gates are tied to its gate."""


@dataclass(frozen=True)
class Material:
    """Everything a run starts from. `old` are the studies of the development manifest.

    `recent` are studies whose labels are not used, where the remedy learns from images alone.
    `returning` counts patients of the development data who came back and raise alarms, `looks` the earlier judgements on the
    gate's patients; it is known once the plan is frozen. `data_sha256` covers the new and the development data.
    """

    champion: LoadedModel
    dataset: str
    rule: SelectionRule
    plan: Plan
    options: options.RunOptions
    old: Sequence[LabelledStudy]
    tune: Sequence[LabelledStudy]
    gate: Sequence[LabelledStudy]
    recent: Sequence[LabelledStudy]
    returning: int
    data_sha256: str
    change_plan: ReadPlan | None = None
    looks: int = 0


def prepare(context: Context, claim: jobs.Claim) -> Material | TooFew:
    """Look up the champion and its cases. Raises InvalidInput, ModelError, SharedPatient."""
    with context.database.read() as session:
        job, order = repository.job(session, claim.job_id), repository.order(session, claim.order_id)
        owner = registry.model(session, claim.model)
        version = _champion(session, owner, order)
        champion = data.version(context.settings.models_dir, version)
        today = context.clock.now().date()
        change_plan, chosen = plan_of(context.settings, owner.name, today), options.options_of(context.settings, job.settings)
        require_planned(change_plan, claim.remedy, options.in_effect(chosen, champion.training))
        old = data.development(version.dataset, champion.spec.classes)
        taken = data.used_patients(session, owner.name, old, context.pseudonyms)
        limits = tightened(context.settings.remediation, change_plan)
        plan = _plan(session, job, order, version, champion.spec.classes, taken, limits)
        if isinstance(plan, TooFew):
            return plan
        trigger = repository.trigger_patients(session, owner.name)
        _require_disjoint(plan, taken, trigger)
        archive = context.settings.archive_dir
        return Material(
            champion=champion,
            dataset=version.dataset,
            rule=SelectionRule.model_validate(owner.selection),
            plan=plan,
            options=chosen,
            old=old,
            tune=data.archived(session, archive, plan.tune),
            gate=data.archived(session, archive, plan.gate),
            recent=data.without_labels(data.archived(session, archive, plan.recent), champion.spec),
            returning=len(trigger & taken),
            data_sha256=data_digest(plan.digest, Path(version.dataset), old),
            change_plan=change_plan,
        )


def freeze(context: Context, claim: jobs.Claim, material: Material) -> Material:
    """Keep the plan with the job, count the gates tied to it under the model's lock, and say how many cases there are."""
    with context.database.transaction() as tx:
        job = jobs.held(tx, claim)
        repository.lock_model(tx.session, claim.model)
        plan = job.settings.get(options.PLAN) or to_json(material.plan)
        if LOOKS not in plan:
            gate = {case.patient_key for case in material.plan.gate}
            plan = plan | {LOOKS: looks(gate, repository.gates_before(tx.session, job.model, job.job_id, material.plan.champion))}
            job.settings = job.settings | {options.PLAN: plan}
            tx.session.add(job)
        words = f"training on {len(material.plan.tune)} new cases, {len(material.plan.gate)} wait for the gate"
        jobs.report(tx, claim, words, epochs=material.options.epochs)
    return replace(material, looks=int(plan[LOOKS]))


def _champion(session: Session, owner: RegisteredModel, order: Order) -> ModelVersion:
    if owner.champion is None or (order.version is not None and order.version != owner.champion):
        raise InvalidInput(registry.stale(owner.name, order.version, owner.champion))
    return registry.version(session, owner.name, owner.champion)


def _plan(
    session: Session,
    job: Job,
    order: Order,
    version: ModelVersion,
    classes: Sequence[str],
    taken: set[str],
    limits: RemediationSettings,
) -> Plan | TooFew:
    if options.PLAN in job.settings:
        return from_json(job.settings[options.PLAN])
    tune, gate = (
        repository.labelled_cases(session, version.model, version.version, role) for role in (CaseRole.TUNE, CaseRole.GATE)
    )
    plan = choose(
        version.version,
        tune,
        gate,
        classes=classes,
        taken=taken,
        since=start_of_decline(repository.evidence(session, order.evaluation_id)),
        min_tune=limits.min_tune_cases,
        min_gate=limits.min_gate_cases,
        most=limits.max_cases,
    )
    if isinstance(plan, TooFew) or job.remedy not in UNLABELLED:
        return plan
    recent = repository.recent_cases(session, version.model, version.version, CaseRole.TUNE)
    return with_recent(plan, recent, taken, limits.max_cases)


def _require_disjoint(plan: Plan, baseline: set[str], trigger: set[str]) -> None:
    """No judge may know the pupil. A development patient who returns with a trigger role touches neither and is only counted."""
    tune, gate = ({case.patient_key for case in cases} for cases in ((*plan.tune, *plan.recent), plan.gate))
    require_disjoint({"trigger": trigger, "tune": tune, "gate": gate})
    require_disjoint({"tune": tune, "gate": gate, "baseline": baseline})

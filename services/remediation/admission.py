"""The gate for a version that a person brings: judged as a repair is, on the gate's patients, before it may serve.

Both versions score the same studies here and now; nothing needs to be in the shadow first. Criteria, spending of the
level and baseline of the new champion are those of decision 0007, what a person may ask for those of decision 0009.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlmodel import Session

from models.bundle import LoadedModel, load_bundle
from models.data import LabelledStudy
from models.predictor import Predictor
from models.scoring import ScoredCase, score
from models.spec import SelectionRule
from schemas.events import MaintenancePromotion
from schemas.tables import ModelVersion
from schemas.topics import PROMOTION
from schemas.vocabulary import CaseRole, Verdict, VersionState
from services.remediation import data, repository
from services.remediation.conclusion import finite
from services.remediation.gate import Judgement, PairedCase, Rules, judge
from services.remediation.ids import natural_id
from services.remediation.material import LOOKS
from services.remediation.plan import Plan, TooFew, choose, labels_for, looks, to_json
from services.remediation.run import TEST, cited, latency_ratio, paired_case
from services.runtime import registry
from services.runtime.change_plans import citation, latency_limit, plan_of, require_owner_versions, tightened
from services.runtime.errors import InvalidInput
from services.runtime.service import Context
from services.runtime.signatures import reference_rows, replace_reference

ORIGIN = "owner"
"""Origin of the verdict's event: a person asked for it, so that no decline and no order stands behind it."""


@dataclass(frozen=True)
class Admission:
    """A judged candidate: the version that served when it was judged, and what the gate said."""

    champion: int
    judgement: Judgement


@dataclass(frozen=True)
class _Pair:
    """What is compared on what. `old` are the champion's test studies whose patients the candidate has not learned from."""

    plan: Plan
    models: tuple[LoadedModel, LoadedModel]
    rule: SelectionRule
    gate: Sequence[LabelledStudy]
    old: Sequence[LabelledStudy]
    cited: str = ""


def admit(
    context: Context, model: str, number: int, *, actor: str, reason: str, tell: Callable[[str], None] = lambda _: None
) -> Admission:
    """Judge a candidate against the champion and let it serve when it passes.

    A rejected candidate is out for good; where the gate needs more labels it stays a candidate. Raises InvalidInput with
    what is missing when it cannot be judged at all, ModelError for a broken bundle or an unreadable study.
    """
    read = plan_of(context.settings, model)
    plan = citation(read, require_owner_versions(read))
    with context.database.read() as session:
        pair = replace(_pair(context, session, model, number), cited=plan)
    earlier, run_id = _spend(context, model, number, pair)
    tell(f"scoring {len(pair.gate)} studies of the gate and {len(pair.old)} of the old test set with both versions")
    gate, cases, ratio = _compare(context, pair, pair.gate, pair.rule)
    old, _, _ = _compare(context, pair, pair.old, None)
    limits, draws = tightened(context.settings.remediation, read), context.settings.evaluation.bootstrap_draws
    seed, slowest = limits.seed, latency_limit(read)
    rules = Rules(limits.gate_alpha, limits.gate_margin, limits.min_gate_cases, draws, seed, slowest, looks=earlier)
    judgement = cited(judge(gate, old, pair.models[0].spec.classes, rules, ratio), pair.cited)
    _conclude(context, model, number, pair, judgement, cases, actor=actor, reason=reason, run_id=run_id)
    return Admission(pair.plan.champion, judgement)


def _pair(context: Context, session: Session, model: str, number: int) -> _Pair:
    owner, row = registry.model(session, model), registry.version(session, model, number)
    if owner.champion is None:
        raise InvalidInput(f"no version of {model!r} serves: there is nothing to judge version {number} against")
    if row.state != VersionState.CANDIDATE:
        raise InvalidInput(f"version {number} of {model!r} is {row.state}; only a candidate can be judged by the gate")
    champion = registry.version(session, model, owner.champion)
    loaded = tuple(load_bundle(context.settings.models_dir / each.bundle) for each in (champion, row))
    classes = loaded[0].spec.classes
    developed = {each.version: data.development(each.dataset, classes) for each in (champion, row)}
    plan = _plan(context, session, champion, [study for studies in developed.values() for study in studies], classes)
    return _Pair(
        plan=plan,
        models=(loaded[0], loaded[1]),
        rule=SelectionRule.model_validate(owner.selection),
        gate=data.archived(session, context.settings.archive_dir, plan.gate),
        old=_unlearned(developed[champion.version], developed[number], champion.version, number),
    )


def _plan(
    context: Context, session: Session, champion: ModelVersion, developed: Sequence[LabelledStudy], classes: Sequence[str]
) -> Plan:
    """The gate's cases: none of a patient in the development data of either version or in a baseline."""
    limits = context.settings.remediation
    taken = data.development_patients(developed, context.pseudonyms) | repository.baseline_patients(session, champion.model)
    cases = repository.labelled_cases(session, champion.model, champion.version, CaseRole.GATE)
    plan = choose(
        champion.version,
        (),
        cases,
        classes=classes,
        taken=taken,
        since=None,
        min_tune=0,
        min_gate=limits.min_gate_cases,
        most=limits.max_cases,
    )
    if isinstance(plan, TooFew):
        wanted = labels_for(plan.missing["gate"], context.settings.join.gate_share)
        raise InvalidInput(
            f"the gate judges from {plan.gate_needed} labelled cases of its own patients on, and has {plan.gate}: about {wanted} "
            f"more labelled studies have to arrive (`reclaim labels import`). Version {champion.version} goes on serving"
        )
    return plan


def _unlearned(old: Sequence[LabelledStudy], new: Sequence[LabelledStudy], champion: int, number: int) -> Sequence[LabelledStudy]:
    learned = {study.patient for study in new if study.split != TEST}
    kept = [study for study in data.split_of(old, TEST) if study.patient not in learned]
    if not kept:
        raise InvalidInput(
            f"version {number} was trained on all patients of version {champion}'s test set, so nobody could say what it forgets"
        )
    return kept


def _spend(context: Context, model: str, number: int, pair: _Pair) -> tuple[int, str]:
    """Enter the judgement among the champion's runs before it is made: its share of the level is spent whatever comes of it."""
    with context.database.transaction() as tx:
        registry.lock_model(tx.session, model)
        run_id = natural_id("admission", model, str(number), tx.clock.now().isoformat())
        gate = {case.patient_key for case in pair.plan.gate}
        earlier = looks(gate, repository.gates_before(tx.session, model, run_id, pair.plan.champion))
        repository.enter_judgement(tx, run_id, model, to_json(pair.plan) | {LOOKS: earlier})
    return earlier, run_id


def _compare(
    context: Context, pair: _Pair, studies: Sequence[LabelledStudy], rule: SelectionRule | None
) -> tuple[list[PairedCase], list[ScoredCase], float]:
    """The same studies scored by both versions, each as it prepares them; how many times as long the candidate takes."""
    settings = context.settings.inference
    old, new = (Predictor(each, settings.device, settings.precision, settings.batch_size) for each in pair.models)
    seen, seen_new = (data.load(studies, each.spec, rule) for each in pair.models)
    before, after = score(old, seen), score(new, seen_new)
    paired = [paired_case(first, second) for first, second in zip(before, after, strict=True)]
    return paired, after, latency_ratio(old, new, seen, seen_new)


def _conclude(
    context: Context,
    model: str,
    number: int,
    pair: _Pair,
    judgement: Judgement,
    cases: Sequence[ScoredCase],
    *,
    actor: str,
    reason: str,
    run_id: str,
) -> None:
    """Verdict, version, baseline, event and audit in one transaction. InvalidInput when something changed meanwhile."""
    champion, promoted = pair.plan.champion, judgement.verdict == Verdict.PROMOTE
    evidence: dict[str, Any] = {
        "reasons": list(judgement.reasons),
        "numbers": finite(judgement.numbers),
        "run": run_id,
        "change_plan": pair.cited,
    }
    with context.database.transaction() as tx:
        owner, row = registry.lock_model(tx.session, model), registry.version(tx.session, model, number)
        if owner.champion != champion or row.state != VersionState.CANDIDATE:
            raise InvalidInput(f"{model!r} has changed while version {number} was judged; the verdict is void, ask again")
        repository.close_judgement(tx, run_id, evidence | {"verdict": judgement.verdict, "challenger": number})
        tx.audit(actor, "gate.judged", f"{model}:{number}", verdict=judgement.verdict, reason=reason, **evidence)
        if promoted:
            row.state, row.parent = VersionState.CHALLENGER, champion
            tx.session.add(row)
            repository.replace_baseline(tx, model, number, _rows(cases))
            replace_reference(tx, model, number, reference_rows(model, number, cases, [case.case_key for case in cases]))
            registry.promote(tx, model, number, actor=actor, reason=reason, run=run_id)
        elif judgement.verdict == Verdict.REJECT:
            registry.reject(tx, model, number, actor=actor, reason=reason, run=run_id)
        event = MaintenancePromotion(
            model=model,
            challenger=number,
            champion_before=champion,
            champion_after=number if promoted else champion,
            verdict=judgement.verdict,
            reasons=judgement.reasons,
            numbers=finite(judgement.numbers),
            actor=actor,
            origin=ORIGIN,
            change_plan=pair.cited,
        )
        tx.emit(PROMOTION, event, event_id=run_id)


def _rows(cases: Sequence[ScoredCase]) -> list[Mapping[str, Any]]:
    return [
        {
            "case_key": case.case_key,
            "patient_key": case.patient,
            "truth": case.truth,
            "predicted": case.predicted,
            "probabilities": dict(case.probabilities),
            "findings": list(case.findings),
        }
        for case in cases
    ]

"""The gate for a version that a person brings: judged as a repair is, on the gate's patients, before it may serve.

Both versions score the same studies here and now; nothing needs to be in the shadow first. Criteria, spending of the
level and baseline of the new champion are those of decision 0007, what a person may ask for those of decision 0009.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlmodel import Session

from models.bundle import LoadedModel
from models.data import LabelledStudy
from models.scoring import ScoredCase
from models.spec import SelectionRule
from schemas.events import MaintenancePromotion
from schemas.settings import RemediationSettings
from schemas.tables import ModelVersion
from schemas.topics import PROMOTION
from schemas.vocabulary import CaseRole, Verdict, VersionState
from services.remediation import data, repository
from services.remediation.comparison import Duel
from services.remediation.conclusion import Shortage, finite, request_labels
from services.remediation.criteria import rules_of
from services.remediation.gate import Judgement, judge
from services.remediation.ids import natural_id
from services.remediation.material import LOOKS
from services.remediation.plan import Plan, SharedPatient, TooFew, choose, labels_for, looks, require_disjoint, to_json
from services.remediation.run import TEST, cited
from services.runtime import registry
from services.runtime.change_plans import ReadPlan, citation, plan_of, require_owner_versions, require_unchanged, tightened
from services.runtime.errors import InvalidInput
from services.runtime.service import Context
from services.runtime.signatures import reference_rows, replace_reference
from services.runtime.transaction import Transaction

ORIGIN = "owner"
"""Origin of the verdict's event: a person asked for it, so that no decline and no order stands behind it."""


@dataclass(frozen=True)
class Admission:
    """A judged candidate: the version that served when it was judged, and what the gate said.

    `labels` is how many more labels were asked for, where they were too few for a verdict.
    """

    champion: int
    judgement: Judgement
    labels: int = 0


@dataclass(frozen=True)
class _Asked:
    """Who asked for the judgement of which candidate, and why, under which change control plan."""

    model: str
    number: int
    actor: str
    reason: str
    plan: ReadPlan | None

    @property
    def cited(self) -> str:
        """The plan and its clause, empty where the model has none. Raises InvalidInput where the plan covers no such version."""
        return citation(self.plan, require_owner_versions(self.plan))


@dataclass(frozen=True)
class _Pair:
    """What is compared on what. `old` are the champion's test studies whose patients the candidate has not learned from."""

    plan: Plan
    models: tuple[LoadedModel, LoadedModel]
    rule: SelectionRule
    gate: Sequence[LabelledStudy]
    old: Sequence[LabelledStudy]


@dataclass(frozen=True)
class _Judged:
    """The gate's answer, and the gate's cases as the candidate scored them."""

    judgement: Judgement
    cases: Sequence[ScoredCase]


def admit(
    context: Context, model: str, number: int, *, actor: str, reason: str, tell: Callable[[str], None] = lambda _: None
) -> Admission:
    """Judge a candidate against the champion and let it serve when it passes.

    A rejected candidate is out for good; where the gate needs more labels it stays a candidate. Raises InvalidInput with
    what is missing when it cannot be judged at all, ModelError for a broken bundle or an unreadable study.
    """
    asked = _Asked(model, number, actor, reason, plan_of(context.settings, model, context.clock.now().date()))
    require_owner_versions(asked.plan)
    with context.database.read() as session:
        pair = _pair(context, session, asked, tightened(context.settings.remediation, asked.plan))
    earlier, run_id = _spend(context, asked, pair)
    tell(f"scoring {len(pair.gate)} studies of the gate and {len(pair.old)} of the old test set with both versions")
    judged = _judged(context, pair, asked, earlier)
    labels = _conclude(context, asked, pair, judged, run_id)
    return Admission(pair.plan.champion, judged.judgement, labels)


def _pair(context: Context, session: Session, asked: _Asked, limits: RemediationSettings) -> _Pair:
    owner, row = registry.model(session, asked.model), registry.version(session, asked.model, asked.number)
    if owner.champion is None:
        raise InvalidInput(f"no version of {owner.name!r} serves: there is nothing to judge version {row.version} against")
    if row.state != VersionState.CANDIDATE:
        raise InvalidInput(f"version {row.version} of {owner.name!r} is {row.state}; only a candidate can be judged by the gate")
    champion = registry.version(session, owner.name, owner.champion)
    old, new = (data.version(context.settings.models_dir, each) for each in (champion, row))
    require_extension(owner.name, old.spec.classes, new.spec.classes)
    developed = [data.development(row.dataset, side.spec.classes) for row, side in ((champion, old), (row, new))]
    plan = _plan(context, session, champion, [*developed[0], *developed[1]], (old.spec.classes, new.spec.classes), limits)
    return _Pair(
        plan=plan,
        models=(old, new),
        rule=SelectionRule.model_validate(owner.selection),
        gate=data.archived(session, context.settings.archive_dir, plan.gate),
        old=_unlearned(developed[0], developed[1], champion.version, row.version),
    )


def _plan(
    context: Context,
    session: Session,
    champion: ModelVersion,
    developed: Sequence[LabelledStudy],
    classes: tuple[Sequence[str], Sequence[str]],
    limits: RemediationSettings,
) -> Plan:
    """The gate's cases: none of a patient in the development data of either version or in a baseline."""
    taken = data.used_patients(session, champion.model, developed, context.pseudonyms)
    cases = repository.labelled_cases(session, champion.model, champion.version, CaseRole.GATE)
    needs = {"min_tune": 0, "min_gate": limits.min_gate_cases, "most": limits.max_cases}
    plan = choose(champion.version, (), cases, classes=classes[1], taken=taken, since=None, **needs)
    plan = _require_cases(plan, classes, limits, context.settings.join.gate_share, champion.version)
    trigger = repository.trigger_patients(session, champion.model)
    try:
        require_disjoint({"trigger": trigger, "gate": {case.patient_key for case in plan.gate}})
    except SharedPatient as error:
        raise InvalidInput(f"the gate's cases cannot be used: {error}") from error
    return plan


def _require_cases(
    plan: Plan | TooFew, classes: tuple[Sequence[str], Sequence[str]], limits: RemediationSettings, share: float, champion: int
) -> Plan:
    """InvalidInput where the gate has too few cases, of the champion's classes or of one that only the candidate knows."""
    known, added = classes[0], classes[1][len(classes[0]) :]
    counts = Counter(case.truth for case in plan.gate) if isinstance(plan, Plan) else Counter[str]()
    judging = sum(counts[name] for name in known) if isinstance(plan, Plan) else plan.gate
    stays = f"Version {champion} goes on serving"
    if isinstance(plan, TooFew) or judging < limits.min_gate_cases:
        wanted = labels_for(limits.min_gate_cases - judging, share)
        judges = f"the gate judges from {limits.min_gate_cases} labelled cases of its own patients on, and has {judging}"
        arrive = f"about {wanted} more labelled studies have to arrive (`reclaim labels import`)"
        raise InvalidInput(f"{judges}: {arrive}. {stays}")
    least = limits.min_class_cases
    few = [name for name in added if counts[name] < least]
    if few:
        seen = "; ".join(f"{name}: {counts[name]}, so about {labels_for(least - counts[name], share)} more labels" for name in few)
        raise InvalidInput(
            f"the gate judges a new class from {least} labelled cases of its own patients on ({seen} of that class have to "
            f"arrive). {stays}"
        )
    return plan


def require_extension(model: str, before: Sequence[str], after: Sequence[str]) -> None:
    """InvalidInput where a version does not know every class of the one that serves, in its order, before any of its own."""
    if tuple(after[: len(before)]) != tuple(before):
        raise InvalidInput(
            f"the version of {model!r} that serves knows the classes {', '.join(before)}; one that knows {', '.join(after)} "
            "cannot take its place: it has to have the same, and further ones only behind them"
        )


def _unlearned(old: Sequence[LabelledStudy], new: Sequence[LabelledStudy], champion: int, number: int) -> Sequence[LabelledStudy]:
    learned = {study.patient for study in new if study.split != TEST}
    kept = [study for study in data.split_of(old, TEST) if study.patient not in learned]
    if not kept:
        raise InvalidInput(
            f"version {number} was trained on all patients of version {champion}'s test set, so nobody could say what it forgets"
        )
    return kept


def _spend(context: Context, asked: _Asked, pair: _Pair) -> tuple[int, str]:
    """Enter the judgement among the champion's runs before it is made: its share of the level is spent whatever comes of it."""
    with context.database.transaction() as tx:
        registry.lock_model(tx.session, asked.model)
        run_id = natural_id("admission", asked.model, str(asked.number), tx.clock.now().isoformat())
        gate = {case.patient_key for case in pair.plan.gate}
        earlier = looks(gate, repository.gates_before(tx.session, asked.model, run_id, pair.plan.champion))
        repository.enter_judgement(tx, run_id, asked.model, to_json(pair.plan) | {LOOKS: earlier})
    return earlier, run_id


def _judged(context: Context, pair: _Pair, asked: _Asked, earlier: int) -> _Judged:
    champion, candidate = pair.models
    duel = Duel(champion, candidate, context.settings.inference)
    gate, old = duel.score(pair.gate, pair.rule), duel.score(pair.old, None)
    rules = rules_of(context.settings, asked.plan, looks=earlier, seed=context.settings.remediation.seed)
    known = champion.spec.classes
    added = candidate.spec.classes[len(known) :]
    judgement = judge(gate.paired, old.paired, known, rules, duel.latency_ratio(gate), added)
    return _Judged(cited(judgement, asked.cited), gate.challenger)


def _conclude(context: Context, asked: _Asked, pair: _Pair, judged: _Judged, run_id: str) -> int:
    """Verdict, version, baseline, events and audit in one transaction. InvalidInput when something changed meanwhile.

    Returns how many more labels it has asked for.
    """
    labels = 0
    verdict, subject = judged.judgement.verdict, f"{asked.model}:{asked.number}"
    evidence = {
        "reasons": list(judged.judgement.reasons),
        "numbers": finite(judged.judgement.numbers),
        "run": run_id,
        "change_plan": asked.cited,
    }
    require_unchanged(context.settings, asked.model, asked.plan, context.clock.now().date())
    with context.database.transaction() as tx:
        owner, row = registry.lock_model(tx.session, asked.model), registry.version(tx.session, asked.model, asked.number)
        if owner.champion != pair.plan.champion or row.state != VersionState.CANDIDATE:
            raise InvalidInput(
                f"{asked.model!r} has changed while version {row.version} was judged; the verdict is void, ask again"
            )
        repository.close_judgement(tx, run_id, evidence | {"verdict": verdict, "challenger": asked.number})
        tx.audit(asked.actor, "gate.judged", subject, verdict=verdict, reason=asked.reason, **evidence)
        if verdict == Verdict.PROMOTE:
            _promote(tx, asked, row, judged.cases, run_id)
        elif verdict == Verdict.REJECT:
            registry.reject(tx, asked.model, asked.number, actor=asked.actor, reason=asked.reason, run=run_id)
        else:
            labels = labels_for(judged.judgement.needed_cases - len(pair.plan.gate), context.settings.join.gate_share)
            why = f"Version {asked.number} of {asked.model} waits for its judgement: {judged.judgement.reasons[-1]}"
            request_labels(tx, run_id, Shortage(asked.model, pair.plan.champion, labels, why), actor=asked.actor)
        tx.emit(PROMOTION, _event(asked, pair.plan.champion, judged.judgement), event_id=run_id)
    return labels


def _promote(tx: Transaction, asked: _Asked, row: ModelVersion, cases: Sequence[ScoredCase], run_id: str) -> None:
    """The candidate serves, and its gate cases are what its later ones are compared with."""
    model, number = asked.model, asked.number
    row.state, row.parent = VersionState.CHALLENGER, registry.model(tx.session, model).champion
    tx.session.add(row)
    repository.replace_baseline(tx, model, number, _rows(cases))
    replace_reference(tx, model, number, reference_rows(model, number, cases, [case.case_key for case in cases]))
    registry.promote(tx, model, number, actor=asked.actor, reason=asked.reason, run=run_id)


def _event(asked: _Asked, champion: int, judgement: Judgement) -> MaintenancePromotion:
    return MaintenancePromotion(
        model=asked.model,
        challenger=asked.number,
        champion_before=champion,
        champion_after=asked.number if judgement.verdict == Verdict.PROMOTE else champion,
        verdict=judgement.verdict,
        reasons=judgement.reasons,
        numbers=finite(judgement.numbers),
        actor=asked.actor,
        origin=ORIGIN,
        change_plan=asked.cited,
    )


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

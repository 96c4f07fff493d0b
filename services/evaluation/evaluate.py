"""One evaluation from cases to outcome. Pure: the same cases, thresholds and seed give the same outcome."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from schemas.events import ConfusionMatrix, MetricValue, RuleResult, SubgroupResult
from schemas.vocabulary import Diagnosis, Status
from services.evaluation.cases import Cases, LabelledRow, foreign
from services.evaluation.cusum import chart
from services.evaluation.detector import Thresholds
from services.evaluation.diagnosis import Cause, Context, diagnose, feed_doubt, feed_fault, mix_shift, recent_change, root_cause
from services.evaluation.dispersion import UNKNOWN, Variation
from services.evaluation.judgement import Judged, Question, judge_stream, waiting
from services.evaluation.labelling import evidence_of, examine
from services.evaluation.lateness import Pending
from services.evaluation.metrics import MetricSet, confusion, measure
from services.evaluation.pictures import Pictures
from services.evaluation.reclaim_rule import LIMIT, RuleVerdict, apply_rule
from services.evaluation.scored import ScoredCase
from services.evaluation.stream import StreamCase, count, first_acquired, one_per_patient
from services.evaluation.subgroups import judge
from services.evaluation.summary import Seen, summarise
from services.evaluation.verdict import Assessment, Fall

MIX_RISK = 0.001
"""P-value below which the class mix counts as moved; only looked at where the 5 % rule fires without a fall of recall."""
Evidence = dict[str, float | str | None]


@dataclass(frozen=True)
class Material:
    """What one evaluation is computed from. `stream` is in order and ends with the batch under evaluation or later.

    `taught` are the patients whom the model was trained on: it knows them, so their cases say nothing about others.
    """

    model: str
    classes: tuple[str, ...]
    batch: int
    batch_size: int
    baseline: Sequence[LabelledRow]
    stream: Sequence[StreamCase]
    thresholds: Thresholds
    draws: int
    seed: int
    taught: frozenset[str] = frozenset()
    subgroup_risk: float = 0.05
    run_length: float = 1040.0
    variation: Variation = UNKNOWN
    """What earlier versions of the model showed of the variation from block to block."""
    pending: Sequence[Pending] = ()
    """Predictions of the version that have no label yet."""
    wait_days: float = 90.0
    now: datetime | None = None
    """When the stream is looked at; None: when its last case was acquired."""
    withdrawn: int = 0
    """Cases of the batches that are not in the stream, because their label was withdrawn."""
    pictures: Pictures | None = None
    scored: Sequence[ScoredCase] = ()
    """Predictions of the version in all roles, labelled or not, from which the labels themselves are judged."""

    @property
    def evidence(self) -> list[StreamCase]:
        """The stream without the patients whom the model was trained on."""
        return [case for case in self.stream if case.patient_key not in self.taught]


@dataclass(frozen=True)
class Outcome:
    """What an evaluation found."""

    status: Status
    diagnosis: Diagnosis
    cases: int
    stream_cases: int
    metrics: tuple[MetricValue, ...]
    evidence: Evidence
    reclaim_rule: bool
    summary: str
    subgroups: tuple[SubgroupResult, ...]
    rules: tuple[RuleResult, ...]
    confusion: ConfusionMatrix | None


def evaluate(material: Material) -> Outcome:
    """Measure the batch, judge the stream, explain what fell."""
    evidence = material.evidence
    measured = Cases.of([case for case in evidence if case.batch == material.batch], material.classes)
    baseline = Cases.of(material.baseline, material.classes)
    metrics = measure(measured, draws=material.draws, seed=material.seed)
    before = measure(baseline, draws=1, seed=material.seed)
    rule = apply_rule(baseline.confusion(), measured.confusion(), material.classes)
    independent = first_acquired(evidence, {row.patient_key for row in material.baseline})
    judged = _judge(material, independent) if baseline.count else None
    assessment = judged.assessment if judged else None
    cause = _explain(material, independent, judged, rule)
    since = _since(judged) if judged else None
    subgroups = judge(independent, material.classes, material.subgroup_risk, material.thresholds.per_year)
    line = root_cause(cause, assessment.fall if assessment else None, since)
    said = _worse(subgroups) | _evidence(material, independent, judged, since, cause, line, rule)
    return Outcome(
        status=assessment.status if assessment else Status.UNDECIDED,
        diagnosis=cause.kind,
        cases=sum(case.batch == material.batch for case in material.stream),
        stream_cases=len(material.stream) + material.withdrawn,
        metrics=_values(metrics, before),
        evidence=said | _labels(material, assessment),
        reclaim_rule=rule.declined,
        summary=summarise(material.model, _seen(material, evidence, judged), assessment, cause, line, since, subgroups),
        subgroups=subgroups,
        rules=(reclaim_result(rule), *cusum_results(material, independent)),
        confusion=confusion(measured),
    )


def _labels(material: Material, assessment: Assessment | None) -> Evidence:
    unknown = [case for case in material.scored if case.patient_key not in material.taught]
    if not unknown:
        return {}
    now = material.now or max(case.scored_at for case in unknown)
    found = examine(unknown, material.classes, material.baseline, now, material.wait_days, material.seed)
    return evidence_of(found, degraded=assessment is not None and assessment.status is Status.DEGRADED)


def _worse(subgroups: Sequence[SubgroupResult]) -> Evidence:
    """First among the evidence, of which the agents read the first entries only."""
    named = [f"{each.facet} {each.group}" for each in subgroups if each.worse]
    return {"worse_subgroups": ", ".join(named)} if named else {}


def reclaim_result(rule: RuleVerdict) -> RuleResult:
    """The 5 % rule of one batch."""
    return RuleResult(rule="reclaim", alarmed=rule.declined, metric=rule.metric, statistic=rule.change, limit=LIMIT)


def cusum_results(material: Material, independent: Sequence[StreamCase]) -> tuple[RuleResult, ...]:
    """The chart of the class that is highest after the last batch; none without a baseline."""
    last = max((case.batch for case in independent), default=0)
    if not material.baseline or not last:
        return ()
    found = chart(count(one_per_patient(material.baseline), independent, material.classes, last), material.run_length)
    now = found.values[-1]
    label, value = int(now.argmax()), float(now.max())
    name = f"recall:{material.classes[label]}"
    return (RuleResult(rule="cusum", alarmed=value > found.limit, metric=name, statistic=value, limit=found.limit),)


def _seen(material: Material, evidence: Sequence[StreamCase], judged: Judged | None) -> Seen:
    """The cases that the summary speaks of: after a recovery those since then."""
    first = judged.assessment.restarted_after if judged else 0
    counted = judged.cases if judged and first else evidence
    return Seen(sum(case.batch > first for case in counted), first, len(material.stream) - len(evidence))


def _judge(material: Material, independent: Sequence[StreamCase]) -> Judged:
    left_out = material.taught | {row.patient_key for row in material.baseline}
    pending = [row for row in material.pending if row.patient_key not in left_out]
    times = [*(case.acquired_at for case in independent), *(row.acquired_at for row in pending)]
    question = Question(
        classes=material.classes,
        baseline=material.baseline,
        thresholds=material.thresholds,
        size=material.batch_size,
        seed=material.seed,
        now=material.now or max(times, default=datetime.max.replace(tzinfo=UTC)),
        wait_days=material.wait_days,
        variation=material.variation,
    )
    return judge_stream(question, independent, pending)


def _explain(material: Material, independent: Sequence[StreamCase], judged: Judged | None, rule: RuleVerdict) -> Cause:
    recent = [case.truth or "" for case in independent if case.batch == material.batch]
    moved = rule.declined and mix_shift([row.truth or "" for row in material.baseline], recent) < MIX_RISK
    assessment, stream = (judged.assessment, judged.cases) if judged else (None, independent)
    fall = assessment.fall if assessment else None
    context = _context(material)
    if assessment and assessment.alarm and fall:
        # A feed that was broken when the alarm rose stays the cause while the alarm stands, also once it is repaired.
        before = [case for case in stream if case.batch < fall.start]
        for end in range(max(assessment.alarm, fall.start), stream[-1].batch):
            broken = feed_fault(before, [case for case in stream if fall.start <= case.batch <= end], context)
            if broken is not None:
                return broken
    return diagnose(stream, fall, alarmed=bool(assessment and assessment.alarm), mix_moved=moved, context=context)


def _context(material: Material) -> Context:
    findings = [row.findings for row in material.baseline if row.findings is not None]
    return Context(material.classes, findings, material.pictures, material.seed)


def _change_evidence(material: Material, stream: Sequence[StreamCase]) -> Evidence:
    """What has changed in the newest cases whether anything fell or not, as far as their images are known."""
    if material.pictures is None:
        return {}
    found = recent_change(stream, _context(material))
    said: Evidence = {"change": str(found.kind), "change_what": found.what or None, "change_p_value": found.p_value}
    return {} if found.kind is Diagnosis.NONE else said


def _feed_evidence(material: Material, stream: Sequence[StreamCase]) -> Evidence:
    """A doubt that is far commoner in this batch than before it, whether the recall fell or not."""
    before = [case.findings for case in stream if case.batch < material.batch]
    recent = [case.findings for case in stream if case.batch == material.batch]
    doubt = feed_doubt(before, _context(material).findings, recent)
    return {"feed_doubt": doubt.what, "feed_doubt_p_value": doubt.p_value} if doubt else {}


def _since(judged: Judged) -> datetime | None:
    """When the first case of the first shifted block was acquired; blocks are in the order of acquisition.

    Studies far older than the version stand at the start of its stream: the first block's oldest twentieth is left out.
    """
    fall = judged.assessment.fall
    if fall is None:
        return None
    times = [case.acquired_at for case in judged.cases if case.batch == fall.start]
    return times[len(times) // 20 if fall.start == 1 else 0]


def _values(metrics: MetricSet, baseline: MetricSet) -> tuple[MetricValue, ...]:
    return tuple(
        MetricValue(name=name, value=item.value, low=item.low, high=item.high, cases=item.cases, baseline=baseline[name].value)
        for name, item in metrics.items()
    )


def _evidence(
    material: Material,
    independent: Sequence[StreamCase],
    judged: Judged | None,
    since: datetime | None,
    cause: Cause,
    line: str,
    rule: RuleVerdict,
) -> Evidence:
    found: Evidence = {}
    assessment = judged.assessment if judged else None
    if assessment and assessment.fall:
        found |= _fall_evidence(assessment.fall, since)
    found |= {"root_cause": line or None, "cause_p_value": cause.p_value} | _feed_evidence(material, independent)
    found |= {f"cause_test_{name.replace(' ', '_')}": value for name, value in cause.tests.items()}
    found |= _change_evidence(material, independent)
    if judged:
        found |= _detector_evidence(judged.assessment) | waiting(judged) | {"block_size": material.batch_size}
    found |= {"rule_metric": rule.metric, "rule_change": rule.change, "independent_cases": len(independent), "seed": material.seed}
    known = [case.patient_key for case in material.stream if case.patient_key in material.taught]
    if known:
        found |= {"returning_training_cases": len(known), "returning_training_patients": len(set(known))}
    if material.withdrawn:
        found["withdrawn_cases"] = material.withdrawn
    unknown = foreign(material.stream, material.classes)
    if unknown:
        found["cases_of_unknown_classes"] = unknown
    return {name: value for name, value in found.items() if value is not None}


def _fall_evidence(fall: Fall, since: datetime | None) -> Evidence:
    return {
        "class": fall.label,
        "scope": fall.scope,
        "drop": fall.drop,
        "drop_low": fall.low,
        "drop_high": fall.high,
        "recall": fall.recall,
        "recall_before": fall.before,
        "probability": fall.probability,
        "since": since.isoformat() if since else None,
        "since_batch": fall.start,
        "since_batch_low": fall.start_low,
        "since_batch_high": fall.start_high,
    }


def _detector_evidence(assessment: Assessment) -> Evidence:
    return {
        "alarm_batch": assessment.alarm,
        "statistic_a": assessment.a,
        "threshold_a": assessment.thresholds.a,
        "statistic_b": assessment.b,
        "threshold_b": assessment.thresholds.b,
        "thresholds_from": assessment.thresholds.origin,
        "blocks_per_year": assessment.thresholds.per_year,
        "smallest_fall_in_a_year": "none" if assessment.smallest_fall is None else assessment.smallest_fall,
        "more_cases_needed": assessment.more_cases if assessment.status is Status.UNDECIDED else None,
        "recovered_after_batch": assessment.restarted_after or None,
        "own_baseline_cases": assessment.own_baseline or None,
        **assessment.variation.evidence(),
        "unproven_classes": ", ".join(assessment.unproven) or None,
    }

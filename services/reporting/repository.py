"""All SQL of the reports: gathers the facts as they stood at the cause, stores the finished report."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import and_, not_, or_
from sqlalchemy import case as when
from sqlmodel import Session, col, func, select

from schemas.tables import Audit, BaselineCase, Batch, Case, Evaluation, Job, ModelVersion, Order, RegisteredModel, Report
from schemas.vocabulary import OrderKind, OrderState
from services.reporting.facts import (
    Cause,
    Change,
    EvaluationFacts,
    Facts,
    Intervention,
    JobFacts,
    LabelCounts,
    Metric,
    OrderFacts,
    Period,
    Revision,
    ScoredCase,
    VersionFacts,
)
from services.reporting.period_repository import activity, champion_at, judgements, serving_at, windows
from services.runtime import registry
from services.runtime.transaction import Transaction

SHOWN_ORDERS = 12
_CHANGES = ("version.promoted", "version.rolled_back")
_DEEDS = {
    "version.began_serving": ("version", "v{number} begins"),
    "version.promoted": ("version", "v{number} promoted"),
    "version.rolled_back": ("version", "back to v{number}"),
    "serving.stopped": ("service", "stopped"),
    "serving.resumed": ("service", "resumed"),
}
"""Audit action to kind of intervention and its short form on the control chart."""


def gather(session: Session, cause: Cause) -> Facts:
    """All facts of a report; InvalidInput when the model, version or evaluation does not exist."""
    owner = registry.model(session, cause.model)
    champion = champion_at(session, owner, cause.as_of)
    number = _version_number(session, owner, cause, champion)
    judged = _judgements(session, cause.model, cause.as_of)
    history = _history(judged)
    latest = _latest(judged, history, number, cause)
    period = Period(cause.since, cause.as_of)
    return Facts(
        cause=cause,
        task=owner.task,
        classes=tuple(owner.classes),
        serving=serving_at(session, owner, cause.as_of),
        champion=champion,
        version=number,
        versions=[_version_facts(row) for row in registry.versions(session, cause.model) if row.created_at <= cause.as_of],
        history=history,
        latest=latest,
        cases=_batch_cases(session, latest),
        baseline=[_scored(row.truth, row) for row in registry.baseline(session, cause.model, latest.version if latest else number)],
        baseline_recalls=_baseline_recalls(session, cause.model),
        changes=_changes(session, cause),
        orders=_orders(session, cause),
        job=_job(session, cause.order_id),
        labels=_label_counts(session, cause, number),
        interventions=_interventions(session, cause),
        period=period,
        activity=activity(session, cause.model, period),
        judgements=judgements(session, cause, period),
        windows=windows(session, cause.model, cause.as_of),
    )


def _version_number(session: Session, owner: RegisteredModel, cause: Cause, champion: int | None) -> int:
    if cause.promotion is not None:
        wanted = cause.promotion.challenger
    elif cause.evaluation_id is not None and (found := session.get(Evaluation, cause.evaluation_id)) is not None:
        wanted = found.version
    else:
        wanted = cause.version or champion or 0
    return registry.version(session, owner.name, wanted).version


def _judgements(session: Session, model: str, until: datetime) -> list[EvaluationFacts]:
    """All evaluations, those of a version in the order of the stream that they judge, however late they were made."""
    query = (
        select(Evaluation, Batch)
        .join(Batch, col(Batch.batch_id) == col(Evaluation.batch_id), isouter=True)
        .where(Evaluation.model == model, col(Evaluation.evaluated_at) <= until)
        .order_by(col(Evaluation.stream_cases), col(Evaluation.evaluated_at), Evaluation.evaluation_id)
    )
    found: list[EvaluationFacts] = []
    places: dict[int, dict[str, int]] = {}
    for evaluation, closed in session.exec(query):
        known = places.setdefault(evaluation.version, {})
        found.append(_evaluation_facts(evaluation, closed, known.setdefault(evaluation.batch_id, len(known) + 1)))
    return found


def _history(judgements: Sequence[EvaluationFacts]) -> list[EvaluationFacts]:
    """Each batch with its newest figures, and what the stream showed with it: a later judgement is no alarm of then.

    What a batch showed before, where labels were corrected or came late, is kept as its revisions.
    """
    earlier: dict[str, list[EvaluationFacts]] = {}
    first: dict[str, EvaluationFacts] = {}
    newest: dict[str, EvaluationFacts] = {}
    for each in judgements:
        known = first.get(each.batch_id)
        if known is None or known.stream_cases == each.stream_cases:
            first[each.batch_id] = each
        earlier.setdefault(each.batch_id, []).append(each)
        if each.batch_id not in newest or each.evaluated_at >= newest[each.batch_id].evaluated_at:
            newest[each.batch_id] = each
    merged = [
        replace(
            each,
            status=first[batch].status,
            evidence=first[batch].evidence,
            rules=_of_then(each, first[batch]),
            evaluated_at=first[batch].evaluated_at,
            revisions=_revisions(earlier[batch], each),
        )
        for batch, each in newest.items()
    ]
    return sorted(merged, key=lambda each: (each.closed_at, each.version, each.number))


def _of_then(newest: EvaluationFacts, first: EvaluationFacts) -> tuple[Mapping[str, Any], ...]:
    """The 5 % rule is about the batch, charts are about the stream up to it."""
    return tuple(
        rule for each, ours in ((newest, True), (first, False)) for rule in each.rules if (rule.get("rule") == "reclaim") is ours
    )


def _revisions(judgements: Sequence[EvaluationFacts], newest: EvaluationFacts) -> tuple[Revision, ...]:
    """The judgements of a batch before the newest one whose figures differ from it."""
    ordered = sorted((each for each in judgements if each is not newest), key=lambda each: (each.evaluated_at, each.evaluation_id))
    return tuple(
        Revision(each.evaluation_id, each.status, each.cases, each.metrics, each.evaluated_at)
        for each in ordered
        if each.evaluated_at <= newest.evaluated_at and (each.metrics != newest.metrics or each.cases != newest.cases)
    )


def _evaluation_facts(row: Evaluation, batch: Batch | None, place: int) -> EvaluationFacts:
    """`place` numbers a batch whose row is gone."""
    return EvaluationFacts(
        evaluation_id=row.evaluation_id,
        batch_id=row.batch_id,
        number=place if batch is None else batch.number,
        version=row.version,
        status=row.status,
        diagnosis=row.diagnosis,
        cases=row.cases,
        stream_cases=row.stream_cases,
        metrics=tuple(
            Metric(item["name"], item.get("value"), item.get("low"), item.get("high"), item.get("cases", 0), item.get("baseline"))
            for item in row.metrics
        ),
        evidence=dict(row.evidence),
        reclaim_rule=row.reclaim_rule,
        summary=row.summary,
        evaluated_at=row.evaluated_at,
        subgroups=tuple(row.subgroups or ()),
        rules=tuple(row.rules or ()),
        closed_at=row.evaluated_at if batch is None else batch.closed_at,
    )


def _latest(
    judgements: Sequence[EvaluationFacts], history: Sequence[EvaluationFacts], version: int, cause: Cause
) -> EvaluationFacts | None:
    """The evaluation that the cause names, else the newest judgement of the version with the figures of its newest batch."""
    if cause.evaluation_id is not None and cause.promotion is None:
        named = next((each for each in judgements if each.evaluation_id == cause.evaluation_id), None)
        if named is not None:
            return named
    about = cause.promotion.champion_before if cause.promotion is not None else version
    judged = next((each for each in reversed(judgements) if each.version == about), None)
    batch = next((each for each in reversed(history) if each.version == about), None)
    if judged is None or batch is None:
        return None
    return replace(
        judged,
        batch_id=batch.batch_id,
        number=batch.number,
        cases=batch.cases,
        metrics=batch.metrics,
        reclaim_rule=batch.reclaim_rule,
    )


def _version_facts(row: ModelVersion) -> VersionFacts:
    return VersionFacts(row.version, row.state, row.sha256, row.parent, row.origin, row.created_at)


def _batch_cases(session: Session, latest: EvaluationFacts | None) -> list[ScoredCase]:
    if latest is None:
        return []
    query = select(Case).where(Case.batch_id == latest.batch_id).order_by(Case.study_key)
    return [_scored(row.truth, row) for row in session.exec(query) if row.truth is not None]


def _scored(truth: str, row: Case | BaselineCase) -> ScoredCase:
    return ScoredCase(truth, row.predicted, row.probabilities)


def _baseline_recalls(session: Session, model: str) -> dict[tuple[int, str], tuple[int, int]]:
    """(version, class) to (right, all) of the baseline."""
    right = func.sum(when((col(BaselineCase.predicted) == col(BaselineCase.truth), 1), else_=0))
    query = (
        select(BaselineCase.version, BaselineCase.truth, right, func.count())
        .where(BaselineCase.model == model)
        .group_by(col(BaselineCase.version), col(BaselineCase.truth))
    )
    return {(version, truth): (int(hits), int(total)) for version, truth, hits, total in session.exec(query)}


def _changes(session: Session, cause: Cause) -> list[Change]:
    query = (
        select(Audit)
        .where(col(Audit.action).in_(_CHANGES), col(Audit.subject).startswith(f"{cause.model}:", autoescape=True))
        .where(col(Audit.at) <= cause.as_of)
        .order_by(col(Audit.at), col(Audit.id))
    )
    parsed = [(row, *row.subject.rpartition(":")[::2]) for row in session.exec(query)]
    return [Change(row.at, row.action, int(number)) for row, model, number in parsed if model == cause.model and number.isdigit()]


def _interventions(session: Session, cause: Cause) -> list[Intervention]:
    """Every version that began to serve, every stop and resumption, and the orders carried out, in order of time."""
    subject = col(Audit.subject)
    about = or_(subject == cause.model, subject.startswith(f"{cause.model}:", autoescape=True))
    query = select(Audit).where(col(Audit.action).in_(list(_DEEDS)), about, col(Audit.at) <= cause.as_of).order_by(col(Audit.id))
    found: list[Intervention] = []
    for row in session.exec(query):
        model, _, number = row.subject.rpartition(":")
        if row.subject == cause.model or (model == cause.model and number.isdigit()):
            kind, word = _DEEDS[row.action]
            action, version = row.action.partition(".")[2], int(number) if number.isdigit() else 0
            found.append(Intervention(row.at, kind, action, word.format(number=number), row.actor, version))
    return sorted([*found, *_carried_out(session, cause)], key=lambda each: each.at)


def _carried_out(session: Session, cause: Cause) -> list[Intervention]:
    """Orders of a remedy or of labels that were not refused; the others show by what they did."""
    query = (
        select(Order)
        .where(Order.model == cause.model, col(Order.created_at) <= cause.as_of)
        .where(col(Order.kind).in_((OrderKind.REMEDY, OrderKind.LABEL_REQUEST)), Order.state != OrderState.REFUSED)
        .order_by(col(Order.created_at), Order.order_id)
    )
    return [
        Intervention(row.created_at, "order", row.kind, (row.remedy or "labels").replace("_", " "), row.actor)
        for row in session.exec(query)
    ]


def _orders(session: Session, cause: Cause) -> list[OrderFacts]:
    query = (
        select(Order)
        .where(Order.model == cause.model, col(Order.created_at) <= cause.as_of, Order.order_id != _own_order(cause))
        .order_by(col(Order.created_at).desc(), Order.order_id)
        .limit(SHOWN_ORDERS)
    )
    return [
        OrderFacts(row.order_id, row.kind, row.state, row.remedy or "", row.reason, row.actor, row.explanation, row.created_at)
        for row in session.exec(query)
    ]


def _own_order(cause: Cause) -> str:
    """The order that asked for this very report says nothing about the model and is left out."""
    return cause.order_id or "" if cause.promotion is None else ""


def _job(session: Session, order_id: str | None) -> JobFacts | None:
    row = session.exec(select(Job).where(Job.order_id == order_id)).first() if order_id else None
    return None if row is None else JobFacts(row.job_id, row.remedy, row.state, row.attempt, row.settings, row.result, row.error)


def _label_counts(session: Session, cause: Cause, version: int) -> LabelCounts:
    known = (Case.model == cause.model, Case.version == version, col(Case.scored_at) <= cause.as_of)
    joined = (col(Case.truth).is_not(None), col(Case.joined_at) <= cause.as_of)
    labelled = select(Case.truth, func.count()).where(*known, *joined).group_by(col(Case.truth)).order_by(col(Case.truth))
    waiting = (
        select(Case.predicted, func.count())
        .where(*known, not_(and_(*joined)))
        .group_by(col(Case.predicted))
        .order_by(col(Case.predicted))
    )
    return LabelCounts(
        {str(name): int(count) for name, count in session.exec(labelled)},
        {name: int(count) for name, count in session.exec(waiting)},
    )


def covered(session: Session, model: str, now: datetime) -> datetime | None:
    """To where the newest routine report of a model goes, whether it is written yet or only ordered.

    One that is dated later than now was ordered by a clock that ran ahead and was put right.
    """
    query = (
        select(Order.settings)
        .where(Order.model == model, Order.kind == OrderKind.REPORT, col(Order.idempotency_key).startswith("routine|"))
        .where(col(Order.created_at) <= now)
        .order_by(col(Order.created_at).desc())
        .limit(1)
    )
    found = session.exec(query).first()
    return datetime.fromisoformat(found["until"]) if found is not None else None


def store(tx: Transaction, report: Report) -> bool:
    """Enter the finished report; False when it is there already."""
    return bool(tx.insert_new(Report, [report], returning="report_id"))


def finish_order(tx: Transaction, order_id: str, explanation: str) -> None:
    """Close the order that asked for a report; an order of another deployment or one that was refused stays as it is."""
    row = tx.session.get(Order, order_id)
    if row is None or row.state in (OrderState.REFUSED, OrderState.FAILED, OrderState.DONE):
        return
    row.state, row.explanation, row.updated_at = OrderState.DONE, explanation, tx.clock.now()
    tx.session.add(row)

"""Tools that read. None of them changes anything."""

from collections.abc import Collection, Sequence
from datetime import datetime
from itertools import accumulate

from sqlmodel import Session

from agents import repository
from agents.ladder import EXECUTABLE, cases_for_another_round, next_rung
from agents.overview.facts import ModelState
from agents.overview.reading import model_state
from agents.overview.wording import missing
from agents.redaction import plain
from agents.tools.answers import (
    Answer,
    Comparison,
    Help,
    History,
    ModelLine,
    Models,
    ModelStatus,
    OrderLine,
    Orders,
    Problem,
    RemedyOptions,
    ReportLine,
    Reports,
    VersionFacts,
)
from agents.tools.arguments import CompareArguments, HistoryArguments, ListArguments, NoArguments, OneModel, OrdersArguments
from agents.tools.desk import Desk, evaluation_facts, resolve
from schemas.tables import Evaluation, ModelVersion, Order, RegisteredModel
from schemas.vocabulary import CaseRole, Diagnosis, OrderKind, OrderState, Remedy
from services.remediation.plan import labels_for
from services.runtime import registry
from services.runtime.change_plans import plan_of
from services.runtime.errors import InvalidInput

HELP = """You can ask me, in your own words:
- how a model is doing, its trend, why it declined, whether its images drift, how two versions compare
- which models, evaluations, orders and reports there are
- to write a report or to ask for labels (radiologist and above)
- to evaluate now: since a day, over the last 200 cases, for a station or another group, under another rule
- to fine-tune a model, with epochs, learning rate and strategy (head only, partial, gradual, adapters, full), to recalibrate \
it, set its thresholds, harmonise its images or adapt its statistics, to stop or resume serving, \
to approve or reject an order that waits (ml_owner and above)
- to roll back to the last version (admin)
Several requests may stand in one message. Every order passes the guardrails; what they refuse is explained."""


def tell_help(_desk: Desk, _args: NoArguments) -> Answer:
    """Say what may be asked."""
    return Help(text=HELP)


def list_models(desk: Desk, _args: NoArguments) -> Answer:
    """List the registered models with the version in service and its latest status."""
    with desk.database.read() as session:
        waiting = repository.orders(session, states=(OrderState.AWAITING_APPROVAL,))
        return Models(
            models=tuple(_model_line(model_state(session, desk.settings, row)) for row in registry.models(session)),
            waiting=tuple(order_line(session, row).say() for row in waiting),
        )


def _model_line(found: ModelState) -> ModelLine:
    since = f" since {found.since:%Y-%m-%d}" if found.since else ""
    return ModelLine(
        name=found.name,
        task=found.task,
        champion=found.champion,
        serving=found.serving,
        status=f"{found.status}{since}" if found.status else "not evaluated yet",
        labels=missing(found),
    )


def model_status(desk: Desk, args: OneModel) -> Answer:
    """Status of a model: latest evaluation with metrics and intervals, cases at hand, orders under way."""
    with desk.database.read() as session:
        name = resolve(session, args.model)
        return name if isinstance(name, Problem) else _status(session, registry.model(session, name), desk)


def _status(session: Session, row: RegisteredModel, desk: Desk) -> ModelStatus:
    if row.champion is None:
        return ModelStatus(model=row.name, champion=None, serving=row.serving, evaluation=None)
    newest = repository.latest(session, row.name, row.champion)
    active = repository.orders(session, row.name, repository.ACTIVE)
    tune, gate, _ = _cases(session, row, desk)
    found = model_state(session, desk.settings, row)
    return ModelStatus(
        model=row.name,
        champion=row.champion,
        serving=row.serving,
        evaluation=evaluation_facts(newest) if newest else None,
        tune_cases=tune,
        gate_cases=gate,
        unlabelled=found.unlabelled,
        since=f"{found.since:%Y-%m-%d}" if found.since else "",
        labels=missing(found),
        active_orders=tuple(order_line(session, order).say() for order in active),
    )


def metric_history(desk: Desk, args: HistoryArguments) -> Answer:
    """The run of a model's evaluations over time, all versions."""
    with desk.database.read() as session:
        name = resolve(session, args.model)
        if isinstance(name, Problem):
            return name
        rows = _newest(repository.evaluations(session, name, limit=most(args), days=(args.since, args.until)), args.cases)
        return History(model=name, evaluations=tuple(evaluation_facts(row, detail=False) for row in rows))


def most(args: HistoryArguments | ListArguments | OrdersArguments) -> int:
    """How many rows are told: as many as were asked for; all of a span of days that has no number with it."""
    dated = args.since is not None or args.until is not None or getattr(args, "cases", None) is not None
    return 100 if dated and "last" not in args.model_fields_set else args.last


def _newest(rows: Sequence[Evaluation], cases: int | None) -> Sequence[Evaluation]:
    """The newest evaluations whose batches together hold the number of cases; all of them without a number."""
    if cases is None or not rows:
        return rows
    before = list(accumulate((row.cases for row in rows), initial=0))
    return [row for row, earlier in zip(rows, before, strict=False) if earlier < cases]


def compare_versions(desk: Desk, args: CompareArguments) -> Answer:
    """Compare two versions of a model: baseline and latest evaluation of each."""
    with desk.database.read() as session:
        name = resolve(session, args.model)
        if isinstance(name, Problem):
            return name
        known = {row.version: row for row in registry.versions(session, name)}
        chosen = _pair(args, registry.model(session, name).champion, known)
        if isinstance(chosen, Problem):
            return chosen
        first, second = (_version_facts(session, known[number]) for number in chosen)
        return Comparison(model=name, versions=(first, second))


def _pair(args: CompareArguments, champion: int | None, known: dict[int, ModelVersion]) -> tuple[int, int] | Problem:
    listed = tuple(map(str, known))
    second = args.second or (champion if args.first != champion else None) or max(known, default=0)
    earlier = [number for number in known if number != second]
    first = args.first or (known[second].parent if second in known else None) or max(earlier, default=0)
    for number in (first, second):
        if number not in known:
            wrong = f"There is no version {number}." if number else "There is only one version, so nothing to compare it with."
            return Problem(error=wrong, known=listed)
    if first == second:
        return Problem(error="Two different versions are needed.", known=listed)
    return first, second


def _version_facts(session: Session, row: ModelVersion) -> VersionFacts:
    newest = repository.latest(session, row.model, row.version)
    cases = registry.baseline(session, row.model, row.version)
    right = sum(case.truth == case.predicted for case in cases)
    return VersionFacts(
        version=row.version,
        state=row.state,
        evaluation=evaluation_facts(newest, detail=False) if newest else None,
        baseline_cases=len(cases),
        baseline_accuracy=right / len(cases) if cases else None,
    )


def list_evaluations(desk: Desk, args: ListArguments) -> Answer:
    """The latest evaluations of one model, or of each model."""
    with desk.database.read() as session:
        wanted = _wanted(session, args.model)
        if isinstance(wanted, Problem):
            return wanted
        rows = [
            row for name in wanted for row in repository.evaluations(session, name, limit=most(args), days=(args.since, args.until))
        ]
        facts = tuple(evaluation_facts(row, detail=False) for row in rows)
        return History(model=", ".join(wanted) or "No model", evaluations=facts)


def _wanted(session: Session, model: str) -> list[str] | Problem:
    if not model:
        return [row.name for row in registry.models(session)]
    name = resolve(session, model)
    return name if isinstance(name, Problem) else [name]


def list_orders(desk: Desk, args: OrdersArguments) -> Answer:
    """Orders with their state, newest first; `waiting` for those that need approval."""
    with desk.database.read() as session:
        name = resolve(session, args.model) if args.model else ""
        if isinstance(name, Problem):
            return name
        states = (OrderState.AWAITING_APPROVAL,) if args.waiting else ()
        rows = repository.orders(session, name, states, most(args), (args.since, args.until))
        return Orders(orders=tuple(order_line(session, row) for row in rows), waiting=args.waiting)


def order_line(session: Session, row: Order) -> OrderLine:
    """One order with its progress."""
    return OrderLine(
        order_id=row.order_id,
        kind=row.kind,
        state=row.state,
        model=row.model,
        remedy=row.remedy or "",
        actor=plain(row.actor, 60),
        reason=plain(row.reason, 300),
        explanation=plain(row.explanation, 300),
        progress=progress(session, row),
    )


def progress(session: Session, row: Order) -> str:
    """How far a remedy is, empty when it has no job."""
    job = repository.job_of(session, row.order_id) if row.kind == OrderKind.REMEDY else None
    if job is None:
        return ""
    epoch, epochs = job.progress.get("epoch"), job.progress.get("epochs")
    return f"{job.state}, epoch {epoch} of {epochs}" if epoch is not None and epochs is not None else job.state


def list_reports(desk: Desk, args: ListArguments) -> Answer:
    """Written reports, newest first."""
    with desk.database.read() as session:
        name = resolve(session, args.model) if args.model else ""
        if isinstance(name, Problem):
            return name
        rows = repository.reports(session, name, most(args), (args.since, args.until))
    lines = (
        ReportLine(
            report_id=row.report_id,
            model=row.model,
            kind=row.kind,
            status=row.status,
            title=plain(row.title),
            summary=plain(row.summary, 400),
            written_at=f"{row.written_at:%Y-%m-%d %H:%M} UTC",
            location=row.html,
        )
        for row in rows
    )
    return Reports(reports=tuple(lines))


def remedy_options(desk: Desk, args: OneModel) -> Answer:
    """What a remedy has to go by: diagnosis, labelled cases, former remedies of this version, the next rung."""
    with desk.database.read() as session:
        name = resolve(session, args.model)
        return name if isinstance(name, Problem) else _options(session, registry.model(session, name), desk)


def _covered(model: str, desk: Desk) -> Collection[Remedy]:
    """Remedies that the model's change control plan covers: all without a plan, none with one that is not valid."""
    try:
        read = plan_of(desk.settings, model, desk.clock.now().date())
    except InvalidInput:
        return ()
    return read.plan.remedies() if read is not None else EXECUTABLE


def _options(session: Session, row: RegisteredModel, desk: Desk) -> RemedyOptions:
    champion, limits = row.champion or 0, desk.settings.remediation
    newest = repository.latest(session, row.name, row.champion)
    tune, gate, since = _cases(session, row, desk)
    turned = repository.turned_down(session, row.name, champion, tune + gate)
    rejected = [each.remedy for each in turned if each.remedy]
    diagnosis = Diagnosis(newest.diagnosis) if newest else Diagnosis.NONE
    join, allowed = desk.settings.join, _covered(row.name, desk)
    rung = next_rung(tune, limits.min_tune_cases, rejected, diagnosis, allowed)
    more = max((cases_for_another_round(each.cases, tune + gate) for each in turned), default=0)
    return RemedyOptions(
        model=row.name,
        champion=row.champion,
        status=newest.status if newest else "not evaluated yet",
        diagnosis=diagnosis,
        tune_cases=tune,
        gate_cases=gate,
        min_tune_cases=limits.min_tune_cases,
        min_gate_cases=limits.min_gate_cases,
        rejected_challengers=len(rejected),
        tried=tuple(sorted(set(rejected))),
        since=since.isoformat() if since else "",
        active_remedy=repository.open_order(session, row.name, OrderKind.REMEDY),
        suggestion=rung,
        told=repository.told_that_used_up(session, row.name, turned) if rung is None else None,
        more_studies=labels_for(more, join.tune_share + join.gate_share) if rung is None else 0,
        labels=missing(model_state(session, desk.settings, row)),
    )


def _cases(session: Session, row: RegisteredModel, desk: Desk) -> tuple[int, int, datetime | None]:
    """Labelled cases that a repair would learn from and be judged on, and since when they count."""
    champion = row.champion or 0
    behind = desk.cause.evaluation_id or repository.behind_orders(session, row.name, champion)
    since, most = repository.began(session, behind), desk.settings.remediation.max_cases
    tune, gate = (
        min(repository.labelled(session, row.name, champion, role, since), most) for role in (CaseRole.TUNE, CaseRole.GATE)
    )
    return tune, gate, since

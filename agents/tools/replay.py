"""The tool that evaluates on demand: a rule replayed over stored, labelled cases. It tells; it stores and orders nothing."""

from datetime import UTC, date, datetime, time, timedelta

from sqlmodel import Session

from agents.redaction import plain
from agents.tools.answers import Answer, Problem
from agents.tools.arguments import ReplayArguments
from agents.tools.desk import Desk, resolve
from services.evaluation.replay import SHOWN, Period
from services.evaluation.retrospect import retrospect
from services.runtime import registry
from services.runtime.errors import InvalidInput


class ReplayStep(Answer):
    """The rule after one batch."""

    batch: int
    first: str
    last: str
    cases: int
    statistic: float
    limit: float
    alarmed: bool
    what: str

    def say(self) -> str:
        """One line."""
        alarm = "ALARM, " if self.alarmed else ""
        return (
            f"batch {self.batch}, {self.first} to {self.last}, {self.cases} cases: "
            f"{alarm}{self.what} ({self.statistic:.3f}, alarms at {self.limit:.3f})"
        )


class Replay(Answer):
    """What a rule would have said of a version's cases."""

    model: str
    version: int
    rule: str
    shown: str
    limits: str
    chosen: str
    steps: tuple[ReplayStep, ...]

    def say(self) -> str:
        """One line per batch, the newest twenty, and how many alarm."""
        alarms = [step for step in self.steps if step.alarmed]
        lines = [f"{self.model} version {self.version}, rule {self.rule}{self.chosen} ({self.limits} limits; {self.shown}):"]
        lines += [f"- {step.say()}" for step in self.steps[-20:]]
        first = f"; the first in batch {alarms[0].batch}, until {alarms[0].last}" if alarms else ""
        ending = f"{len(alarms)} of {len(self.steps)} batches would have alarmed{first}."
        return "\n".join([*lines, f"{ending} This was a replay: nothing was stored or ordered."])


def replay_evaluation(desk: Desk, args: ReplayArguments) -> Answer:
    """Evaluate now over stored labelled cases: a window of days, the newest cases, a subgroup, another rule. Orders nothing."""
    with desk.database.read() as session:
        name = resolve(session, args.model)
        if isinstance(name, Problem):
            return name
        version = args.version or registry.model(session, name).champion
        if version is None:
            return Problem(error=f"{name} has no version in service yet.")
        try:
            return _replay(session, desk, args, name, registry.version(session, name, version).version)
        except InvalidInput as error:
            return Problem(error=f"It cannot be evaluated so: {plain(error.reason, 300)}.")


def _replay(session: Session, desk: Desk, args: ReplayArguments, name: str, version: int) -> Answer:
    last = _midnight(args.until)
    facets = dict(facet.split("=", 1) for facet in args.facets)
    period = Period(_midnight(args.since), last + timedelta(days=1) if last else None, facets)
    found = retrospect(session, desk.settings, name, version, args.rule, None, period, last_cases=args.cases)
    if not found["batches"]:
        return Problem(error=f"No labelled case of {name} version {version} is there{_chosen(args)}.")
    steps = tuple(
        ReplayStep.model_validate(
            {**step, "first": f"{step['first']:%F}", "last": f"{step['last']:%F}", "what": plain(step["what"])}
        )
        for step in found["batches"]
    )
    return Replay(
        model=name,
        version=version,
        rule=args.rule,
        shown=SHOWN[args.rule],
        limits=found["limits"],
        chosen=_chosen(args),
        steps=steps,
    )


def _midnight(day: date | None) -> datetime | None:
    return datetime.combine(day, time(), UTC) if day else None


def _chosen(args: ReplayArguments) -> str:
    """The choice of cases in words, with a leading comma; empty for all."""
    parts = [f"acquired since {args.since}"] if args.since else []
    parts += [f"until {args.until}"] if args.until else []
    parts += [f"the newest {args.cases} cases"] if args.cases else []
    parts += [f"with {plain(facet)}" for facet in args.facets]
    return "".join(f", {part}" for part in parts)

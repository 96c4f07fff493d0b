"""The tool that names labels to look at again. It tells; a label is corrected by a newer one from its source, never by an agent."""

from agents import names
from agents.redaction import plain
from agents.tools.answers import Answer, Problem
from agents.tools.arguments import SuspectArguments
from agents.tools.desk import Desk, resolve
from services.evaluation.label_review import Review, review
from services.evaluation.suspects import Conflict, Suspect
from services.runtime.errors import InvalidInput


class SuspectLine(Answer):
    """A label that is more probably wrong than right. The study is named by its pseudonym, `sure` is the probability."""

    study: str
    acquired: str
    label: str
    source: str
    rather: str
    sure: float

    def say(self) -> str:
        """One line."""
        by = f" by {self.source}" if self.source else ""
        return f"study {self.study} of {self.acquired}: labelled {self.label}{by}, rather {self.rather} ({self.sure:.0%} sure)"


class ConflictLine(Answer):
    """A study of which sources say different things, the one that counts first."""

    study: str
    said: tuple[str, ...]

    def say(self) -> str:
        """One line."""
        return f"study {self.study}: {'; '.join(self.said)}"


class SuspectLabels(Answer):
    """Labels of a version to look at again. `share` of wrong labels is None where nothing can be said of it."""

    model: str
    version: int
    cases: int
    share: float | None
    low: float | None
    high: float | None
    found: int
    suspects: tuple[SuspectLine, ...]
    contradicted: int
    conflicts: tuple[ConflictLine, ...]
    degraded: bool
    label: str = ""
    expected: float = 0.0
    """How many of `suspects` are probably wrong labels; the others are right."""

    def say(self) -> str:
        """The share of wrong labels, the surest suspects, the newest contradictions, and how far that can be trusted."""
        lines = [self._share(), *(f"- {line.say()}" for line in self.suspects)]
        if self.contradicted:
            lines += [f"Of {self.contradicted} studies sources say different things, the newest first:"]
            lines += [f"- {line.say()}" for line in self.conflicts]
        if self.degraded and self.found:
            lines.append("This version is degraded: much of what looks like wrong labels may be its own errors.")
        return "\n".join([*lines, "Nothing was changed: a newer label of the same study corrects one."])

    def _share(self) -> str:
        name = f"{self.model} version {self.version}"
        if self.share is None or self.low is None or self.high is None:
            return f"{name}: too few labelled cases, or classes that do not exclude each other, to tell wrong labels."
        estimate = f"{self.share:.1%} of the labels are probably wrong ({self.low:.1%} to {self.high:.1%})"
        which = f" labelled {self.label}" if self.label else ""
        shown = f", the surest {len(self.suspects)} of them" if len(self.suspects) < self.found else ""
        return f"{name}: of {self.cases} labelled cases {estimate}; to look at again{which}: {self.found}{shown}{self._expected()}."

    def _expected(self) -> str:
        many = len(self.suspects)
        return f"; of these {many} about {self.expected:.0f} are expected to be wrong labels" if many else ""


def suspect_labels(desk: Desk, args: SuspectArguments) -> Answer:
    """Labels that are probably wrong, the surest first, and studies whose sources contradict each other. Changes nothing."""
    with desk.database.read() as session:
        name = resolve(session, args.model)
        if isinstance(name, Problem):
            return name
        try:
            found = review(session, desk.settings.evaluation, name, args.version, desk.clock.now())
        except InvalidInput as error:
            return Problem(error=f"{plain(str(error))}.")
    label = names.exact(args.label, found.classes) if args.label else ""
    if label is None:
        return Problem(error=f"{name} has no class {plain(args.label, 64)!r}.", known=found.classes)
    return _answer(found, label, args.last)


def _answer(found: Review, label: str, most: int) -> SuspectLabels:
    """Only of one class where `label` names it, at most so many of each list."""
    noise = found.labelling.noise
    wrong = [each for each in (noise.suspects if noise else ()) if label in {"", each.label}]
    contested = [each for each in found.conflicts if not label or label in {said[1] for said in each.labels}]
    return SuspectLabels(
        model=found.model,
        version=found.version,
        cases=noise.cases if noise else 0,
        share=noise.rate if noise else None,
        low=noise.low if noise else None,
        high=noise.high if noise else None,
        found=len(wrong),
        suspects=tuple(_suspect(each) for each in wrong[:most]),
        contradicted=len(contested),
        conflicts=tuple(_conflict(each) for each in contested[:most]),
        degraded=found.degraded,
        label=plain(label, 64),
        expected=round(noise.wrong_among(wrong[:most]), 1) if noise else 0.0,
    )


def _suspect(each: Suspect) -> SuspectLine:
    return SuspectLine(
        study=each.study_key,
        acquired=f"{each.acquired_at:%Y-%m-%d}",
        label=plain(each.label, 64),
        source=plain(each.source or "", 64),
        rather=plain(each.proposed, 64),
        sure=round(each.sure, 4),
    )


def _conflict(each: Conflict) -> ConflictLine:
    said = tuple(f"{plain(source, 64)}: {plain(label, 64)} ({at:%Y-%m-%d})" for source, label, at in each.labels)
    return ConflictLine(study=each.study_key, said=said)

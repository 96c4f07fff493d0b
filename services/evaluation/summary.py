"""What an evaluation says, in two sentences a radiologist understands."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from schemas.events import SubgroupResult
from schemas.vocabulary import Diagnosis, Status
from services.evaluation.diagnosis import Cause
from services.evaluation.verdict import Assessment, Fall
from services.runtime.words import group, likely


@dataclass(frozen=True)
class Seen:
    """The labelled cases that a summary speaks of: those after batch `recovered_after` (0: all), and those left out."""

    cases: int
    recovered_after: int = 0
    left_out: int = 0

    def __str__(self) -> str:
        since = f" since batch {self.recovered_after + 1}, after a recovery," if self.recovered_after else ""
        out = f" ({self.left_out} studies of patients whom it was trained on are left out)" if self.left_out else ""
        return f"{self.cases} labelled cases{out}{since}"


def summarise(
    model: str,
    seen: Seen,
    assessment: Assessment | None,
    cause: Cause,
    root_cause: str,
    since: datetime | None = None,
    subgroups: Sequence[SubgroupResult] = (),
) -> str:
    """Two sentences: what was seen, then what it means or what is still missing. A fall is dated by `since`.

    Where nothing has fallen as a whole, a group that is worse than the others takes the second sentence.
    """
    worst = next((each for each in subgroups if each.worse), None)
    if assessment is None:
        return f"{model} has no labelled reference cases to be compared with. {seen} were measured but not judged."
    if assessment.status is Status.UNDECIDED:
        first = f"No decline of {model} shows, but {seen} are too few to rule one out."
        return f"{first} {_subgroup(worst) if worst else _undecided(assessment)}"
    if assessment.fall is None:
        own = f", the first {assessment.own_baseline} of them being reference cases too" if assessment.own_baseline else ""
        second = _subgroup(worst) if worst else _limits(assessment, cause)
        return f"{model} performs as on its reference cases: {seen} show no decline{own}. {second}"
    told = _fall(model, assessment.fall, certain=assessment.status is Status.DEGRADED)
    began = f"; it began about {since.day} {since:%B %Y}" if since else ""
    return f"{told} {likely(cause.kind, {'root_cause': root_cause})}{began}."


def _subgroup(found: SubgroupResult) -> str:
    what = f"of 100 patients {group(found.facet, found.group)}" + (f" and with {found.label}" if found.label else "")
    here, there = (round(100 * (share or 0.0)) for share in (found.recall, found.recall_others))
    began = f" since about {found.since.day} {found.since:%B %Y}" if found.since and found.recall_before is not None else ""
    return f"But{began} {what} it reads {here} rightly, of the others {there}."


def _fall(model: str, fall: Fall, *, certain: bool) -> str:
    now, was = round(100 * fall.recall), round(100 * fall.before)
    if certain:
        return f"{model} has got worse: of 100 patients with {fall.label} it now finds {now}, before it found {was}."
    return f"{model} may be getting worse: of 100 patients with {fall.label} it recently found {now}, before it found {was}."


def _undecided(assessment: Assessment) -> str:
    if assessment.more_cases is None:
        return "Its reference cases lack a usual class, so nothing can be said of that class, however many cases follow."
    year = f"; in a year at this volume one of {round(100 * assessment.smallest_fall)} would" if assessment.smallest_fall else ""
    return f"About {assessment.more_cases} more are needed before a fall of 20 percentage points in one class would show{year}."


def _limits(assessment: Assessment, cause: Cause) -> str:
    if cause.kind is Diagnosis.PREVALENCE:
        return f"However, {cause.what}, which moves precision and accuracy."
    if assessment.smallest_fall is None:
        return "Falls of single classes cannot be told from chance with these reference cases."
    points = round(100 * assessment.smallest_fall)
    return f"In a year at this volume a fall of {points} percentage points in one class would show, a smaller one may not."

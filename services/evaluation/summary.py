"""What an evaluation says, in two sentences a radiologist understands."""

from dataclasses import dataclass
from datetime import datetime

from schemas.vocabulary import Diagnosis, Status
from services.evaluation.diagnosis import Cause
from services.evaluation.verdict import Assessment, Fall
from services.runtime.words import likely


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
    model: str, seen: Seen, assessment: Assessment | None, cause: Cause, root_cause: str, since: datetime | None = None
) -> str:
    """Two sentences: what was seen, then what it means or what is still missing. A fall is dated by `since`."""
    if assessment is None:
        return f"{model} has no labelled reference cases to be compared with. {seen} were measured but not judged."
    if assessment.status is Status.UNDECIDED:
        return f"No decline of {model} shows, but {seen} are too few to rule one out. {_undecided(assessment)}"
    if assessment.fall is None:
        own = f", the first {assessment.own_baseline} of them being reference cases too" if assessment.own_baseline else ""
        return f"{model} performs as on its reference cases: {seen} show no decline{own}. {_limits(assessment, cause)}"
    told = _fall(model, assessment.fall, certain=assessment.status is Status.DEGRADED)
    began = f"; it began about {since.day} {since:%B %Y}" if since else ""
    return f"{told} {likely(cause.kind, {'root_cause': root_cause})}{began}."


def _fall(model: str, fall: Fall, *, certain: bool) -> str:
    now, was = round(100 * fall.recall), round(100 * fall.before)
    if certain:
        return f"{model} has got worse: of 100 patients with {fall.label} it now finds {now}, before it found {was}."
    return f"{model} may be getting worse: of 100 patients with {fall.label} it recently found {now}, before it found {was}."


def _undecided(assessment: Assessment) -> str:
    if assessment.more_cases is None:
        return "Its reference cases lack a usual class, so nothing can be said of that class, however many cases follow."
    return f"About {assessment.more_cases} more are needed before a fall of 20 percentage points in one class would show."


def _limits(assessment: Assessment, cause: Cause) -> str:
    if cause.kind is Diagnosis.PREVALENCE:
        return f"However, {cause.what}, which moves precision and accuracy."
    if assessment.smallest_fall is None:
        return "Falls of single classes cannot be told from chance with these reference cases."
    points = round(100 * assessment.smallest_fall)
    return f"In a year at this volume a fall of {points} percentage points in one class would show, a smaller one may not."

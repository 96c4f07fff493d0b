"""What an evaluation says, in two sentences a radiologist understands."""

from schemas.vocabulary import Diagnosis, Status
from services.evaluation.diagnosis import Cause
from services.evaluation.verdict import Assessment, Fall

_CAUSES = {
    Diagnosis.PIPELINE: "the image feed looks broken",
    Diagnosis.COVARIATE: "the images come from another source",
    Diagnosis.PREVALENCE: "the mix of patients has changed",
    Diagnosis.CONCEPT: "the images look the same but the truth behind them does not",
    Diagnosis.UNKNOWN: "the cause is not known",
}


def summarise(model: str, cases: int, assessment: Assessment | None, cause: Cause, root_cause: str) -> str:
    """Two sentences: what was seen, then what it means or what is still missing."""
    if assessment is None:
        return f"{model} has no labelled test set to compare with. Its {cases} labelled cases were measured but not judged."
    if assessment.status is Status.UNDECIDED:
        return f"No decline of {model} shows in {cases} labelled cases. {_undecided(assessment)}"
    if assessment.fall is None:
        return f"{model} performs as on its test set: {cases} labelled cases show no decline. {_limits(assessment, cause)}"
    seen = _fall(model, assessment.fall, certain=assessment.status is Status.DEGRADED)
    why = _CAUSES.get(cause.kind, "the cause is not known")
    line = f" ({root_cause})" if root_cause else ""
    return f"{seen} {why[0].upper()}{why[1:]}{line}."


def _fall(model: str, fall: Fall, *, certain: bool) -> str:
    now, was = round(100 * fall.recall), round(100 * fall.before)
    if certain:
        return f"{model} has got worse: of 100 patients with {fall.label} it now finds {now}, before it found {was}."
    return f"{model} may be getting worse: of 100 patients with {fall.label} it recently found {now}, before it found {was}."


def _undecided(assessment: Assessment) -> str:
    if assessment.more_cases is None:
        return "Its test set is too small to tell a fall of 20 percentage points from chance, however many cases follow."
    return f"About {assessment.more_cases} more are needed before a fall of 20 percentage points in one class would show."


def _limits(assessment: Assessment, cause: Cause) -> str:
    if cause.kind is Diagnosis.PREVALENCE:
        return f"However, {cause.what}, which moves precision and accuracy."
    if assessment.smallest_fall is None:
        return "Falls of single classes cannot be told from chance with this test set."
    points = round(100 * assessment.smallest_fall)
    return f"In a year at this volume a fall of {points} percentage points in one class would show, a smaller one may not."

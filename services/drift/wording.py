"""Two sentences on a window: what was seen, and what it means."""

from typing import Final

from schemas.vocabulary import Diagnosis
from services.drift.feed import Arrival
from services.drift.signals import Verdict

_MEANS: Final = {
    Diagnosis.PIPELINE: "It looks like a broken feed",
    Diagnosis.COVARIATE: "It looks like other images",
    Diagnosis.PREVALENCE: "It looks like another mix of patients",
    Diagnosis.UNKNOWN: "What kind of change it is cannot be told without labels",
}


def of_window(model: str, cases: int, verdict: Verdict, *, new: bool) -> str:
    """What a window says."""
    if not verdict.warning:
        return f"The last {cases} studies look to {model} as its reference cases did. No label proves it yet."
    first = next(signal for signal in verdict.signals if signal.warning)
    again = "" if new else " As in the window before,"
    seen = first.sentence[0].lower() + first.sentence[1:] if again else first.sentence
    because = f": {verdict.because}" if verdict.because else ""
    return (
        f"{model}, last {cases} studies:{again} {seen} {_MEANS[verdict.suspected]}{because}; have it reviewed, or label more cases."
    )


def of_feed(model: str, arrival: Arrival) -> str:
    """What the arrival of studies says."""
    if not arrival.warning:
        return f"{model}: {arrival.sentence} The feed works again."
    return f"{model}: {arrival.sentence} Have a person look at the feed."

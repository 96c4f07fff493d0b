"""The agents' own words: orders, and what a person has to do. What they say of a decline is in `services.runtime.words`."""

from typing import Final

from agents.ladder import ADVICE
from schemas.vocabulary import Diagnosis, OrderKind, Remedy
from services.runtime.words import TO_DO

ORDERS: Final[dict[OrderKind, str]] = {
    OrderKind.REPORT: "a report",
    OrderKind.REMEDY: "a remedy",
    OrderKind.LABEL_REQUEST: "labels",
    OrderKind.ROLLBACK: "a rollback",
    OrderKind.STOP_SERVING: "a stop of serving",
    OrderKind.RESUME_SERVING: "serving to resume",
}


def advice(remedy: Remedy) -> str:
    """What a person has to do where new weights would not help."""
    return f"do not fine-tune, a person has to {TO_DO[remedy]}"


def advice_for(diagnosis: str) -> Remedy | None:
    """The remedy that a person has to carry out, None where a repair of the model may help."""
    return ADVICE.get(Diagnosis(diagnosis))

"""Storing and announcing what the early warning saw."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from schemas.drift import DriftWindow
from schemas.events import DriftSignal, MonitoringDrift
from schemas.topics import DRIFT
from schemas.vocabulary import Diagnosis
from services.drift.repository import Version
from services.drift.signals import Signal
from services.runtime.transaction import Transaction

ACTOR: Final = "drift"


@dataclass(frozen=True)
class Observation:
    """A judged window, or a look at the feed. `new`: what came before it did not warn of the same."""

    version: Version
    kind: str
    number: int
    cases: int
    first_at: datetime
    last_at: datetime
    signals: Sequence[Signal]
    suspected: Diagnosis
    new: bool
    summary: str

    @property
    def warning(self) -> bool:
        """Whether any signal warns."""
        return any(signal.warning for signal in self.signals)

    @property
    def identity(self) -> str:
        """The same for the same window, so that it is announced once."""
        model, version = self.version
        return uuid.uuid5(uuid.NAMESPACE_URL, f"reclaim:drift:{model}:{version}:{self.kind}:{self.number}").hex


def store(tx: Transaction, seen: Observation) -> None:
    """Write and announce it; a new warning goes into the audit record."""
    told = tuple(_signal(each) for each in seen.signals)
    shared: dict[str, Any] = {
        "drift_id": seen.identity,
        "model": seen.version[0],
        "version": seen.version[1],
        "kind": seen.kind,
        "number": seen.number,
        "cases": seen.cases,
        "first_at": seen.first_at,
        "last_at": seen.last_at,
        "warning": seen.warning,
        "suspected": seen.suspected,
        "summary": seen.summary[:1000],
        "measured_at": tx.clock.now(),
    }
    tx.session.add(DriftWindow(**shared, signals=[each.model_dump(mode="json") for each in told]))
    tx.emit(DRIFT, MonitoringDrift(**shared, new=seen.new, signals=told), event_id=seen.identity)
    if seen.warning and seen.new:
        subject = f"{seen.version[0]}:{seen.version[1]}"
        tx.audit(ACTOR, "drift.warned", subject, drift=seen.identity, suspected=seen.suspected, summary=seen.summary[:1000])


def _signal(signal: Signal) -> DriftSignal:
    return DriftSignal(
        name=signal.name,
        statistic=signal.statistic,
        threshold=signal.threshold,
        p_value=signal.p_value,
        warning=signal.warning,
        sentence=signal.sentence,
        detail=signal.detail,
    )

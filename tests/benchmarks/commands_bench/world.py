"""The hospital that the commands speak of: five models with three versions each, evaluations, labelled cases, waiting orders."""

import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from sqlmodel import Session

from schemas.tables import BaselineCase, Batch, Case, Evaluation, ModelVersion, Order, RegisteredModel
from services.runtime.database import Database
from services.runtime.migrations import upgrade

NOW: Final = datetime(2026, 3, 18, 12, tzinfo=UTC)
"""A Wednesday; the set's expected days are counted from it."""
MODELS: Final = ("brain_mri", "breast_mg", "chest_ct", "chest_xray", "knee_mri")
WAITING: Final = {
    "one": {"brain_mri": "ord-1a2b3c4d5e6f"},
    "two": {"brain_mri": "ord-1a2b3c4d5e6f", "knee_mri": "ord-aabbccddeeff"},
}
BATCHES: Final = 8
BATCH: Final = 50


class StandingClock:
    """The moment of the commands."""

    def now(self) -> datetime:
        """Always the same."""
        return NOW

    def monotonic(self) -> float:
        """Nothing takes time."""
        return 0.0


@contextmanager
def world(kind: str) -> Iterator[Database]:
    """A fresh SQLite database with `one` or `two` orders that wait for approval."""
    with tempfile.TemporaryDirectory() as folder:
        database = Database(f"sqlite:///{Path(folder) / 'commands.sqlite'}", StandingClock())
        upgrade(database)
        with database.transaction() as tx:
            for number, model in enumerate(MODELS):
                _model(tx.session, model, number)
            for model, order_id in WAITING[kind].items():
                tx.session.add(_waiting(model, order_id))
        yield database
        database.close()


def _model(session: Session, model: str, number: int) -> None:
    begun = NOW - timedelta(days=120)
    session.add(RegisteredModel(name=model, task="tumour", classes=["a", "b"], champion=3, created_at=begun))
    session.flush()
    for version in (1, 2, 3):
        state, parent = ("champion", 2) if version == 3 else ("retired", version - 1 or None)
        made = begun + timedelta(days=version)
        named = {"model": model, "version": version, "parent": parent, "created_at": made}
        session.add(ModelVersion(**named, state=state, bundle="x", sha256=f"{version}" * 64))
        session.flush()
        for case in range(60):
            truth, key = "ab"[case % 2], f"p{version}{case}"
            wrong = "ba"[case % 2] if case % 10 == 0 else truth
            named = {"model": model, "version": version, "case_key": f"c{case}", "patient_key": key}
            session.add(BaselineCase(**named, truth=truth, predicted=wrong, probabilities={"a": 0.8, "b": 0.2}))
    session.flush()
    for version in (2, 3):
        _stream(session, model, version, random.Random(number * 10 + version))


def _stream(session: Session, model: str, version: int, draw: random.Random) -> None:
    start = NOW - timedelta(days=100 if version == 2 else 8 * BATCHES)
    for batch in range(1, BATCHES + 1):
        batch_id = f"{model}-{version}-{batch}"
        closed = start + timedelta(days=8 * batch)
        session.add(
            Batch(batch_id=batch_id, model=model, version=version, number=batch, cases=BATCH, closed_by="size", closed_at=closed)
        )
        session.flush()
        right = sum(_case(session, batch_id, model, version, closed, draw) for _ in range(BATCH))
        session.add(_evaluation(batch_id, model, version, batch, right / BATCH, closed))


def _case(session: Session, batch_id: str, model: str, version: int, closed: datetime, draw: random.Random) -> bool:
    key, truth = f"{draw.getrandbits(128):032x}", draw.choice("ab")
    good = draw.random() < 0.85
    predicted = truth if good else "ba"["ab".index(truth)]
    station = draw.choice(("CT1", "CT2", "MR1", "MR2"))
    facets = {"StationName": station, "PatientSex": draw.choice("FM"), "Manufacturer": draw.choice(("SIEMENS", "GE"))}
    acquired = closed - timedelta(hours=draw.randrange(20, 190))
    fixed = {"model": model, "version": version, "task": "tumour", "role": "trigger", "state": "joined", "batch_id": batch_id}
    times = {"acquired_at": acquired, "scored_at": acquired, "joined_at": closed}
    scores = {predicted: 0.8, "ba"["ab".index(predicted)]: 0.2}
    found = {"predicted": predicted, "truth": truth, "probabilities": scores, "facets": facets}
    session.add(Case(study_key=key, patient_key=key, **fixed, **found, **times))
    return good


def _evaluation(batch_id: str, model: str, version: int, batch: int, accuracy: float, at: datetime) -> Evaluation:
    degraded = version == 3 and batch >= BATCHES - 1
    metric = {"name": "accuracy", "value": accuracy, "low": accuracy - 0.1, "high": min(1, accuracy + 0.1), "baseline": 0.9}
    return Evaluation(
        evaluation_id=f"e-{batch_id}",
        batch_id=batch_id,
        model=model,
        version=version,
        status="degraded" if degraded else "healthy",
        diagnosis="covariate" if degraded else "none",
        cases=BATCH,
        stream_cases=BATCH * batch,
        metrics=[metric | {"cases": BATCH}],
        evidence={"e_value": 41.5} if degraded else {},
        reclaim_rule=degraded,
        summary="Accuracy fell." if degraded else "As on the test set.",
        evaluated_at=at,
    )


def _waiting(model: str, order_id: str) -> Order:
    at = NOW - timedelta(hours=5)
    return Order(
        order_id=order_id,
        idempotency_key=order_id,
        kind="remedy",
        state="awaiting_approval",
        model=model,
        version=3,
        remedy="head_only",
        settings={},
        reason="The agents propose it.",
        evaluation_id=f"e-{model}-3-{BATCHES}",
        actor="agent:orchestrator",
        explanation="The site wants a person's approval.",
        created_at=at,
        updated_at=at,
    )

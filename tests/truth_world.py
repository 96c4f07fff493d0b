"""Scored cases with a known truth behind them: calibrated probabilities, labels that come late, selectively or wrong."""

from datetime import UTC, datetime, timedelta

import numpy as np

from schemas.tables import Case, GroundTruth, ModelVersion
from services.evaluation.scored import ScoredCase
from services.runtime import registry

START = datetime(2026, 3, 2, tzinfo=UTC)
CLASSES = ("glioma", "meningioma", "none", "pituitary")


def calibrated(rng, cases, sharpness=2.5, classes=CLASSES):
    """(probabilities [n, k], truth [n]): the truth is drawn from the probabilities, so these are right as probabilities."""
    logits = rng.normal(size=(cases, len(classes))) * sharpness
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    return shares, (rng.random((cases, 1)) > shares.cumsum(1)[:, :-1]).sum(1)


def scored(probabilities, truth, *, labelled=None, delay=None, classes=CLASSES, per_patient=1, facets=None, minutes=10):
    """One case a row, scored every `minutes`; `truth` [n] are the labels as they are, -1 or `labelled` False for none yet."""
    cases = []
    for n, row in enumerate(probabilities):
        known = truth[n] >= 0 and (labelled is None or bool(labelled[n]))
        at = START + timedelta(minutes=minutes * n)
        cases.append(
            ScoredCase(
                study_key=f"{n:032x}",
                patient_key=f"{n // per_patient:032x}",
                predicted=classes[int(row.argmax())],
                probabilities=dict(zip(classes, map(float, row), strict=True)),
                truth=classes[int(truth[n])] if known else None,
                acquired_at=at,
                scored_at=at,
                joined_at=at + timedelta(days=float(delay[n]) if delay is not None else 0.5) if known else None,
                facets=facets[n] if facets else {},
                source="csv" if known else None,
            )
        )
    return cases


def mislabelled(database, cases=400, wrong=15):
    """A version in tables that scored so many studies; unsure ones are labelled oftener, `wrong` labels are wrong: those studies.

    Of one of them another source says something else.
    """
    rng = np.random.default_rng(5)
    shares, truth = calibrated(rng, cases, 4.0)
    labelled = rng.random(cases) < np.where(shares.max(1) < 0.9, 0.9, 0.4)
    chosen = set(rng.choice(np.flatnonzero(labelled), wrong, replace=False).tolist())
    with database.transaction() as tx:
        registry.register_model(tx, "tumour", "tumour", list(CLASSES), {})
        version = ModelVersion(model="tumour", version=1, bundle="b", sha256="0" * 64, created_at=START)
        registry.add_version(tx, version, [], actor="user:test")
        for n, row in enumerate(shares):
            at = START + timedelta(hours=n)
            label = CLASSES[(truth[n] + (n in chosen)) % 4] if labelled[n] else None
            tx.session.add(case_row(n, row, label, at))
            if label:
                tx.session.add(ground_truth(n, label, "pathology", at))
        other = next(name for name in CLASSES if name != CLASSES[truth[min(chosen)]])
        tx.session.add(ground_truth(min(chosen), other, "csv:old", START - timedelta(days=30)))
    return {f"{n:032x}" for n in chosen}


def case_row(n, row, label, at):
    return Case(
        study_key=f"{n:032x}",
        model="tumour",
        version=1,
        task="tumour",
        patient_key=f"{n:032x}",
        role="trigger",
        state="joined" if label else "waiting",
        predicted=CLASSES[int(row.argmax())],
        probabilities=dict(zip(CLASSES, map(float, row), strict=True)),
        facets={"StationName": f"CT{n % 2}"} | ({"Site": "RECLAIM"} if n % 3 else {}),
        truth=label,
        acquired_at=at,
        scored_at=at,
        joined_at=at + timedelta(days=2) if label else None,
    )


def ground_truth(n, label, source, at):
    return GroundTruth(
        study_key=f"{n:032x}", task="tumour", source=source, value=label, labelled_at=at, received_at=at + timedelta(hours=3)
    )

"""Scored cases with a known truth behind them: calibrated probabilities, labels that come late, selectively or wrong."""

from datetime import UTC, datetime, timedelta

import numpy as np

from services.evaluation.scored import ScoredCase

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

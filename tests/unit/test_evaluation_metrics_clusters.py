"""Variances with patients as clusters: against statsmodels' sandwich, and what a patient's second look may not change."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.evaluation import metrics
from services.evaluation.cases import Cases
from services.evaluation.intervals import jeffreys

PATIENTS = np.array([0, 0, 0, 1, 2, 2, 3, 4, 4, 4, 5, 6, 6, 7, 8, 8, 9, 9, 9, 9])
TRUTH = np.array([0, 1, 1, 0, 1, 1, 2, 0, 0, 2, 1, 2, 2, 0, 1, 0, 2, 2, 1, 0])
SAID = np.array([0, 1, 0, 0, 1, 1, 2, 0, 1, 2, 1, 2, 0, 0, 1, 0, 1, 2, 1, 2])
STATSMODELS = {
    "accuracy": 0.0053125,
    "recall:0": 0.020824656393,
    "recall:1": 0.013327780092,
    "recall:2": 0.012345679012,
    "precision:0": 0.020824656393,
    "precision:1": 0.019531250000,
    "precision:2": 0.019200000000,
    "specificity:0": 0.008052939323,
    "specificity:1": 0.004691712475,
    "specificity:2": 0.004373177843,
}
"""OLS on a constant, cov_type="cluster" without corrections, of statsmodels 0.15.0 for the cases above."""


def cases_of(truth, probabilities, patients):
    people = np.unique(patients, return_inverse=True)[1].astype(np.int64)
    classes = tuple(map(str, range(probabilities.shape[1])))
    return Cases(classes, truth.astype(np.int64), probabilities.argmax(1), probabilities, people)


def estimates(cases):
    """Every smooth metric with its influences."""
    parts = {name: [] for name in metrics.OF_CLASSES}
    for label in range(len(cases.classes)):
        for name, each in metrics.of_class(cases, label).items():
            parts[name].append(each)
    found = metrics.overall(cases, parts)
    return found | {f"{name}:{label}": each for name, several in parts.items() for label, each in enumerate(several)}


def clustered(estimate, cases):
    together = np.bincount(cases.patients, estimate.influence)
    return float(together @ together)


def test_clustered_variances_are_those_of_statsmodels():
    cases = cases_of(TRUTH, np.eye(3)[SAID] * 0.7 + 0.1, PATIENTS)
    found = estimates(cases)
    assert {name: clustered(found[name], cases) for name in STATSMODELS} == pytest.approx(STATSMODELS)


@pytest.mark.parametrize(
    ("hits", "total", "low", "high"),
    [
        (24, 30, 0.6333868661587769, 0.9119326244800942),
        (3, 50, 0.017186649071151135, 0.15153256302766027),
        (1, 12, 0.009144326234148481, 0.32849572640058855),
    ],
)
def test_limits_of_a_proportion_are_statsmodels_jeffreys(hits, total, low, high):
    """`proportion_confint(hits, total, method="jeffreys")`; at 0 and at all ours reach the end."""
    assert jeffreys(hits, total) == pytest.approx((low, high))
    assert jeffreys(0, total)[0] == 0.0
    assert jeffreys(total, total)[1] == 1.0


@given(st.integers(0, 10**6), st.integers(2, 4))
@settings(max_examples=40, deadline=None)
def test_the_same_images_once_more_of_each_patient_tell_nothing_new(seed, k):
    """Values and clustered variances stay: what is known rests on patients, not on how often each is looked at."""
    generator = np.random.default_rng(seed)
    n = int(generator.integers(6, 40))
    scores = generator.integers(1, 6, (n, k)) + 0.0
    truth, patients = generator.integers(0, k, n), generator.integers(0, max(n // 2, 1), n)
    once = cases_of(truth, scores / scores.sum(1, keepdims=True), patients)
    twice = cases_of(np.tile(truth, 2), np.tile(once.probabilities, (2, 1)), np.tile(patients, 2))
    before, after = estimates(once), estimates(twice)
    for name, each in before.items():
        if each.value is None:
            assert after[name].value is None
            continue
        assert after[name].value == pytest.approx(each.value), name
        assert clustered(after[name], twice) == pytest.approx(clustered(each, once), abs=1e-12), name

"""The control chart beside the detector: its limit from the run length, its values by hand, classes that are absent."""

import numpy as np
import pytest

from services.evaluation.cusum import ALLOWANCE, chart, limit_for, mean_run_length
from services.evaluation.detector import Counts


def counts(errors, cases, baseline=((10, 10), (100, 100))):
    return Counts(*(np.array([part]) for part in baseline), np.array([errors]), np.array([cases]))


@pytest.mark.parametrize(("limit", "length"), [(4.0, 335.4), (5.0, 930.9), (3.0, 117.6)])
def test_run_lengths_are_the_published_ones(limit, length):
    """One-sided charts with an allowance of 0.5: twice the textbooks. two-sided 58.8, 168, 465 (Siegmund: 118, 336, 938)."""
    assert mean_run_length(limit) == pytest.approx(length, rel=2e-3)


def test_the_limit_has_the_wanted_run_length():
    assert mean_run_length(limit_for(1040.0)) == pytest.approx(1040.0, rel=1e-4)
    assert limit_for(2000.0) > limit_for(1040.0)


def test_normal_batches_alarm_as_often_as_the_limit_says():
    """500 charts until they alarm; the mean of run lengths with a standard deviation about as large has an error of 4.5 %."""
    generator, limit = np.random.default_rng(2), limit_for(100.0)
    value, length, running = np.zeros(500), np.zeros(500), np.ones(500, bool)
    while running.any():
        value = np.maximum(value + generator.normal(size=500) - ALLOWANCE, 0)
        length += running
        running &= value <= limit
    assert 85 < length.mean() < 116


def test_the_values_by_hand():
    rate = 10.5 / 101
    above = (8 - 20 * rate) / np.sqrt(20 * rate * (1 - rate))
    found = chart(counts([[8, 0], [8, 0], [0, 0]], [[20, 20]] * 3), 1040.0).values
    down = -20 * rate / np.sqrt(20 * rate * (1 - rate))
    expected = [above - 0.5, 2 * (above - 0.5), max(2 * (above - 0.5) + down - 0.5, 0)]
    assert found[:, 0] == pytest.approx(expected)
    assert found[:, 1].max() == 0


def test_a_class_without_cases_or_without_baseline_stands_still():
    errors, cases = [[8, 5], [0, 5], [0, 5]], [[20, 5], [0, 5], [0, 5]]
    found = chart(counts(errors, cases, ((10, 0), (100, 0))), 1040.0).values
    assert found[0, 0] == found[1, 0] == found[2, 0] > 0
    assert found[:, 1].max() == 0

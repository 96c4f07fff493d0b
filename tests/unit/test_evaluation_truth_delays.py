"""How long labels take: against curves worked out by hand, and simulations with a known truth."""

from datetime import timedelta

import numpy as np
import pytest

from services.evaluation.delays import by_source, delay_days, delays, kaplan_meier, quantile, wrong_labelled_sooner
from tests.truth_world import START, calibrated, scored

FREIREICH = [6, 6, 6, 6, 7, 9, 10, 10, 11, 13, 16, 17, 19, 20, 22, 23, 25, 32, 32, 34, 35]
"""Weeks in remission under 6-MP (Freireich et al. 1963), the textbook's example of censoring."""
ENDED = [True, True, True, False, True, False, True, False, False, True, True, False, False, False, True, True] + [False] * 5


def curve_of_textbook():
    return kaplan_meier(np.array(FREIREICH, float), np.array(ENDED))


def test_the_curve_is_the_textbooks():
    curve = curve_of_textbook()
    assert curve.days.tolist() == [6, 7, 10, 13, 16, 22, 23]
    assert curve.waiting.round(3).tolist() == [0.857, 0.807, 0.753, 0.690, 0.627, 0.538, 0.448]


def test_limits_follow_greenwood_on_the_log_log_scale():
    curve = curve_of_textbook()
    # At 6 weeks 3 of 21 have ended: variance of log(-log S) is (3 / (21 * 18)) / log(18/21)^2.
    width = 1.959964 * (3 / (21 * 18)) ** 0.5 / np.log(18 / 21)
    assert curve.low[0] == pytest.approx((18 / 21) ** np.exp(-width), abs=1e-6)
    assert curve.high[0] == pytest.approx((18 / 21) ** np.exp(width), abs=1e-6)


def test_a_quantile_is_where_the_curve_passes_or_nowhere():
    curve = curve_of_textbook()
    assert quantile(curve, 0.5).days == 23
    assert quantile(curve, 0.5).low == 13
    assert quantile(curve, 0.5).high is None
    assert quantile(curve, 0.9) == (None, None, None)


def test_without_censoring_the_curve_is_the_share_that_waits():
    curve = kaplan_meier(np.array([3.0, 1.0, 2.0, 2.0]), np.ones(4, bool))
    assert curve.waiting.tolist() == pytest.approx([0.75, 0.25, 0.0])
    assert quantile(curve, 0.5) == (2.0, 1.0, None)


def test_leaving_out_what_waits_makes_labels_look_quicker_than_they_are():
    rng = np.random.default_rng(1)
    shares, truth = calibrated(rng, 3000)
    delay = rng.exponential(20 / np.log(2), 3000)
    cases = scored(shares, truth, delay=delay, minutes=20)
    now = cases[-1].scored_at
    seen = [case if case.joined_at <= now else case._replace(truth=None, joined_at=None) for case in cases]
    overall = delays(seen, now)[0]
    naive = np.median(delay_days([case for case in seen if case.joined_at], now)[0])
    assert naive < 15
    assert overall.median.low <= 20 <= overall.median.high
    assert overall.cases == 3000


def test_delays_are_told_by_predicted_class_and_facet_and_by_source():
    rng = np.random.default_rng(2)
    shares, truth = calibrated(rng, 400)
    stations = [{"StationName": "CT1" if n % 2 else "CT2"} for n in range(400)]
    delay = np.where(np.arange(400) % 2, 2.0, 10.0)
    cases = scored(shares, truth, delay=delay, facets=stations)
    found = {(each.facet, each.group): each.median.days for each in delays(cases, START + timedelta(days=99), ["StationName"])}
    assert found["StationName", "CT1"] == 2
    assert found["StationName", "CT2"] == 10
    assert ("predicted", "none") in found
    assert by_source(cases) == {"csv": (400, 6.0, 10.0)}


def late(rng, cases, *, wrong_days, right_days):
    """Labels whose delay depends on being wrong, cut off at the last scoring as in a service that runs."""
    shares, truth = calibrated(rng, cases)
    wrong = shares.argmax(1) != truth
    delay = rng.exponential(np.where(wrong, wrong_days, right_days))
    found = scored(shares, truth, delay=delay, minutes=30)
    now = found[-1].scored_at
    return [case if case.joined_at <= now else case._replace(truth=None, joined_at=None) for case in found]


def test_errors_that_are_labelled_sooner_are_noticed_and_equal_delays_are_not():
    rng = np.random.default_rng(3)
    found = [wrong_labelled_sooner(late(rng, 2000, wrong_days=5, right_days=15)) for _ in range(10)]
    assert all(each.p_value < 0.01 for each in found)
    assert all(each.probability > 0.55 for each in found)
    null = [wrong_labelled_sooner(late(rng, 400, wrong_days=8, right_days=8)).p_value for _ in range(200)]
    assert 0.01 <= np.mean(np.array(null) < 0.05) <= 0.10


def test_a_patient_counts_once_and_one_kind_alone_says_nothing():
    rng = np.random.default_rng(4)
    shares, truth = calibrated(rng, 300)
    cases = scored(shares, truth, per_patient=3, delay=rng.exponential(3, 300))
    assert sum(wrong_labelled_sooner(cases)[2:]) <= 100
    assert wrong_labelled_sooner([case for case in cases if case.truth == case.predicted]) is None
    assert wrong_labelled_sooner([]) is None

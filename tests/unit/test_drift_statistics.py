"""The early warning: levels that keep their chance, estimates that find what was put in, a feed that may fall silent."""

from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp

from models import two_sample
from services.drift.feed import Feed, expected_between, hourly_rates, judge_feed
from services.drift.marginals import Numbers, Words, Year, group_statistics, thresholds
from services.drift.performance import (
    Confidence,
    LargestFall,
    contradicted,
    estimated_recalls,
    estimated_shares,
    temperature,
    tempered,
    unexplained,
)
from services.drift.sample import Reference, Sample
from services.runtime.signatures import Images

MONDAY = datetime(2026, 3, 2, tzinfo=UTC)
CLASSES = ("a", "b", "c")
MIX = (0.5, 0.3, 0.2)
NO_IMAGES = Images((), *(np.zeros((0, 1), np.float32) for _ in range(3)))


def scored(count, seed, shares=MIX, *, sure=2.5, sharpened=1.0):
    """Cases whose probabilities are right at temperature `sharpened`."""
    random = np.random.default_rng(seed)
    truth = random.choice(3, count, p=shares)
    logits = random.normal(0, 1, (count, 3))
    logits[np.arange(count), truth] += sure
    # The posterior in the mix that the model was built with; in another mix it does not know better.
    logits = sure * logits + np.log(MIX)
    odds = np.exp(sharpened * (logits - logits.max(1, keepdims=True)))
    probabilities = odds / odds.sum(1, keepdims=True)
    return Sample(CLASSES, probabilities, probabilities.argmax(1), None, ({},) * count), truth


def reference(count=400, seed=1, **options):
    sample, truth = scored(count, seed, **options)
    return Reference(sample, truth, NO_IMAGES, {})


def test_a_columns_p_values_are_those_of_the_textbook():
    random = np.random.default_rng(0)
    first, second = random.normal(size=150), random.normal(0.3, 1, 90)
    usual = np.r_[np.ones(150), np.zeros(90)].astype(np.float32)[:, None]
    found = Numbers("x", np.r_[first, second]).p_values(usual, 1 - usual)
    assert found[0] == pytest.approx(ks_2samp(first, second, method="asymp").pvalue, rel=0.15)
    words = ["u", "v", "w"]
    values = [words[k] for k in random.integers(0, 3, 240)]
    column = Words.of("w", values, values)
    assert column.p_values(usual, 1 - usual)[0] == pytest.approx(two_sample.words(values[:150], values[150:]).p_value, rel=1e-4)


def test_a_year_without_change_stays_below_the_level_as_often_as_wanted():
    """Levels from a reference, then years of fresh data of the same world: the chance is kept although the reference is small."""
    chance, alarms, years = 0.1, 0, 60
    for seed in range(years):
        random = np.random.default_rng([5, seed])
        mixing = np.eye(4) + 0.5
        values = random.normal(size=(150, 4)) @ mixing
        columns = [Numbers(str(k), values[:, k]) for k in range(4)]
        level = thresholds(Year(150, 150, 80, 20), [partial(group_statistics, columns)], chance, seed, 50)[0]
        windows = random.normal(size=(20, 80, 4)) @ mixing
        usual = np.r_[np.ones(150), np.zeros(80)].astype(np.float32)[:, None]
        greatest = max(
            group_statistics([Numbers(str(k), np.r_[values[:, k], each[:, k]]) for k in range(4)], usual, 1 - usual)[0]
            for each in windows
        )
        alarms += greatest >= level
    assert alarms <= 14, "3.4 standard errors above the chance"
    assert alarms >= 1


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_permutation_p_values_are_never_zero_and_never_above_one(seed):
    random = np.random.default_rng(seed)
    first, second = random.normal(size=(30, 3)), random.normal(size=(20, 3))
    for test in (two_sample.kernel, two_sample.classifier):
        assert 0 < test(first, second, random, 99).p_value <= 1


def test_permutation_tests_keep_their_level_and_see_a_shift():
    random = np.random.default_rng(3)
    for test in (two_sample.kernel, two_sample.classifier):
        null = [test(random.normal(size=(60, 4)), random.normal(size=(40, 4)), random, 99).p_value for _ in range(150)]
        assert np.mean(np.array(null) <= 0.1) < 0.2
        assert test(random.normal(size=(60, 4)), random.normal(0.8, 1, (40, 4)), random, 999).p_value == 0.001


def test_another_mix_of_strata_is_no_shift_within_them():
    random = np.random.default_rng(4)

    def drawn(count, share):
        strata = random.random(count) < share
        return random.normal(size=(count, 3)) + 3 * strata[:, None], [str(each) for each in strata]

    (first, here), (second, there) = drawn(200, 0.5), drawn(200, 0.9)
    assert two_sample.kernel(first, second, random).p_value < 0.01
    assert two_sample.stratified_kernel(first, second, here, there, random).p_value > 0.01
    assert two_sample.stratified_kernel(first, second + 1, here, there, random).p_value < 0.01
    assert two_sample.stratified_kernel(first, second, ["x"] * 200, ["y"] * 200, random).p_value == 1


def test_holms_p_values_are_in_the_order_given():
    assert two_sample.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_the_temperature_undoes_confidence_that_is_too_high():
    sample, truth = scored(3000, 2, sharpened=2.0)
    assert temperature(sample.probabilities, truth) == pytest.approx(2.0, rel=0.15)
    assert tempered(sample.probabilities, 1.0) == pytest.approx(sample.probabilities)


def test_expected_recalls_are_the_true_ones_where_confidence_is_right():
    known = reference(4000)
    found = estimated_recalls(known, scored(1000, 3)[0], 0)
    for each in found:
        assert each.low <= each.baseline <= each.high


def test_an_estimated_recall_falls_with_confidence_and_the_interval_holds_the_truth():
    known, (window, truth) = reference(2000), scored(600, 5, sure=1.2)
    for each in estimated_recalls(known, window, 0):
        of_class = truth == CLASSES.index(each.name)
        true = float((window.predicted[of_class] == truth[of_class]).mean())
        assert each.value < each.baseline
        assert each.low - 0.1 < true < each.high + 0.1


def test_the_largest_fall_is_in_its_own_standard_deviations():
    known = reference(400)
    statistic = LargestFall(Confidence.of(known.sample, 1.0), 200, 0)
    usual = np.ones((400, 1), np.float32)
    counts = np.random.default_rng(1).multinomial(200, np.full(400, 1 / 400), size=300).T.astype(np.float32)
    found = statistic(usual, counts)
    assert np.quantile(found, 0.99) < 4
    assert (statistic.spread > 0).all()


def test_class_shares_are_found_from_predictions_alone():
    known, (window, truth) = reference(1000), scored(600, 6, shares=(0.2, 0.2, 0.6))
    for each in estimated_shares(known, window, 0):
        assert each.low <= float((truth == CLASSES.index(each.name)).mean()) <= each.high
    assert estimated_shares(reference(1000), scored(600, 6, shares=(0.2, 0.2, 0.6))[0], 0)[2].low > 0.4


def test_answers_that_no_mix_gives_are_not_taken_for_a_mix():
    """Every study is called `a`, but even of patients who all have `a` some would be called otherwise."""
    known, (window, _) = reference(400, sure=1.0), scored(200, 7, sure=1.0)
    all_a = Sample(CLASSES, np.tile([0.9, 0.05, 0.05], (200, 1)), np.zeros(200, np.int64), None, window.facets)
    assert unexplained(known, all_a, 0)
    assert estimated_shares(known, all_a, 0) == []
    only_a, _ = scored(200, 8, shares=(1.0, 0.0, 0.0), sure=1.0)
    assert estimated_shares(known, only_a, 0)[0].high > 0.9


def test_answers_that_a_mix_gives_are_seldom_called_unexplained():
    mixes = np.random.default_rng(1).dirichlet((1, 1, 1), 100)
    found = [unexplained(reference(300, 2 * n), scored(200, 2 * n + 1, shares=mix)[0], n) for n, mix in enumerate(mixes)]
    assert sum(found) <= 4


def test_a_model_that_guesses_says_nothing_of_the_mix():
    sample, truth = scored(300, 7)
    guessing = Sample(CLASSES, sample.probabilities, np.zeros(300, np.int64), None, sample.facets)
    assert estimated_shares(Reference(guessing, truth, NO_IMAGES, {}), sample, 0) == []


@pytest.mark.parametrize(("estimate", "cases", "hits", "off"), [(0.9, 40, 20, True), (0.9, 40, 35, False), (0.9, 0, 0, False)])
def test_an_estimate_is_contradicted_by_the_truth_only_beyond_chance(estimate, cases, hits, off):
    assert contradicted(estimate, cases, hits) is off


def arrivals(days, per_hour=2, *, hours=range(8, 18), weekend=False):
    """Studies of working hours, oldest first."""
    found = []
    for day in range(days):
        date = MONDAY + timedelta(days=day)
        if weekend or date.weekday() < 5:
            found += [date + timedelta(hours=hour, minutes=30 * part) for hour in hours for part in range(per_hour)]
    return found


def fed(times, now, **changes):
    values = {"announced": 0, "scored": 0, "since_last": 0, "usual_share": None} | changes
    return Feed(times, times[0], now, **values)


def test_a_quiet_weekend_is_no_fault_and_a_quiet_monday_is():
    times = arrivals(26)
    friday = times[-1]
    assert friday.weekday() == 4
    assert not judge_feed(fed(times, friday + timedelta(days=2)), 0.03).warning
    found = judge_feed(fed(times, friday + timedelta(days=4)), 0.03)
    assert found.warning
    assert "no study has arrived" in found.sentence
    arrived = judge_feed(fed(times, friday + timedelta(days=4), since_last=30), 0.03)
    assert "30 studies have arrived, but none of them is scored" in arrived.sentence


def test_too_short_a_past_says_nothing():
    assert judge_feed(fed(arrivals(9), MONDAY + timedelta(days=10)), 0.03) is None


def test_rates_know_the_hour_of_the_week():
    times = arrivals(28)
    rates = hourly_rates(times, MONDAY, MONDAY + timedelta(days=28))
    assert rates[9] > 10 * rates[3] > 0
    assert expected_between(rates, MONDAY, MONDAY + timedelta(days=7)) == pytest.approx(100, rel=0.1)


def test_a_false_silence_comes_as_rarely_as_stated():
    """Poisson arrivals at a known rate: a year of looks at every gap warns about as often as the budget says, or less."""
    warned, chance = 0, 0.2
    for seed in range(40):
        random = np.random.default_rng(seed)
        times = [MONDAY + timedelta(hours=float(at)) for at in np.cumsum(random.exponential(1.5, 24 * 60))]
        rates = hourly_rates(times, times[0], times[-1])
        gaps = [expected_between(rates, first, last) for first, last in pairwise(times)]
        level = np.log(len(times) / ((times[-1] - times[0]) / timedelta(days=365)) / chance)
        warned += max(gaps) > level
    assert warned / 40 < 0.25

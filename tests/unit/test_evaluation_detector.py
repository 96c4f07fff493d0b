"""The detector: its formulas written out slowly, its false alarms, its delays, and what it says it cannot see."""

import math

import numpy as np
import pytest
from scipy.special import betaln
from scipy.stats import beta

from schemas.vocabulary import Status
from services.evaluation import calibration
from services.evaluation.calibration import balance, bound, calibrate, fingerprint
from services.evaluation.detector import A_DROPS, B_DROPS, WINDOWS, Counts, Thresholds, log_bayes_factor, priors_of, statistics
from services.evaluation.reclaim_rule import apply_rule
from services.evaluation.sufficiency import cases_for_fall
from services.evaluation.verdict import assess

CLASSES = ("normal", "pneumonia")
ERRORS, CASES = np.array([16, 14]), np.array([162, 462])
PREVALENCE = CASES / CASES.sum()


def counts(errors, cases, base_errors=ERRORS, base_cases=CASES):
    return Counts(base_errors[None], base_cases[None], np.asarray(errors)[None], np.asarray(cases)[None])


def simulate(generator, rates, batch=100):
    """One stream: `rates` [T, K] error rates of each batch."""
    cases = generator.multinomial(batch, PREVALENCE, size=len(rates))
    return generator.binomial(cases, rates), cases


def parts(stream):
    return [np.asarray(part[0], float) for part in (stream.baseline_errors, stream.baseline_cases, stream.errors, stream.cases)]


def slow_a(stream):
    """Statistic A for the last batch, by the definition."""
    e0, m0, e, m = (
        np.asarray(part[0], float) for part in (stream.baseline_errors, stream.baseline_cases, stream.errors, stream.cases)
    )
    batches, k = e.shape
    streams = np.zeros((k + 1, 2))
    for length in (length for length in WINDOWS if length <= batches):
        window_e, window_m = e[batches - length :].sum(0), m[batches - length :].sum(0)
        for earlier in (0, 1):
            ref_e, ref_m = e0 + earlier * e[: batches - length].sum(0), m0 + earlier * m[: batches - length].sum(0)
            each = np.zeros((len(A_DROPS), k))
            for d, drop in enumerate(A_DROPS):
                mean = np.minimum((e0 + 0.5) / (m0 + 1) + drop, 0.95)
                size = np.maximum(mean * (1 - mean) / (0.4 * drop) ** 2 - 1, 4)
                a, b = (np.maximum(np.rint(2 * x), 1) / 2 for x in (mean * size, (1 - mean) * size))
                a0, b0 = ref_e + 0.5, ref_m - ref_e + 0.5
                each[d] = betaln(a + window_e, b + window_m - window_e) - betaln(a, b)
                each[d] -= betaln(a0 + window_e, b0 + window_m - window_e) - betaln(a0, b0)
                better = (window_e * ref_m <= ref_e * window_m) & (ref_m > 0)
                each[d] = np.where(better, np.minimum(each[d], 0), each[d])
            streams[:k, earlier] += np.exp(each).mean(0)
            streams[k, earlier] += np.exp(each.sum(1)).mean()
    return math.log(streams.mean())


def slow_b(stream, batch):
    e0, m0, e, m = (
        np.asarray(part[0], float) for part in (stream.baseline_errors, stream.baseline_cases, stream.errors, stream.cases)
    )
    k = len(e0)
    limit = beta.ppf(1 - 0.025 / k, e0 + 1, m0 - e0)
    share = (m0 + 0.5) / (m0 + 0.5).sum()
    value = np.zeros((len(B_DROPS), k + 1))
    for errors, cases in zip(e, m, strict=True):
        ticks = np.append(np.minimum(cases / (share * batch), cases.sum() / batch), cases.sum() / batch)
        for d, drop in enumerate(B_DROPS):
            worse = np.minimum(limit + drop, 0.99)
            ratio = (worse / limit) ** errors * ((1 - worse) / (1 - limit)) ** (cases - errors)
            value[d] = (value[d] + ticks) * np.append(ratio, ratio.prod())
    return math.log(value.mean())


@pytest.mark.parametrize("length", [1, 3, 17, 60])
def test_both_statistics_follow_their_definitions(length):
    stream = counts(*simulate(np.random.default_rng(length), np.full((length, 2), [0.15, 0.05]), 60))
    found = statistics(stream, 60)[0, -1]
    assert found == pytest.approx([slow_a(stream), slow_b(stream, 60)], rel=1e-9)


def test_batches_without_cases_add_nothing_to_b():
    errors, cases = simulate(np.random.default_rng(0), np.full((4, 2), [0.1, 0.03]))
    padded = counts(np.vstack([errors, np.zeros((20, 2), int)]), np.vstack([cases, np.zeros((20, 2), int)]))
    found = statistics(padded, 100)[0, :, 1]
    assert found[-1] == pytest.approx(found[3])


def test_prevalence_alone_moves_nothing():
    generator = np.random.default_rng(3)
    moved = generator.multinomial(100, [0.5, 0.5], size=52)
    stream = counts(np.rint(moved * ERRORS / CASES).astype(int), moved)
    found = statistics(stream, 100)[0].max(0)
    assert found[0] < 3
    assert found[1] < 1


@pytest.fixture(scope="module")
def thresholds():
    return calibrate(ERRORS, CASES, 100, 0.05, 0)


def test_calibration_agrees_with_the_published_simulation(thresholds):
    assert 4.8 < thresholds.a < 5.8
    assert 2.0 < thresholds.b < 3.3
    ceiling = bound(0.05)
    assert ceiling.a == pytest.approx(math.log(52 / 0.0125))
    assert thresholds.a < ceiling.a


def test_the_same_seed_gives_the_same_thresholds(monkeypatch):
    monkeypatch.setattr(calibration, "STREAMS", 125)
    assert calibrate(ERRORS, CASES, 30, 0.05, 1) == calibrate(ERRORS, CASES, 30, 0.05, 1)
    assert calibrate(ERRORS, CASES, 30, 0.05, 1) != calibrate(ERRORS, CASES, 30, 0.05, 2)


def test_false_alarms_keep_to_the_budget_on_fresh_streams(thresholds):
    """Fresh worlds from the same posterior: at most 5 % alarm in a year; the limit is four standard errors above."""
    generator = np.random.default_rng(99)
    runs = 800
    rates = generator.beta(ERRORS + 0.5, CASES - ERRORS + 0.5, size=(runs, 2))
    cases = generator.multinomial(100, PREVALENCE, size=(runs, 52))
    errors = generator.binomial(cases, rates[:, None])
    base = (np.broadcast_to(ERRORS, (runs, 2)), np.broadcast_to(CASES, (runs, 2)))
    found = statistics(Counts(*base, errors, cases), 100)
    alarms = ((found[..., 0] >= thresholds.a) | (found[..., 1] >= thresholds.b)).any(1).mean()
    assert alarms < 0.05 + 4 * math.sqrt(0.05 * 0.95 / runs)


def test_a_fall_of_forty_points_of_one_class_is_found_in_a_hundred_cases(thresholds):
    delays = []
    for seed in range(40):
        generator = np.random.default_rng(seed)
        rates = np.vstack([np.full((13, 2), [0.10, 0.03]), np.full((4, 2), [0.51, 0.03])])
        verdict = assess(counts(*simulate(generator, rates)), CLASSES, thresholds, 100, 0)
        delays.append((verdict.alarm or 99) - 13)
    assert np.median(delays) == 1


def test_a_smaller_batch_finds_it_sooner():
    small = calibrate(ERRORS, CASES, 30, 0.05, 0)
    delays = []
    for seed in range(40):
        generator = np.random.default_rng(seed)
        rates = np.vstack([np.full((13, 2), [0.10, 0.03]), np.full((12, 2), [0.51, 0.03])])
        verdict = assess(counts(*simulate(generator, rates, 30)), CLASSES, small, 30, 0)
        delays.append(30 * ((verdict.alarm or 99) - 13))
    assert np.median(delays) <= 120


def test_the_evidence_names_class_fall_and_start(thresholds):
    rates = np.vstack([np.full((8, 2), [0.10, 0.03]), np.full((4, 2), [0.40, 0.03])])
    verdict = assess(counts(*simulate(np.random.default_rng(5), rates, 100)), CLASSES, thresholds, 100, 0)
    fall = verdict.fall
    assert (verdict.status, fall.label, fall.scope) == (Status.DEGRADED, "normal", "one class")
    assert fall.start_low <= 9 <= fall.start_high
    assert abs(fall.start - 9) <= 1
    assert fall.low < 0.30 < fall.high
    assert fall.probability > 0.99


def test_an_alarm_stays_while_the_fall_lasts_and_ends_with_it(thresholds):
    rates = np.vstack([np.full((6, 2), [0.10, 0.03]), np.full((4, 2), [0.50, 0.30]), np.full((30, 2), [0.10, 0.03])])
    errors, cases = simulate(np.random.default_rng(2), rates)
    verdicts = [assess(counts(errors[:end], cases[:end]), CLASSES, thresholds, 100, 0) for end in (10, 11, 20, 40)]
    assert [verdict.status for verdict in verdicts] == [Status.DEGRADED, Status.DEGRADED, Status.HEALTHY, Status.HEALTHY]
    assert [verdict.alarm for verdict in verdicts] == [7, 7, None, None]
    assert verdicts[-1].fall is None


def test_a_second_fall_after_a_recovery_is_found_as_its_own(thresholds):
    good, bad = np.full((12, 2), [0.10, 0.03]), np.full((4, 2), [0.50, 0.03])
    stream = counts(*simulate(np.random.default_rng(3), np.vstack([good, bad, good, bad])))
    verdict = assess(stream, CLASSES, thresholds, 100, 0)
    assert verdict.status is Status.DEGRADED
    assert verdict.alarm in {29, 30}
    assert abs(verdict.fall.start - 29) <= 1


@pytest.mark.parametrize("seed", range(6))
def test_degraded_is_only_said_of_a_fall(seed):
    """Whatever raises the alarm (here: any statistic at all), a recall that is no lower is not called fallen."""
    eager = Thresholds(-1e3, -1e3, "bound")
    stream = counts(*simulate(np.random.default_rng(seed), np.full((12, 2), [0.08, 0.02])))
    verdict = assess(stream, CLASSES, eager, 100, 0)
    if verdict.status is Status.DEGRADED:
        assert verdict.fall.drop > 0
    better = counts(*simulate(np.random.default_rng(seed), np.full((12, 2), [0.02, 0.005])))
    assert assess(better, CLASSES, eager, 100, 0).status is Status.HEALTHY


def test_a_recovery_is_no_evidence_of_a_fall():
    """Statistic A after bad batches have spoilt its reference: windows better than it must not speak for a fall."""
    bad, good = [[20, 20]] * 8, [[6, 4]] * 3
    spoilt = counts(bad + good, [[40, 60]] * 11, np.array([2, 2]), np.array([40, 60]))
    window = (np.array([[[18, 12]]]), np.array([[[120, 180]]]))
    reference = (np.array([[[162, 162]]]), np.array([[[360, 540]]]))
    assert (log_bayes_factor(window, reference, priors_of(spoilt)) <= 0).all()


def test_few_cases_leave_it_undecided_and_say_how_many_more(thresholds):
    one = assess(counts([[2, 1]], [[15, 15]]), CLASSES, thresholds, 30, 0)
    needed = cases_for_fall(counts([[0, 0]], [[0, 0]]), 0.2).later
    assert one.status is Status.UNDECIDED
    assert one.more_cases == math.ceil(max((needed[0] - 15) / PREVALENCE[0], (needed[1] - 15) / PREVALENCE[1]))
    enough = assess(counts([[4, 3]], [[40, 120]]), CLASSES, thresholds, 160, 0)
    assert (enough.status, enough.more_cases) == (Status.HEALTHY, 0)


SMALL = (np.array([3, 2]), np.array([15, 15]))
"""Gate cases of a promoted version: too few to tell a fall of 20 points from chance, however many cases follow."""


@pytest.fixture(scope="module")
def small_thresholds():
    return calibrate(*SMALL, 100, 0.05, 0)


def even(generator, rates, batch=100):
    cases = generator.multinomial(batch, [0.5, 0.5], size=len(rates))
    return generator.binomial(cases, rates), cases


def test_a_small_baseline_is_completed_by_the_versions_own_first_cases(small_thresholds):
    errors, cases = even(np.random.default_rng(0), np.full((8, 2), [0.2, 0.13]))
    verdicts = [assess(counts(errors[:end], cases[:end], *SMALL), CLASSES, small_thresholds, 100, 0) for end in range(1, 9)]
    assert [verdict.status for verdict in verdicts] == [Status.UNDECIDED, Status.UNDECIDED, *[Status.HEALTHY] * 6]
    assert verdicts[0].more_cases > verdicts[1].more_cases > 0
    assert [verdict.own_baseline for verdict in verdicts[2:]] == [100] * 6
    assert verdicts[-1].smallest_fall < 0.25


def test_a_baseline_that_is_large_enough_is_not_touched(thresholds):
    stream = counts(*simulate(np.random.default_rng(0), np.full((6, 2), [0.10, 0.03])))
    verdict = assess(stream, CLASSES, thresholds, 100, 0)
    assert (verdict.status, verdict.own_baseline) == (Status.HEALTHY, 0)


def test_a_fall_after_the_first_cases_of_a_small_baseline_is_found(small_thresholds):
    """20 points of one class, from the fifth batch on."""
    found = []
    for seed in range(30):
        rates = np.vstack([np.full((4, 2), [0.2, 0.13]), np.full((8, 2), [0.4, 0.13])])
        stream = counts(*even(np.random.default_rng(seed), rates), *SMALL)
        found.append(assess(stream, CLASSES, small_thresholds, 100, 0).status)
    assert found.count(Status.DEGRADED) >= 24


def test_a_version_that_is_worse_from_its_first_day_alarms_though_its_first_cases_would_be_its_baseline(small_thresholds):
    found = []
    for seed in range(30):
        stream = counts(*even(np.random.default_rng(seed), np.full((6, 2), [0.6, 0.5])), *SMALL)
        found.append(assess(stream, CLASSES, small_thresholds, 100, 0).status)
    assert found.count(Status.DEGRADED) >= 27


def test_own_first_cases_keep_the_budget_of_false_alarms(monkeypatch):
    """Promoted versions of unknown skill: their gate cases, then a year in which nothing changes. Limit: four standard errors."""
    monkeypatch.setattr(calibration, "STREAMS", 500)
    generator, worlds, streams, alarms = np.random.default_rng(5), 4, 50, []
    for world in range(worlds):
        cases = generator.multinomial(30, [0.5, 0.5])
        errors = generator.binomial(cases, [0.2, 0.13])
        limits = calibrate(errors, cases, 100, 0.05, world)
        rates = generator.beta(errors + 0.5, cases - errors + 0.5, size=(streams, 2))
        seen = generator.multinomial(100, [0.5, 0.5], size=(streams, 52))
        wrong = generator.binomial(seen, rates[:, None])
        base = (np.broadcast_to(errors, (streams, 2)), np.broadcast_to(cases, (streams, 2)))
        found = statistics(Counts(*base, wrong, seen), 100)
        alarms.append(((found[..., 0] >= limits.a) | (found[..., 1] >= limits.b)).any(1).mean())
    assert np.mean(alarms) < 0.05 + 4 * math.sqrt(0.05 * 0.95 / (worlds * streams))


def test_after_a_recovery_the_bad_cases_are_no_baseline(small_thresholds):
    good, bad = np.full((4, 2), [0.2, 0.13]), np.full((4, 2), [0.7, 0.6])
    errors, cases = even(np.random.default_rng(1), np.vstack([good, bad, good, good, good]))
    verdict = assess(counts(errors, cases, *SMALL), CLASSES, small_thresholds, 100, 0)
    assert verdict.status is Status.HEALTHY
    first, own = verdict.restarted_after, verdict.own_baseline // 100
    assert first >= 8
    assert own > 0
    assert errors[first : first + own].sum() / (100 * own) < 0.3


def test_a_probable_fall_without_alarm_is_watched():
    strict = Thresholds(1e3, 1e3, "bound")
    verdict = assess(counts([[18, 3]] * 3, [[50, 100]] * 3), CLASSES, strict, 150, 0)
    assert (verdict.status, verdict.alarm, verdict.fall.label) == (Status.WATCH, None, "normal")


def test_a_year_shows_ten_points_but_not_three(thresholds):
    verdict = assess(counts([[4, 3]], [[40, 120]]), CLASSES, thresholds, 100, 0)
    assert 0.03 < verdict.smallest_fall <= 0.12


def test_a_class_without_test_cases_does_no_harm(thresholds):
    base = (np.array([16, 14, 0]), np.array([162, 462, 0]))
    verdict = assess(counts([[4, 3, 5]] * 30, [[40, 120, 5]] * 30, *base), (*CLASSES, "new"), thresholds, 165, 0)
    assert verdict.status is Status.HEALTHY
    assert "new" in verdict.unproven


def test_balance_spends_the_budget_evenly():
    maxima = np.random.default_rng(0).normal(size=(4000, 2, 2))
    found = balance(maxima, 0.05)
    assert (maxima >= found).any(2).mean(0).max() == pytest.approx(0.05, abs=0.002)
    assert found[0] == pytest.approx(found[1], abs=0.15)


def test_the_fingerprint_changes_with_every_condition():
    conditions = [(ERRORS, CASES, 100, 0.05, 0), (ERRORS + 1, CASES, 100, 0.05, 0), (ERRORS, CASES, 50, 0.05, 0)]
    conditions += [(ERRORS, CASES, 100, 0.1, 0), (ERRORS, CASES, 100, 0.05, 1)]
    assert len({fingerprint(*each) for each in conditions}) == len(conditions)


@pytest.mark.parametrize(
    ("batch", "declined", "metric"),
    [
        ([[90, 10], [10, 90]], False, "accuracy"),
        ([[85, 15], [10, 90]], True, "recall:a"),
        ([[86, 14], [9, 91]], False, "recall:a"),
        ([[0, 0], [0, 10]], True, "precision:a"),
    ],
)
def test_the_five_per_cent_rule(batch, declined, metric):
    verdict = apply_rule(np.array([[90, 10], [10, 90]]), np.array(batch), ("a", "b"))
    assert (verdict.declined, verdict.metric) == (declined, metric)


def test_a_baseline_of_zero_cannot_decline():
    assert not apply_rule(np.array([[0, 10], [0, 0]]), np.array([[0, 10], [0, 0]]), ("a", "b")).declined

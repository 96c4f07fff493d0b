"""What must hold for any stream: prevalence moves nothing, order within a block is irrelevant, empty blocks add nothing."""

from datetime import UTC, date, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.evaluation.calibration import bound, calibrate, fingerprint
from services.evaluation.detector import Counts, Thresholds, statistics
from services.evaluation.dispersion import Variation, factors, steadied, variation
from services.evaluation.fall import probability, supported
from services.evaluation.judgement import Question, judge_stream, waiting
from services.evaluation.lateness import Pending, blocks, complete, order
from services.evaluation.pace import blocks_per_year
from services.evaluation.power import with_smallest_fall
from services.evaluation.stream import StreamCase, count
from services.evaluation.verdict import assess, episodes

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
CLASSES = ("a", "b")
ERRORS, CASES = np.array([16, 14]), np.array([162, 462])
LIMITS = Thresholds(5.3, 2.6, "simulation")


@st.composite
def streams(draw, classes=2, most=12):
    """Counts of one stream of up to `most` blocks."""
    length = draw(st.integers(1, most))
    cases = np.array(
        draw(st.lists(st.lists(st.integers(0, 60), min_size=classes, max_size=classes), min_size=length, max_size=length))
    )
    share = np.array(draw(st.lists(st.floats(0, 1), min_size=length * classes, max_size=length * classes))).reshape(length, classes)
    return Counts(ERRORS[None], CASES[None], np.floor(cases * share).astype(int)[None], cases[None])


@given(streams())
@settings(max_examples=60, deadline=None)
def test_statistics_are_finite_or_no_evidence_and_do_not_look_ahead(stream):
    found = statistics(stream, 60)[0]
    assert not np.isnan(found).any()
    assert (found < np.inf).all()
    for end in range(1, len(found)):
        part = Counts(ERRORS[None], CASES[None], stream.errors[:, :end], stream.cases[:, :end])
        assert statistics(part, 60)[0] == pytest.approx(found[:end], rel=1e-9)


@given(streams(), st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_empty_blocks_add_nothing(stream, empty):
    """Appended blocks without cases leave the clock of B where it was, raise no alarm and change no weight."""
    none = np.zeros((1, empty, 2), int)
    padded = Counts(ERRORS[None], CASES[None], *(np.concatenate([part, none], 1) for part in (stream.errors, stream.cases)))
    assert statistics(padded, 60)[0, -1, 1] == pytest.approx(statistics(stream, 60)[0, -1, 1])
    length = stream.errors.shape[1]
    assert factors(padded)[0, :length] == pytest.approx(factors(stream)[0])


def test_cases_of_unknown_classes_fill_no_block():
    cases = [case(number, truth="a", at=NOW - timedelta(minutes=number)) for number in range(30)]
    foreign = [
        case(number, at=NOW - timedelta(minutes=number))._replace(truth="c", patient_key=f"f{number}") for number in range(90)
    ]
    found = judge_stream(question(10), [*cases, *foreign], [])
    assert np.bincount([row.batch for row in found.cases]).tolist() == [0, 10, 10, 10]


@given(st.lists(st.integers(1, 9), min_size=4, max_size=20), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_a_class_mix_that_moves_is_no_evidence(mix, seed):
    """Whatever the mix, blocks with the baseline's own error rates raise nothing."""
    share = np.array(mix) / 10
    cases = np.stack([np.rint(1000 * share), np.rint(1000 * (1 - share))], 1).astype(int)
    errors = np.rint(cases * (ERRORS / CASES)).astype(int)
    stream = Counts(ERRORS[None], CASES[None], errors[None], cases[None])
    assert episodes(steadied(stream), LIMITS, 1000).found == ()
    assert (factors(stream) < 1.2).all()
    assert seed >= 0


def case(number, *, wrong=False, at=None, truth="a"):
    said = {"a": "b", "b": "a"}[truth] if wrong else truth
    return StreamCase(1, f"p{number}", truth, said, {}, at or NOW - timedelta(hours=number), {}, ())


@given(st.permutations(range(30)), st.integers(1, 12))
def test_blocks_do_not_depend_on_the_order_in_which_cases_came(order_of_arrival, size):
    cases = [case(number, wrong=number % 3 == 0, truth="ab"[number % 2]) for number in range(30)]
    came = blocks([cases[place] for place in order_of_arrival], size)
    assert came == blocks(cases, size)
    assert [each.acquired_at for each in came] == sorted(each.acquired_at for each in cases)
    sizes = np.bincount([each.batch for each in came])[1:]
    assert (sizes[:-1] == size).all()
    height = max(each.batch for each in came)
    swapped = [each for number in range(1, height + 1) for each in reversed([row for row in came if row.batch == number])]
    assert (count([], came, CLASSES, height).errors == count([], swapped, CLASSES, height).errors).all()


@given(st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=1, max_size=80))
def test_weeks_are_judged_up_to_the_first_without_nineteen_labels_of_twenty(rows):
    weeks, labelled = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    found = complete(weeks, labelled)
    so_far = True
    for week in sorted(set(weeks.tolist())):
        mine = weeks == week
        so_far &= bool(labelled[mine].mean() >= 0.95)
        assert found[mine].all() == found[mine].any() == so_far


def test_weeks_that_wait_are_named_with_what_they_wait_for():
    monday = datetime(2026, 5, 4, 9, tzinfo=UTC)
    cases = [case(number, at=monday + timedelta(hours=number)) for number in range(40)]
    late = [case(100 + number, at=monday + timedelta(weeks=1, hours=number)) for number in range(10)]
    pending = [Pending(f"w{number}", "b", monday + timedelta(weeks=1, hours=number)) for number in range(30)]
    found = order([*cases, *late], pending, 20, NOW, 90)
    assert (found.weeks, found.labels, found.held_back) == ((date(2026, 5, 11),), 30, 10)
    assert {row.patient_key for row in found.settled} == {row.patient_key for row in cases}
    assert len(found.assumed) == 80
    assert all(row.predicted == row.truth for row in found.assumed if row.patient_key.startswith("w"))
    # What is older than the wait is not waited for, nor is a patient who has a label already.
    assert not order([*cases, *late], pending, 20, NOW, 7).late
    known = [Pending(row.patient_key, "b", row.acquired_at) for row in late] * 3
    assert not order([*cases, *late], known, 20, NOW, 90).late


def question(size=50):
    baseline = [case(number, wrong=number % 10 == 0, truth="ab"[number % 2]) for number in range(400)]
    return Question(CLASSES, baseline, LIMITS, size, 0, NOW, 90)


def test_an_alarm_of_all_weeks_stands_even_if_pending_predictions_were_right():
    """Half the labels of the last weeks are missing; what is known of them is bad enough."""
    good = [case(f"g{n}", wrong=n % 20 == 0, truth="ab"[n % 2], at=NOW - timedelta(days=80, minutes=-n)) for n in range(300)]
    bad = [case(f"b{n}", wrong=True, truth="a", at=NOW - timedelta(days=20, minutes=-n)) for n in range(40)]
    pending = [Pending(f"w{n}", "ab"[n % 2], NOW - timedelta(days=20, minutes=-n)) for n in range(60)]
    found = judge_stream(question(), [*good, *bad], pending)
    assert found.assessment.alarm is not None
    assert found.basis == "all weeks, pending counted as right"
    assert not [row for row in found.cases if row.patient_key.startswith("w")]
    said = waiting(found)
    assert (said["labels_awaited"], said["cases_held_back"], said["weeks_waiting_for_labels"]) == (60, 40, 1)
    silent = judge_stream(question(), good, pending)
    assert silent.assessment.alarm is None
    assert silent.basis == "complete weeks"


def test_no_complete_week_is_undecided():
    pending = [Pending(f"w{n}", "a", NOW - timedelta(days=1)) for n in range(60)]
    found = judge_stream(question(), [case(number, at=NOW - timedelta(days=1)) for number in range(20)], pending)
    assert found.assessment.status == "undecided"
    assert found.cases == ()


@pytest.mark.parametrize(("days", "expected"), [(1, 416), (3.6, 104), (7, 52), (8, 52), (14.1, 26), (60, 13)])
def test_a_year_is_counted_by_the_measured_rate(days, expected):
    """Blocks of ten cases, one every so many days: rounded up, by at most a step of the square root of two."""
    found = blocks_per_year([NOW - timedelta(days=days * number / 10) for number in range(400)], 10)
    assert found == expected
    assert 365.25 / days / 1.05 <= found


def test_one_block_a_week_is_assumed_until_the_rate_is_known():
    assert blocks_per_year([], 10) == 52
    assert blocks_per_year([NOW - timedelta(hours=number) for number in range(100)], 10) == 52
    assert blocks_per_year([NOW - timedelta(days=40 * number) for number in range(10)], 10) == 52


def test_more_batches_a_year_take_higher_thresholds():
    found = [calibrate(ERRORS, CASES, 100, 0.05, 0, per_year) for per_year in (26, 104, 416)]
    assert [each.per_year for each in found] == [26, 104, 416]
    assert found[0].a < found[1].a < found[2].a
    assert found[2].a <= bound(0.05, 416).a
    marks = {fingerprint(ERRORS, CASES, 100, 0.05, 0, per_year) for per_year in (26, 52, 104)}
    assert len(marks) == 3


@pytest.mark.parametrize(("noise", "low", "high"), [(0.0, 1.0, 1.15), (0.5, 1.3, 4.0)])
def test_variation_from_block_to_block_is_measured_and_a_fall_is_none(noise, low, high):
    generator = np.random.default_rng(0)
    level = np.log(0.1 / 0.9) + noise * generator.standard_normal((40, 80, 1)) + np.array([0.0, -1.0])
    rates = 1 / (1 + np.exp(-level))
    cases = generator.multinomial(100, [0.4, 0.6], size=(40, 80))
    base = np.broadcast_to(np.array([40, 22]), (40, 2)), np.broadcast_to(np.array([400, 600]), (40, 2))
    found = factors(Counts(*base, generator.binomial(cases, rates), cases))
    assert low <= found[:, -1].mean() <= high
    assert (found >= 1).all()
    fallen = np.where(np.arange(80)[:, None] < 40, 0.1, 0.5) * np.ones(2)
    falls = factors(Counts(*base, generator.binomial(cases, fallen), cases))
    assert falls[:, -1].mean() < 1.5


def wandering(seed, streams, blocks, noise):
    """Streams of blocks of 100 whose logit wanders by `noise` from block to block."""
    generator = np.random.default_rng(seed)
    level = np.log(0.1 / 0.9) + noise * generator.standard_normal((streams, blocks, 1)) + np.array([0.0, -1.0])
    cases = generator.multinomial(100, [0.4, 0.6], size=(streams, blocks))
    base = np.broadcast_to(np.array([40, 22]), (streams, 2)), np.broadcast_to(np.array([400, 600]), (streams, 2))
    return Counts(*base, generator.binomial(cases, 1 / (1 + np.exp(-level))), cases)


def test_counts_are_divided_only_where_the_blocks_before_show_more_than_chance():
    found = factors(wandering(3, 200, 60, 0.0))
    assert (found == 1).mean() > 0.9
    assert found.mean() < 1.05


def test_a_later_version_starts_with_the_variation_that_was_seen_before():
    before, after = wandering(4, 1, 160, 0.5), wandering(5, 1, 12, 0.5)
    seen = variation(before)
    kept = Variation.of(seen.evidence()).remembered()
    assert seen.pairs == 159
    assert kept.pairs == pytest.approx(104)
    assert kept.total / kept.pairs == pytest.approx(seen.total / seen.pairs)
    assert kept.factor > 1.5
    assert factors(after, kept)[0, 0] == kept.factor
    assert factors(after)[0, :2].tolist() == [1, 1]
    assert steadied(after, kept).cases.sum() < 0.7 * after.cases.sum()
    assert variation(after, kept).pairs == pytest.approx(104 + 11)
    assert Variation.of({}) == Variation.of({"variation_seen": None}) == Variation() == Variation().remembered()
    assert Variation().evidence() == {}


def test_a_remembered_variation_that_is_gone_raises_no_more_alarms():
    """A year of chance alone, judged as it is and as a version that remembers weeks of nearly twice the variance."""
    stable = wandering(6, 400, 52, 0.0)
    alarmed = [statistics(steadied(stable, known), 100) >= [4.0, 1.5] for known in (Variation(), Variation(180, 100))]
    plain, remembering = (found.any(2).any(1).sum() for found in alarmed)
    assert remembering < plain


@given(streams(), st.floats(0, 500), st.floats(0, 200))
@settings(max_examples=60, deadline=None)
def test_no_variation_ever_adds_weight_to_a_count(stream, total, pairs):
    """Factors are at least 1 and known before their block, whatever was known before: evidence is only ever weakened."""
    found = factors(stream, Variation(total, pairs))
    assert (found >= 1).all()
    length = stream.errors.shape[1]
    for end in range(1, length):
        part = Counts(ERRORS[None], CASES[None], stream.errors[:, :end], stream.cases[:, :end])
        assert factors(part, Variation(total, pairs))[0] == pytest.approx(found[0, :end])


def test_divided_counts_keep_rates_and_sums():
    generator = np.random.default_rng(1)
    cases = generator.multinomial(200, [0.5, 0.5], size=(1, 60))
    errors = generator.binomial(cases, generator.beta(2, 8, size=(1, 60, 1)))
    counts = Counts(ERRORS[None], CASES[None], errors, cases)
    phi, found = factors(counts)[0], steadied(counts)
    assert phi[-1] > 2
    wanted = (cases[0] / phi[:, None]).sum()
    assert found.cases.sum() == pytest.approx(wanted, abs=2)
    assert ((found.errors >= 0) & (found.errors <= found.cases)).all()
    assert (found.errors * 2 == np.rint(found.errors * 2)).all()


@given(st.integers(0, 40), st.integers(0, 60), st.integers(0, 40), st.integers(0, 400))
@settings(deadline=None)
def test_the_probability_of_a_fall_is_that_of_two_jeffreys_posteriors(wrong, right, base_wrong, base_right):
    window, reference = (wrong, wrong + right), (base_wrong, base_wrong + base_right)
    found = probability(window, reference)
    generator = np.random.default_rng(0)
    now, then = (generator.beta(part[0] + 0.5, part[1] - part[0] + 0.5, 40_000) for part in (window, reference))
    assert found == pytest.approx(float((now - then >= 0.03).mean()), abs=0.015)
    assert probability((wrong + 1, wrong + right + 1), reference) >= found - 1e-9


def test_a_recall_that_is_better_supports_no_fall():
    better = Counts(ERRORS[None], CASES[None], np.array([[[1, 0]] * 6]), np.array([[[40, 60]] * 6]))
    assert not supported(better)


def test_the_smallest_fall_of_a_year_alarms_in_four_of_five_simulated_years():
    """Fresh streams with the weak class lower by the fall that the year is said to show, and by half of it."""
    limits = with_smallest_fall(Thresholds(5.2, 2.5, "simulation"), ERRORS, CASES, 100, 0)
    generator = np.random.default_rng(5)
    found = []
    for drop in (limits.smallest_fall, limits.smallest_fall / 2):
        rates = np.repeat(generator.beta(ERRORS + 0.5, CASES - ERRORS + 0.5, size=(150, 1, 2)), 65, 1)
        rates[:, 13:, 0] += drop
        cases = generator.multinomial(100, CASES / CASES.sum(), size=(150, 65))
        base = np.broadcast_to(ERRORS, (150, 2)), np.broadcast_to(CASES, (150, 2))
        value = statistics(steadied(Counts(*base, generator.binomial(cases, rates), cases)), 100)
        found.append(((value[..., 0] >= 5.2) | (value[..., 1] >= 2.5)).any(1).mean())
    assert found[0] >= 0.7
    assert found[1] < 0.7


def test_a_longer_year_shows_smaller_falls_and_hopeless_thresholds_none():
    short, long = (with_smallest_fall(Thresholds(5.2, 2.5, "s", year), ERRORS, CASES, 100, 0).smallest_fall for year in (13, 104))
    assert long < short
    assert with_smallest_fall(Thresholds(1e3, 1e3, "s"), ERRORS, CASES, 100, 0).smallest_fall == 1


def base_of(stream):
    return stream.baseline_errors, stream.baseline_cases


def test_a_certain_but_small_fall_alarms_and_is_called_small_until_it_is_over():
    """Two points of a common class in blocks of 2,000: beyond doubt, and below what a repair is ordered for."""
    base, good, bad = (np.array([100, 200]), np.array([10_000, 10_000])), [[10, 20]], [[10, 40]]
    stream = Counts(base[0][None], base[1][None], np.array([good * 8 + bad * 16 + good * 8]), np.full((1, 32, 2), 1000))
    limits = Thresholds(4.5, 1.0, "s")
    for end in (14, 24):
        seen = Counts(*base_of(stream), stream.errors[:, :end], stream.cases[:, :end])
        verdict = assess(seen, CLASSES, limits, 2000, 0)
        assert (verdict.status, verdict.fall.label, verdict.fall.small) == ("degraded", "b", True)
        assert verdict.alarm <= 11
        assert 0.01 < verdict.fall.low < 0.02 < verdict.fall.high < 0.03
    assert assess(stream, CLASSES, limits, 2000, 0).status == "healthy"

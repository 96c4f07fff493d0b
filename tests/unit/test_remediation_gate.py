"""The gate's statistics: what promotes, what does not, and how often chance alone gets through."""

import math
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from schemas.vocabulary import Verdict
from services.remediation import resampling
from services.remediation.gate import PairedCase, Rules, cases_needed, judge
from tests.gate_cases import CLASSES, RULES, cases, probabilities, simulated, wrong

STEADY = cases([True] * 180, [True] * 180)


def test_a_clearly_better_challenger_is_promoted_with_every_number() -> None:
    verdict = judge(simulated(90, 0.5, 0.9, 1), STEADY, CLASSES, RULES, 1.0)
    assert verdict.verdict == Verdict.PROMOTE
    assert verdict.numbers["accuracy:challenger"] > verdict.numbers["accuracy:champion"]
    assert verdict.numbers["accuracy_gain_low"] > 0
    assert verdict.numbers["latency_ratio"] == 1.0
    wins, losses = verdict.numbers["mcnemar_wins"], verdict.numbers["mcnemar_losses"]
    expected = sum(math.comb(int(wins + losses), k) for k in range(int(wins), int(wins + losses) + 1)) / 2 ** (wins + losses)
    assert verdict.numbers["mcnemar_p"] == pytest.approx(expected)
    assert any("McNemar" in reason for reason in verdict.reasons)
    assert all(value is None or math.isfinite(value) for value in verdict.numbers.values())


def test_chance_alone_is_promoted_no_more_often_than_stated() -> None:
    promoted = sum(
        judge(simulated(80, 0.75, 0.75, seed), STEADY, CLASSES, Rules(draws=100)).verdict == Verdict.PROMOTE for seed in range(200)
    )
    assert promoted <= 200 * RULES.alpha
    assert binomtest(promoted, 200, RULES.alpha, alternative="greater").pvalue > 0.05


def test_several_challengers_on_the_same_cases_get_no_more_than_the_stated_chance_between_them() -> None:
    rounds = 4
    promoted, uncorrected = 0, 0
    for seed in range(200):
        random = np.random.default_rng(seed)
        champion = random.random(200) < 0.7
        gates = []
        for _ in range(rounds):
            challenger = np.where(champion, random.random(200) < 0.85, random.random(200) < 0.35)
            gates.append(cases(champion.tolist(), challenger.tolist()))
        spent = [judge(gate, STEADY, CLASSES, Rules(draws=50, looks=look)) for look, gate in enumerate(gates)]
        promoted += any(each.verdict == Verdict.PROMOTE for each in spent)
        uncorrected += any((each.numbers["mcnemar_p"] or 0) <= RULES.alpha for each in spent)
    assert promoted <= 200 * RULES.alpha
    assert uncorrected > 200 * RULES.alpha * 1.5, "the same cases without correction exceed the stated chance"


def test_each_further_judgement_on_the_same_patients_has_half_the_level_of_the_one_before() -> None:
    levels = [Rules(looks=looks).level for looks in range(40)]
    assert levels[:3] == [0.025, 0.0125, 0.00625]
    assert sum(levels) <= RULES.alpha
    gate = cases([False] * 7 + [True] * 53, [True] * 60, confidence=0.95)
    verdicts = [judge(gate, STEADY, CLASSES, Rules(draws=100, looks=looks)) for looks in range(4)]
    assert (
        [each.verdict == Verdict.PROMOTE for each in verdicts]
        == [level >= 1 / 2**7 for level in levels[:4]]
        == [True, True, False, False]
    )
    assert [each.numbers["gate_judgement"] for each in verdicts] == [1, 2, 3, 4]
    assert verdicts[1].numbers["gate_level"] == 0.0125
    assert any("judgement 2" in reason and "0.0125" in reason for reason in verdicts[1].reasons)


def test_the_bounds_on_what_is_lost_get_stricter_with_each_judgement() -> None:
    """Four of 160 old cases of a class are lost: at the first judgement the bound is within the margin, at the fourth not."""
    gate = cases([False] * 40 + [True] * 20, [True] * 60, confidence=0.95)
    old = cases([True] * 480, [not (index % 3 == 0 and index < 12) for index in range(480)])
    verdicts = [judge(gate, old, CLASSES, Rules(looks=looks)) for looks in range(4)]
    assert [Rules(looks=looks).bound_level for looks in range(3)] == [0.05, 0.025, 0.0125]
    bounds = [each.numbers["baseline_loss_upper:recall:a"] for each in verdicts]
    assert bounds == sorted(bounds)
    assert bounds[0] < RULES.margin < bounds[3]
    assert [verdicts[0].verdict, verdicts[3].verdict] == [Verdict.PROMOTE, Verdict.REJECT]


@pytest.mark.parametrize("cases_of_class", [160, 400])
def test_a_series_of_challengers_that_lose_too_much_passes_half_as_often(cases_of_class: int) -> None:
    """Six challengers that in truth lose 5.5 points of a class: measured 18 for 33 % with 160 cases, 8 for 18 % with 400."""
    random, runs, passed = np.random.default_rng(0), 80, {"split": 0, "full": 0}
    weights = resampling.counts(list(range(cases_of_class)), 500, 0)
    for _ in range(runs):
        losses = [(random.random(cases_of_class) < 0.055).astype(float) for _ in range(6)]
        drawn = [resampling.means(loss, weights) for loss in losses]
        for name, levels in (("split", [Rules(looks=k).bound_level for k in range(6)]), ("full", [RULES.alpha] * 6)):
            bounds = [resampling.upper(draws, level) for draws, level in zip(drawn, levels, strict=True)]
            passed[name] += any(bound <= RULES.margin for bound in bounds)
    assert passed["split"] < 0.75 * passed["full"], passed


def test_a_real_gain_of_twenty_points_is_usually_seen() -> None:
    promoted = sum(
        judge(simulated(120, 0.65, 0.85, seed), STEADY, CLASSES, Rules(draws=100)).verdict == Verdict.PROMOTE for seed in range(50)
    )
    assert promoted > 40


def test_an_equal_challenger_is_rejected() -> None:
    verdict = judge(cases([True] * 60, [True] * 60), STEADY, CLASSES, RULES)
    assert verdict.verdict == Verdict.REJECT
    assert verdict.numbers["mcnemar_p"] == 1.0


def test_too_few_gate_cases_ask_for_labels() -> None:
    verdict = judge(simulated(12, 0.2, 1.0, 1), STEADY, CLASSES, RULES)
    assert (verdict.verdict, verdict.needed_cases) == (Verdict.NEED_LABELS, RULES.min_cases)
    assert "12" in verdict.reasons[0]


def test_a_gain_that_is_not_yet_shown_asks_for_the_cases_that_would_show_it() -> None:
    old, new = [True] * 36 + [False] * 4, [True] * 35 + [False, True, True, True, False]
    verdict = judge(cases(old, new), STEADY, CLASSES, RULES)
    assert verdict.verdict == Verdict.NEED_LABELS
    assert 40 < verdict.needed_cases <= 400
    assert str(verdict.needed_cases) in verdict.reasons[-1]


def test_forgetting_one_class_rejects_whatever_the_gain() -> None:
    forgotten = [index % 3 != 0 or index % 9 != 0 for index in range(180)]
    verdict = judge(simulated(120, 0.4, 0.95, 3), cases([True] * 180, forgotten), CLASSES, RULES)
    assert verdict.verdict == Verdict.REJECT
    assert verdict.numbers["baseline_loss:recall:a"] == pytest.approx(1 / 3)
    assert any("baseline" in reason and "class a" in reason for reason in verdict.reasons)


def test_a_small_class_is_checked_by_its_loss_and_said_so() -> None:
    verdict = judge(simulated(120, 0.4, 0.95, 3), cases([True] * 60, [True] * 60), CLASSES, RULES)
    assert verdict.verdict == Verdict.PROMOTE
    assert any("Too few baseline cases" in reason for reason in verdict.reasons)
    lost = cases([True] * 60, [index not in {0, 3} for index in range(60)])
    assert judge(simulated(120, 0.4, 0.95, 3), lost, CLASSES, RULES).verdict == Verdict.REJECT


def outcome(truth: str, old: bool, new: bool, count: int) -> list[PairedCase]:
    """So many cases of one class, answered right or wrong by either side."""
    sides = [probabilities(truth if right else wrong(truth)) for right in (old, new)]
    return [PairedCase(f"{truth}{old}{new}{index}", f"{truth}{old}{new}{index}", truth, *sides) for index in range(count)]


GAIN_IN_TWO = (
    outcome("a", True, True, 40) + outcome("a", False, True, 30) + outcome("b", True, True, 20) + outcome("b", False, True, 20)
)


@pytest.mark.parametrize(("kept", "lost", "expected"), [(3, 7, Verdict.REJECT), (70, 8, Verdict.REJECT), (10, 0, Verdict.PROMOTE)])
def test_a_class_lost_on_the_gates_cases_rejects_whatever_the_gain_of_the_others(kept: int, lost: int, expected: Verdict) -> None:
    gate = GAIN_IN_TWO + outcome("c", True, True, kept) + outcome("c", True, False, lost)
    verdict = judge(gate, STEADY, CLASSES, RULES)
    assert verdict.verdict == expected
    assert verdict.numbers["macro_recall:challenger"] > verdict.numbers["macro_recall:champion"]
    assert verdict.numbers["gate_loss:recall:c"] == pytest.approx(lost / (kept + lost))
    objections = [reason for reason in verdict.reasons if "gate" in reason and "lose too much" in reason]
    assert ["class c" in reason for reason in objections] == [True] * (expected == Verdict.REJECT)


def test_classes_that_could_not_be_checked_are_named() -> None:
    baseline = [each for each in STEADY if each.truth != "c"]
    verdict = judge(GAIN_IN_TWO, baseline, CLASSES, RULES)
    assert verdict.verdict == Verdict.PROMOTE
    for where in ("gate", "baseline"):
        assert verdict.numbers[f"{where}_classes_absent"] == 1.0
        assert f"Not checked, because no {where} case shows it: c." in verdict.reasons
    seen = judge(GAIN_IN_TWO + outcome("c", True, False, 5), baseline, CLASSES, RULES)
    assert seen.verdict == Verdict.REJECT


def test_many_studies_of_one_patient_count_once() -> None:
    old, new = [False] * 40 + [True] * 40, [True] * 40 + [True] * 40
    alone = judge(cases(old, new), STEADY, CLASSES, RULES)
    clustered = judge(cases(old, new, per_patient=20), STEADY, CLASSES, RULES)
    assert alone.verdict == Verdict.PROMOTE
    assert clustered.numbers["mcnemar_wins"] == 2
    assert clustered.verdict != Verdict.PROMOTE


def test_a_slow_challenger_is_rejected() -> None:
    verdict = judge(simulated(120, 0.4, 0.95, 3), STEADY, CLASSES, RULES, latency_ratio=3.5)
    assert verdict.verdict == Verdict.REJECT
    assert "3.5 times as slow" in verdict.reasons[-1]


def test_an_overconfident_challenger_is_rejected() -> None:
    old, new = [index % 2 == 0 for index in range(120)], [index % 2 == 0 or index % 7 == 1 for index in range(120)]
    gate = [
        PairedCase(honest.case_key, honest.patient, honest.truth, honest.champion, brash.challenger)
        for honest, brash in zip(cases(old, new, confidence=0.5), cases(old, new, confidence=0.999), strict=True)
    ]
    verdict = judge(gate, STEADY, CLASSES, RULES)
    assert verdict.verdict == Verdict.REJECT
    assert verdict.numbers["calibration_error:challenger"] > verdict.numbers["calibration_error:champion"]
    assert any("less trustworthy" in reason for reason in verdict.reasons)


def test_without_a_baseline_there_is_no_verdict() -> None:
    with pytest.raises(ValueError, match="forgotten"):
        judge(simulated(60, 0.5, 0.9, 1), [], CLASSES, RULES)


def test_the_verdict_is_a_function_of_cases_rules_and_seed() -> None:
    gate = simulated(60, 0.5, 0.8, 5)
    assert judge(gate, STEADY, CLASSES, RULES) == judge(gate, STEADY, CLASSES, RULES)


def test_the_number_of_cases_needed_has_the_stated_power() -> None:
    needed = cases_needed(8, 3, 60, 0.05)
    random, shown = np.random.default_rng(0), 0
    for _ in range(400):
        kinds = random.choice(3, size=needed, p=[8 / 60, 3 / 60, 49 / 60])
        wins, losses = int((kinds == 0).sum()), int((kinds == 1).sum())
        shown += binomtest(wins, max(wins + losses, 1), 0.5, alternative="greater").pvalue <= 0.05
    assert 0.7 < shown / 400 < 0.9


@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), st.integers(0, 5))
def test_draws_hold_whole_patients(patients: list[int], seed: int) -> None:
    drawn = resampling.counts(patients, 20, seed)
    assert drawn.shape == (20, len(patients))
    for patient in set(patients):
        columns = drawn[:, [index for index, each in enumerate(patients) if each == patient]]
        assert (columns == columns[:, :1]).all()
    sizes = {patient: patients.count(patient) for patient in patients}
    weights = drawn / np.array([sizes[patient] for patient in patients])
    assert np.allclose(weights.sum(axis=1), len(sizes))


def test_calibration_error_of_a_calibrated_model_is_small() -> None:
    random = np.random.default_rng(0)
    confidence = random.uniform(0.4, 1.0, 4000)
    right = (random.random(4000) < confidence).astype(float)
    every = np.ones((1, 4000))
    assert resampling.calibration_errors(confidence, right, every)[0] < 0.03
    assert resampling.calibration_errors(np.full(4000, 0.99), right, every)[0] == pytest.approx(0.99 - right.mean())


def test_the_gate_is_quick_enough_to_simulate() -> None:
    started = datetime.now(UTC)
    judge(simulated(500, 0.6, 0.8, 1), cases([True] * 900, [True] * 900), CLASSES, Rules())
    assert datetime.now(UTC) - started < timedelta(seconds=5)


DEGENERATE = (
    outcome("a", True, True, 56)
    + outcome("a", True, False, 4)
    + outcome("b", False, True, 25)
    + outcome("b", False, False, 5)
    + outcome("c", False, True, 24)
    + outcome("c", True, True, 6)
)
"""A champion that calls nearly everything a, and a repair that finds a as often as the champion once did."""


def test_a_champion_that_calls_everything_one_class_does_not_stand_in_the_way_of_its_repair() -> None:
    once = cases(
        [index % 3 != 0 or index % 30 != 0 for index in range(300)], [index % 3 != 0 or index % 30 != 0 for index in range(300)]
    )
    verdict = judge(DEGENERATE, once, CLASSES, RULES)
    assert verdict.verdict == Verdict.PROMOTE, verdict.reasons
    assert verdict.numbers["gate_loss:recall:a"] < RULES.margin
    strict = judge(DEGENERATE, STEADY, CLASSES, RULES)
    assert strict.verdict != Verdict.PROMOTE, "where the champion once found every case of a, the repair has to as well"


def degenerate(
    seed: int, repaired: tuple[float, float, float], champion: tuple[float, float, float] = (0.99, 0.3, 0.3)
) -> list[PairedCase]:
    random = np.random.default_rng(seed)
    old, new = ([bool(random.random() < rates[index % 3]) for index in range(150)] for rates in (champion, repaired))
    return cases(old, new)


def test_the_lower_reference_promotes_nothing_that_is_not_better() -> None:
    """Challengers that trade the classes of a degenerate champion for one another, with the same accuracy in truth."""
    once = simulated(300, 0.88, 0.88, 7, agreement=1.0)
    promoted = sum(
        judge(degenerate(seed, (0.85, 0.37, 0.37)), once, CLASSES, Rules(draws=100)).verdict == Verdict.PROMOTE
        for seed in range(200)
    )
    assert promoted <= 200 * RULES.alpha
    cured = sum(
        judge(degenerate(seed, (0.9, 0.85, 0.85)), once, CLASSES, Rules(draws=100)).verdict == Verdict.PROMOTE for seed in range(40)
    )
    assert cured > 20, cured

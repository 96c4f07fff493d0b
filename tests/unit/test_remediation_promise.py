"""Which cheap repairs are worth one of the gate's judgements."""

import pytest

from schemas.vocabulary import Verdict
from services.remediation.promise import recovery, unpromising
from tests.gate_cases import CLASSES, RULES, cases

USUAL = dict.fromkeys(CLASSES, 0.95)


def fallen(repaired: int, broken: int = 0, count: int = 300) -> list[object]:
    """A champion that reads a third of the cases; the challenger reads some more and breaks some of those."""
    old = [index < count // 3 for index in range(count)]
    new = [(index >= broken) if right else index - count // 3 < repaired for index, right in enumerate(old)]
    return list(cases(old, new))


def test_a_repair_that_gives_back_next_to_nothing_is_not_judged():
    refused = unpromising(fallen(4), USUAL, 226, CLASSES, RULES)
    assert refused is not None
    assert refused.verdict is Verdict.REJECT
    assert "reads 4 patients better and 0 worse" in refused.reasons[0]
    assert refused.numbers["tune_wins"] == 4


@pytest.mark.parametrize("broken", [0, 5])
def test_a_gain_that_the_gate_can_show_is_judged(broken):
    assert unpromising(fallen(60, broken), USUAL, 100, CLASSES, RULES) is None


def test_half_of_what_was_lost_is_judged_however_few_the_gates_cases_are():
    assert unpromising(fallen(120), USUAL, 1, CLASSES, RULES) is None
    assert unpromising(fallen(60), USUAL, 1, CLASSES, RULES) is not None


def test_a_small_class_that_gains_counts_as_much_as_a_large_one_that_pays() -> None:
    """Chest films, cropped: 20 patients read better and 19 worse, but the rarer class has gained 12 points and the other lost 5."""
    old, new = [index % 3 != 0 or index < 207 for index in range(300)], [True] * 300
    rare = [case for case in cases(old, new) if case.truth == CLASSES[0]]
    common = [case for case in cases([True] * 400, [index >= 28 for index in range(400)]) if case.truth == CLASSES[1]]
    usual = {CLASSES[0]: 0.9, CLASSES[1]: 1.0}
    assert unpromising([*rare, *common], usual, 300, CLASSES[:2], RULES) is None


def test_what_gives_back_half_within_a_standard_error_is_judged() -> None:
    """Of what was lost 43 %, on few cases: that may well be half. On many it is 43 %."""
    few = fallen(8, count=30)
    assert unpromising(few, USUAL, 5, CLASSES, RULES) is None
    assert unpromising(fallen(267, count=1000), USUAL, 5, CLASSES, RULES) is not None


def test_a_repair_that_breaks_as_much_as_it_mends_is_not_judged():
    assert unpromising(fallen(20, 20), USUAL, 10_000, CLASSES, RULES) is not None


def test_classes_without_cases_and_without_known_recalls_do_not_matter():
    some = [case for case in fallen(60) if case.truth != CLASSES[2]]
    assert unpromising(some, {}, 200, CLASSES, RULES) is None


def test_a_repair_tells_how_much_of_the_lost_recall_comes_back():
    before = sum(each.truth == name and index < 100 for index, each in enumerate(fallen(0)) for name in CLASSES) / 300
    words, numbers = recovery(fallen(93), USUAL, CLASSES)
    assert numbers["macro_recall:usual"] == 0.95
    assert numbers["recovered"] == pytest.approx((93 / 300) / (0.95 - before), abs=0.02)
    assert f"gives back {numbers['recovered']:.0%}" in words


@pytest.mark.parametrize("usual", [{}, dict.fromkeys(CLASSES, 0.2)])
def test_where_nothing_is_known_to_be_lost_nothing_is_told(usual):
    assert recovery(fallen(60), usual, CLASSES) == ("", {})


def test_a_repair_that_makes_it_worse_gives_back_less_than_nothing():
    worse = fallen(0, broken=30)
    assert (recovery(worse, USUAL, CLASSES)[1]["recovered"] or 0) < 0

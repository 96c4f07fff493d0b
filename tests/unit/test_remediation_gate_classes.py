"""The gate on a version that knows a class more than the champion."""

from dataclasses import replace

import pytest

from schemas.vocabulary import Verdict
from services.remediation.admission import require_extension
from services.remediation.gate import PairedCase, judge
from services.runtime.errors import InvalidInput
from tests.gate_cases import RULES

KNOWN, ADDED = ("a", "b"), ("c",)


def case(number: int, truth: str, old: str, new: str, patient: str | None = None) -> PairedCase:
    sides = [{name: 0.8 if name == said else 0.1 for name in (*KNOWN, *ADDED)} for said in (old, new)]
    sides[0]["c"] = 0.0
    return PairedCase(f"case{number}", patient or f"patient{number}", truth, *sides)


def common(count: int, new_wrong: int = 0) -> list[PairedCase]:
    """Cases that the champion reads; the challenger calls some of class a the new class."""
    found = []
    for number in range(count):
        truth = KNOWN[number % 2]
        found.append(case(number, truth, truth, "c" if truth == "a" and number // 2 < new_wrong else truth))
    return found


def of_new_class(count: int, read: int) -> list[PairedCase]:
    return [case(1000 + number, "c", "a", "c" if number < read else "b") for number in range(count)]


def test_a_version_that_reads_the_new_class_and_spares_the_others_passes():
    verdict = judge([*common(160, 1), *of_new_class(30, 27)], common(160), KNOWN, RULES, 1.0, ADDED)
    assert verdict.verdict is Verdict.PROMOTE, verdict.reasons
    assert verdict.numbers["added_recall:c"] == pytest.approx(0.9)
    assert verdict.numbers["calibration_error:champion"] == pytest.approx(0.2), "what must not become worse is compared without c"
    assert any("The new class c is read" in reason for reason in verdict.reasons)


def test_what_the_new_class_takes_from_an_old_one_rejects():
    verdict = judge([*common(160, 8), *of_new_class(60, 60)], common(160), KNOWN, RULES, 1.0, ADDED)
    assert verdict.verdict is Verdict.REJECT
    assert any("class a" in reason for reason in verdict.reasons)


def test_old_cases_that_are_called_the_new_class_count_as_forgotten():
    verdict = judge([*common(160), *of_new_class(60, 60)], common(160, 8), KNOWN, RULES, 1.0, ADDED)
    assert verdict.verdict is Verdict.REJECT
    assert any("On the baseline" in reason and "class a" in reason for reason in verdict.reasons)


def test_too_few_cases_of_the_new_class_ask_for_labels():
    verdict = judge([*common(160), *of_new_class(7, 7)], common(160), KNOWN, RULES, 1.0, ADDED)
    assert verdict.verdict is Verdict.NEED_LABELS
    assert "c (7); it judges from 20" in verdict.reasons[0]
    assert verdict.needed_cases == 180


def test_many_cases_of_the_new_class_do_not_stand_in_for_the_old_ones():
    few = judge([*common(20), *of_new_class(60, 60)], common(160), KNOWN, RULES, 1.0, ADDED)
    assert few.verdict is Verdict.NEED_LABELS
    assert "has 20 labelled cases" in few.reasons[0]
    assert few.needed_cases == 90


@pytest.mark.parametrize("read", [0, 8, 13])
def test_a_class_that_is_read_no_better_than_by_guessing_does_not_pass(read):
    verdict = judge([*common(160), *of_new_class(30, read)], common(160), KNOWN, RULES, 1.0, ADDED)
    assert verdict.verdict is Verdict.REJECT
    assert any("not shown to be read" in reason for reason in verdict.reasons)


def test_one_patients_many_studies_of_the_new_class_count_once():
    one = [replace(each, patient="same") for each in of_new_class(40, 40)]
    verdict = judge([*common(160), *one], common(160), KNOWN, RULES, 1.0, ADDED)
    assert verdict.verdict is Verdict.REJECT


def test_without_new_classes_nothing_is_judged_otherwise():
    plain = [case(each, KNOWN[each % 2], KNOWN[each % 2 if each % 3 else 0], KNOWN[each % 2]) for each in range(120)]
    assert judge(plain, common(160), (*KNOWN, *ADDED), RULES) == judge(plain, common(160), (*KNOWN, *ADDED), RULES, None, ())


@pytest.mark.parametrize("classes", [("a",), ("b", "a"), ("a", "c", "b")])
def test_a_version_must_know_what_the_champion_knows_in_its_order(classes):
    with pytest.raises(InvalidInput, match="cannot take its place"):
        require_extension("m", KNOWN, classes)
    require_extension("m", KNOWN, (*KNOWN, "c"))

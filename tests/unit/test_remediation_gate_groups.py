"""The gate's other evidence: probabilities judged by betting, and groups of cases."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.vocabulary import Verdict
from services.remediation import betting, groups, resampling
from services.remediation.gate import PairedCase, Rules, judge
from tests.gate_cases import CLASSES, RULES, cases, probabilities, wrong


def graded(count: int, accuracy: float, sides: tuple[float, float], seed: int) -> list[PairedCase]:
    """Both sides decide alike; they say so with different confidence."""
    random = np.random.default_rng(seed)
    found = []
    for index in range(count):
        truth = CLASSES[index % 3]
        answer = truth if random.random() < accuracy else wrong(truth)
        rows = [probabilities(answer, confidence) for confidence in sides]
        found.append(PairedCase(f"case{index}", f"patient{index}", truth, *rows))
    return found


PROBABILITIES = Rules(draws=100, endpoint="probabilities")


def test_better_probabilities_pass_where_they_are_what_the_repair_is_for() -> None:
    gate, old = graded(200, 0.7, (0.99, 0.7), 1), graded(300, 0.7, (0.99, 0.7), 2)
    assert judge(gate, old, CLASSES, PROBABILITIES).verdict == Verdict.PROMOTE
    assert judge(gate, old, CLASSES, Rules(draws=100)).verdict == Verdict.REJECT
    assert judge(graded(200, 0.7, (0.7, 0.99), 1), old, CLASSES, PROBABILITIES).verdict == Verdict.REJECT
    assert judge(graded(200, 0.7, (0.7, 0.7), 1), old, CLASSES, PROBABILITIES).verdict == Verdict.REJECT


@pytest.mark.parametrize(("count", "accuracy"), [(30, 0.97), (80, 0.9), (150, 0.75)])
def test_probabilities_that_are_no_better_are_promoted_no_more_often_than_stated(count: int, accuracy: float) -> None:
    """Too sharp by as much as the champion is too mild: equal in Brier's score, gaining in most cases and losing much in few."""
    mild = accuracy - 0.12
    sharp = 2 * accuracy - mild
    assert sharp <= 1.1
    sharp = min(sharp, 1.0)
    old = graded(300, accuracy, (mild, sharp), 3)
    promoted = sum(
        judge(graded(count, accuracy, (mild, sharp), seed), old, CLASSES, PROBABILITIES).verdict == Verdict.PROMOTE
        for seed in range(200)
    )
    assert promoted <= 200 * RULES.alpha, promoted


@given(st.lists(st.floats(-1, 1), max_size=40), st.integers(0, 3))
def test_evidence_is_a_number_above_zero_and_none_for_no_change(differences: list[float], seed: int) -> None:
    evidence = betting.evidence_of_gain(differences, seed)
    assert 0 < evidence < math.inf
    assert betting.evidence_of_gain([0.0] * len(differences), seed) == 1.0


def test_betting_keeps_its_level_where_a_rare_loss_is_hidden_and_has_power() -> None:
    random = np.random.default_rng(0)
    skewed = [np.where(random.random(40) < 0.05, -0.95, 0.05) for _ in range(1000)]
    assert np.mean([betting.evidence_of_gain(each.tolist(), 0) >= 20 for each in skewed]) <= 0.05
    useful = [random.normal(0.06, 0.15, 150).clip(-1, 1) for _ in range(100)]
    assert np.mean([betting.evidence_of_gain(each.tolist(), 0) >= 40 for each in useful]) > 0.8


def test_the_number_of_cases_grows_with_what_is_missing() -> None:
    assert betting.cases_for(0.5, 60, 0.01) == 0
    assert betting.cases_for(10.0, 60, 0.011) == 118
    assert betting.cases_for(1000.0, 60, 0.01) == 61


def at_scanners(each: list[PairedCase], names: list[str]) -> list[PairedCase]:
    return [replace(case, facets={"StationName": names[index % len(names)], "Modality": "MR"}) for index, case in enumerate(each)]


def test_a_scanner_that_is_read_worse_rejects_whatever_the_gain_elsewhere() -> None:
    gate = cases([False] * 60 + [True] * 60, [True] * 120)
    lost = [index % 2 == 0 or index % 40 > 4 for index in range(400)]
    old = at_scanners(cases([True] * 400, lost), ["CT1", "CT2"])
    rules = Rules(draws=200, margin=0.095)
    assert judge(gate, [replace(case, facets={}) for case in old], CLASSES, rules).verdict == Verdict.PROMOTE
    verdict = judge(gate, old, CLASSES, rules)
    assert verdict.verdict == Verdict.REJECT
    assert verdict.numbers["baseline_subgroups"] == 2.0
    assert verdict.numbers["baseline_loss:StationName=CT2"] > 0.095
    assert any("StationName CT2 (200)" in reason for reason in verdict.reasons)
    assert not any("CT1" in reason for reason in verdict.reasons)


def test_a_small_group_objects_only_when_its_loss_is_shown() -> None:
    facets = [{"PatientSex": "F" if index < 12 else "M"} for index in range(300)]
    patients = [str(index) for index in range(300)]
    draws = resampling.counts(patients, 200, 0)

    def small(lost: int) -> groups.Group:
        loss = np.array([1.0 if index < lost else 0.0 for index in range(300)])
        return next(each for each in groups.groups_of(facets, patients, loss, draws, 0.05, 0.05) if each.value == "F")

    assert small(2).bound is None
    assert [small(lost).harmed(0.05, 0.05) for lost in (0, 1, 4, 5, 8)] == [False, False, False, True, True]
    assert list(groups.groups_of([{"PatientSex": "F"}] * 300, patients, np.zeros(300), draws, 0.05, 0.05)) == []

"""A baseline that guessing explains is told from one that speaks for the model."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.tables import BaselineCase
from services.runtime.chance import standing


def cases(right: dict[str, tuple[int, int]], per_patient: int = 1) -> list[BaselineCase]:
    """`right` gives each class its (right, wrong) cases; a wrong case is called by the next class."""
    names, rows = list(right), []
    for place, (name, (good, bad)) in enumerate(right.items()):
        other = names[(place + 1) % len(names)]
        for number in range(good + bad):
            said = name if number < good else other
            keys = {"case_key": f"{name}-{number}", "patient_key": f"{name}-{number // per_patient}"}
            rows.append(BaselineCase(model="m", version=1, truth=name, predicted=said, probabilities={}, **keys))
    return rows


@pytest.mark.parametrize(
    ("right", "at_chance"),
    [
        ({"a": (20, 20), "b": (20, 20)}, True),
        ({"a": (40, 0), "b": (0, 40)}, True),
        ({"a": (30, 10), "b": (30, 10)}, False),
        ({"a": (2, 1), "b": (2, 1)}, True),
        ({"a": (5, 0), "b": (5, 0)}, False),
        ({"a": (20, 40), "b": (20, 40), "c": (20, 40)}, True),
        ({"a": (30, 30), "b": (30, 30), "c": (30, 30)}, False),
        ({"a": (40, 0), "b": (0, 0)}, True),
    ],
)
def test_chance_level(right: dict[str, tuple[int, int]], at_chance: bool) -> None:
    found = standing(cases(right), list(right))
    assert found.at_chance is at_chance, found.text


def test_many_cases_of_few_patients_count_as_few() -> None:
    right = {"a": (26, 14), "b": (26, 14)}
    assert not standing(cases(right), ["a", "b"]).at_chance
    assert standing(cases(right, per_patient=20), ["a", "b"]).at_chance


def test_a_class_without_cases_is_named() -> None:
    assert "no test case shows c" in standing(cases({"a": (9, 0), "b": (9, 0)}), ["a", "b", "c"]).text


def test_an_empty_baseline_tells_nothing() -> None:
    assert standing([], ["a", "b"]).at_chance


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=2, max_size=4))
def test_the_interval_holds_its_order(counts: list[tuple[int, int]]) -> None:
    right = {f"c{place}": pair for place, pair in enumerate(counts)}
    found = standing(cases(right), list(right))
    assert 0 <= found.low <= found.high <= 1
    assert 0 <= found.value <= 1

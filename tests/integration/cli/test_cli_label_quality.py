"""`reclaim labels suspects` and `labels quality` over a real database."""

import json
import re

import pytest

from listeners.cli.label_quality import p_text
from services.runtime import registry
from tests.truth_world import CLASSES, START, ground_truth, mislabelled


@pytest.fixture
def wrong(site):
    """A version that scored 400 studies; unsure ones are labelled oftener, 15 labels are wrong. Returns those studies."""
    return mislabelled(site.database)


def test_suspects_are_listed_by_pseudonym_with_the_surest_first(wrong, reclaim):
    said = reclaim("labels", "suspects", "tumour", "--version", "1")
    assert said.code == 0
    assert "suspects" in said.text
    assert "pseudonym" in said.text
    assert re.search(r"Of the \d+ listed about \d+ are expected to be wrong labels and \d+ right ones", said.text)
    found = json.loads(reclaim("labels", "suspects", "tumour", "--version", "1", "--json").text)
    named = [each["study_key"] for each in found["noise"]["suspects"]]
    assert set(named) & wrong
    assert len(set(named) & wrong) > len(named) / 2
    sure = [each["sure"] for each in found["noise"]["suspects"]]
    assert sure == sorted(sure, reverse=True)
    assert {each["source"] for each in found["noise"]["suspects"]} == {"pathology"}
    one = json.loads(reclaim("labels", "suspects", "tumour", "--version", "1", "--limit", "1", "--json").text)
    assert [each["study_key"] for each in one["noise"]["suspects"]] == named[:1]
    assert one["expected_wrong"] == one["noise"]["suspects"][0]["sure"]
    assert found["status"] is None


def test_contradicting_sources_are_listed(wrong, reclaim):
    said = reclaim("labels", "suspects", "tumour", "--version", "1")
    assert "Studies whose sources contradict each other: 1" in said.text
    assert "csv:old" in said.text


def test_quality_tells_delay_selection_and_weighted_rates(wrong, site, reclaim):
    said = reclaim("labels", "quality", "tumour", "--version", "1")
    assert said.code == 0
    assert "chosen by confidence decile" in said.text
    assert "p < 0.001 after Bonferroni's correction for 3 comparisons" in said.text
    assert "p 0.000" not in said.text
    assert "pathology: labels come 3 hours or more after the time that they state, half within 3 hours" in said.text
    assert "its clock runs ahead" not in said.text
    assert "belong to no study" not in said.text
    with site.database.transaction() as tx:
        tx.session.add(ground_truth(9_999, "glioma", "pathology", START))
        tx.session.add(ground_truth(9_998, None, "pathology", START))
    again = reclaim("labels", "quality", "tumour", "--version", "1")
    assert "1 labels belong to no study that tumour has scored" in again.text
    assert "Site" not in said.text, "of a facet with one value there is nothing to tell"
    assert "The first evaluation takes 100 labelled cases; " in said.text
    assert "confidence decile 10: " in said.text
    assert "recall:glioma" in said.text
    found = json.loads(reclaim("labels", "quality", "tumour", "--version", "1", "--json").text)
    assert found["delays"][0]["median"]["days"] == 2
    assert found["verification"]["rates"][0]["name"] == "accuracy"
    assert {each["facet"] for each in found["verification"]["shares"]} == {"predicted", "confidence decile", "StationName"}


def test_the_list_of_evaluations_says_how_many_labelled_cases_are_missing(wrong, reclaim):
    said = reclaim("evaluations", "list", "--model", "tumour").text
    assert "No batch has been evaluated yet" in said
    assert "tumour version 1: The first evaluation takes 100 labelled cases; " in said


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "p < 0.001"), (9.99e-4, "p < 0.001"), (0.00123, "p 0.0012"), (0.0456, "p 0.046"), (0.5, "p 0.50"), (1.0, "p 1.00")],
)
def test_p_values_are_never_nought(value, text):
    assert p_text(value) == text


@pytest.mark.parametrize("command", ["suspects", "quality"])
def test_what_cannot_be_answered_says_why(reclaim, site, command):
    assert reclaim("labels", command, "nothing").code != 0
    with site.database.transaction() as tx:
        registry.register_model(tx, "tumour", "tumour", list(CLASSES), {})
    said = reclaim("labels", command, "tumour")
    assert said.code != 0
    assert "champion" in said.text

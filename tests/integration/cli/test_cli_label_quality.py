"""`reclaim labels suspects` and `labels quality` over a real database."""

import json
from datetime import timedelta

import numpy as np
import pytest

from schemas.tables import Case, GroundTruth, ModelVersion
from services.runtime import registry
from tests.truth_world import CLASSES, START, calibrated

MANY = 400


@pytest.fixture
def wrong(site):
    """A version that scored 400 studies; unsure ones are labelled oftener, 15 labels are wrong. Returns those studies."""
    rng = np.random.default_rng(5)
    shares, truth = calibrated(rng, MANY, 4.0)
    labelled = rng.random(MANY) < np.where(shares.max(1) < 0.9, 0.9, 0.4)
    chosen = set(rng.choice(np.flatnonzero(labelled), 15, replace=False).tolist())
    with site.database.transaction() as tx:
        registry.register_model(tx, "tumour", "tumour", list(CLASSES), {})
        version = ModelVersion(model="tumour", version=1, bundle="b", sha256="0" * 64, created_at=START)
        registry.add_version(tx, version, [], actor="user:test")
        for n, row in enumerate(shares):
            at = START + timedelta(hours=n)
            label = CLASSES[(truth[n] + (n in chosen)) % 4] if labelled[n] else None
            tx.session.add(case(n, row, label, at))
            if label:
                tx.session.add(ground_truth(n, label, "pathology", at))
        other = next(name for name in CLASSES if name != CLASSES[truth[min(chosen)]])
        tx.session.add(ground_truth(min(chosen), other, "csv:old", START - timedelta(days=30)))
    return {f"{n:032x}" for n in chosen}


def case(n, row, label, at):
    return Case(
        study_key=f"{n:032x}",
        model="tumour",
        version=1,
        task="tumour",
        patient_key=f"{n:032x}",
        role="trigger",
        state="joined" if label else "waiting",
        predicted=CLASSES[int(row.argmax())],
        probabilities=dict(zip(CLASSES, map(float, row), strict=True)),
        facets={"StationName": f"CT{n % 2}"},
        truth=label,
        acquired_at=at,
        scored_at=at,
        joined_at=at + timedelta(days=2) if label else None,
    )


def ground_truth(n, label, source, at):
    return GroundTruth(study_key=f"{n:032x}", task="tumour", source=source, value=label, labelled_at=at, received_at=at)


def test_suspects_are_listed_by_pseudonym_with_the_surest_first(wrong, reclaim):
    said = reclaim("labels", "suspects", "tumour", "--version", "1")
    assert said.code == 0
    assert "suspects" in said.text
    assert "pseudonym" in said.text
    found = json.loads(reclaim("labels", "suspects", "tumour", "--version", "1", "--json").text)
    named = [each["study_key"] for each in found["noise"]["suspects"]]
    assert set(named) & wrong
    assert len(set(named) & wrong) > len(named) / 2
    sure = [each["sure"] for each in found["noise"]["suspects"]]
    assert sure == sorted(sure, reverse=True)
    assert {each["source"] for each in found["noise"]["suspects"]} == {"pathology"}
    one = json.loads(reclaim("labels", "suspects", "tumour", "--version", "1", "--limit", "1", "--json").text)
    assert [each["study_key"] for each in one["noise"]["suspects"]] == named[:1]


def test_contradicting_sources_are_listed(wrong, reclaim):
    said = reclaim("labels", "suspects", "tumour", "--version", "1")
    assert "1 studies whose sources contradict each other" in said.text
    assert "csv:old" in said.text


def test_quality_tells_delay_selection_and_weighted_rates(wrong, reclaim):
    said = reclaim("labels", "quality", "tumour", "--version", "1")
    assert said.code == 0
    assert "chosen by confidence decile" in said.text
    assert "confidence decile 10: " in said.text
    assert "recall:glioma" in said.text
    found = json.loads(reclaim("labels", "quality", "tumour", "--version", "1", "--json").text)
    assert found["delays"][0]["median"]["days"] == 2
    assert found["verification"]["rates"][0]["name"] == "accuracy"
    assert {each["facet"] for each in found["verification"]["shares"]} == {"predicted", "confidence decile", "StationName"}


@pytest.mark.parametrize("command", ["suspects", "quality"])
def test_what_cannot_be_answered_says_why(reclaim, site, command):
    assert reclaim("labels", command, "nothing").code != 0
    with site.database.transaction() as tx:
        registry.register_model(tx, "tumour", "tumour", list(CLASSES), {})
    said = reclaim("labels", command, "tumour")
    assert said.code != 0
    assert "champion" in said.text

"""How many labelled cases are missing until the next evaluation, on both databases."""

from datetime import timedelta

import pytest

from schemas.settings import JoinSettings
from schemas.tables import Batch, Case, ModelVersion
from services.evaluation.next_batch import NextBatch, next_batch
from services.runtime import registry

JOIN = JoinSettings(batch_size=10, batch_max_age_s=3600, tune_share=0.35, gate_share=0.25)


@pytest.fixture
def lung(database, clock):
    with database.transaction() as tx:
        registry.register_model(tx, "lung", "lung", ["a", "b"], {})
        row = ModelVersion(model="lung", version=1, bundle="b", sha256="0" * 64, created_at=clock.now())
        registry.add_version(tx, row, [], actor="user:test")
    return database


def enter(database, clock, count, *, first=0, **fields):
    with database.transaction() as tx:
        for n in range(first, first + count):
            values = {"study_key": f"{n:032x}", "patient_key": f"{n:032x}", "model": "lung", "version": 1, "task": "lung"}
            values |= {
                "role": "trigger",
                "predicted": "a",
                "probabilities": {},
                "acquired_at": clock.now(),
                "scored_at": clock.now(),
            }
            tx.session.add(Case(**values | fields))


def look(database, version=1):
    with database.read() as session:
        return next_batch(session, JOIN, "lung", version)


def test_only_labelled_serving_trigger_cases_count(lung, clock):
    nothing = look(lung)
    assert (nothing.ready, nothing.missing, nothing.waiting, nothing.closes_at) == (0, 10, 0, None)
    assert "studies have to come too" in nothing.say()
    joined = {"state": "joined", "truth": "a", "joined_at": clock.now()}
    enter(lung, clock, 3, **joined)
    enter(lung, clock, 4, first=3, **joined, role="gate")
    enter(lung, clock, 2, first=7, **joined, serving=False)
    enter(lung, clock, 8, first=9)
    enter(lung, clock, 5, first=17, role="tune")
    found = look(lung)
    assert found == NextBatch("lung", 1, 10, 3, 8, 9, 0, clock.now() + timedelta(hours=1), pytest.approx(0.4))
    assert (found.missing, found.studies) == (7, 18)
    assert found.say().startswith(
        "The first evaluation takes 10 labelled cases; 3 have come, 7 are missing (about 18 labels, because cases of patients who"
    )
    assert "studies have to come" not in found.say()
    assert f"At {clock.now() + timedelta(hours=1):%Y-%m-%d %H:%M} UTC" in found.say()


def test_cases_in_a_batch_are_no_longer_ready_and_withdrawn_ones_not_labelled(lung, clock):
    with lung.transaction() as tx:
        tx.session.add(Batch(batch_id="b", model="lung", version=1, number=1, cases=3, closed_by="age", closed_at=clock.now()))
    enter(lung, clock, 2, state="batched", truth="a", batch_id="b", joined_at=clock.now())
    enter(lung, clock, 1, first=2, state="withdrawn", batch_id="b")
    found = look(lung)
    assert (found.ready, found.labelled, found.batches, found.waiting) == (0, 2, 1, 0)
    assert found.say().startswith("The next evaluation takes")


def test_the_champion_is_meant_unless_a_version_is_named(lung):
    assert look(lung, None).version == 1
    with lung.transaction() as tx:
        registry.register_model(tx, "brain", "brain", ["a", "b"], {})
    with lung.read() as session:
        assert next_batch(session, JOIN, "nobody") is None
        assert next_batch(session, JOIN, "brain") is None

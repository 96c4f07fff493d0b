"""The agents' tool for suspect labels, on a real database: what it names, what it narrows down to, what it cannot answer."""

from types import SimpleNamespace

import pytest
from sqlmodel import select

from agents.tools.adapter import use
from agents.tools.answers import Problem
from agents.tools.catalogue import BY_NAME
from schemas.settings import Settings
from schemas.tables import Evaluation, Outbox
from schemas.vocabulary import Diagnosis, Status
from services.runtime import registry
from tests.truth_world import CLASSES, START, mislabelled


@pytest.fixture
def ask(sqlite_database, clock):
    desk = SimpleNamespace(database=sqlite_database, clock=clock, settings=Settings(), fault=None)
    return lambda **arguments: use(BY_NAME["suspect_labels"], desk, arguments)


def test_the_surest_suspects_are_named_by_pseudonym(sqlite_database, ask):
    wrong = mislabelled(sqlite_database)
    found = ask(model="tumour", version=1)
    named = [each.study for each in found.suspects]
    assert len(set(named) & wrong) > len(named) / 2
    assert [each.sure for each in found.suspects] == sorted((each.sure for each in found.suspects), reverse=True)
    assert found.low <= found.share <= found.high
    assert (found.contradicted, len(found.conflicts)) == (1, 1)
    told = found.say()
    assert f"of these {len(named)} about {found.expected:.0f} are expected to be wrong labels." in told
    assert 0.5 * len(named) < found.expected < len(named)
    assert f"study {named[0]}" in told
    assert "pathology" in told
    assert "csv:old" in told
    assert told.endswith("Nothing was changed: a newer label of the same study corrects one.")


def test_few_of_one_class_may_be_asked_for(sqlite_database, ask):
    mislabelled(sqlite_database)
    every = ask(model="Tumour", version=1, last=100)
    one = ask(model="tumour", version=1, label="GLIOMA", last=1)
    assert {each.label for each in one.suspects} == {"glioma"}
    assert one.found == sum(each.label == "glioma" for each in every.suspects) > len(one.suspects) == 1
    assert f"to look at again labelled glioma: {one.found}, the surest 1 of them" in one.say()


def test_what_cannot_be_answered_says_why(sqlite_database, ask):
    assert isinstance(ask(model="nothing"), Problem)
    with sqlite_database.transaction() as tx:
        registry.register_model(tx, "empty", "empty", list(CLASSES), {})
    assert "no champion" in ask(model="empty").error
    mislabelled(sqlite_database, cases=60, wrong=1)
    assert "has no class" in ask(model="tumour", version=1, label="meningeoma").error
    assert "meningioma" in ask(model="tumour", version=1, label="meningeoma").known
    assert "arguments are wrong" in ask(model="tumour", last=0).error
    few = ask(model="tumour", version=1)
    assert (few.share, few.suspects) == (None, ())
    assert "too few labelled cases" in few.say()


def test_of_a_degraded_version_suspects_may_be_the_models_own_errors(sqlite_database, ask):
    mislabelled(sqlite_database)
    with sqlite_database.transaction() as tx:
        row = Evaluation(evaluation_id="e", batch_id="b", model="tumour", version=1, cases=10, stream_cases=10, summary="A. B.")
        row.status, row.diagnosis, row.evaluated_at = Status.DEGRADED, Diagnosis.UNKNOWN, START
        row.metrics, row.evidence, row.reclaim_rule = [], {}, False
        tx.session.add(row)
    assert "may be its own errors" in ask(model="tumour", version=1).say()
    with sqlite_database.read() as session:
        assert session.exec(select(Outbox)).all() == [], "the tool reads and orders nothing"

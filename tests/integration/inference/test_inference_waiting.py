"""Studies that wait for a stopped model or that no model takes: none is lost, on both database engines."""

import logging
from datetime import timedelta

from models.spec import SelectionRule
from schemas.tables import Study
from services.inference.repository import Unscored, unscored
from services.inference.unscored import tidy, waiting_row
from services.runtime import registry
from services.runtime.consumer import process
from tests.inference_archive import CT, MR, announced_again, archived, notes, predictions, record, register


def serving(context, name, *, on):
    with context.database.transaction() as tx:
        registry.set_serving(tx, name, serving=on, actor="test")


def tidied(context):
    """Let the other ticker look once."""
    with context.database.transaction() as tx:
        tidy(tx, 30)


def test_studies_that_came_while_a_model_was_stopped_are_scored_when_it_is_resumed(context, consumer):
    register(context, "m", rule=SelectionRule(modalities=("CT",)))
    register(context, "other")
    serving(context, "m", on=False)
    first, late, mr = archived(context, CT), archived(context, CT), archived(context, MR)
    later = late.model_copy(update={"revision": 2})
    for study in (first, late, later, mr):
        process(context.database, consumer, [record(study)])
    assert {each.model for each in predictions(context)} == {"other"}
    assert announced_again(context) == []
    assert [(note.model, note.reason) for note in notes(context)] == [("m", "the model was stopped")] * 3
    serving(context, "m", on=True)
    again = announced_again(context)
    assert notes(context) == []
    before = len(predictions(context))
    assert process(context.database, consumer, again) == 0
    found = predictions(context)[before:]
    # The other model has scored them already and is not asked again; of two revisions the last one counts.
    assert {(each.model, each.study_key, each.revision) for each in found} == {
        ("m", first.study_key, 1),
        ("m", late.study_key, 2),
    }
    assert announced_again(context) == again
    process(context.database, consumer, again)
    assert len(predictions(context)) == before + 2


def test_a_model_stopped_again_before_it_has_caught_up_loses_nothing(sqlite_context, sqlite_consumer):
    register(sqlite_context, "m")
    study = archived(sqlite_context, CT)
    serving(sqlite_context, "m", on=False)
    process(sqlite_context.database, sqlite_consumer, [record(study)])
    serving(sqlite_context, "m", on=True)
    again = announced_again(sqlite_context)
    serving(sqlite_context, "m", on=False)
    sqlite_context.clock.advance(60)
    process(sqlite_context.database, sqlite_consumer, again)
    assert predictions(sqlite_context) == []
    serving(sqlite_context, "m", on=True)
    process(sqlite_context.database, sqlite_consumer, announced_again(sqlite_context))
    assert [each.study_key for each in predictions(sqlite_context)] == [study.study_key]


def test_a_study_waits_no_longer_than_asked(sqlite_context, sqlite_consumer):
    register(sqlite_context, "m")
    serving(sqlite_context, "m", on=False)
    process(sqlite_context.database, sqlite_consumer, [record(archived(sqlite_context, CT))])
    for _ in range(31):
        assert len(notes(sqlite_context)) == 1
        sqlite_context.clock.advance(86_400)
        tidied(sqlite_context)
    assert notes(sqlite_context) == []
    serving(sqlite_context, "m", on=True)
    assert announced_again(sqlite_context) == []


def test_a_study_that_waits_outlives_a_clock_that_leaps_and_is_put_right(sqlite_context, sqlite_consumer, caplog):
    register(sqlite_context, "m")
    serving(sqlite_context, "m", on=False)
    study = archived(sqlite_context, CT)
    process(sqlite_context.database, sqlite_consumer, [record(study)])
    tidied(sqlite_context)
    sqlite_context.clock.at += timedelta(days=4000)
    tidied(sqlite_context)
    sqlite_context.clock.at -= timedelta(days=4000)
    tidied(sqlite_context)
    assert "RET-204" in caplog.text
    serving(sqlite_context, "m", on=True)
    process(sqlite_context.database, sqlite_consumer, announced_again(sqlite_context))
    assert [each.study_key for each in predictions(sqlite_context)] == [study.study_key]


def test_a_long_stop_is_caught_up_in_parts_oldest_first(sqlite_context, monkeypatch):
    monkeypatch.setattr("services.inference.unscored.AT_ONCE", 2)
    register(sqlite_context, "m")
    with sqlite_context.database.transaction() as tx:
        for _ in range(5):
            study = archived(sqlite_context, CT)
            tx.session.add(waiting_row(study, "m", sqlite_context.clock.now()))
            sqlite_context.clock.advance(1)
    assert [len(announced_again(sqlite_context)) for _ in range(3)] == [2, 4, 5]


def test_a_study_that_no_model_takes_is_noted_logged_and_counted(context, consumer, caplog):
    register(context, "mr-model", rule=SelectionRule(modalities=("MR",)))
    register(context, "knee", rule=SelectionRule(modalities=("CT",), body_parts=("KNEE",)))
    scout = archived(context, CT, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    chest = archived(context, CT, BodyPartExamined="CHEST")
    dx = archived(context, CT, Modality="DX")
    with caplog.at_level(logging.WARNING):
        process(context.database, consumer, [record(each) for each in (scout, chest, dx, archived(context, MR))])
    assert {note.study_key: note.reason for note in notes(context)} == {
        scout.study_key: "no image of the study fits the model: 1 x localiser",
        chest.study_key: "no image of the study fits the model: 1 x not what the selection rule asks for",
        dx.study_key: "no serving model takes its modality",
    }
    assert f"no model takes study {dx.study_key} (modality DX)" in caplog.text
    now = context.clock.now()
    with context.database.read() as session:
        assert unscored(session, now) == [Unscored("", "CT", "", 2), Unscored("", "DX", "", 1)]
        assert unscored(session, now + timedelta(seconds=1)) == []
    process(context.database, consumer, [record(dx, "announced under another id")])
    assert len(notes(context)) == 3


def test_a_study_whose_images_retention_deleted_waits_no_longer(context, caplog):
    register(context, "m")
    study = archived(context, CT)
    now = context.clock.now()
    times = {"acquired_at": now, "first_instance_at": now, "last_instance_at": now, "purged_at": now}
    with context.database.transaction() as tx:
        tx.session.add(waiting_row(study, "m", now))
        tx.session.add(Study(study_uid="1.2", study_key=study.study_key, patient_key="p" * 32, **times))
    assert announced_again(context) == []
    assert notes(context) == []
    assert "1 studies that waited" in caplog.text

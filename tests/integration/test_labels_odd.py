"""What docs/labels.md says of odd labels: their times, early ones, unknown studies, the same time twice, several models."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from sqlmodel import select

from listeners.labels.intake import RawLabel, take_in
from schemas import topics
from schemas.events import Label, Prediction
from schemas.settings import JoinSettings
from schemas.tables import Case, GroundTruth, Outbox
from services.evaluation.delays import delay_days
from services.evaluation.truth_repository import scored_cases, unmatched
from services.ground_truth.handlers import Join
from services.runtime import registry
from services.runtime.consumer import process
from services.runtime.messages import Record, headers_of

KEY = "a" * 32
JOIN = JoinSettings(batch_size=50, tune_share=0.0, gate_share=0.0)


def said(context, **fields):
    """Hand a label in from outside; the reasons of refusal."""
    raw = {"study_key": KEY, "task": "tumour", "label": "glioma"} | fields
    return [fault.reason for fault in take_in(context, [RawLabel(1, raw)], "csv", context.clock.now()).faults]


def times(context):
    with context.database.read() as session:
        rows = session.exec(select(Outbox).where(Outbox.topic == topics.LABEL.name).order_by(Outbox.id)).all()
    return [Label.model_validate_json(row.body).labelled_at for row in rows]


def feed(context, *events):
    records = []
    for number, data in enumerate(events):
        topic = topics.PREDICTION if isinstance(data, Prediction) else topics.LABEL
        headers = headers_of(topic, f"{context.clock.now().timestamp()}-{number}", context.clock.now())
        records.append(Record(topic.name, 0, 0, data.study_key, headers, data.model_dump_json().encode()))
    assert process(context.database, Join(JOIN), records) == 0


def score(context, model="tumour", key=KEY):
    now = context.clock.now()
    named = {"study_key": key, "patient_key": "b" * 32, "revision": 1, "model": model, "version": 1, "serving": True}
    shares = {"glioma": 0.75, "none": 0.25}
    return Prediction(**named, task="tumour", probabilities=shares, predicted="glioma", acquired_at=now, scored_at=now)


def label(context, value="glioma", key=KEY, *, at=None, task="tumour"):
    return Label(study_key=key, task=task, value=value, source="csv", labelled_at=at or context.clock.now())


def truths(context):
    with context.database.read() as session:
        return {(row.model, row.study_key[:1]): row.truth for row in session.exec(select(Case))}


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-02-01T08:00:00", datetime(2026, 2, 1, 8, tzinfo=UTC)),
        ("2026-02-01", datetime(2026, 2, 1, tzinfo=UTC)),
        ("2026-02-01T08:00:00+02:00", datetime(2026, 2, 1, 6, tzinfo=UTC)),
        ("2026-02-01T08:00:00-05:30", datetime(2026, 2, 1, 13, 30, tzinfo=UTC)),
    ],
)
def test_a_time_without_an_offset_is_utc(sqlite_context, text, moment):
    assert said(sqlite_context, labelled_at=text) == []
    assert times(sqlite_context) == [moment]


@pytest.mark.parametrize("text", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "2026-02-30", "yesterday"])
def test_a_time_that_is_none_is_refused(sqlite_context, text):
    assert said(sqlite_context, labelled_at=text)
    assert times(sqlite_context) == []


def test_a_time_from_the_future_is_refused_from_a_day_on(sqlite_context):
    now = sqlite_context.clock.now()
    assert said(sqlite_context, labelled_at=(now + timedelta(hours=25)).isoformat()) == ["labelled_at lies in the future"]
    assert said(sqlite_context, labelled_at=(now + timedelta(hours=23)).isoformat()) == []


def test_a_label_older_than_its_study_counts_and_has_no_negative_delay(context):
    feed(context, label(context, at=context.clock.now() - timedelta(days=400)))
    context.clock.advance(86_400)
    feed(context, score(context))
    context.clock.advance(86_400)
    with context.database.read() as session:
        days, labelled = delay_days(scored_cases(session, "tumour", 1), context.clock.now())
    assert np.array_equal(days, [0.0])
    assert labelled.all()
    assert truths(context) == {("tumour", "a"): "glioma"}


def test_a_label_of_a_study_that_has_not_come_is_kept_and_counted(context):
    with context.database.transaction() as tx:
        registry.register_model(tx, "tumour", "tumour", ["glioma", "none"], {})
    feed(context, label(context), label(context, key="c" * 32), label(context, key="d" * 32, task="other"))
    with context.database.read() as session:
        assert unmatched(session, "tumour", "tumour") == 2
    context.clock.advance(3 * 365 * 86_400)
    feed(context, score(context))
    with context.database.read() as session:
        assert unmatched(session, "tumour", "tumour") == 1
    assert truths(context) == {("tumour", "a"): "glioma"}


def test_of_one_source_the_last_to_come_at_the_same_time_counts(context):
    now = context.clock.now()
    feed(context, score(context), label(context, "glioma", at=now), label(context, "none", at=now))
    assert truths(context) == {("tumour", "a"): "none"}
    context.clock.advance(5)
    feed(context, label(context, "glioma", at=now))
    assert truths(context) == {("tumour", "a"): "none"}, "what was replaced came back as a repetition would"
    feed(context, label(context, "glioma", at=context.clock.now()))
    assert truths(context) == {("tumour", "a"): "glioma"}


def test_one_label_counts_for_all_models_of_its_task_and_is_withdrawn_from_all(context):
    feed(context, score(context), score(context, "other"), label(context))
    assert truths(context) == {("tumour", "a"): "glioma", ("other", "a"): "glioma"}
    context.clock.advance(5)
    feed(context, label(context).model_copy(update={"withdrawn": True}))
    assert set(truths(context).values()) == {None}
    with context.database.read() as session:
        assert [row.value for row in session.exec(select(GroundTruth))] == [None]

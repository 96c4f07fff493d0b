"""Reports from real tables on both engines: an order brings one report, and redelivery changes nothing."""

import json

from sqlalchemy import select

from schemas.drift import DriftWindow
from schemas.events import MaintenanceOrder
from schemas.tables import Audit, DeadLetter, Evaluation, Order, Report
from schemas.topics import ORDER
from schemas.vocabulary import OrderKind, OrderState, Remedy
from services.reporting.wording import DASH
from services.runtime import registry
from services.runtime.consumer import process
from services.runtime.messages import decode
from tests.reporting_world import (
    CLASSES,
    MODEL,
    baseline_rows,
    consumer_of,
    contents,
    evaluated_batch,
    fall_evidence,
    ordered,
    record,
    reported,
    version_row,
)


def test_an_alarm_report_names_class_start_and_cause(story):
    asked = ordered(story, OrderKind.REPORT, evaluation_id="ev-brain-mri-1-7")
    assert process(story.database, consumer_of(story), [asked]) == 0
    [report] = reported(story)
    assert (report.kind, report.status, report.version) == ("monitoring", "degraded", 1)
    assert report.summary == "Glioma is found in 56 of 100 patients, 90 on the test set. The alarm is raised."
    files = contents(story, report)
    assert set(files) == {
        "report.html",
        "report.md",
        "report.json",
        "report.pdf",
        "control_chart.png",
        "control_chart.svg",
        "confusion.png",
        "confusion.svg",
        "reliability.png",
        "reliability.svg",
    }
    text = files["report.md"].decode()
    assert "“glioma”" in text
    assert "28 March 2026, 08:00 UTC" in text
    assert "batch 5" in text, "the run of unhealthy batches began with batch 5"
    assert "The likely cause is new images (scanner, protocol or patients): model Aera." in text
    assert "about 34 percentage points lower than before (95 % interval 21 to 47)" in text
    assert "less than about 9 percentage points" in text
    page = files["report.html"].decode()
    assert page.count('src="data:image/png;base64,') == 3
    assert "http://" not in page
    assert "https://" not in page


def judged_again(context, number, identity, **values):
    """Another evaluation of an old batch, as after a correction or a late delivery; returns its row."""
    with context.database.transaction() as tx:
        old = tx.session.get_one(Evaluation, f"ev-{MODEL}-1-{number}")
        tx.session.add(Evaluation(**(old.model_dump() | {"evaluation_id": identity} | values)))


def test_a_correction_of_an_old_batch_moves_no_alarm(story, clock):
    clock.advance(3600)
    newest = {"status": "degraded", "stream_cases": 700, "evaluated_at": clock.now(), "summary": "It is worse. Still."}
    cusum = {"rule": "cusum", "alarmed": True, "metric": "recall:glioma", "statistic": 9.0, "limit": 5.1}
    judged_again(story, 2, "corrected", **newest, evidence=fall_evidence(), diagnosis="covariate", rules=[cusum])
    clock.advance(60)
    process(story.database, consumer_of(story), [ordered(story, OrderKind.REPORT)])
    [report] = reported(story)
    document = json.loads(contents(story, report)["report.json"])
    data = document["data"]
    [batches] = [each for each in document["tables"] if each["title"] == "Batches of version 1"]
    [second] = [row for row in batches["rows"] if row[0] == "2"]
    assert (second[3], second[4], second[6]) == ("healthy", "4 %", DASH), "of the stream as it was judged with this batch"
    assert [each["status"] for each in data["history"]] == ["healthy"] * 4 + ["watch"] + ["degraded"] * 2
    assert report.summary == "It is worse. Still.", "the newest judgement of the stream"
    assert data["latest"]["batch_number"] == 7, "with the figures of the newest batch"


def test_a_batch_that_labels_re_opened_shows_both_judgements(told, clock):
    with told.database.read() as session:
        old = session.get(Evaluation, f"ev-{MODEL}-1-2").metrics
    corrected = [each | ({"value": 0.2, "low": 0.1, "high": 0.4} if each["name"] == "recall:glioma" else {}) for each in old]
    clock.advance(3600)
    judged_again(told, 2, "corrected", stream_cases=700, evaluated_at=clock.now(), metrics=corrected)
    clock.advance(60)
    process(told.database, consumer_of(told), [ordered(told, OrderKind.REPORT)])
    [report] = reported(told)
    files = contents(told, report)
    document = json.loads(files["report.json"])
    second = document["data"]["history"][1]
    assert second["recall"]["glioma"] == 0.2
    then = next(each["value"] for each in old if each["name"] == "recall:glioma")
    assert [each["recall"]["glioma"] for each in second["revisions"]] == [then]
    assert [each["revisions"] for each in document["data"]["history"]].count([]) == 6
    [table] = [each for each in document["tables"] if each["title"] == "Evaluations that labels re-opened"]
    [row] = [row for row in table["rows"] if row[2] == "Recall, glioma"]
    assert (row[0], row[3].startswith(f"{100 * then:.1f} %"), row[4]) == ("1/2", True, "20.0 % (10.0 to 40.0)")
    assert b"before labels changed" in files["control_chart.svg"]


def test_a_late_judgement_of_a_shorter_stream_is_not_the_newest(told, clock):
    clock.advance(3600)
    judged_again(told, 3, "late", evaluated_at=clock.now())
    clock.advance(60)
    process(told.database, consumer_of(told), [ordered(told, OrderKind.REPORT)])
    [report] = reported(told)
    assert (report.status, json.loads(contents(told, report)["report.json"])["data"]["latest"]["batch_number"]) == ("degraded", 7)


def test_a_report_closes_its_order_and_is_audited(story):
    process(story.database, consumer_of(story), [ordered(story, OrderKind.REPORT)])
    [report] = reported(story)
    with story.database.read() as session:
        order = session.get(Order, report.order_id)
        row = session.get(Report, report.report_id)
        actions = session.execute(select(Audit.action)).scalars().all()
    assert (order.state, report.report_id in order.explanation) == (OrderState.DONE, True)
    assert (row.html, row.markdown, row.data) == (report.location, report.markdown, report.data)
    assert "report.written" in actions


def test_signals_without_labels_stand_in_the_analysis(told, clock):
    window = DriftWindow(drift_id="d1", model=MODEL, version=1, kind="cases", number=3, cases=200, warning=True)
    window.first_at = window.last_at = window.measured_at = clock.now()
    window.suspected, window.summary = "covariate", "The images look different."
    seen = {"statistic": 6.1, "threshold": 3.9, "p_value": 1e-6, "warning": True, "sentence": "Sharpness.", "detail": {}}
    kernel = {"threshold": None, "p_value": 0.4, "warning": False, "detail": {"p_value_threshold": 6.8e-05}}
    window.signals = [{"name": "image statistics", **seen}, {**seen, **kernel, "name": "embeddings"}]
    with told.database.transaction() as tx:
        tx.session.add(window)
    clock.advance(60)
    process(told.database, consumer_of(told), [ordered(told, OrderKind.REPORT)])
    files = contents(told, reported(told)[0])
    document = json.loads(files["report.json"])
    tables = {each["title"]: each["rows"] for each in document["tables"]}
    [row] = tables["Early warning without labels"]
    assert (row[0], row[3:]) == ("3", ["image statistics", "other images", "The images look different."])
    [first, second] = next(rows for title, rows in tables.items() if title.startswith("Signals of window 3"))
    assert first == ["image statistics", "6.100", "3.900", "1e-06", "yes", "Sharpness."]
    assert second[2:5] == ["p 6.8e-05", "0.4", "no"]
    [said] = document["data"]["early_warning"]
    assert (said["warning"], said["signals"]) == (True, ["image statistics"])
    assert "(1 window of 200 studies). In the newest window sharpness; it looks like other images, " in files["report.md"].decode()
    for words in ("early warnings", "other images"):
        assert f"<!-- {words} -->" in files["control_chart.svg"].decode()


def test_redelivery_writes_nothing_new(story):
    asked = ordered(story, OrderKind.REPORT)
    consumer = consumer_of(story)
    process(story.database, consumer, [asked])
    first = contents(story, reported(story)[0])
    process(story.database, consumer, [asked, asked])
    assert len(reported(story)) == 1
    assert contents(story, reported(story)[0]) == first


def test_a_crash_after_the_files_rewrites_the_same_report(story, clock):
    asked = ordered(story, OrderKind.REPORT)
    consumer = consumer_of(story)
    consumer.prepare([decode(asked)])
    [folder] = story.settings.reports_dir.iterdir()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    clock.advance(86_400)
    with story.database.transaction() as tx:
        evaluated_batch(tx, 8, fallen=False, status="healthy")
    process(story.database, consumer, [asked])
    [report] = reported(story)
    assert report.report_id == folder.name
    assert contents(story, report) == before, "an evaluation after the order is not in its report"
    assert [path.name for path in story.settings.reports_dir.iterdir()] == [folder.name], "no draft stays behind"


def test_a_label_request_shares_its_total_between_the_classes(told):
    asked = ordered(told, OrderKind.LABEL_REQUEST, settings={"cases": 60})
    process(told.database, consumer_of(told), [asked])
    [report] = reported(told)
    document = json.loads(contents(told, report)["report.json"])
    assert report.kind == "label_request"
    assert "60 more labelled cases" in report.title
    assert sum(document["data"]["needed"].values()) == 60


def test_a_label_request_takes_the_orders_number_per_class(told):
    asked = ordered(told, OrderKind.LABEL_REQUEST, settings={"cases:glioma": 25})
    process(told.database, consumer_of(told), [asked])
    [report] = reported(told)
    assert json.loads(contents(told, report)["report.json"])["data"]["needed"] == {"glioma": 25}
    assert "“glioma” are wanted most (25)" in report.summary


def test_a_model_without_evaluations_gets_an_honest_report(sqlite_context, clock):
    context = sqlite_context
    with context.database.transaction() as tx:
        registry.register_model(tx, MODEL, "brain-tumour", CLASSES, {})
        registry.add_version(tx, version_row(1, clock), baseline_rows(1), actor="test")
    process(context.database, consumer_of(context), [ordered(context, OrderKind.REPORT)])
    [report] = reported(context)
    assert (report.status, report.kind) == ("undecided", "routine")
    assert "No batch of version 1" in report.summary


def test_an_order_for_an_unknown_model_goes_to_the_dead_letters_and_others_go_on(told):
    good = ordered(told, OrderKind.REPORT, event_id="good")
    data = MaintenanceOrder(
        order_id="x", kind=OrderKind.REPORT, model="../other", reason="r", actor="user:x", ordered_at=told.clock.now()
    )
    bad = record(ORDER, data, "bad", told.clock.now())
    assert process(told.database, consumer_of(told), [bad, good]) == 1
    assert len(reported(told)) == 1
    with told.database.read() as session:
        [letter] = session.execute(select(DeadLetter)).scalars()
    assert letter.event_id == "bad"
    assert "there is no model" in letter.reason


def test_orders_of_other_kinds_are_left_to_others(told):
    process(told.database, consumer_of(told), [ordered(told, OrderKind.REMEDY, remedy=Remedy.HEAD_ONLY)])
    assert reported(told) == []
    assert list(told.settings.reports_dir.iterdir()) == []


def test_the_event_has_a_link_where_the_site_serves_the_reports(told):
    settings = told.settings.model_copy(
        update={"chat": told.settings.chat.model_copy(update={"reports_url": "https://a.example/r/"})}
    )
    served = type(told)(settings, told.database, told.clock, told.pseudonyms)
    process(served.database, consumer_of(served), [ordered(served, OrderKind.REPORT)])
    [report] = reported(told)
    assert report.link == f"https://a.example/r/{report.location}"

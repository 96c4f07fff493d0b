"""Reports from real tables on both engines: files, row, event and order agree, and redelivery changes nothing."""

import json
from datetime import timedelta
from hashlib import sha256
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator, FormatChecker
from sqlalchemy import select

from schemas.drift import DriftWindow
from schemas.events import MaintenanceOrder, MaintenancePromotion
from schemas.tables import Audit, Case, DeadLetter, Evaluation, Job, Order, Report
from schemas.topics import ORDER, PROMOTION
from schemas.vocabulary import OrderKind, OrderState, Remedy, Verdict
from services.reporting.facts import ScoredCase
from services.reporting.statistics import digest
from services.reporting.wording import sentences
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
    order_row,
    ordered,
    record,
    reported,
    texts,
    version_row,
)


@pytest.fixture
def story(context, clock):
    """What `told` tells, once on each database engine."""
    return tell(context, clock)


@pytest.fixture
def told(sqlite_context, clock):
    return tell(sqlite_context, clock)


def tell(context, clock):
    """A model with seven evaluated batches, the last two degraded, and a repair that waits for its verdict."""
    with context.database.transaction() as tx:
        registry.register_model(tx, MODEL, "brain-tumour", CLASSES, {})
        registry.add_version(tx, version_row(1, clock, origin="registered"), baseline_rows(1), actor="test")
    for number in range(1, 8):
        clock.advance(7 * 86_400)
        status = "degraded" if number >= 6 else "watch" if number == 5 else "healthy"
        with context.database.transaction() as tx:
            evaluated_batch(tx, number, fallen=number >= 5, status=status)
    clock.advance(3600)
    return context


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
    assert "The likely cause is new images (scanner, protocol or patients): manufacturer model name Aera." in text
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
    judged_again(story, 2, "corrected", **newest, evidence=fall_evidence(), diagnosis="covariate")
    clock.advance(60)
    process(story.database, consumer_of(story), [ordered(story, OrderKind.REPORT)])
    [report] = reported(story)
    data = json.loads(contents(story, report)["report.json"])["data"]
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


def test_the_json_holds_the_numbers_of_the_tables(story):
    process(story.database, consumer_of(story), [ordered(story, OrderKind.REPORT)])
    [report] = reported(story)
    document = json.loads(contents(story, report)["report.json"])
    assert document["data"]["latest"]["evaluation_id"] == "ev-brain-mri-1-7"
    assert len(document["data"]["history"]) == 7
    with story.database.read() as session:
        row = session.get(Evaluation, "ev-brain-mri-1-7")
    assert document["data"]["latest"]["metrics"] == row.metrics


def test_no_report_holds_a_key_of_a_study_or_patient(told):
    process(told.database, consumer_of(told), [ordered(told, OrderKind.REPORT)])
    [report] = reported(told)
    with told.database.read() as session:
        keys = session.execute(select(Case.study_key)).scalars().all()
    forms = texts(contents(told, report))
    assert keys
    assert "brain-mri" in forms["report.pdf"]
    assert not [(key, name) for key in keys for name, text in forms.items() if key in text]


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


SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "report.schema.json").read_text())


@pytest.mark.parametrize("kind", [OrderKind.REPORT, OrderKind.LABEL_REQUEST])
def test_the_json_keeps_to_its_schema(told, kind):
    process(told.database, consumer_of(told), [ordered(told, kind), repaired(told, Verdict.PROMOTE)])
    for report in reported(told):
        document = json.loads(contents(told, report)["report.json"])
        validator = Draft202012Validator(SCHEMA, format_checker=FormatChecker())
        assert [error.message for error in validator.iter_errors(document)] == []
        assert len(sentences(report.summary)) == 2
        assert report.summary == document["summary"]


def test_the_event_names_every_form(told):
    process(told.database, consumer_of(told), [ordered(told, OrderKind.REPORT)])
    [report] = reported(told)
    named = {Path(path).name for path in (report.location, report.markdown, report.data, report.pdf)}
    assert named == {"report.html", "report.md", "report.json", "report.pdf"}
    assert named <= set(contents(told, report))


def test_the_chapters_are_those_that_a_committee_files(told):
    process(told.database, consumer_of(told), [repaired(told, Verdict.PROMOTE)])
    [report] = reported(told)
    forms = texts(contents(told, report))
    parts = {part["title"]: part["sections"] for part in json.loads(forms["report.json"])["parts"]}
    assert parts["Post-market monitoring"] == ["Data collected", "Analysis", "Conclusions", "Corrective actions"]
    assert parts["Change control"] == ["Description of modifications", "Modification protocol", "Impact assessment"]
    for heading in (*parts, *parts["Post-market monitoring"], *parts["Change control"]):
        assert heading in forms["report.pdf"]
        assert f">{heading}</h" in forms["report.html"]
        assert f"# {heading}" in forms["report.md"]


def test_the_change_control_plan_is_cited_with_its_clauses(told):
    plans = told.settings.state_dir / "plans"
    plans.mkdir(parents=True)
    example = Path(__file__).parents[2] / "docs" / "examples" / "change-plan.yaml"
    (plans / f"{MODEL}.yaml").write_bytes(example.read_bytes())
    process(told.database, consumer_of(told), [repaired(told, Verdict.PROMOTE)])
    text = contents(told, reported(told)[0])["report.md"].decode()
    digest = sha256(example.read_bytes()).hexdigest()
    for words in (
        f"in force: version 1.0, approved by AI committee on 2026-03-02, SHA-256 {digest}",
        "Clause M1: Decision thresholds",
        "new decision thresholds and recalibration of the probabilities",
        "The plan on retraining:",
        ", foreseen: ",
    ):
        assert words in text


def test_a_plan_that_is_not_valid_is_told_and_stops_no_report(told):
    (told.settings.state_dir / "plans").mkdir(parents=True)
    (told.settings.state_dir / "plans" / f"{MODEL}.yaml").write_text("format: other")
    process(told.database, consumer_of(told), [ordered(told, OrderKind.REPORT)])
    assert "is not valid, so nothing may change" in contents(told, reported(told)[0])["report.md"].decode()


def test_signals_without_labels_stand_in_the_analysis(told, clock):
    window = DriftWindow(drift_id="d1", model=MODEL, version=1, kind="cases", number=3, cases=200, warning=True)
    window.first_at = window.last_at = window.measured_at = clock.now()
    window.suspected, window.signals, window.summary = "covariate", [], "The images look different."
    with told.database.transaction() as tx:
        tx.session.add(window)
    clock.advance(60)
    process(told.database, consumer_of(told), [ordered(told, OrderKind.REPORT)])
    [table] = [
        each
        for each in json.loads(contents(told, reported(told)[0])["report.json"])["tables"]
        if each["title"] == "Drift signals without labels"
    ]
    assert "The images look different." in table["rows"][0]


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


def repaired(context, verdict):
    """The record of the gate's verdict on version 2, with the registry in the state it leaves behind."""
    clock = context.clock
    with context.database.transaction() as tx:
        tx.session.add(order_row("order-remedy", OrderKind.REMEDY, clock, remedy=Remedy.HEAD_ONLY))
        registry.add_version(
            tx, version_row(2, clock, parent=1, origin="run-1", state="challenger"), baseline_rows(2), actor="test"
        )
        job = Job(job_id="run-1", order_id="order-remedy", model=MODEL, remedy=Remedy.HEAD_ONLY, state="succeeded")
        job.settings, job.created_at, job.updated_at = {"epochs": 8, "seed": 0}, clock.now(), clock.now()
        tx.session.add(job)
        if verdict == Verdict.PROMOTE:
            registry.promote(tx, MODEL, 2, actor="gate")
    clock.advance(60)
    data = MaintenancePromotion(
        model=MODEL,
        challenger=2,
        champion_before=1,
        champion_after=2 if verdict == Verdict.PROMOTE else 1,
        verdict=verdict,
        reasons=("Better on 64 gate cases (McNemar exact p = 0.003).", "Not worse than 5 points on any class of the test set."),
        numbers={
            "macro_recall:champion": 0.71,
            "macro_recall:challenger": 0.88,
            "champion_recall:glioma": 0.55,
            "challenger_recall:glioma": 0.86,
            "mcnemar_p": 0.003,
            "gate_cases": 64.0,
            "ece:champion": 0.21,
            "ece:challenger": 0.06,
        },
        order_id="order-remedy",
        actor="service:remediation",
    )
    return record(PROMOTION, data, f"promotion-{verdict}", clock.now())


def test_a_promotion_report_has_every_number_of_the_gate(story):
    process(story.database, consumer_of(story), [repaired(story, Verdict.PROMOTE)])
    [report] = reported(story)
    assert (report.kind, report.version, report.order_id) == ("remedy", 2, "order-remedy")
    assert report.title == "brain-mri: version 2 replaced version 1"
    assert "recall, glioma 55.0 % before, 86.0 % after" in report.summary
    text = contents(story, report)["report.md"].decode()
    for expected in ("71.0 % | 88.0 % | +17.0 points", "0.210 | 0.060 | -0.150", "0.003", "64", "McNemar exact"):
        assert expected in text
    assert "before_after.png" in contents(story, report)


def test_the_old_versions_batch_is_compared_with_the_old_versions_reference(told):
    process(told.database, consumer_of(told), [repaired(told, Verdict.PROMOTE)])
    document = json.loads(contents(told, reported(told)[0])["report.json"])
    [records] = [each for each in document["tables"] if each["title"] == "Where the numbers come from"]
    old = digest([ScoredCase(row.truth, row.predicted, row.probabilities) for row in baseline_rows(1)])
    assert ["Development test set: cases", "320"] in records["rows"]
    assert ["… their SHA-256", old] in records["rows"]


@pytest.mark.parametrize("verdict", [Verdict.REJECT, Verdict.NEED_LABELS])
def test_a_version_that_is_not_promoted_says_who_goes_on_serving(told, verdict):
    process(told.database, consumer_of(told), [repaired(told, verdict)])
    [report] = reported(told)
    assert "Version 1 goes on serving." in report.summary
    with told.database.read() as session:
        assert session.get(Order, "order-remedy").state == OrderState.ACCEPTED, "the remedy's order is not this service's to close"


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


def test_text_of_an_order_cannot_become_markup(told, clock):
    clock.advance(timedelta(minutes=5).total_seconds())
    reason = "<script>alert(1)</script> [x](http://evil.example) | # no"
    data = MaintenanceOrder(
        order_id="o", kind=OrderKind.LABEL_REQUEST, model=MODEL, reason=reason, actor="user:x", ordered_at=clock.now()
    )
    process(told.database, consumer_of(told), [record(ORDER, data, "markup", clock.now())])
    [report] = reported(told)
    files = contents(told, report)
    assert b"<script" not in files["report.html"]
    assert b"<script" not in files["report.md"]
    assert b"\\[x\\](http://evil.example) \\|" in files["report.md"]

"""The forms of a report (HTML, Markdown, JSON, PDF) hold the same, keep to their schema and name nobody."""

import json
import re
from datetime import timedelta
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator, FormatChecker
from sqlalchemy import select

from schemas.events import MaintenanceOrder
from schemas.tables import Case, Evaluation
from schemas.topics import ORDER
from schemas.vocabulary import OrderKind, Verdict
from services.reporting.wording import sentences
from services.runtime.consumer import process
from tests.reporting_world import MODEL, consumer_of, contents, ordered, record, repaired, reported, texts

SCHEMA = json.loads((Path(__file__).parents[3] / "docs" / "report.schema.json").read_text())


def test_the_json_holds_the_numbers_of_the_tables(story):
    process(story.database, consumer_of(story), [ordered(story, OrderKind.REPORT)])
    [report] = reported(story)
    document = json.loads(contents(story, report)["report.json"])
    assert document["data"]["latest"]["evaluation_id"] == "ev-brain-mri-1-7"
    assert len(document["data"]["history"]) == 7
    with story.database.read() as session:
        row = session.get(Evaluation, "ev-brain-mri-1-7")
    assert document["data"]["latest"]["metrics"] == row.metrics


@pytest.mark.parametrize("kind", [OrderKind.REPORT, OrderKind.LABEL_REQUEST])
def test_the_json_keeps_to_its_schema(told, kind):
    process(told.database, consumer_of(told), [ordered(told, kind), repaired(told, Verdict.PROMOTE)])
    for report in reported(told):
        document = json.loads(contents(told, report)["report.json"])
        validator = Draft202012Validator(SCHEMA, format_checker=FormatChecker())
        assert [error.message for error in validator.iter_errors(document)] == []
        assert len(sentences(report.summary)) == 2
        assert report.summary == document["summary"]


def test_no_heading_stands_without_a_word_under_it(told):
    """Also in the request for labels of a version that has just taken over and has no evaluation yet."""
    promoted = repaired(told, Verdict.PROMOTE)
    asked = [ordered(told, kind, event_id=kind) for kind in (OrderKind.REPORT, OrderKind.LABEL_REQUEST)]
    process(told.database, consumer_of(told), [promoted, *asked])
    for report in reported(told):
        html = contents(told, report)["report.html"].decode()
        assert re.findall(r"<h3>([^<]*)</h3>\s*</section>", html) == []


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


def test_no_report_holds_a_key_of_a_study_or_patient(told):
    process(told.database, consumer_of(told), [ordered(told, OrderKind.REPORT)])
    [report] = reported(told)
    with told.database.read() as session:
        keys = session.execute(select(Case.study_key)).scalars().all()
    forms = texts(contents(told, report))
    assert keys
    assert "brain-mri" in forms["report.pdf"]
    assert not [(key, name) for key in keys for name, text in forms.items() if key in text]


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

"""`reclaim reports`: list, show, path, write."""

import re
from datetime import timedelta
from pathlib import Path

import pytest

from schemas.tables import Outbox, Report
from schemas.topics import REPORT
from services.runtime import registry
from tests.reporting_world import CLASSES, MODEL, baseline_rows, evaluated_batch, version_row


@pytest.fixture
def watched(site):
    """A model with one evaluated batch in the command line's own database."""
    with site.database.transaction() as tx:
        registry.register_model(tx, MODEL, "brain-tumour", CLASSES, {})
        registry.add_version(tx, version_row(1, site.clock, origin="registered"), baseline_rows(1), actor="test")
        evaluated_batch(tx, 1, fallen=False, status="healthy")
    return site


def test_a_report_is_written_found_and_announced(reclaim, watched):
    said = reclaim("reports", "write", MODEL)
    assert said.code == 0
    assert "100 studies were scored by brain-mri" in said.text
    with watched.database.read() as session:
        [row] = session.query(Report).all()
        [event] = session.query(Outbox).where(Outbox.topic == REPORT.name).all()
    assert row.report_id in said.text
    assert event.body.decode().count(row.report_id) == 5
    assert row.report_id in reclaim("reports", "list").text
    assert "Post-market monitoring" in reclaim("reports", "show", row.report_id).text
    assert reclaim("reports", "show").text == reclaim("reports", "show", row.report_id).text
    for form, name in (("html", "report.html"), ("pdf", "report.pdf"), ("markdown", "report.md"), ("json", "report.json")):
        path = Path(reclaim("reports", "path", "--form", form).text.strip())
        assert path.name == name
        assert path.is_file()
    assert reclaim("reports", "path", row.report_id).text == reclaim("reports", "path", "--model", MODEL).text


def test_a_period_is_what_was_asked_for(reclaim, watched):
    today = watched.clock.now()
    begin, end = f"{today - timedelta(days=40):%F}", f"{today - timedelta(days=10):%FT%R}"
    said = reclaim("reports", "write", MODEL, "--since", begin, "--until", end)
    assert said.code == 0
    assert re.search(r"0 studies were scored by brain-mri since .*, and no labels came in\. No batch of version 1", said.text)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("write", MODEL, "--since", "yesterday"), "--since 'yesterday' is no day or time"),
        (("write", MODEL, "--until", "2999-01-01"), "ends in the future"),
        (("write", MODEL, "--since", "2026-01-02", "--until", "2026-01-01"), "is empty"),
        (("write", "brain"), "there is no model 'brain'"),
        (("path", "20260101"), "there is no report '20260101'"),
        (("path",), "there is no report yet"),
    ],
)
def test_wrong_input_is_answered_in_one_line(reclaim, watched, arguments, words):
    said = reclaim("reports", *arguments)
    assert said.code == 2
    assert words in said.text
    with watched.database.read() as session:
        assert session.query(Report).all() == []


def test_a_form_that_is_gone_is_named(reclaim, watched):
    reclaim("reports", "write", MODEL)
    Path(reclaim("reports", "path", "--form", "pdf").text.strip()).unlink()
    said = reclaim("reports", "path", "--form", "pdf")
    assert (said.code, "has no pdf file" in said.text) == (2, True)

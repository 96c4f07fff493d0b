"""Lists in a terminal of 80 columns: ids stay whole, sentences stay readable, every value has its heading."""

import pytest

from listeners.cli.context import console
from schemas.tables import Evaluation
from schemas.vocabulary import OrderKind
from services.runtime import registry
from tests.reporting_world import CLASSES, MODEL, baseline_rows, evaluated_batch, order_row, version_row

WIDTH = 80


@pytest.fixture
def narrow(site, monkeypatch):
    """A site with an evaluation and an order, seen in a terminal of 80 columns."""
    with site.database.transaction() as tx:
        registry.register_model(tx, MODEL, "brain-tumour", CLASSES, {})
        registry.add_version(tx, version_row(1, site.clock, origin="registered"), baseline_rows(1), actor="test")
        evaluated_batch(tx, 1, fallen=True, status="degraded")
        tx.session.add(order_row("ord-0123456789ab", OrderKind.REPORT, site.clock, explanation="Report [1] is written."))
    monkeypatch.setattr(console, "width", WIDTH)
    return site


def test_an_evaluation_is_told_whole(narrow, reclaim):
    with narrow.database.read() as session:
        row = session.query(Evaluation).one()
    said = reclaim("evaluations", "list").text
    lines = [line.strip() for line in said.splitlines()]
    assert lines[0] == row.evaluation_id
    facts = "model brain-mri, version 1, cases 100, status degraded, diagnosis covariate, 5 % rule no decline"
    assert " ".join(lines[1:]) == f"{facts} {row.summary}"
    assert max(map(len, said.splitlines())) <= WIDTH


def test_an_order_is_told_whole(narrow, reclaim):
    said = reclaim("orders", "list").text
    assert [line.rstrip() for line in said.splitlines()] == [
        "ord-0123456789ab",
        "  model brain-mri, what report, state accepted, actor agent:evaluation",
        "  Recall of glioma fell.",
        "  Report [1] is written.",
    ]


def test_a_wide_terminal_gets_a_table(narrow, reclaim, monkeypatch):
    monkeypatch.setattr(console, "width", 200)
    lines = reclaim("orders", "list").text.splitlines()
    assert [part.strip() for part in lines[1].strip("┃").split("┃")] == [
        "order",
        "model",
        "what",
        "state",
        "actor",
        "reason",
        "outcome",
    ]


def test_an_empty_list_says_so(site, reclaim, monkeypatch):
    monkeypatch.setattr(console, "width", WIDTH)
    assert reclaim("orders", "list").text == "Nothing has been ordered yet.\n"


def test_the_whole_hash_of_a_version_is_told(narrow, reclaim, monkeypatch):
    digest = "0123456789abcdef" * 4
    monkeypatch.setattr("listeners.cli.model_details.details", lambda *_: [("weights", f"brain/1, SHA-256 {digest}")])
    assert digest[-20:] in reclaim("models", "show", MODEL).text


def test_the_order_a_version_comes_from_is_told_whole(narrow, reclaim):
    with narrow.database.transaction() as tx:
        registry.add_version(tx, version_row(2, narrow.clock, origin="run-0123456789abcdef"), [], actor="test")
    assert "run-0123456789abcdef" in reclaim("models", "list").text

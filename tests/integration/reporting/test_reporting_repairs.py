"""Reports on a repair: the gate's verdict, both versions' figures, the change control plan."""

import json
from hashlib import sha256
from pathlib import Path

import pytest

from schemas.tables import Order
from schemas.vocabulary import OrderKind, OrderState, Verdict
from services.reporting.facts import ScoredCase
from services.reporting.statistics import digest
from services.runtime.consumer import process
from tests.reporting_world import MODEL, baseline_rows, consumer_of, contents, ordered, repaired, reported


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


def test_the_change_control_plan_is_cited_with_its_clauses(told):
    plans = told.settings.state_dir / "plans"
    plans.mkdir(parents=True)
    example = Path(__file__).parents[3] / "docs" / "examples" / "change-plan.yaml"
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

"""A report read as a radiologist reads it: no sentence contradicts another one."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from schemas.events import MaintenancePromotion
from schemas.vocabulary import OrderKind, Verdict
from services.reporting.facts import Cause, Change, EvaluationFacts, Facts, LabelCounts, Metric, OrderFacts, Rules, VersionFacts
from services.reporting.label_request import label_request_page
from services.reporting.monitoring import monitoring_page
from services.reporting.remedy import remedy_page
from services.reporting.wording import metric_value

NOW = datetime(2026, 3, 30, 8, tzinfo=UTC)
FALL = {
    "class": "glioma",
    "recall": 0.56,
    "recall_before": 0.9,
    "drop": 0.34,
    "drop_low": 0.21,
    "drop_high": 0.47,
    "probability": 0.9998,
    "since": "2026-03-14T08:00:00+00:00",
    "root_cause": "since 14 March 2026, StationName CT2; recall of glioma 0.56, was 0.90",
    "independent_cases": 400,
}


def evaluated(number, status, diagnosis="none", **evidence):
    recall = 0.5 if status == "degraded" else 0.9
    metrics = (Metric("recall:glioma", recall, recall - 0.1, recall + 0.09, 50, 0.9), Metric("auroc", 1.0, 0.9, 1.0, 100, 0.97))
    at = NOW - timedelta(days=30 - number)
    found = {"independent_cases": 100 * number} | (FALL if status in ("degraded", "watch") else {}) | evidence
    summary = "First. Second."
    return EvaluationFacts(
        f"e{number}", f"b{number}", number, 1, status, diagnosis, 100, 100 * number, metrics, found, False, summary, at, at
    )


def facts(*history, orders=(), changes=(), **cause):
    about = Cause("event", NOW, "brain-mri", version=1, reason="Labels are few.", **cause)
    return Facts(
        cause=about,
        task="t",
        classes=("glioma", "none"),
        serving=True,
        champion=1,
        version=1,
        versions=[VersionFacts(1, "champion", "0" * 64, None, "registered", NOW)],
        history=history,
        latest=history[-1] if history else None,
        cases=[],
        baseline=[],
        baseline_recalls={(1, "glioma"): (45, 50), (1, "none"): (48, 50)},
        changes=changes,
        orders=orders,
        job=None,
        labels=LabelCounts({"glioma": 20, "none": 30}, {}),
    )


def text(page):
    parts = [page.title, page.summary]
    parts += [f"{figure.label}: {figure.value} {figure.note}" for figure in page.key_figures]
    for section in page.sections:
        parts += [section.title, *section.paragraphs, *section.points]
    for table in page.tables:
        parts += [table.title, *table.columns, *(cell for row in table.rows for cell in row)]
    return "\n".join(parts)


def monitored(*history, **values):
    return text(monitoring_page(facts(*history, **values), "r", Rules()))


def test_too_few_cases_are_no_finding():
    found = monitored(evaluated(1, "undecided"))
    assert "No change was found" not in found
    assert "too few labelled cases to rule a decline out" in found
    assert "rare classes first" not in found, "labels are taken as they come"


def test_a_decline_that_is_over_is_not_forgotten():
    found = monitored(
        evaluated(3, "degraded", "covariate"), evaluated(4, "degraded"), evaluated(9, "healthy", recovered_after_batch=5)
    )
    assert "No decline has been found" not in found
    assert "the last alarm stood from batch 3 to batch 4" in found
    assert "cases since batch 6" in found


def test_a_version_without_a_decline_says_so():
    assert "No decline has been found" in monitored(evaluated(1, "undecided"), evaluated(2, "healthy"))


def test_a_decline_right_after_too_few_cases_did_not_leave_health():
    found = monitored(evaluated(1, "undecided"), evaluated(2, "degraded", "covariate"))
    assert "left “healthy”" not in found
    assert "since batch 2" in found


def test_the_numbers_of_the_batch_and_of_the_decline_are_told_apart():
    found = monitored(evaluated(2, "healthy"), evaluated(3, "degraded", "covariate"))
    assert "In batch 3 alone" in found
    assert "Since the decline began, recall of “glioma” is about 34 percentage points lower" in found
    assert "more than 99 %" in found
    assert "100 %" not in found.split("How sure is that")[1].split("Since when")[0]


def test_the_cause_is_named_once_and_without_the_recalls():
    found = monitored(evaluated(3, "degraded", "covariate"))
    assert "The likely cause is new images (scanner, protocol or patients): station CT2." in found
    assert "recall of glioma 0.56" not in found.split("The detector's evidence")[0]


@pytest.mark.parametrize(
    ("diagnosis", "until"),
    [
        ("covariate", "until a repair has passed the gate"),
        ("pipeline", "until the image feed is repaired"),
        ("prevalence", "until the thresholds"),
    ],
)
def test_what_to_wait_for_follows_from_the_cause(diagnosis, until):
    found = monitored(evaluated(3, "degraded", diagnosis))
    assert until in found
    assert ("passed the gate" in found) is (diagnosis == "covariate")


def test_a_healthy_model_with_a_new_mix_has_something_to_check():
    found = monitored(evaluated(3, "healthy", "prevalence"))
    assert "Nothing needs to be done" not in found
    assert "thresholds and the calibration checked" in found


def test_reports_are_no_deeds_and_reasons_end():
    def order(kind, state, reason, outcome=""):
        return OrderFacts(f"o-{kind}", kind, state, "", reason, "agent:orchestrator", outcome, NOW)

    orders = (order("report", "refused", "It fell"), order("remedy", "failed", "It fell", "The run failed."))
    found = monitored(evaluated(3, "degraded", "covariate"), orders=orders)
    assert "report, refused" not in found
    assert "Reason: It fell. The run failed." in found


def test_a_promoted_version_is_compared_with_its_gate_cases():
    promoted = (Change(NOW - timedelta(days=40), "version.promoted", 1),)
    found = monitored(evaluated(3, "degraded", "covariate"), changes=promoted)
    assert "development test set" not in found.lower()
    assert "the gate's cases" in found
    assert "development test set" in monitored(evaluated(3, "degraded", "covariate")).lower()


def test_left_out_patients_and_own_reference_cases_are_said():
    found = monitored(evaluated(3, "healthy", own_baseline_cases=120, returning_training_cases=7, returning_training_patients=5))
    assert "7 studies of 5 patients on whom the model was trained are left out" in found
    assert "its own first 120 cases" in found


def test_an_area_of_one_is_written_like_the_others():
    assert metric_value("auroc", 1.0) == "1.000"


def test_a_label_request_speaks_of_what_is_there():
    page = label_request_page(
        facts(evaluated(1, "undecided"), order_kind=OrderKind.LABEL_REQUEST, settings={"cases": 60}), "r", Rules()
    )
    found = text(page)
    assert "studies that wait" not in found, "none waits"
    assert "The order asks for 60" in found
    assert "± 10" not in found
    free = text(label_request_page(facts(evaluated(1, "undecided"), order_kind=OrderKind.LABEL_REQUEST), "r", Rules()))
    assert "± 10" in free


def test_a_gate_that_lacks_labels_takes_them_as_they_come():
    data = MaintenancePromotion(
        model="brain-mri",
        challenger=2,
        champion_before=1,
        champion_after=1,
        verdict=Verdict.NEED_LABELS,
        reasons=("Few.",),
        actor="a",
    )
    found = text(
        remedy_page(
            replace(facts(evaluated(3, "degraded")), cause=Cause("e", NOW, "brain-mri", promotion=data)), data, "r", Rules()
        )
    )
    assert "rare classes first" not in found


def test_a_worse_group_of_a_healthy_model_is_something_to_do():
    group = {"facet": "StationName", "group": "CT2", "worse": True, "label": "glioma", "recall": 0.61, "recall_others": 0.9}
    latest = replace(
        evaluated(3, "healthy"), subgroups=(group | {"since": "2026-02-01T00:00:00+00:00"}, {"group": "CT1", "worse": False})
    )
    found = monitored(latest)
    assert "Worse than the others since 1 February 2026: station name CT2: recall of “glioma” 61 %, elsewhere 90 %." in found
    assert "Nothing needs to be done" not in found
    assert "Nothing in the labelled cases" not in found.split("Conclusions")[0]
    assert "Look at the studies of the group named above" in found

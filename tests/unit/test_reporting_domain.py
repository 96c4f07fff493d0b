"""The pure parts of the reports: statistics, words, escaping, and files that appear whole."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown import markdown

from services.reporting.facts import Metric, ScoredCase
from services.reporting.files import write_report
from services.reporting.remedy import split_pairs
from services.reporting.render import escape_markdown
from services.reporting.statistics import cases_for_half_width, confusion, rate, recalls, reliability
from services.reporting.wording import (
    evidence_value,
    fall_sentence,
    metric_name,
    metric_value,
    number,
    sentences,
    two_sentences,
    with_interval,
)


def case(truth, predicted, confidence=0.8):
    return ScoredCase(truth, predicted, {predicted: confidence})


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    [(0, 10, 0.0, 0.3085), (10, 10, 0.6915, 1.0), (8, 10, 0.4439, 0.9748), (50, 100, 0.3983, 0.6017)],
)
def test_intervals_are_clopper_and_pearsons(right, total, low, high):
    found = rate(right, total)
    assert (found.low, found.high) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


@given(st.integers(1, 400).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))))
def test_an_interval_holds_its_share(counts):
    found = rate(*counts)
    assert 0 <= found.low <= found.value <= found.high <= 1


def test_a_class_without_cases_has_no_recall():
    found = recalls([case("a", "a"), case("a", "b")], ["a", "b"])
    assert set(found) == {"a"}
    assert found["a"].value == 0.5


def test_confusion_counts_truth_in_rows():
    cases = [case("a", "b"), case("a", "b"), case("b", "b"), case("unknown", "a")]
    assert confusion(cases, ["a", "b"]).tolist() == [[0, 2], [0, 1]]


def test_the_reliability_curve_has_every_case_once_and_its_share_that_was_right():
    cases = [case("a", "a" if index % 4 else "b", 0.75) for index in range(80)]
    bins = reliability(cases)
    assert sum(each.rate.total for each in bins) == 80
    assert sum(each.rate.right for each in bins) == 60
    [overconfident, *_] = reliability([case("a", "b", 0.9)] * 20)
    assert (overconfident.confidence, overconfident.rate.value) == (pytest.approx(0.9), 0)


def test_few_cases_give_no_reliability_curve():
    assert reliability([case("a", "a")] * 9) == []


def test_cases_for_a_half_width():
    assert cases_for_half_width(0.5, 0.1) == 97
    assert cases_for_half_width(1.0, 0.1) == cases_for_half_width(0.95, 0.1)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("macro_recall", "Macro recall"),
        ("recall:glioma", "Recall, glioma"),
        ("macro_auroc", "Macro AUROC"),
        ("mcnemar_wins", "Patients read better by the new version"),
        ("gate_loss_upper:recall:glioma", "Recall lost on the gate's cases, at most, glioma"),
        ("baseline_loss:macro_recall", "Recall lost on the old test set, all classes together"),
        ("calibration_error:challenger", "Calibration error, after"),
    ],
)
def test_metrics_have_readable_names(name, words):
    assert metric_name(name) == words


def test_rates_are_per_cent_and_areas_are_not():
    assert metric_value("recall:a", 0.8125) == "81.2 %"
    assert metric_value("macro_auroc", 0.8125) == "0.812"
    assert with_interval(Metric("recall:a", 0.8, 0.7, 0.9, 10, None)) == "80.0 % (70.0 to 90.0)"
    assert with_interval(Metric("recall:a", None, None, None, 0, 0.9)) == "\N{EN DASH}"


def test_a_fall_is_told_in_patients():
    text = fall_sentence(Metric("recall:glioma", 0.61, 0.5, 0.71, 80, 0.88), "the gate's cases")
    assert text.startswith("of 100 patients with “glioma” the model recognised 61 (95 % interval 50 to 71, from 80 labelled cases)")
    assert text.endswith("on the gate's cases it was 88.")


def test_numbers_stay_short():
    assert [number(value) for value in (None, True, 1234.0, 0.12345, 2.5e-7, "x")] == [
        "\N{EN DASH}",
        "yes",
        "1\u202f234",
        "0.123",
        "2.5e-07",
        "x",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One is 1.5. Two! Three.", "One is 1.5. Two!"),
        ("All is well. brain-mri serves. More.", "All is well. brain-mri serves."),
        ("Recall fell, e.g. of glioma (ca. 20 cases). It is reported.", None),
        ("Only one", "Only one. The report has the figures behind it."),
        ("", "A report on the model is written. The report has the figures behind it."),
        ("Two\nlines.  And\tmore.", "Two lines. And more."),
    ],
)
def test_a_summary_is_exactly_two_sentences(text, expected):
    found = two_sentences(text)
    assert found == (expected or text)
    assert len(sentences(found)) == 2


@given(st.text())
def test_no_text_makes_more_or_less_than_two_sentences(text):
    found = two_sentences(text)
    assert len(sentences(found)) == 2
    assert len(found) <= 1000
    assert "\n" not in found


def test_the_gates_numbers_pair_up_under_every_spelling():
    pairs, others = split_pairs(
        {"champion_f1": 0.5, "challenger_f1": 0.6, "recall:a_before": 0.1, "recall:a_after": 0.2, "p": 0.01, "champion_auroc": 0.7}
    )
    assert pairs == [("f1", 0.5, 0.6), ("recall:a", 0.1, 0.2)]
    assert others == [("p", 0.01), ("champion_auroc", 0.7)]


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp", "Zs"]), max_size=40))
def test_text_stands_as_itself_in_markdown(text):
    html = markdown(f"x {escape_markdown(text)} x")
    assert "<" not in html.removeprefix("<p>").removesuffix("</p>")


def test_a_report_is_replaced_whole(tmp_path):
    folder = tmp_path / "report"
    write_report(folder, {"a": b"1", "b": b"2"})
    write_report(folder, {"a": b"3"})
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"a": b"3"}
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_a_p_value_is_never_written_as_zero():
    assert evidence_value("cause_p_value", 0.0) == "below 0.001"
    assert evidence_value("cause_p_value", 0.04) == "0.040"
    assert evidence_value("subgroups", 0) == "0"

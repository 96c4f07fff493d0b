"""The control chart says in words and marks what happened; its words are read back from the SVG's comments."""

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.reporting.chart import Story, control_charts, evidence_share
from services.reporting.early import Stretch
from services.reporting.facts import EvaluationFacts, Intervention, Metric, Revision
from services.reporting.scale import Scale, starts
from services.reporting.statistics import rate

BEGIN = datetime(2026, 1, 5, 6, 0, tzinfo=UTC)
WEEK = timedelta(days=7)


def evaluated(number, status="healthy", *, version=1, at=None, classes=("glioma", "none"), revisions=(), **evidence):
    at = at or BEGIN + WEEK * (number - 1)
    metrics = tuple(Metric(f"recall:{name}", 0.8, 0.6, 0.92, 25, 0.9) for name in classes)
    known = {"statistic_a": 1.0, "threshold_a": 5.0, "statistic_b": -0.4, "threshold_b": 2.5} | evidence
    identity = f"{version}-{number}"
    return EvaluationFacts(
        identity, identity, number, version, status, "none", 50, 50 * number, metrics, known, False, "A. B.", at, at, revisions
    )


def fallen(number, **values):
    since = {"class": "glioma", "scope": "one class", "since_batch": 3, "since_batch_low": 2, "since_batch_high": 4}
    return evaluated(number, "degraded", **(since | values))


def story(*history, interventions=(), classes=("glioma", "none")):
    rates = {(version, name): rate(45, 50) for version in (1, 2) for name in classes}
    return Story("brain-mri", history, classes, rates, interventions)


def words(drawing):
    return re.findall(r"<!-- (.*?) -->", drawing.svg.decode())


def test_the_chart_names_alarm_orders_and_versions_on_its_axis():
    history = [
        *(evaluated(number) for number in range(1, 5)),
        *(fallen(number) for number in (5, 6)),
        evaluated(1, version=2, at=BEGIN + WEEK * 8),
    ]
    done = (
        Intervention(BEGIN + WEEK * 5, "order", "remedy", "head only"),
        Intervention(BEGIN + WEEK * 7, "version", "promoted", "v2 promoted"),
        Intervention(BEGIN + WEEK * 9, "service", "stopped", "stopped"),
    )
    [(shown, drawing)] = control_charts(story(*history, interventions=done))
    found = words(drawing)
    assert shown == ("glioma", "none")
    for expected in ("batch 5: glioma", "head only", "glioma", "none", "batch: alarm, this class", "batch: alarm, another class"):
        assert expected in found
    assert any("v2 promoted" in each for each in found)
    assert any("stopped" in each for each in found)
    assert "start of the fall, 95 % interval" in found
    assert any(each.startswith("version 2, batch 1: 80 % found of 25 (95 % interval 60 to 92); baseline 90 %") for each in found)
    assert ET.fromstring(drawing.svg).tag.endswith("svg")
    assert drawing.png.startswith(b"\x89PNG")


def test_a_standing_early_warning_is_a_bar_with_a_word_even_beyond_the_last_batch():
    history = [evaluated(number) for number in range(1, 5)]
    stood = Stretch(BEGIN + WEEK * 2, BEGIN + WEEK * 6, "other images")
    told = replace(story(*history), warnings=(stood,))
    [(_, drawing)] = control_charts(told)
    assert {"early warnings", "other images"} <= set(words(drawing))
    assert " not measured" not in words(drawing)
    assert Scale.of(history, (), [stood.until]).limits[1] > Scale.of(history, ()).limits[1]
    [(_, silent)] = control_charts(story(*history))
    assert " not measured" in words(silent)


def test_the_same_story_gives_the_same_bytes():
    history = [evaluated(number) for number in range(1, 4)]
    [(_, first)], [(_, again)] = control_charts(story(*history)), control_charts(story(*history))
    assert first == again


def test_many_classes_make_several_charts_with_each_class_once():
    names = tuple("abcdefghi")
    found = control_charts(story(evaluated(1, classes=names), classes=names))
    assert [name for group, _ in found for name in group] == list(names)
    assert max(len(group) for group, _ in found) <= 4


def test_an_older_judgement_of_a_batch_is_shown_beside_the_new_one():
    old = Revision("old", "healthy", 50, (Metric("recall:glioma", 0.6, 0.4, 0.8, 25, 0.9),), BEGIN)
    [(_, drawing)] = control_charts(story(evaluated(1), evaluated(2, revisions=(old,))))
    assert "before labels changed" in words(drawing)


@pytest.mark.parametrize(("gap", "to_scale"), [(timedelta(days=7), True), (timedelta(minutes=3), True), (timedelta(0), False)])
def test_batches_spread_over_time_stand_to_scale(gap, to_scale):
    scale = Scale.of([evaluated(number, at=BEGIN + gap * number) for number in range(1, 9)], ())
    assert scale.to_scale is to_scale
    assert ("not to scale" in scale.label) is not to_scale


def test_a_burst_of_batches_is_counted_not_timed():
    history = [evaluated(number, at=BEGIN + timedelta(minutes=number)) for number in range(1, 20)] + [
        evaluated(20, at=BEGIN + WEEK * 8)
    ]
    assert not Scale.of(history, ()).to_scale


def test_what_was_done_long_before_the_first_batch_is_not_on_the_axis():
    scale = Scale.of([evaluated(number) for number in range(1, 6)], ())
    assert scale.at(BEGIN - timedelta(days=90)) is None
    assert scale.at(BEGIN + WEEK * 2) == pytest.approx(14)


@given(st.lists(st.integers(0, 10_000_000), min_size=1, max_size=70).map(sorted), st.integers(-1000, 11_000_000))
def test_time_never_runs_backwards_on_the_axis(seconds, moment):
    history = [evaluated(number, at=BEGIN + timedelta(seconds=at)) for number, at in enumerate(seconds, start=1)]
    at = BEGIN + timedelta(seconds=moment)
    scale = Scale.of(history, [Intervention(at, "order", "remedy", "full")])
    assert list(scale.places) == sorted(scale.places)
    place = scale.at(at)
    assert place is None or scale.limits[0] <= place <= scale.limits[1]
    for each, own in zip(history, scale.places, strict=True):
        if place is not None and each.closed_at <= at:
            assert own <= place + 1e-9
        if place is not None and each.closed_at > at:
            assert own >= place - 1e-9
    positions, labels = scale.ticks()
    assert len(positions) == len(labels) <= 12


def test_each_decline_has_one_start_by_its_newest_judgement():
    history = [evaluated(number) for number in range(1, 5)] + [
        fallen(5),
        fallen(6, since_batch=4, since_batch_low=3, since_batch_high=5),
    ]
    history += [evaluated(7), fallen(8, since_batch=8, since_batch_low=7, since_batch_high=8, scope="all classes")]
    first, second = starts(history)
    assert (first.place, first.low, first.high, first.classes) == (3, 2, 4, ("glioma",))
    assert (second.place, second.low, second.high, second.classes) == (7, 6, 7, ())


def test_evidence_without_a_threshold_has_no_share():
    assert evidence_share(evaluated(1), "a") == pytest.approx(0.2)
    assert evidence_share(evaluated(1), "b") == 0
    assert evidence_share(evaluated(1, threshold_a=None), "a") is None

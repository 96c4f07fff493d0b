"""Which predictions get a label: shares, the test of selection, and weighted rates, simulated with a known truth."""

from datetime import timedelta

import numpy as np
import pytest

from services.evaluation.verification import settled, verify
from tests.truth_world import CLASSES, START, calibrated, scored


def truth_of_all(sharpness=2.5):
    shares, truth = calibrated(np.random.default_rng(99), 200_000, sharpness)
    predicted = shares.argmax(1)
    recalls = {f"recall:{name}": float((predicted[truth == n] == n).mean()) for n, name in enumerate(CLASSES)}
    return {"accuracy": float((predicted == truth).mean())} | recalls


def selected(rng, cases, strength):
    """Uncertain predictions get a label more often, and those of `none` less often."""
    shares, truth = calibrated(rng, cases)
    odds = strength * ((0.9 - shares.max(1)) * 4 - (shares.argmax(1) == CLASSES.index("none")))
    return scored(shares, truth, labelled=rng.random(cases) < 1 / (1 + np.exp(-odds)))


def test_weighted_rates_cover_the_truth_where_the_raw_ones_do_not():
    rng, real, rounds = np.random.default_rng(1), truth_of_all(), 100
    covered, raw = dict.fromkeys(real, 0), dict.fromkeys(real, 0)
    for _ in range(rounds):
        for rate in verify(selected(rng, 800, 1.0), CLASSES).rates:
            covered[rate.name] += rate.weighted.low <= real[rate.name] <= rate.weighted.high
            raw[rate.name] += rate.raw.low <= real[rate.name] <= rate.raw.high
    assert min(covered.values()) >= 0.88 * rounds
    assert raw["accuracy"] <= 0.5 * rounds
    assert raw["recall:none"] <= 0.3 * rounds


def test_selection_is_seen_and_said_to_matter():
    found = verify(selected(np.random.default_rng(2), 2000, 2.0), CLASSES)
    assert found.selected_by.facet in {"predicted", "confidence decile"}
    assert found.selected_by.most > 2 * found.selected_by.least
    accuracy = found.rates[0]
    assert accuracy.matters
    assert accuracy.weighted.value > accuracy.raw.high
    assert accuracy.effective_cases < accuracy.cases


def test_labels_by_chance_are_not_called_selected():
    rng, selections, mattering = np.random.default_rng(3), 0, 0
    for _ in range(200):
        shares, truth = calibrated(rng, 400)
        stations = [{"StationName": f"CT{n % 3}"} for n in range(400)]
        found = verify(scored(shares, truth, labelled=rng.random(400) < 0.5, facets=stations), CLASSES, ["StationName"])
        selections += found.selected_by is not None
        mattering += any(rate.matters for rate in found.rates)
    assert selections <= 20
    assert mattering <= 10


def test_selection_by_predicted_class_alone_agrees_with_begg_and_greenes_worked_by_hand():
    # 100 predicted a, 100 predicted b; labelled: 50 of a (40 really a), 10 of b (8 really b).
    shares = np.array([[0.8, 0.2]] * 100 + [[0.2, 0.8]] * 100)
    truth = np.array([0] * 40 + [1] * 10 + [-1] * 50 + [1] * 8 + [0] * 2 + [-1] * 90)
    found = verify(scored(shares, truth, classes=("a", "b")), ("a", "b"))
    rates = {rate.name: rate for rate in found.rates}
    # P(a | predicted a) = 0.8 and P(a | predicted b) = 0.2, so recall of a is 80 / (80 + 20).
    assert rates["recall:a"].begg_greenes == pytest.approx(0.8)
    assert rates["recall:a"].weighted.value == pytest.approx(0.8)
    assert rates["recall:a"].raw.value == pytest.approx(40 / 42)
    assert rates["accuracy"].effective_cases == pytest.approx((50 * 2 + 10 * 10) ** 2 / (50 * 4 + 10 * 100))


def test_intervals_widen_with_cases_of_the_same_patient():
    shares, truth = calibrated(np.random.default_rng(4), 300)
    doubled, labels = np.repeat(shares, 3, axis=0), np.repeat(truth, 3)
    together = verify(scored(doubled, labels, per_patient=3), CLASSES).rates[0].weighted
    apart = verify(scored(doubled, labels), CLASSES).rates[0].weighted
    assert together.high - together.low > 1.4 * (apart.high - apart.low)


def test_a_class_without_any_label_is_told_and_left_out():
    shares, truth = calibrated(np.random.default_rng(5), 500)
    labelled = shares.argmax(1) != CLASSES.index("none")
    found = verify(scored(shares, truth, labelled=labelled), CLASSES)
    assert found.unreached == pytest.approx((~labelled).mean())
    assert {share.group: share.labelled for share in found.shares if share.facet == "predicted"}["none"] == 0
    assert found.rates[0].cases == labelled.sum()


def test_nothing_is_said_without_labels_and_of_one_case():
    shares, truth = calibrated(np.random.default_rng(6), 30)
    assert verify(scored(shares, np.full(30, -1)), CLASSES) is None
    assert verify([], CLASSES) is None
    one = verify(scored(shares[:1], truth[:1]), CLASSES)
    assert one.selection == ()
    assert one.rates[0].differs == 1.0


def test_predictions_that_may_still_get_their_label_are_not_missing():
    shares, truth = calibrated(np.random.default_rng(7), 200)
    cases = scored(shares, truth, delay=np.full(200, 10.0), minutes=24 * 60)
    now = START + timedelta(days=199)
    seen = [case if case.joined_at <= now else case._replace(truth=None, joined_at=None) for case in cases]
    assert len(settled(seen, now, 90)) == 190
    assert verify(settled(seen, now, 90), CLASSES).labelled == 190
    assert settled(scored(shares, np.full(200, -1), minutes=24 * 60), now, 90)[-1].scored_at <= now - timedelta(days=90)

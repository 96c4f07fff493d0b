"""Repairs without new weights: temperature, prior correction, thresholds, BatchNorm statistics, against known truth."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from models.adaptation import batch_norms, estimate_statistics, with_statistics
from models.calibration import (
    composed,
    fit_temperature,
    label_shift_bbse,
    label_shift_em,
    prior_offsets,
    recalibrate,
    rethreshold,
)
from models.errors import TrainingFailed
from models.logits import StudyLogits, class_recalls, joined, log_likelihood_loss, macro_recall
from models.spec import Calibration
from services.remediation.resampling import calibration_errors

MEANS = np.array([[1.2, 0.0, 0.0], [0.0, 1.2, 0.0], [0.0, 0.0, 1.2]])


def draw(
    count: int, prior: tuple[float, ...], seed: int, *, scale: float = 1.0, bias: tuple[float, ...] = (0.0, 0.0, 0.0)
) -> StudyLogits:
    """Exact log posteriors (under equal priors) of three Gaussian classes, then scaled and biased: truth is known."""
    random = np.random.default_rng(seed)
    labels = random.choice(3, size=count, p=prior)
    points = MEANS[labels] + random.normal(size=(count, 3)) * 0.8
    logits = -((points[:, None] - MEANS) ** 2).sum(axis=2) / (2 * 0.8**2)
    return StudyLogits(logits * scale + np.array(bias), np.arange(count), labels.astype(np.int64))


EVEN = (1 / 3, 1 / 3, 1 / 3)


def test_a_temperature_undoes_a_known_scale():
    assert fit_temperature(draw(4000, EVEN, 1, scale=3.0), Calibration()) == pytest.approx(3.0, rel=0.1)
    assert fit_temperature(draw(4000, EVEN, 2, scale=3.0), Calibration(temperature=3.0)) == pytest.approx(1.0, rel=0.1)


def test_a_temperature_from_few_right_cases_stays_moderate():
    sure = StudyLogits(np.eye(3)[[0, 1, 2]] * 4.0, np.arange(3), np.array([0, 1, 2]))
    assert 0.2 < fit_temperature(sure, Calibration()) < 1.0


@given(
    st.floats(0.2, 5),
    st.floats(0.2, 5),
    st.lists(st.floats(-3, 3), min_size=3, max_size=3),
    st.lists(st.floats(-3, 3), min_size=3, max_size=3),
)
@settings(max_examples=40, deadline=None)
def test_a_composition_is_one_after_the_other(first, then, offsets, more):
    cases = draw(20, EVEN, 3)
    once, twice = Calibration(temperature=first, offsets=tuple(offsets)), Calibration(temperature=then, offsets=tuple(more))
    by_hand = StudyLogits(cases.logits / first + np.array(offsets), cases.study, cases.labels).probabilities(twice)
    assert np.allclose(cases.probabilities(composed(once, twice, 3)), by_hand)


@pytest.mark.parametrize("method", ["em", "bbse"])
@pytest.mark.parametrize("prior", [(0.7, 0.2, 0.1), (0.05, 0.05, 0.9), EVEN])
def test_the_new_mix_of_classes_is_estimated_without_labels(method, prior):
    source, target = draw(3000, EVEN, 4), draw(3000, prior, 5)
    old = np.full(3, 1 / 3)
    if method == "em":
        found = label_shift_em(target.probabilities(), old)
    else:
        found = label_shift_bbse(source.probabilities(), source.labels, target.probabilities())
    assert np.abs(found - np.array(prior)).max() < {"em": 0.03, "bbse": 0.06}[method]
    assert found.sum() == pytest.approx(1.0)


def test_bbse_refuses_what_it_cannot_tell():
    blind = np.full((300, 3), 1 / 3) + np.random.default_rng(6).normal(size=(300, 3)) * 1e-3
    assert label_shift_bbse(blind, np.arange(300) % 3, blind) is None
    assert label_shift_bbse(blind[:100], np.zeros(100, dtype=np.int64), blind) is None


def test_prior_correction_is_bayes_rule():
    cases, prior = draw(500, EVEN, 7), np.array([0.6, 0.3, 0.1])
    by_hand = cases.probabilities() * prior
    by_hand /= by_hand.sum(axis=1, keepdims=True)
    assert np.allclose(cases.probabilities(prior_offsets(prior, np.full(3, 1 / 3))), by_hand)


def calibration_error(probabilities, labels):
    """As the gate measures it."""
    right = probabilities.argmax(axis=1) == labels
    return float(calibration_errors(probabilities.max(axis=1), right.astype(float), np.ones((1, len(labels))))[0])


def test_recalibration_helps_under_another_mix_and_says_what_it_tried():
    prior = (0.8, 0.15, 0.05)
    old, new, recent = draw(300, EVEN, 8, scale=2), draw(80, prior, 9, scale=2), draw(600, prior, 10, scale=2)
    found = recalibrate(Calibration(), old, new, recent)
    unseen = draw(5000, prior, 11, scale=2)
    before, after = (unseen.probabilities(each) for each in (Calibration(), found.calibration))
    assert log_likelihood_loss(after, unseen.labels) < log_likelihood_loss(before, unseen.labels) - 0.1
    assert calibration_error(after, unseen.labels) < calibration_error(before, unseen.labels) / 2
    assert {"present", "em", "bbse", "em+temperature"} <= found.record["candidates"].keys()
    assert found.record["chosen"] in found.record["candidates"]
    assert np.abs(np.array(found.record["priors"]["em"]) - prior).max() < 0.06


def test_recalibration_leaves_what_is_calibrated():
    old, new, recent = draw(300, EVEN, 12), draw(80, EVEN, 13), draw(600, EVEN, 14)
    assert recalibrate(Calibration(), old, new, recent).calibration == Calibration()


def test_thresholds_cure_a_biased_class():
    bias = (1.5, 0.0, 0.0)
    new, unseen = draw(60, EVEN, 15, bias=bias), draw(5000, EVEN, 16, bias=bias)
    old = joined([draw(150, EVEN, 17, bias=bias)])
    found = rethreshold(Calibration(), old, new, tolerance=1.0)
    before, after = (macro_recall(unseen.probabilities(each), unseen.labels) for each in (Calibration(), found.calibration))
    best = macro_recall(draw(5000, EVEN, 16).probabilities(), unseen.labels)
    assert before < best - 0.04
    assert after > best - 0.015


def test_thresholds_spare_the_old_classes():
    new, old = draw(60, EVEN, 18, bias=(1.5, 0.0, 0.0)), draw(400, EVEN, 19)
    found = rethreshold(Calibration(), old, new)
    before, after = (class_recalls(old.probabilities(each), old.labels) for each in (Calibration(), found.calibration))
    assert max(before[label] - after[label] for label in before) <= 0.015
    free = rethreshold(Calibration(), old, new, tolerance=1.0)
    assert free.record["old_recall_loss"] > 0.02


def test_thresholds_stay_where_all_is_well():
    perfect = StudyLogits(np.eye(3)[np.arange(60) % 3] * 8.0, np.arange(60), np.arange(60) % 3)
    found = rethreshold(Calibration(), perfect, perfect)
    assert np.abs(np.array(found.calibration.offsets or (0.0,))).max() < 0.2


def test_the_images_of_a_study_count_as_one():
    logits = np.array([[2.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    cases = StudyLogits(logits, np.array([0, 0, 1]), np.array([0, 1]))
    each = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert np.allclose(cases.probabilities(), [(each[0] + each[1]) / 2, each[2]])


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.BatchNorm2d(2)
        self.second = nn.Conv2d(2, 3, 1)
        self.third = nn.BatchNorm2d(3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.third(self.second(self.first(images)))


def images(count: int, shift: float, spread: float) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(count)
    return [torch.randn(2, 8, 8, generator=generator) * spread + shift for _ in range(count)]


CPU = torch.device("cpu")


def test_statistics_become_those_of_the_new_images_and_nothing_else_moves():
    module = Normed().eval()
    start = copy.deepcopy(module.state_dict())
    found = estimate_statistics(module, images(65, 3.0, 2.0), CPU, batch_size=16)
    assert all(torch.equal(start[name], value) for name, value in module.state_dict().items())
    whole, half = with_statistics(module, found, 1.0), with_statistics(module, found, 0.5)
    assert torch.allclose(whole.first.running_mean, torch.full((2,), 3.0), atol=0.15)
    assert torch.allclose(whole.first.running_var, torch.full((2,), 4.0), atol=0.3)
    assert torch.allclose(half.first.running_mean, whole.first.running_mean / 2)
    moved = {name for name, value in half.state_dict().items() if not torch.equal(value, start[name])}
    assert moved == {f"{layer}.running_{kind}" for layer in ("first", "third") for kind in ("mean", "var")}
    assert set(batch_norms(module)) == {"first", "third"}


def test_statistics_need_layers_and_images():
    with pytest.raises(TrainingFailed, match="no BatchNorm"):
        estimate_statistics(nn.Conv2d(2, 2, 1), images(4, 0, 1), CPU)
    with pytest.raises(TrainingFailed, match="fewer than two"):
        estimate_statistics(Normed(), images(1, 0, 1), CPU)

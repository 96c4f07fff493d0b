"""Offsets that hold the boundary between classes on old cases: what they keep, and that they need no label."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models import boundary
from models.boundary import FARTHEST, PULL, hold
from models.logits import StudyLogits, class_recalls
from models.spec import Calibration

NONE = Calibration()
MOVE, LAST = np.array([0.0, 1.2]), np.array([0.0, 0.0, 1.0])


def cases(count: int, classes: int, seed: int, *, images: int = 1, sharp: float = 2.0) -> StudyLogits:
    """Noisy logits that tend to the studies' labels."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    study = np.repeat(np.arange(count), images)
    logits = sharp * np.eye(classes)[labels[study]] + random.normal(0, 1.5, (count * images, classes))
    return StudyLogits(logits, study, labels.astype(np.int64))


def decisions(of: StudyLogits, calibration: Calibration) -> np.ndarray:
    return of.probabilities(calibration).argmax(axis=1)


@given(st.integers(2, 5), st.integers(0, 99), st.lists(st.floats(-1.0, 1.0), min_size=5, max_size=5))
def test_a_boundary_that_was_only_moved_comes_back_whole(classes, seed, moves):
    """A successor that differs by offsets alone answers each case as before."""
    before = cases(150, classes, seed)
    offsets = np.asarray(moves[:classes])
    held = hold(before, replace(before, logits=before.logits + offsets), NONE)
    np.testing.assert_allclose(held.record["offsets"], offsets.mean() - offsets, atol=0.1)
    moved = replace(before, logits=before.logits + offsets)
    margins = np.sort(before.logits, axis=1)
    clear = margins[:, -1] - margins[:, -2] > 0.2
    assert (decisions(moved, held.calibration) == decisions(before, NONE))[clear].all()


@given(st.integers(2, 5), st.integers(0, 99), st.integers(1, 3))
def test_each_class_keeps_its_share_of_the_decisions(classes, seed, images):
    before, other = cases(120, classes, seed, images=images), cases(120, classes, seed + 1000, images=images, sharp=1.0)
    base = Calibration(temperature=1.3, offsets=tuple(0.2 * label for label in range(classes)))
    record = hold(before, other, base).record
    np.testing.assert_allclose(record["shares"]["held"], record["shares"]["before"], atol=2 * PULL / len(before))
    assert sum(record["offsets"]) == pytest.approx(0, abs=1e-3)


@given(st.integers(0, 99), st.integers(2, 4))
def test_with_a_sharp_step_the_signed_change_of_decisions_is_zero(seed, classes):
    before, after = cases(200, classes, seed), cases(200, classes, seed + 500, sharp=1.2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(boundary, "WIDTH", 0.02)
        held = hold(before, after, NONE)
    counts = [np.bincount(decisions(*pair), minlength=classes) for pair in ((before, NONE), (after, held.calibration))]
    assert np.abs(counts[1] - counts[0]).max() <= 3, "up to cases that lie on the boundary"


@given(st.integers(0, 99))
def test_labels_and_the_order_of_cases_and_classes_do_not_matter(seed):
    before, after = cases(90, 3, seed), cases(90, 3, seed + 7, sharp=1.0)
    held = hold(before, after, NONE).record["offsets"]
    unlabelled = [replace(each, labels=np.zeros(90, dtype=np.int64)) for each in (before, after)]
    assert hold(unlabelled[0], unlabelled[1], NONE).record["offsets"] == held
    order = np.random.default_rng(seed).permutation(90)
    mixed = [replace(each, logits=each.logits[order]) for each in (before, after)]
    np.testing.assert_allclose(hold(mixed[0], mixed[1], NONE).record["offsets"], held, atol=1e-3)
    turned = [replace(each, logits=each.logits[:, [2, 0, 1]]) for each in (before, after)]
    np.testing.assert_allclose(hold(turned[0], turned[1], NONE).record["offsets"], np.asarray(held)[[2, 0, 1]], atol=1e-3)


def test_the_same_answers_leave_the_calibration_as_it_is():
    base = Calibration(temperature=0.8, offsets=(0.5, 0.1, 0.0))
    before = cases(60, 3, 1)
    held = hold(before, before, base)
    assert held.calibration is base
    assert held.moved == 0


def test_two_classes_that_exchange_recall_both_keep_it():
    """A successor that is as good but decides for the second class more often: unseen cases of the first get their recall back."""
    before, after = cases(600, 2, 3), cases(600, 2, 4)
    moved = replace(after, logits=after.logits + MOVE)
    held = hold(before, moved, NONE)
    fresh = cases(4000, 2, 5)
    unseen = replace(fresh, logits=fresh.logits + MOVE)
    usual = class_recalls(fresh.probabilities(NONE), fresh.labels)
    lost, kept = (class_recalls(unseen.probabilities(each), unseen.labels) for each in (NONE, held.calibration))
    assert max(usual[label] - lost[label] for label in usual) > 0.1
    assert max(abs(usual[label] - kept[label]) for label in usual) < 0.04


def test_a_class_that_is_never_decided_for_does_not_run_away():
    before = cases(50, 3, 6)
    silent = replace(before, logits=before.logits - [0.0, 0.0, 60.0])
    assert hold(silent, before, NONE).moved <= 2 * FARTHEST
    assert hold(before, silent, NONE).moved <= 2 * FARTHEST


def test_a_class_that_old_cases_hardly_show_is_not_pushed_away_for_a_fraction_of_one():
    """Such as a class that the model came to know later: its offset stays small, so that it goes on being read."""
    before = cases(600, 3, 6)
    silent = replace(before, logits=before.logits - 10 * LAST)
    bolder = replace(before, logits=before.logits - 9 * LAST)
    assert abs(hold(silent, bolder, NONE).record["offsets"][2]) < 0.2
    assert hold(before, replace(before, logits=before.logits + LAST), NONE).record["offsets"][2] < -0.6


def test_other_studies_are_refused():
    with pytest.raises(ValueError, match="both versions"):
        hold(cases(20, 2, 1), cases(21, 2, 1), NONE)
    with pytest.raises(ValueError, match="both versions"):
        hold(cases(0, 2, 1), cases(0, 2, 1), NONE)

"""The kind of change between two parts of a stream, from images, labels and answers together."""

from datetime import UTC, datetime

import numpy as np
import pytest

from models.likeness import liken, vectors
from models.signature import LAYOUT, QUALITY
from schemas.vocabulary import Diagnosis
from services.evaluation.change import Side, alike, joined, kind_of_change, labels_swapped
from services.evaluation.diagnosis import Context, recent_change
from services.evaluation.pictures import Pictures
from services.evaluation.stream import StreamCase
from services.runtime.signatures import Images

START = datetime(2026, 3, 12, 9, tzinfo=UTC)
CLASSES = ("glioma", "meningioma", "none")
FAULT = np.random.default_rng(9).normal(0, 0.6, LAYOUT)


def site(count, seed, *, shares=(0.4, 0.3, 0.3), blur=0.0, faulty=0.0, error=0.1):
    """Cases of three classes that differ in their images; `faulty` of them show a fault of the feed."""
    random = np.random.default_rng(seed)
    labels = random.choice(3, count, p=shares)
    layout = random.normal(0, 0.5, (count, LAYOUT))
    layout[:, :6] += np.eye(3).repeat(2, axis=1)[labels]
    layout[random.random(count) < faulty] += FAULT
    quality = random.normal(0, 1, (count, len(QUALITY)))
    quality[:, QUALITY.index("sharpness")] -= blur
    embedding = random.normal(0, 1, (count, 16))
    embedding[:, :3] += np.eye(3)[labels]
    said = np.where(random.random(count) < error, (labels + 1) % 3, labels)
    images = Images(
        tuple(f"s{seed}-{n}" for n in range(count)), *(each.astype(np.float32) for each in (quality, layout, embedding))
    )
    return Side([CLASSES[label] for label in labels], [CLASSES[label] for label in said], images)


def relabelled(side, change):
    return Side([change(truth) for truth in side.truth], side.predicted, side.images)


def likenesses(before, after):
    reference = site(160, 77).images
    known = vectors(reference.quality, reference.layout)
    changed = known.copy()
    changed[:, -LAYOUT:] += FAULT
    blurred = known.copy()
    blurred[:, QUALITY.index("sharpness")] -= 1
    pair = (vectors(side.images.quality, side.images.layout) for side in (before, after))
    return liken(*pair, known, {"turned by 90 degrees": changed, "blurred": blurred})


def found(after, before=None, **options):
    before = before or site(300, 1)
    return kind_of_change(before, after, likenesses(before, after), CLASSES, fallen=False, seed=0, **options)


def test_a_known_fault_in_half_of_the_studies_is_a_broken_feed_and_the_share_is_told():
    cause = found(site(200, 2, faulty=0.5))
    assert cause.kind is Diagnosis.PIPELINE
    assert cause.what.startswith("images turned by 90 degrees in ")
    assert 40 <= int(cause.what.split()[-4].rstrip("%")) <= 60


def test_blurred_images_are_a_covariate_and_described():
    cause = found(site(200, 2, blur=1.0))
    assert (cause.kind, cause.what) == (Diagnosis.COVARIATE, "the images are blurred")
    assert cause.tests["images within classes"] < 0.01


def together(side, seed, slope):
    """The same images, brighter or darker as wholes by far more than they differ elsewhere, and uneven by `slope` of that."""
    brightness = np.random.default_rng(seed).normal(0, 4, (len(side.truth), 1))
    uneven = np.linspace(-1, 1, LAYOUT) * slope
    layout = (side.images.layout + brightness + uneven).astype(np.float32)
    return Side(side.truth, side.predicted, Images(side.images.keys, side.images.quality, layout, side.images.embedding))


@pytest.mark.parametrize("seed", [2, 3, 4])
def test_a_weak_change_that_lies_across_how_images_vary_is_seen(seed):
    """Uneven illumination of 0.3, where brightness varies by 4: no single number and no distance between images shows it."""
    before, after = together(site(300, 1), 10, 0.0), together(site(200, seed), 10 + seed, 0.3)
    cause = found(after, before)
    assert (cause.kind, cause.tests["images"] < 0.01) == (Diagnosis.COVARIATE, True)
    assert found(together(site(200, seed), 10 + seed, 0.0), before).kind is Diagnosis.NONE


def test_another_mix_of_patients_is_no_change_of_images():
    cause = found(site(200, 3, shares=(0.85, 0.1, 0.05)))
    assert cause.kind is Diagnosis.PREVALENCE
    assert cause.tests["images within classes"] >= 0.01 or cause.tests["images"] >= 0.01


def test_labels_that_mean_something_else_are_a_concept():
    cause = found(relabelled(site(200, 4), lambda truth: {"meningioma": "glioma"}.get(truth, truth)))
    assert cause.kind is Diagnosis.CONCEPT


def test_exchanged_labels_are_a_broken_feed_in_both_directions_only():
    swap = {"glioma": "meningioma", "meningioma": "glioma"}
    cause = found(relabelled(site(200, 5), lambda truth: swap.get(truth, truth)))
    assert (cause.kind, cause.what) == (Diagnosis.PIPELINE, "labels of glioma and meningioma are exchanged")
    one_way = relabelled(site(200, 5), lambda truth: {"glioma": "meningioma"}.get(truth, truth))
    assert labels_swapped(site(300, 1), one_way, CLASSES) == []
    turned = {"glioma": "meningioma", "meningioma": "none", "none": "glioma"}
    assert len(labels_swapped(site(300, 1), relabelled(site(200, 6), turned.__getitem__), CLASSES)) == 3


def test_nothing_is_named_where_nothing_changed():
    kinds = [found(site(200, 100 + seed), site(300, 500 + seed)).kind for seed in range(20)]
    assert sum(kind is not Diagnosis.NONE for kind in kinds) <= 2


def test_too_few_images_leave_it_unknown():
    assert found(site(30, 2)).kind is Diagnosis.UNKNOWN


def test_a_baseline_like_the_stream_is_added_to_it_and_another_is_not():
    first, second, other = site(200, 1), site(200, 2), site(200, 3, blur=1.5)
    assert alike(first, second, 0)
    assert not alike(first, other, 0)
    both = joined(first, second)
    assert (len(both.truth), len(both.images)) == (400, 400)


@pytest.mark.parametrize(("share", "certain"), [(0.0, False), (0.05, False), (0.3, True), (1.0, True)])
def test_the_share_of_a_fault_is_read_off(share, certain):
    first = likenesses(site(400, 1), site(400, 2, faulty=share))[0]
    assert (first.certain and first.fault) == certain
    if certain:
        assert first.share == pytest.approx(share, abs=0.08)
        assert first.explained > 0.9


def test_a_constant_image_alone_is_no_change():
    before, after = site(200, 1), site(200, 2)
    after.images.layout[0] = 1e4
    assert not likenesses(before, after)[0].certain


def test_the_newest_cases_are_looked_at_although_nothing_fell():
    before, after = site(300, 1), site(200, 2, blur=1.0)
    everything = joined(before, after)
    cases = [
        StreamCase(1 + number // 50, f"p{number}", truth, said, {}, START, {}, (), key)
        for number, (truth, said, key) in enumerate(
            zip(everything.truth, everything.predicted, everything.images.keys, strict=True)
        )
    ]
    reference = site(200, 8)
    answers = dict(zip(reference.images.keys, zip(reference.truth, reference.predicted, strict=True), strict=True))
    pictures = Pictures(everything.images, reference.images, reference.images, {}, answers)
    context = Context(CLASSES, (), pictures)
    assert recent_change(cases, context).kind is Diagnosis.COVARIATE
    assert recent_change(cases[:300], context).kind is Diagnosis.NONE
    assert recent_change(cases[:50], context).kind is Diagnosis.NONE

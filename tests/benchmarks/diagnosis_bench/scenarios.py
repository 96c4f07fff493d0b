"""A stream of studies at a site: stable for a while, then changed in one known way."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from diagnosis_bench.shifts import LABELS, PATIENTS, Shift
from diagnosis_bench.sites import CT_LOW, CT_SPAN, Scored, Site, frames_of, score

from models.frames import Frames
from models.spec import FixedWindow
from schemas.vocabulary import Diagnosis

Array = np.ndarray[Any, np.dtype[Any]]
STABLE = CHANGED = 200


@dataclass(frozen=True)
class Scenario:
    """`before` and `after` the change, as scored by the model, with the truth that the labels will tell."""

    shift: Shift
    kind: Diagnosis
    before: Scored
    after: Scored


def fits(shift: Shift, site: Site) -> bool:
    """Whether a site can meet this change at all."""
    windowed = not isinstance(site.spec.preprocessing.intensity, FixedWindow)
    if shift.only:
        return shift.only == site.modality or (shift.only == "windowed" and windowed)
    return shift.special != "external" or site.external is not None


def scenario(site: Site, shift: Shift, seed: int) -> Scenario:
    """Draw studies without replacement, change the later ones, and score all."""
    random = np.random.default_rng(seed)
    images, labels = site.pool
    order = random.permutation(len(images))
    stable, rest = order[:STABLE], order[STABLE:]
    before = _scored(site, images[stable], labels[stable])
    return Scenario(shift, shift.kind, before, _after(site, shift, rest, random))


def _after(site: Site, shift: Shift, rest: Array, random: np.random.Generator) -> Scored:
    images, labels = site.pool
    if shift.special == "external" and site.external is not None:
        images, labels = site.external
        rest = _like(labels, site.pool[1], random)
    if shift.special == PATIENTS:
        rest = _mixed(labels, rest, shift.amount, random)
    chosen = rest[:CHANGED]
    truth = [site.spec.classes[label] for label in labels[chosen]]
    frames = [_frames(site, shift, image.astype(np.float64), random) for image in images[chosen]]
    findings = ("rescale_missing", "rescale_without_negative") if shift.special == "rescale header" else ()
    found = score(site.predictor, frames, _relabelled(truth, site.spec.classes, shift, random))
    return Scored(
        found.truth, found.predicted, found.probabilities, found.images, tuple((*each, *findings) for each in found.findings)
    )


def _scored(site: Site, images: Array, labels: Array) -> Scored:
    frames = [frames_of(image, site.spec) for image in images]
    return score(site.predictor, frames, [site.spec.classes[label] for label in labels])


def _frames(site: Site, shift: Shift, image: Array, random: np.random.Generator) -> Frames:
    if shift.image is not None and random.random() < shift.amount:
        image = np.clip(shift.image(image, random), 0, 255)
    if shift.special.startswith("window"):
        centre, width = (float(part) * 255 for part in shift.special.split()[1:])
        return Frames.from_array(image.astype(np.float32), (centre - width / 2, centre + width / 2))
    if shift.special.startswith("rescale"):
        stored = image.astype(np.float32) / 255 * CT_SPAN + CT_LOW + 1024
        return Frames.from_array(np.maximum(stored, 0), (CT_LOW, CT_LOW + CT_SPAN))
    return frames_of(image, site.spec)


def _relabelled(truth: list[str], classes: tuple[str, ...], shift: Shift, random: np.random.Generator) -> list[str]:
    """What the labels say where their source has mixed two classes up, or has begun to call one class another."""
    first, second = (str(each) for each in random.permutation(list(classes))[:2])
    if shift.special == "swap":
        return [{first: second, second: first}.get(each, each) for each in truth]
    if shift.special == LABELS:
        return [second if each == first and random.random() < shift.amount else each for each in truth]
    return truth


def _mixed(labels: Array, rest: Array, share: float, random: np.random.Generator) -> Array:
    """Studies of which one class has `share`."""
    chosen = random.choice(np.unique(labels))
    most, others = rest[labels[rest] == chosen], rest[labels[rest] != chosen]
    wanted = round(share * CHANGED)
    return random.permutation(np.r_[most[:wanted], others[: CHANGED - wanted]])


def _like(labels: Array, wanted: Array, random: np.random.Generator) -> Array:
    """Other hospital's studies in the mix of classes of the pool, as far as there are enough."""
    shares = np.bincount(wanted) / len(wanted)
    parts = [random.permutation(np.flatnonzero(labels == label))[: round(share * CHANGED)] for label, share in enumerate(shares)]
    return random.permutation(np.concatenate(parts))

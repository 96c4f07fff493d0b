"""All signals of one window, each with its statistic, threshold, p-value where it has one, and a plain sentence."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from math import ceil

import numpy as np

from models import two_sample
from models.facets import FACETS
from models.likeness import CERTAIN, Likeness, liken, vectors
from schemas.vocabulary import Diagnosis
from services.drift.budget import (
    ANSWERS,
    CONFIDENCE,
    DESCRIPTIONS,
    EMBEDDINGS,
    EMBEDDINGS_LONG,
    FAULTS,
    STATISTICS,
    Budget,
    Levels,
    columns_of,
    largest_fall,
)
from services.drift.marginals import Column, Counts, strength
from services.drift.performance import Confidence, Estimate, estimated_recalls, estimated_shares, temperature, unexplained
from services.drift.sample import Array, Reference, Sample
from services.runtime.signatures import Images
from services.runtime.words import facet

MIX, RECALLS = "class mix", "estimated recall"
Detail = dict[str, float | str | None]
LEAST_KERNEL, LEAST_CLASSIFIER, MOST = 100, 500, 600
_SAME = 0.01
_RARE = 0.02
_LEAST_MIXED = 50
_WORDS: Mapping[str, str] = {
    ANSWERS: "The answers",
    STATISTICS: "The statistics of the images",
    DESCRIPTIONS: "The descriptions of the images",
}


@dataclass(frozen=True)
class Signal:
    """One signal. `threshold` is for the statistic, or, where there is a p-value alone, for that (`statistic` is told)."""

    name: str
    statistic: float
    threshold: float | None
    warning: bool
    sentence: str
    p_value: float | None = None
    detail: Detail = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """What a window shows: its signals, and which kind of change fits where any of them warns."""

    signals: tuple[Signal, ...]
    suspected: Diagnosis
    because: str

    @property
    def warning(self) -> bool:
        """Whether any signal warns."""
        return any(signal.warning for signal in self.signals)


def judge(reference: Reference, window: Sample, several: Sample, levels: Levels, budget: Budget, seed: int) -> Verdict:
    """Judge a window; `several` are the newest windows together, this one among them (for the test on at least 500 cases)."""
    seen = likenesses(reference, window)
    signals = [
        *_columns(reference, window, levels),
        _confidence(reference, window, levels, seed),
        *_embeddings(reference, window, several, budget, seed),
        *_faults(seen),
        *_shown(reference, window, seed),
    ]
    suspected, because = suspect(reference, window, signals, seen, seed)
    return Verdict(tuple(signals), suspected, because)


def suspect(
    reference: Reference, window: Sample, signals: Sequence[Signal], seen: Sequence[Likeness], seed: int
) -> tuple[Diagnosis, str]:
    """The kind of change that fits what warns, without any label: a broken feed, other images, another mix, or not known."""
    warned = {signal.name for signal in signals if signal.warning}
    if not warned:
        return Diagnosis.NONE, ""
    if FAULTS in warned:
        return Diagnosis.PIPELINE, _looks(seen[0])
    moved = _moved_shares(signals)
    if moved and _same_but_for_mix(reference, window, seed):
        return Diagnosis.PREVALENCE, f"the images are as before but for the mix: {moved}"
    best = next((each for each in seen if each.certain), None)
    if best is not None:
        return Diagnosis.COVARIATE, f"the images are {best.name}"
    if warned & {STATISTICS, EMBEDDINGS, EMBEDDINGS_LONG}:
        return Diagnosis.COVARIATE, "the images have changed"
    return (Diagnosis.COVARIATE, "the descriptions of studies have changed") if DESCRIPTIONS in warned else (Diagnosis.UNKNOWN, "")


def _faults(seen: Sequence[Likeness]) -> list[Signal]:
    """Whether the images look as a known fault of the feed would make them; the score is in standard errors."""
    if not seen:
        return []
    best = max((each for each in seen if each.fault), key=lambda each: each.explained)
    warning = best is seen[0] and best.certain
    told = f"{_looks(best)[0].upper()}{_looks(best)[1:]}." if warning else "The images look like no known fault of a feed."
    detail: Detail = {"nearest": best.name, "share": best.share, "explained": best.explained}
    return [Signal(FAULTS, best.score, CERTAIN, warning, told, None, detail)]


def _looks(likeness: Likeness) -> str:
    return f"the images look as if {_verb(likeness.name)} in {min(likeness.share, 1):.0%} of the studies"


def likenesses(reference: Reference, window: Sample) -> tuple[Likeness, ...]:
    """Known changes of images by how well they explain the step from the reference to the window."""
    usual, now = reference.sample.images, window.images
    shared = [name for name, images in reference.changed.items() if len(images)]
    if usual is None or now is None or not shared:
        return ()
    wanted = set(reference.changed[shared[0]].keys)
    own = reference.probed.take([place for place, key in enumerate(reference.probed.keys) if key in wanted])
    return liken(_vectors(usual), _vectors(now), _vectors(own), {name: _vectors(reference.changed[name]) for name in shared})


def _columns(reference: Reference, window: Sample, levels: Levels) -> list[Signal]:
    both = _both(reference.sample, window)
    usual, now = _counts(reference.sample.count, window.count)
    found = []
    for name, columns in columns_of(both, reference.sample).items():
        if name not in levels:
            continue
        p_values = np.array([column.p_values(usual, now)[0] for column in columns])
        statistic = float(strength(np.minimum(p_values.min() * len(columns), 1.0)))
        warning = statistic >= levels[name]
        moved = _moved(columns, p_values) if warning else ""
        sentence = f"{_WORDS[name]} have changed: {moved}." if warning else f"{_WORDS[name]} are as on the reference."
        p_value = float(min(p_values.min() * len(columns), 1.0))
        found.append(Signal(name, statistic, levels[name], warning, sentence, p_value, {"moved": moved or None}))
    return found


def _moved(columns: Sequence[Column], p_values: Array) -> str:
    """The columns that have moved by Holm's test, the clearest first, at most four."""
    adjusted = two_sample.holm(p_values.tolist())
    order = [place for place in np.argsort(p_values) if adjusted[place] < 0.01]
    return ", ".join(_name(columns[place]) for place in order[:4])


def _name(column: Column) -> str:
    return facet(column.name) if column.name in FACETS else column.name.replace("_", " ")


def _confidence(reference: Reference, window: Sample, levels: Levels, seed: int) -> Signal:
    at = temperature(reference.sample.probabilities, reference.truth)
    statistic = largest_fall(reference, window.count, seed)
    usual = Confidence.of(reference.sample, at).recalls(np.ones((1, reference.sample.count)))[0]
    falls = (usual - Confidence.of(window, at).recalls(np.ones((1, window.count)))[0]) / statistic.spread
    worst, warning = window.classes[int(falls.argmax())], bool(falls.max() >= levels[CONFIDENCE])
    sentence = (
        f"By its own confidence the model finds {worst} less often than on the reference."
        if warning
        else "By its own confidence the model finds each class as often as on the reference."
    )
    return Signal(CONFIDENCE, float(falls.max()), levels[CONFIDENCE], warning, sentence, None, {"class": worst, "temperature": at})


def _embeddings(reference: Reference, window: Sample, several: Sample, budget: Budget, seed: int) -> list[Signal]:
    found = []
    usual = reference.sample.images
    if usual is None or len(usual) < LEAST_KERNEL or not usual.embedding.shape[1]:
        return []
    if window.images is not None and window.images.embedding.shape[1] == usual.embedding.shape[1]:
        found.append(_embedding(EMBEDDINGS, two_sample.kernel, usual, window.images, budget.per_window, seed))
    if several.images is not None and len(several.images) >= LEAST_CLASSIFIER:
        found.append(_embedding(EMBEDDINGS_LONG, two_sample.classifier, usual, several.images, budget.per_several, seed))
    return found


def _embedding(name: str, test: "two_sample.Test", usual: Images, now: Images, level: float, seed: int) -> Signal:
    generator = np.random.default_rng([seed, len(name)])
    first, second = (_few(each.embedding, generator) for each in (usual, now))
    result = test(first, second, generator, ceil(1 / level))
    warning = result.p_value <= level
    sentence = "What the network sees in the images has changed." if warning else "The network sees what it saw on the reference."
    return Signal(name, result.statistic, None, warning, sentence, result.p_value, {"p_value_threshold": level})


def _few(rows: Counts, generator: np.random.Generator) -> Counts:
    return rows if len(rows) <= MOST else rows[np.sort(generator.choice(len(rows), MOST, replace=False))]


def _shown(reference: Reference, window: Sample, seed: int) -> list[Signal]:
    """What is shown and never warns by itself: the estimated mix and the estimated recalls."""
    mix = estimated_shares(reference, window, seed)
    moved = [each for each in mix if not each.low <= each.baseline <= each.high]
    told = ", ".join(f"{each.name} {each.value:.0%} ({each.low:.0%} to {each.high:.0%}), was {each.baseline:.0%}" for each in moved)
    largest = max((abs(each.value - each.baseline) for each in mix), default=0.0)
    sentence = (
        f"The mix of patients may have changed: {told}." if moved else "The estimated mix of patients is that of the reference."
    )
    if not mix:
        sentence = "The model confuses its classes too much for their shares to be estimated."
        if unexplained(reference, window, seed):
            sentence = "No mix of patients explains the answers, so their shares cannot be estimated."
    recalls = estimated_recalls(reference, window, seed)
    worst = min(recalls, key=lambda each: each.value - each.baseline)
    estimated = f"Estimated without labels, recall of {worst.name} is {worst.value:.2f} ({worst.low:.2f} to {worst.high:.2f}), "
    return [
        Signal(MIX, largest, None, False, sentence, None, _told(mix) | {"moved": told or None}),
        Signal(RECALLS, worst.baseline - worst.value, None, False, f"{estimated}was {worst.baseline:.2f}.", None, _told(recalls)),
    ]


def _told(estimates: Sequence[Estimate]) -> Detail:
    return {
        f"{each.name}: {part}": value
        for each in estimates
        for part, value in (("value", each.value), ("low", each.low), ("high", each.high), ("reference", each.baseline))
    }


def _moved_shares(signals: Sequence[Signal]) -> str:
    return next((str(signal.detail.get("moved") or "") for signal in signals if signal.name == MIX), "")


def _same_but_for_mix(reference: Reference, window: Sample, seed: int) -> bool:
    """Whether the window looks like the reference in the estimated mix of classes, images and descriptions alike.

    No other change is needed then.
    """
    usual, now = reference.sample.images, window.images
    shares = {each.name: each.value for each in estimated_shares(reference, window, seed)}
    if usual is None or now is None or not shares:
        return False
    generator = np.random.default_rng(seed)
    wanted = [shares[name] for name in window.classes]
    there = [np.flatnonzero(reference.truth == number) for number in range(len(wanted))]
    size = min([len(rows) / share for rows, share in zip(there, wanted, strict=True) if share > _RARE], default=0.0)
    parts = [generator.permutation(rows)[: round(size * share)] for rows, share in zip(there, wanted, strict=True)]
    chosen = np.concatenate(parts).tolist()
    mixed = usual.take(chosen)
    if len(mixed) < _LEAST_MIXED or not _described_alike(reference.sample.take(chosen), window, reference.sample):
        return False
    pairs = [(np.concatenate([mixed.quality, mixed.layout], 1), np.concatenate([now.quality, now.layout], 1))]
    if usual.embedding.shape[1] == now.embedding.shape[1]:
        pairs.append((mixed.embedding, now.embedding))
    found = [two_sample.kernel(first, second, generator, 499).p_value for first, second in pairs]
    return min(found) * len(found) >= _SAME


def _described_alike(first: Sample, second: Sample, known: Sample) -> bool:
    columns = columns_of(_both(first, second), known).get(DESCRIPTIONS, [])
    usual = (np.arange(first.count + second.count) < first.count).astype(np.float32)[:, None]
    found = [float(column.p_values(usual, 1 - usual)[0]) for column in columns]
    return min(found, default=1.0) * len(found) >= _SAME or not found


def _both(first: Sample, second: Sample) -> Sample:
    images = first.images.joined(second.images) if first.images is not None and second.images is not None else None
    probabilities = np.concatenate([first.probabilities, second.probabilities])
    predicted = np.concatenate([first.predicted, second.predicted])
    return Sample(first.classes, probabilities, predicted, images, (*first.facets, *second.facets))


@cache
def _counts(first: int, second: int) -> tuple[Counts, Counts]:
    """Reference [n, 1] and window [n, 1] as counts of the rows of both together."""
    usual = np.r_[np.ones(first), np.zeros(second)].astype(np.float32)[:, None]
    return usual, 1 - usual


def _vectors(images: Images) -> Array:
    return vectors(images.quality, images.layout)


def _verb(name: str) -> str:
    return f"shown through a {name}" if name.startswith("window") else name

"""Labels that are probably wrong, how many there are, and sources that contradict each other.

The model's probabilities on the site's own studies are out of sample: it never saw them. Where they are right as
probabilities, a label against a confident prediction is either the model's rare error or a wrong label, and how many of the
first kind there must be is known. They are made right on the version's own test set first (temperature; Guo et al. 2017), and what
they are wrong by there still is taken off.

A model that has become worse contradicts right labels. What contradictions have risen by since some time is therefore taken
for the model's (`services.evaluation.decline`), and a label against it is suspected the less. One that was worse from its first
case on cannot be told from wrong labels: a suspect is a reason to look again at a study, never a correction.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import ndtri

from services.evaluation.cases import Cases, Floats, Integers, LabelledRow
from services.evaluation.decline import Contradictions, Rise, rise
from services.evaluation.scored import ScoredCase, patients_of

LEAST_TEST_CASES: Final = 50
"""Test cases that a temperature needs; below it the probabilities are taken as they are."""
LEAST_CASES: Final = 50
"""Labelled cases below which nothing is said."""
SURE: Final = 0.5
"""A label is a suspect where it is more probably wrong than right."""
LEAST_NOISE: Final = 0.005
"""Assumed at least, so that single wrong labels among clean ones are found too."""
SPOKEN_OF: Final = 0.02
"""Share of the newest labels that contradict more than before, from which on it is told."""
DRAWS: Final = 100
_TINY: Final = 1e-12
_Z: Final = float(ndtri(0.975))


class Suspect(NamedTuple):
    """A label to look at again. `sure`: probability that it is wrong."""

    study_key: str
    label: str
    source: str | None
    proposed: str
    sure: float
    acquired_at: datetime


class Cell(NamedTuple):
    """Share of the cases labelled `label` that really are `real`, with its 95 % interval (confident learning)."""

    label: str
    real: str
    share: float
    low: float
    high: float


@dataclass(frozen=True)
class Noise:
    """Share of wrong labels, as far as confident cases tell, with its 95 % interval; and who is taken for whom.

    `risen`: share of the newest tenth's labels that contradict the model because it has become worse, as far as is seen.
    """

    cases: int
    rate: float
    low: float
    high: float
    temperature: float
    matrix: tuple[Cell, ...]
    suspects: tuple[Suspect, ...]
    """The surest first."""
    risen: float = 0.0

    @property
    def declined(self) -> bool:
        """Whether enough of that is seen to be spoken of."""
        return self.risen >= SPOKEN_OF

    def wrong_among(self, suspects: Sequence[Suspect]) -> float:
        """How many of these are expected to be wrong labels; the others are right."""
        return float(sum(each.sure for each in suspects))


class Conflict(NamedTuple):
    """One study and task of which two sources say different things."""

    study_key: str
    task: str
    labels: tuple[tuple[str, str, datetime], ...]
    """(source, label, labelled at), the one that counts first"""


def find_suspects(
    cases: Sequence[ScoredCase], baseline: Sequence[LabelledRow], classes: Sequence[str], seed: int = 0
) -> Noise | None:
    """None with too few labelled cases, or where classes do not exclude each other (probabilities then do not add up to one)."""
    place = {name: number for number, name in enumerate(classes)}
    labelled = (case for case in cases if case.truth in place and case.predicted in place)
    known = sorted(labelled, key=lambda case: (case.acquired_at, case.study_key))
    given = np.array([[case.probabilities.get(name, 0.0) for name in classes] for case in known]).reshape(len(known), len(classes))
    if len(known) < LEAST_CASES or len(classes) < 2 or not np.allclose(given.sum(1), 1.0, atol=0.01):
        return None
    test = Cases.of(baseline, classes)
    heat = temperature(test)
    probabilities = tempered(given, heat)
    labels = np.array([place[case.truth or ""] for case in known], np.int64)
    patients = patients_of(known)
    usual = _excess(tempered(test.probabilities, heat), test.truth, test.patients) if test.count >= LEAST_TEST_CASES else None
    risen = rise(contradictions(probabilities, labels, patients), probabilities.argmax(1))
    rate, low, high = noise_rate(probabilities, labels, patients, usual, risen)
    wrong = probability_wrong(probabilities, labels, max(rate, LEAST_NOISE), risen.share)
    order = [n for n in np.argsort(-wrong, kind="stable") if wrong[n] >= SURE]
    proposed = probabilities.argmax(1)
    return Noise(
        cases=len(known),
        rate=rate,
        low=low,
        high=high,
        temperature=heat,
        matrix=tuple(_cells(probabilities, labels, patients, classes, seed)),
        suspects=tuple(_suspect(known[n], classes[proposed[n]], float(wrong[n])) for n in order),
        risen=float(risen.share[-max(1, len(known) // 10) :].mean()),
    )


def _suspect(case: ScoredCase, proposed: str, sure: float) -> Suspect:
    return Suspect(case.study_key, case.truth or "", case.source, proposed, sure, case.acquired_at)


def temperature(test: Cases) -> float:
    """What the logarithms of the probabilities must be divided by to be right on the test set; 1 with too few cases."""
    if test.count < LEAST_TEST_CASES:
        return 1.0
    rows = np.arange(test.count)

    def loss(log_heat: float) -> float:
        return -float(np.log(np.maximum(tempered(test.probabilities, np.exp(log_heat))[rows, test.truth], _TINY)).mean())

    return float(np.exp(minimize_scalar(loss, bounds=(np.log(0.2), np.log(10.0)), method="bounded").x))


def tempered(probabilities: Floats, heat: float) -> Floats:
    """[n, k] with all logarithms divided by `heat`, adding up to one again."""
    logs = np.log(np.maximum(probabilities, _TINY)) / heat
    shares = np.exp(logs - logs.max(1, keepdims=True))
    found: Floats = shares / shares.sum(1, keepdims=True)
    return found


class Excess(NamedTuple):
    """How much oftener labels contradict the first class than the probabilities allow for, and the variance of that."""

    rate: float
    variance: float


def noise_rate(
    probabilities: Floats, labels: Integers, patients: Integers, usual: Excess | None = None, risen: Rise | None = None
) -> tuple[float, float, float]:
    """Share of wrong labels with 95 % limits, each wrong label being any other class alike.

    `usual` is the same of the test set, whose labels are taken for right: what shows there too is no wrong label but the
    probabilities' own error, which a temperature leaves. `risen` is what is taken for the model's. The variances of both are
    part of the limits.
    """
    found = _excess(probabilities, labels, patients, risen)
    rate, variance = (found.rate - usual.rate, found.variance + usual.variance) if usual else found
    error = _Z * float(np.sqrt(variance))
    return tuple(float(min(max(value, 0.0), 1.0)) for value in (rate, rate - error, rate + error))  # type: ignore[return-value]


def contradictions(probabilities: Floats, labels: Integers, patients: Integers) -> Contradictions:
    """What labels say against the first class of each case."""
    first, sure = probabilities.argmax(1), probabilities.max(1)
    scale = sure - (1 - sure) / (probabilities.shape[1] - 1)
    return Contradictions(sure - (labels == first), scale, sure * (1 - sure), patients)


def _excess(probabilities: Floats, labels: Integers, patients: Integers, risen: Rise | None = None) -> Excess:
    """With a share e of wrong labels, a case of which class j has probability p is labelled j with p (1 - e) + (1 - p) e / (k - 1).

    Summed over cases of the model's first class and solved for e; the variance is that of a ratio clustered by patient, and of
    what has `risen`, taken as one unknown.
    """
    missed, scale, _, _ = contradictions(probabilities, labels, patients)
    missed = missed - risen.share * scale if risen else missed
    rate = float(missed.sum() / scale.sum())
    together = np.bincount(patients, (missed - rate * scale) / scale.sum())
    unknown = float(risen.error.mean()) ** 2 if risen else 0.0
    return Excess(rate, float(together @ together) + unknown)


def probability_wrong(probabilities: Floats, labels: Integers, rate: float, risen: Floats | float = 0.0) -> Floats:
    """[n] probability that a label is wrong, given the image, the label and the share of wrong labels.

    `risen` [n] is the share of cases that the model has lately got wrong beside: then the label is right.
    """
    right = probabilities[np.arange(len(labels)), labels]
    others = (1 - right) / (probabilities.shape[1] - 1)
    found: Floats = others * rate / (right * np.maximum(1 - rate - risen, 0.0) + others * (rate + risen))
    return found


def _cells(probabilities: Floats, labels: Integers, patients: Integers, classes: Sequence[str], seed: int) -> list[Cell]:
    """Off-diagonal cells that are not empty, with percentile intervals over draws of patients."""
    point = _joint(probabilities, labels, np.ones(len(labels)))
    draws = np.random.default_rng(seed).multinomial(
        patients.max() + 1, np.full(patients.max() + 1, 1 / (patients.max() + 1)), DRAWS
    )
    drawn = np.stack([_joint(probabilities, labels, draw[patients].astype(float)) for draw in draws])
    low, high = np.nanquantile(drawn, (0.025, 0.975), axis=0)
    cells = [(i, j) for i in range(len(classes)) for j in range(len(classes)) if i != j and point[i, j] > 0]
    return [Cell(classes[i], classes[j], float(point[i, j]), float(low[i, j]), float(high[i, j])) for i, j in cells]


def _joint(probabilities: Floats, labels: Integers, weights: Floats) -> Floats:
    """[k, k] share of each label (row) that confidently is a class (column); the rows of counted cases add up to one.

    Confident: at least as probable as it is on average of the cases so labelled (Northcutt, Jiang and Chuang 2021).
    """
    k = probabilities.shape[1]
    counts = np.bincount(labels, weights, k)
    sums = np.bincount(labels, weights * probabilities[np.arange(len(labels)), labels], k)
    thresholds = np.where(counts > 0, sums / np.maximum(counts, _TINY), np.inf)
    above: NDArray[np.bool_] = probabilities >= thresholds
    best, sure = np.where(above, probabilities, -1.0).argmax(1), above.any(1)
    found = np.bincount(labels[sure] * k + best[sure], weights[sure], k * k).reshape(k, k)
    shares: Floats = found / np.maximum(found.sum(1, keepdims=True), _TINY)
    return shares

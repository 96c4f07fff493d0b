"""How much oftener labels contradict a model since some time than before: what is taken for the model's, not for wrong labels.

A model that becomes worse contradicts right labels, from then on; labels are wrong as often before as after. When it became
worse is not known: every tenth of the cases in the order of acquisition is a candidate, and so is that nothing rose. Each counts
by how well it explains what was seen (a mean over models; Hoeting, Madigan, Raftery and Volinsky 1999). First all predicted
classes are looked at together, then what is left in each of them, because a model often becomes worse at one.
"""

from typing import Final, NamedTuple

import numpy as np
from scipy.special import ndtr

from services.evaluation.cases import Floats, Integers

STEPS: Final = 10
LEAST: Final = 30
"""Cases before and after a candidate."""
USUAL: Final = 0.2
"""Standard deviation of rises that are thought likely before anything was seen."""
PRIOR: Final = 0.1
"""Probability of a rise before anything was seen: chosen by simulation, as small as still spares right labels (docs/labels.md)."""


class Contradictions(NamedTuple):
    """Labels against the first class of n cases in the order of acquisition."""

    missed: Floats
    """[n] probability of the first class, less 1 where the label is it"""
    scale: Floats
    """[n] what a share of contradictions adds to that"""
    variance: Floats
    """[n] of `missed` where the probabilities are right"""
    patients: Integers
    """[n] number of the patient"""

    def take(self, chosen: Integers) -> "Contradictions":
        """These cases only."""
        return Contradictions(self.missed[chosen], self.scale[chosen], self.variance[chosen], self.patients[chosen])


class Rise(NamedTuple):
    """[n] expected share of labels that contradict because of the rise, and its standard deviation."""

    share: Floats
    error: Floats


def rise(cases: Contradictions, first: Integers) -> Rise:
    """The rise at every case; `first` [n] is the number of its predicted class."""
    common = _rise(cases)
    left = cases._replace(missed=cases.missed - common.share * cases.scale)
    share, variance = common.share.copy(), common.error**2
    for name in np.unique(first):
        mine = np.flatnonzero(first == name)
        own = _rise(left.take(mine))
        share[mine] += own.share
        variance[mine] += own.error**2
    return Rise(np.minimum(share, 1.0), np.sqrt(variance))


def _rise(cases: Contradictions) -> Rise:
    n = len(cases.missed)
    places = [place for step in range(1, STEPS) if LEAST <= (place := n * step // STEPS) <= n - LEAST]
    if not places:
        return Rise(np.zeros(n), np.zeros(n))
    found = [_candidate(cases, place) for place in places]
    logs = np.array([np.log((1 - PRIOR) / PRIOR), *(each.log_factor - np.log(len(places)) for each in found)])
    weights = np.exp(logs - logs.max())
    weights /= weights.sum()
    mean, square = np.zeros(n), np.zeros(n)
    for place, each, weight in zip(places, found, weights[1:], strict=True):
        mean[place:] += weight * each.mean
        square[place:] += weight * each.square
    return Rise(mean, np.sqrt(np.maximum(square - mean**2, 0.0)))


class _Candidate(NamedTuple):
    """A rise at one place: log Bayes factor against none, and mean and mean square of its size."""

    log_factor: float
    mean: float
    square: float


def _candidate(cases: Contradictions, place: int) -> _Candidate:
    """A normal difference with a half-normal prior."""
    (before, error), (after, later) = (_share(cases.take(np.arange(*ends))) for ends in ((place,), (place, len(cases.missed))))
    seen, variance, prior = after - before, error + later, USUAL**2
    centre, spread = seen * prior / (variance + prior), np.sqrt(variance * prior / (variance + prior))
    above = max(float(ndtr(centre / spread)), 1e-12)
    density = np.exp(-0.5 * (centre / spread) ** 2) / np.sqrt(2 * np.pi)
    mean = centre + spread * density / above
    explained = seen**2 / 2 * (1 / variance - 1 / (variance + prior))
    factor = np.log(2 * above) + np.log(variance / (variance + prior)) / 2 + explained
    return _Candidate(float(factor), float(mean), float(spread**2 + centre * mean))


def _share(cases: Contradictions) -> tuple[float, float]:
    """Contradictions beyond what the probabilities allow for, and the variance of that; never less than chance alone gives."""
    whole = cases.scale.sum()
    share = float(cases.missed.sum() / whole)
    together = np.bincount(cases.patients, cases.missed - share * cases.scale)
    return share, float(max(together @ together, cases.variance.sum()) / whole**2)

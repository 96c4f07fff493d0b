"""Evidence that one group of cases is read worse than the others at the same time, valid however often one looks.

In each batch and true class the errors of a group, given all errors, are hypergeometric where the group is read like the
others, whatever the error rate is and however it moves: a decline of everybody, or another mix of classes in the group, is no
evidence. The likelihood ratio of Fisher's noncentral hypergeometric law at an odds ratio above 1 has mean 1 then, so products
over batches are a martingale. A start in each batch has as weight one over the batches of a year: after one year the sum is an
e-process, which exceeds 1/alpha with probability alpha at most (Ville 1939), after N years with N alpha. Mixtures over classes,
odds ratios and groups keep that; single groups follow by closed testing with weighted means of e-values (Vovk and Wang 2021),
which holds under any dependence between facets.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.special import gammaln, logsumexp

from services.evaluation.cases import Floats, Integers
from services.evaluation.detector import YEAR

ODDS_RATIOS: Final = (1.5, 2.0, 3.0, 5.0, 10.0)
"""Odds of an error in the group over those of the others, under the alternatives."""
LOG_CAP: Final = 138.0


@dataclass(frozen=True)
class Leaf:
    """One group: its facet, its place among the facet's groups by first appearance (from 0), and its log evidence."""

    facet: int
    place: int
    log_evidence: float


def log_ratios(group: tuple[Integers, Integers], every: tuple[Integers, Integers]) -> Floats:
    """[..., D] log likelihood ratio at each odds ratio, from errors and cases of the group and of all, each [...]."""
    errors, cases = group
    cells = np.stack([cases, every[0], every[1]], -1).reshape(-1, 3)
    unique, place = np.unique(cells, axis=0, return_inverse=True)
    odds = np.log(np.array(ODDS_RATIOS))
    found = errors[..., None] * odds - _log_moments(unique, odds)[place.reshape(errors.shape)]
    return np.asarray(found, np.float64)


def _log_moments(cells: Integers, odds: Floats) -> Floats:
    """[U, D] log of the mean of odds ratio to the power of the group's errors, for [U, 3] group cases, all errors, all cases."""
    drawn, wrong, total = (cells[:, column, None] for column in range(3))
    hits = np.arange(int(np.minimum(drawn, wrong).max(initial=0)) + 1)
    possible = (hits <= np.minimum(drawn, wrong)) & (drawn - hits <= total - wrong)
    logs = _log_choose(wrong, hits) + _log_choose(total - wrong, drawn - hits) - _log_choose(total, drawn)
    logs = np.where(possible, logs, -np.inf)
    found: Floats = logsumexp(logs[:, None] + hits * odds[:, None], axis=-1)
    return found


def _log_choose(n: Integers, k: Integers) -> Floats:
    """Anything where it is not possible; the caller leaves that out."""
    inside = np.clip(k, 0, n)
    return np.asarray(gammaln(n + 1.0) - gammaln(inside + 1.0) - gammaln(n - inside + 1.0), np.float64)


def streams(errors: Integers, cases: Integers, every: tuple[Integers, Integers]) -> Floats:
    """[G, T, K + 1, D] log likelihood ratios of groups [G, T, K]: each class, then all classes (the same odds ratio in each)."""
    whole = tuple(np.broadcast_to(part, errors.shape) for part in every)
    each = log_ratios((errors, cases), (whole[0], whole[1]))
    return np.concatenate([each, each.sum(2, keepdims=True)], 2)


def evidence(ratios: Floats, per_year: int = YEAR) -> Floats:
    """[G, T] log of the e-process of each group after each batch, from `streams`; a year has `per_year` batches."""
    value = np.full(ratios[:, 0].shape, -np.inf)
    found = np.empty(ratios.shape[:2])
    start = -np.log(per_year)
    for batch in range(ratios.shape[1]):
        value = np.minimum(np.logaddexp(value, start) + ratios[:, batch], LOG_CAP)
        found[:, batch] = logsumexp(value, axis=(-2, -1)) - np.log(value[0].size)
    return found


def weight(facets: int, place: int) -> float:
    """Share of the risk that a group has: facets alike, groups in the order of appearance as 1/2, 1/6, 1/12 … (sum 1)."""
    return 1 / facets / ((place + 1) * (place + 2))


def adjusted(leaves: Sequence[Leaf], facets: int) -> Floats:
    """[L] log of the least weighted mean of e-values over all sets that contain the leaf.

    At or above log(1/alpha) the group is worse at a familywise risk of alpha.
    """
    values = _Values.of(leaves, facets)
    return np.array([values.least_mean(np.array([number])) for number in range(len(leaves))])


def adjusted_facet(leaves: Sequence[Leaf], facets: int, facet: int) -> float:
    """The same of a whole facet: whether some of its groups are worse, be it unknown which."""
    inside = np.flatnonzero([leaf.facet == facet for leaf in leaves])
    return _Values.of(leaves, facets).least_mean(inside) if len(inside) else -np.inf


@dataclass(frozen=True)
class _Values:
    """E-values [L] with their weights, and their order from the smallest."""

    value: Floats
    weight: Floats
    order: Integers

    @classmethod
    def of(cls, leaves: Sequence[Leaf], facets: int) -> "_Values":
        value = np.exp([leaf.log_evidence for leaf in leaves])
        return cls(value, np.array([weight(facets, leaf.place) for leaf in leaves]), np.argsort(value, kind="stable"))

    def least_mean(self, inside: Integers) -> float:
        """Log of the least weighted mean over sets that contain `inside`: it is reached by adding the smallest others."""
        others = self.order[~np.isin(self.order, inside)]
        sums = np.cumsum([(self.value * self.weight)[inside].sum(), *(self.value * self.weight)[others]])
        masses = np.cumsum([self.weight[inside].sum(), *self.weight[others]])
        return float(np.log(max(float((sums / masses).min()), 1e-300)))

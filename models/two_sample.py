"""Do two samples come from one distribution? Tests on numbers, words and vectors, with p-values that need no assumption.

Sources: Gretton et al., A kernel two-sample test (JMLR 2012); Lopez-Paz, Oquab, Revisiting classifier two-sample tests (ICLR
2017); Besag, Clifford, Sequential Monte Carlo p-values (Biometrika 1991).
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2_contingency, fisher_exact, ks_2samp

Array = NDArray[np.float64]
Keys = NDArray[np.float32]
EXCEEDANCES: Final = 10
"""A permutation test stops when so many permutations were at least as extreme: its p-value is large then."""
_CHUNK: Final = 500
_CATEGORIES: Final = 8
_FOLDS: Final = 5
_RIDGE: Final = 1.0
_LEAST_STRATUM: Final = 5


@dataclass(frozen=True)
class Comparison:
    """A test's statistic and p-value."""

    statistic: float
    p_value: float


Test = Callable[[NDArray[np.floating], NDArray[np.floating], np.random.Generator, int], Comparison]
"""A permutation test on vectors [n, d] and [m, d] with at most so many permutations."""


def numbers(first: Sequence[float] | NDArray[np.floating], second: Sequence[float] | NDArray[np.floating]) -> Comparison:
    """Kolmogorov-Smirnov on two samples of numbers; p = 1 where one is empty."""
    if not len(first) or not len(second):
        return Comparison(0.0, 1.0)
    found = ks_2samp(first, second, method="asymp")
    return Comparison(float(found.statistic), float(found.pvalue))


def words(first: Sequence[str], second: Sequence[str]) -> Comparison:
    """Chi-square on two samples of words, rare ones pooled (Fisher's exact test for two); p = 1 where one sample is empty.

    The statistic is Cramer's V.
    """
    total = Counter([*first, *second])
    place = {value: number for number, (value, _) in enumerate(total.most_common(_CATEGORIES))}
    counts = [
        np.bincount([place.get(value, _CATEGORIES) for value in values], minlength=_CATEGORIES + 1) for values in (first, second)
    ]
    table = np.array(counts)
    table = table[:, table.sum(0) > 0]
    if table.shape[1] < 2 or not table.sum(1).all():
        return Comparison(0.0, 1.0)
    found = chi2_contingency(table, correction=False)
    p_value = fisher_exact(table).pvalue if table.shape[1] == 2 else found.pvalue
    return Comparison(float(np.sqrt(found.statistic / table.sum())), float(p_value))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for their number (Holm 1979)."""
    order = np.argsort(p_values)
    adjusted, highest = np.ones(len(p_values)), 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(p_values[place] * (len(p_values) - rank), 1.0))
        adjusted[place] = highest
    return [float(each) for each in adjusted]


def kernel(
    first: NDArray[np.floating], second: NDArray[np.floating], generator: np.random.Generator, most: int = 999
) -> Comparison:
    """Maximum mean discrepancy of two samples of vectors [n, d], [m, d], with at most `most` permutations.

    Gaussian kernel at the median distance, on standardised coordinates. The statistic is the biased estimate of MMD squared.
    """
    return stratified_kernel(first, second, [""] * len(first), [""] * len(second), generator, most)


def stratified_kernel(
    first: NDArray[np.floating],
    second: NDArray[np.floating],
    first_strata: Sequence[str],
    second_strata: Sequence[str],
    generator: np.random.Generator,
    most: int = 999,
) -> Comparison:
    """The same within strata, weighted by their size: another mix of strata alone changes nothing.

    Strata with fewer than five vectors in one of the samples do not count; p = 1 where none is left.
    """
    kept = _shared(first_strata, second_strata)
    places = [np.array([kept.get(name, -1) for name in strata], np.int64) for strata in (first_strata, second_strata)]
    strata = np.concatenate([each[each >= 0] for each in places])
    if not len(strata):
        return Comparison(0.0, 1.0)
    pooled = np.concatenate([each[place >= 0] for each, place in zip((first, second), places, strict=True)])
    size = int((places[0] >= 0).sum())
    matrix = _gaussian(pooled) * (strata[:, None] == strata)
    members = [np.flatnonzero(strata == number) for number in range(len(kept))]
    counts = [(int((each < size).sum()), int((each >= size).sum())) for each in members]
    share = np.array([n * m / (n + m) for n, m in counts])
    scale = np.sqrt(share / share.sum())

    def weights(keys: Keys) -> NDArray[np.float32]:
        """[n, permutations]: within each stratum the cases of the smallest keys positive, the others negative."""
        found = np.empty(keys.shape, np.float32)
        for each, (n, m), factor in zip(members, counts, scale, strict=True):
            found[each] = np.where(_smallest(keys[each], n), factor / n, -factor / m)
        return found

    def statistic(keys: Keys) -> Array:
        chosen = weights(keys)
        return np.asarray((chosen * (matrix @ chosen)).sum(0), np.float64)

    own = np.arange(len(pooled), dtype=np.float32)[:, None]
    return _permuted(float(statistic(own)[0]), _shuffled(len(pooled), statistic, generator), most)


def classifier(
    first: NDArray[np.floating], second: NDArray[np.floating], generator: np.random.Generator, most: int = 999
) -> Comparison:
    """Classifier two-sample test: out-of-fold AUC of a linear classifier that tells the samples apart, with permutations.

    The classifier is the regularised least-squares one (Fisher's discriminant). Its predictions are linear in the labels, so
    that refitting it for every permutation is a product of matrices; logistic regression would have to be fitted anew.
    """
    pooled = np.concatenate([first, second]).astype(np.float64)
    pooled = (pooled - pooled.mean(0)) / (pooled.std(0) + 1e-9)
    operator = _out_of_fold(pooled, generator)

    def statistic(keys: Keys) -> Array:
        return _auc(operator, (~_smallest(keys, len(first))).astype(np.float64))

    own = np.arange(len(pooled), dtype=np.float32)[:, None]
    return _permuted(float(statistic(own)[0]), _shuffled(len(pooled), statistic, generator), most)


def _shared(first: Sequence[str], second: Sequence[str]) -> dict[str, int]:
    here, there = Counter(first), Counter(second)
    names = sorted(name for name in here if min(here[name], there[name]) >= _LEAST_STRATUM)
    return {name: number for number, name in enumerate(names)}


def _gaussian(pooled: NDArray[np.floating]) -> NDArray[np.float32]:
    scaled = ((pooled - pooled.mean(0)) / (pooled.std(0) + 1e-9)).astype(np.float32)
    squares = (scaled * scaled).sum(1)
    distances = np.maximum(squares[:, None] + squares - 2 * scaled @ scaled.T, 0)
    found: NDArray[np.float32] = np.exp(-distances / max(float(np.median(distances)), 1e-9))
    return found


def _shuffled(count: int, statistic: Callable[[Keys], Array], generator: np.random.Generator) -> Iterator[Array]:
    """Statistics of permutations without end: the order of random keys is a random permutation."""
    while True:
        yield statistic(generator.random((count, _CHUNK), dtype=np.float32))


def _smallest(keys: Keys, count: int) -> NDArray[np.bool_]:
    """Which `count` of the keys [n, permutations] are the smallest of their column."""
    found: NDArray[np.bool_] = keys <= np.partition(keys, count - 1, axis=0)[count - 1]
    return found


def _permuted(observed: float, draws: Iterator[Array], most: int) -> Comparison:
    """P-value from permutations in chunks; stops early when enough were as extreme, which keeps it valid."""
    extreme, done = 0, 0
    while done < most and extreme < EXCEEDANCES:
        chunk = next(draws)[: most - done]
        hits = np.flatnonzero(chunk >= observed - 1e-12)
        if extreme + len(hits) >= EXCEEDANCES:
            done += int(hits[EXCEEDANCES - extreme - 1]) + 1
            return Comparison(observed, EXCEEDANCES / done)
        extreme, done = extreme + len(hits), done + len(chunk)
    return Comparison(observed, (extreme + 1) / (done + 1))


def _out_of_fold(features: Array, generator: np.random.Generator) -> Array:
    """[n, n] operator from labels to out-of-fold predictions of ridge regression."""
    count = len(features)
    folds = generator.permutation(count) % _FOLDS
    design = np.c_[features, np.ones(count)]
    penalty = np.diag(np.r_[np.full(features.shape[1], _RIDGE), 1e-6]) * np.sqrt(count)
    operator = np.zeros((count, count))
    for fold in range(_FOLDS):
        inside, outside = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        taught = design[inside]
        operator[np.ix_(outside, inside)] = design[outside] @ np.linalg.solve(taught.T @ taught + penalty, taught.T)
    return operator


def _auc(operator: Array, labels: Array) -> Array:
    """AUC of the predictions of labels [n, permutations]."""
    order = (operator @ labels).argsort(axis=0)
    ranks = np.arange(1, len(labels) + 1)[:, None]
    ones = labels.sum(0)
    found: Array = ((np.take_along_axis(labels, order, 0) * ranks).sum(0) - ones * (ones + 1) / 2) / (ones * (len(labels) - ones))
    return found

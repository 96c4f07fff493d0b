"""Column by column: is a window's distribution that of the reference? With thresholds for a whole year by simulation.

A group of columns (the probabilities; the image statistics; the facets) has one statistic: minus log10 of the smallest
p-value over its columns, times their number (Kolmogorov-Smirnov, chi-square, Bonferroni). Its threshold is what the greatest
of a year's statistics exceeds with the wanted probability where nothing changes: reference and windows are drawn anew from the
reference's own rows, so that columns that move together, ties and the reference's own luck are part of it.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtrc, kolmogorov

Array = NDArray[np.float64]
Counts = NDArray[np.float32]
Integers = NDArray[np.int64]
LEAST_P: Final = 1e-300
MOST_WORDS: Final = 12
YEARS: Final = 250
ATOMS: Final = 400
"""Rows of the reference that the simulation draws from."""


class Column(Protocol):
    """A column of the reference, able to compare samples that are given as counts of its rows."""

    @property
    def name(self) -> str:
        """What the column holds."""

    def p_values(self, reference: Counts, windows: Counts) -> Array:
        """[W] p-values of windows [n, W] against a reference [n, 1], both as counts of rows."""


@dataclass(frozen=True)
class Numbers:
    """A column of numbers."""

    name: str
    values: Array

    def p_values(self, reference: Counts, windows: Counts) -> Array:
        """Kolmogorov-Smirnov."""
        order = np.argsort(self.values, kind="stable")
        last = np.r_[np.diff(self.values[order]) > 0, True]
        size, sizes = reference.sum(), windows.sum(0)
        steps = windows[order].cumsum(0)
        steps /= sizes
        steps -= reference[order].cumsum(0) / size
        distance = np.abs(steps if last.all() else steps[last]).max(0)
        return np.asarray(kolmogorov(distance * np.sqrt(size * sizes / (size + sizes))), np.float64)


@dataclass(frozen=True)
class Words:
    """A column of words; those that are rare in the reference are one."""

    name: str
    codes: Integers
    width: int

    @classmethod
    def of(cls, name: str, values: Sequence[str], known: Sequence[str]) -> "Words":
        """`known` are the reference's values, which decide what is rare."""
        common = [value for value, _ in Counter(known).most_common(MOST_WORDS)]
        place = {value: number for number, value in enumerate(common)}
        return cls(name, np.array([place.get(value, len(common)) for value in values], np.int64), len(common) + 1)

    def p_values(self, reference: Counts, windows: Counts) -> Array:
        """Chi-square of the table of both samples."""
        shown = np.eye(self.width, dtype=np.float32)[self.codes].T
        usual, now = shown @ reference, shown @ windows
        size, sizes = usual.sum(), now.sum(0)
        total = usual + now
        expected = total * (sizes / (size + sizes))
        present = total > 0
        square = (now - expected) ** 2
        with np.errstate(divide="ignore", invalid="ignore"):
            parts = np.where(present, square / expected + square / (total - expected), 0)
        return np.asarray(chdtrc(np.maximum(present.sum(0) - 1, 1), parts.sum(0)), np.float64)


def group_statistics(columns: Sequence[Column], reference: Counts, windows: Counts) -> Array:
    """[W] statistics of a group of columns."""
    found = np.stack([column.p_values(reference, windows) for column in columns])
    return strength(np.minimum(found.min(0) * len(columns), 1.0))


def strength(p_values: Array) -> Array:
    """Minus log10 of p-values."""
    return np.asarray(-np.log10(np.maximum(p_values, LEAST_P)), np.float64)


class YearlyStatistic(Protocol):
    """Statistics of windows against a reference, both as counts of the reference's rows."""

    def __call__(self, reference: Counts, windows: Counts) -> Array:
        """[W] statistics of windows [n, W] against a reference [n, 1]."""


@dataclass(frozen=True)
class Year:
    """What a year without change is like: rows to draw from, sizes of reference and windows, windows a year."""

    rows: int
    reference: int
    window: int
    looks: int


def thresholds(year: Year, statistics: Sequence[YearlyStatistic], chance: float, seed: int, years: int = YEARS) -> list[float]:
    """For each statistic the level that a year's greatest exceeds with probability `chance` where nothing changes."""
    generator = np.random.default_rng(seed)
    even = np.full(year.rows, 1 / year.rows)
    greatest = np.empty((years, len(statistics)))
    for place in range(years):
        reference = generator.multinomial(year.reference, even)[:, None].astype(np.float32)
        windows = np.ascontiguousarray(generator.multinomial(year.window, even, size=year.looks).T, np.float32)
        greatest[place] = [each(reference, windows).max() for each in statistics]
    ordered = np.sort(greatest, 0)
    allowed = int(years * chance)
    return [float(np.nextafter(level, np.inf)) for level in ordered[years - 1 - allowed]]

"""How long labels take: Kaplan-Meier curves over all predictions, and whether wrong ones get their label sooner than right ones.

A prediction without a label is no short delay but one that is longer than what has passed (right censoring); leaving those
out makes labels look quicker than they are.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri
from scipy.stats import rankdata

from services.evaluation.cases import Floats
from services.evaluation.scored import ScoredCase

DAY_S: Final = 86_400.0
_Z: Final = float(ndtri(0.975))


@dataclass(frozen=True)
class Curve:
    """Kaplan-Meier estimate of the share that still waits. `low` and `high` are its 95 % limits (log-log, Greenwood)."""

    days: Floats
    """[m] distinct delays at which labels came, ascending"""
    waiting: Floats
    """[m] share without a label after that delay"""
    low: Floats
    high: Floats
    """Not a number where nothing is left to wait: the curve says nothing about how much later that could have been."""


class Quantile(NamedTuple):
    """Days after which a share has its label, with 95 % limits; None where the curve never gets there."""

    days: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Delay:
    """Labels of one group of predictions."""

    facet: str
    group: str
    cases: int
    labelled: int
    median: Quantile
    ninety: Quantile


class Sooner(NamedTuple):
    """Wrong predictions against right ones: the chance that of a pair the wrong one got its label first, and its p-value."""

    probability: float
    p_value: float
    wrong: int
    right: int


def kaplan_meier(days: Floats, labelled: NDArray[np.bool_]) -> Curve:
    """Of delays [n], those not labelled being censored at their value (Kaplan and Meier 1958; Greenwood 1926).

    A case censored at the very time of a label counts as waiting then.
    """
    times, counts = np.unique(days[labelled], return_counts=True)
    at_risk = len(days) - np.searchsorted(np.sort(days), times, side="left")
    waiting = np.cumprod(1.0 - counts / at_risk).astype(float)
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = np.cumsum(counts / (at_risk * (at_risk - counts)))
        width = _Z * np.sqrt(variance) / np.log(waiting)
        low, high = waiting ** np.exp(-width), waiting ** np.exp(width)
    undefined = ~np.isfinite(low + high)
    return Curve(times, waiting, np.where(undefined, 0.0, low), np.asarray(high, float))


def quantile(curve: Curve, share: float) -> Quantile:
    """Days after which `share` has its label; limits where the curve's limits pass (Brookmeyer and Crowley 1982)."""
    return Quantile(*(_first(curve.days, edge <= 1.0 - share + 1e-12) for edge in (curve.waiting, curve.low, curve.high)))


def _first(days: Floats, passed: NDArray[np.bool_]) -> float | None:
    return float(days[passed.argmax()]) if passed.any() else None


def delay_days(cases: Sequence[ScoredCase], now: datetime) -> tuple[Floats, NDArray[np.bool_]]:
    """[n] days from score to label, or to `now` without one, and [n] whether there is one."""
    ends = [case.joined_at or now for case in cases]
    days = np.array([(end - case.scored_at).total_seconds() / DAY_S for case, end in zip(cases, ends, strict=True)], float)
    return np.maximum(days, 0.0), np.array([case.joined_at is not None for case in cases], bool)


GROUPINGS: Final[dict[str, Callable[[ScoredCase], str | None]]] = {
    "all": lambda _: "all",
    "predicted": lambda case: case.predicted,
}
"""What is known of every prediction. By source or truth there is no such curve: both are known of labelled cases only."""


def delays(cases: Sequence[ScoredCase], now: datetime, facets: Sequence[str] = ()) -> list[Delay]:
    """Curves' medians and 90 % points of all predictions, by predicted class, and by these facets."""
    found = []
    for name, group_of in GROUPINGS.items():
        found += _by(name, cases, group_of, now)
    for facet in facets:
        found += _by(facet, cases, lambda case, facet=facet: case.facets.get(facet), now)  # type: ignore[misc]
    return found


def _by(name: str, cases: Sequence[ScoredCase], group_of: Callable[[ScoredCase], str | None], now: datetime) -> list[Delay]:
    groups: dict[str, list[ScoredCase]] = {}
    for case in cases:
        if (group := group_of(case)) is not None:
            groups.setdefault(group, []).append(case)
    return [_delay(name, group, groups[group], now) for group in sorted(groups)]


def _delay(name: str, group: str, cases: Sequence[ScoredCase], now: datetime) -> Delay:
    days, labelled = delay_days(cases, now)
    curve = kaplan_meier(days, labelled)
    return Delay(name, group, len(cases), int(labelled.sum()), quantile(curve, 0.5), quantile(curve, 0.9))


def by_source(cases: Sequence[ScoredCase]) -> dict[str, tuple[int, float, float]]:
    """Source to (labels, median days, 90 % point) of the labels that came: no curve, see `GROUPINGS`."""
    came = [case for case in cases if case.joined_at is not None and case.source]
    found = {}
    for source in sorted({case.source or "" for case in came}):
        days, _ = delay_days([case for case in came if case.source == source], came[0].scored_at)
        found[source] = (len(days), float(np.median(days)), float(np.quantile(days, 0.9)))
    return found


def wrong_labelled_sooner(cases: Sequence[ScoredCase]) -> Sooner | None:
    """Two-sided rank test (van Elteren 1960) of labelled cases, one of each patient; None without both kinds in a stratum.

    Compared only within one week of scoring and one predicted class: of recent weeks only quick labels have come, for wrong
    and right predictions alike, so this truncation cannot make a difference where there is none.
    """
    chosen = _first_of_patients([case for case in cases if case.joined_at is not None and case.truth is not None])
    strata: dict[Hashable, list[ScoredCase]] = {}
    for case in chosen:
        strata.setdefault((case.predicted, case.scored_at.toordinal() // 7), []).append(case)
    parts = [part for group in strata.values() if (part := _ranks(group)) is not None]
    if not parts:
        return None
    statistic = sum(part.weight * (part.sooner - part.pairs / 2) for part in parts)
    variance = sum(part.weight**2 * part.variance for part in parts)
    if variance == 0.0:
        return None
    pairs = sum(part.pairs for part in parts)
    p_value = 2 * float(ndtr(-abs(statistic) / np.sqrt(variance)))
    return Sooner(sum(part.sooner for part in parts) / pairs, p_value, sum(p.wrong for p in parts), sum(p.right for p in parts))


class _Part(NamedTuple):
    """One stratum: pairs of a wrong and a right case, in how many the wrong one was first (ties half), null variance of that."""

    wrong: int
    right: int
    pairs: float
    sooner: float
    variance: float

    @property
    def weight(self) -> float:
        """Van Elteren's, the best where the effect is the same in all strata."""
        return 1.0 / (self.wrong + self.right + 1)


def _ranks(group: Sequence[ScoredCase]) -> _Part | None:
    days, _ = delay_days(group, group[0].scored_at)
    wrong = np.array([case.predicted != case.truth for case in group])
    m, n = int(wrong.sum()), int((~wrong).sum())
    if not m or not n:
        return None
    ranks = rankdata(days)
    later = float(ranks[wrong].sum()) - m * (m + 1) / 2
    _, ties = np.unique(days, return_counts=True)
    total = m + n
    spread = total + 1 - float((ties.astype(float) ** 3 - ties).sum()) / (total * (total - 1))
    return _Part(m, n, m * n, m * n - later, m * n * spread / 12)


def _first_of_patients(cases: Sequence[ScoredCase]) -> list[ScoredCase]:
    """The case of each patient that was scored first."""
    chosen: dict[str, ScoredCase] = {}
    for case in sorted(cases, key=lambda case: case.scored_at):
        chosen.setdefault(case.patient_key, case)
    return list(chosen.values())

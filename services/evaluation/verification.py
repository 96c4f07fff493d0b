"""Verification bias: which predictions get a label, whether that is by chance, and rates weighted for it.

Missing at random given the predicted class and the model's confidence is assumed: within such a stratum the labelled cases
stand for all. What selects beyond that (a finding in the image that neither shows in) no weighting can see.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr
from scipy.stats import chi2_contingency

from services.evaluation.cases import Floats, Integers
from services.evaluation.delays import delay_days
from services.evaluation.intervals import Interval, jeffreys, matched, spread
from services.evaluation.scored import ScoredCase, patients_of

BINS: Final = 10
"""Bins of confidence within a predicted class, of equal numbers of predictions."""
LEAST_LABELLED: Final = 5
"""Labelled cases that a stratum needs to stand for the others; a smaller one is united with its neighbour."""
DECILES: Final = 10


class Share(NamedTuple):
    """How many predictions of a group have their label."""

    facet: str
    group: str
    cases: int
    labelled: int
    share: float
    low: float
    high: float


class Selection(NamedTuple):
    """Whether the shares of a facet's groups differ beyond chance (chi-square over one case of each patient)."""

    facet: str
    p_value: float
    least: float
    most: float


@dataclass(frozen=True)
class Weighted:
    """A rate over the labelled cases, and over all predictions by weighting. `differs`: p-value of the two being the same."""

    name: str
    raw: Interval
    weighted: Interval
    begg_greenes: float | None
    """Weighted by predicted class alone (Begg and Greenes 1983): where confidence plays no part it agrees."""
    differs: float
    effective_cases: float
    """Labelled cases that would be as good without weights (Kish 1965)."""
    cases: int

    @property
    def matters(self) -> bool:
        """Whether the difference is beyond chance, and beyond the raw rate's own interval."""
        value, low, high = self.weighted.value, self.raw.low, self.raw.high
        return self.differs < 0.05 and value is not None and low is not None and high is not None and not low <= value <= high


@dataclass(frozen=True)
class Verification:
    """What the labels of settled predictions say about the choice of labelled ones."""

    cases: int
    labelled: int
    unreached: float
    """Share of predictions in classes of which none is labelled: no weighting speaks for them."""
    shares: tuple[Share, ...]
    selection: tuple[Selection, ...]
    rates: tuple[Weighted, ...]

    @property
    def selected_by(self) -> Selection | None:
        """The clearest choice, at 5 % over all facets together (Bonferroni); None where there is none."""
        if not self.selection:
            return None
        first = min(self.selection, key=lambda each: each.p_value)
        return first if first.p_value * len(self.selection) < 0.05 else None


def settled(cases: Sequence[ScoredCase], now: datetime, wait_days: float) -> list[ScoredCase]:
    """Predictions old enough to have their label if they ever get one.

    That is older than the time in which nine of ten labels that came so far had come, and at most `wait_days`.
    """
    days, labelled = delay_days(cases, now)
    limit = min(float(np.quantile(days[labelled], 0.9)), wait_days) if labelled.any() else wait_days
    return [case for case in cases if case.scored_at <= now - timedelta(days=limit)]


def verify(cases: Sequence[ScoredCase], classes: Sequence[str], facets: Sequence[str] = ()) -> Verification | None:
    """Of settled predictions; None without any labelled one. Cases of classes the model does not know are left out."""
    known = set(classes)
    chosen = [case for case in cases if case.predicted in known and (case.truth is None or case.truth in known)]
    labelled = np.array([case.truth is not None for case in chosen], bool)
    if not labelled.any():
        return None
    groups = {"predicted": [case.predicted for case in chosen], "confidence decile": _deciles(chosen)}
    groups |= {facet: [case.facets.get(facet, "") for case in chosen] for facet in facets}
    independent = _first_places(chosen)
    strata, reached = stratify(chosen, labelled)
    return Verification(
        cases=len(chosen),
        labelled=int(labelled.sum()),
        unreached=1.0 - float(reached.mean()),
        shares=tuple(share for name, values in groups.items() for share in _shares(name, values, labelled)),
        selection=tuple(
            found
            for name, values in groups.items()
            if (found := _selection(name, np.array(values, dtype=str)[independent], labelled[independent]))
        ),
        rates=tuple(_rates([case for case, ok in zip(chosen, reached, strict=True) if ok], classes, strata[reached])),
    )


def _deciles(cases: Sequence[ScoredCase]) -> list[str]:
    confidence = np.array([case.confidence for case in cases])
    place = np.argsort(np.argsort(confidence, kind="stable"), kind="stable") * DECILES // max(len(cases), 1)
    return [f"{1 + number:02d}" for number in place]


def _shares(name: str, values: Sequence[str], labelled: NDArray[np.bool_]) -> list[Share]:
    found = []
    places = np.array(values, dtype=str)
    for group in sorted(set(values)):
        mine = places == group
        hits, cases = int(labelled[mine].sum()), int(mine.sum())
        found.append(Share(name, group, cases, hits, hits / cases, *jeffreys(hits, cases)))
    return found


def _selection(name: str, values: NDArray[np.str_], labelled: NDArray[np.bool_]) -> Selection | None:
    """None where there is one group, or all or none are labelled. Groups too small for the test are taken together."""
    groups, place = np.unique(values, return_inverse=True)
    counts = np.stack([np.bincount(place, ~labelled, len(groups)), np.bincount(place, labelled, len(groups))])
    rare = counts.sum(0) * min(labelled.mean(), 1 - labelled.mean()) < 5
    table = np.column_stack([counts[:, ~rare], counts[:, rare].sum(1)]) if rare.any() else counts
    table = table[:, table.sum(0) > 0]
    if table.shape[1] < 2 or not table.sum(1).all():
        return None
    shares = table[1] / table.sum(0)
    p_value = float(chi2_contingency(table, correction=False).pvalue)
    return Selection(name, p_value, float(shares.min()), float(shares.max()))


def _first_places(cases: Sequence[ScoredCase]) -> Integers:
    """Places of one case of each patient: the first scored."""
    order = sorted(range(len(cases)), key=lambda place: cases[place].scored_at)
    chosen: dict[str, int] = {}
    for place in order:
        chosen.setdefault(cases[place].patient_key, place)
    return np.array(sorted(chosen.values()), np.int64)


def stratify(cases: Sequence[ScoredCase], labelled: NDArray[np.bool_]) -> tuple[Integers, NDArray[np.bool_]]:
    """[n] stratum of predicted class and confidence, and [n] whether any case of its class is labelled."""
    predicted = np.array([case.predicted for case in cases], dtype=str)
    confidence = np.array([case.confidence for case in cases])
    strata, reached = np.zeros(len(cases), np.int64), np.zeros(len(cases), bool)
    used = 0
    for name in np.unique(predicted):
        mine = np.flatnonzero(predicted == name)
        reached[mine] = labelled[mine].any()
        bins = _bins(confidence[mine], labelled[mine])
        strata[mine] = used + bins
        used += int(bins.max()) + 1
    return strata, reached


def _bins(confidence: Floats, labelled: NDArray[np.bool_]) -> Integers:
    """Quantile bins, united from below until each has enough labelled cases; the last joins the one before it if it has not."""
    edges = np.unique(np.quantile(confidence, np.linspace(0, 1, BINS + 1)[1:-1]))
    fine = np.searchsorted(edges, confidence, side="right")
    number, held = 0, 0
    new = np.zeros(len(edges) + 1, np.int64)
    for place in range(len(edges) + 1):
        new[place] = number
        held += int(labelled[fine == place].sum())
        if held >= LEAST_LABELLED:
            number, held = number + 1, 0
    if number and held < LEAST_LABELLED:
        new[new == number] = number - 1
    return new[fine]


def _rates(cases: Sequence[ScoredCase], classes: Sequence[str], strata: Integers) -> list[Weighted]:
    labelled = np.array([case.truth is not None for case in cases], bool)
    right = np.array([case.truth == case.predicted for case in cases], bool)
    patients = patients_of(cases)
    by_class = np.unique(np.array([case.predicted for case in cases], dtype=str), return_inverse=True)[1].astype(np.int64)
    found = [weigh("accuracy", right, labelled, labelled, strata, by_class, patients)]
    for name in classes:
        of_class = np.array([case.truth == name for case in cases], bool)
        if of_class.any():
            found.append(weigh(f"recall:{name}", right & of_class, of_class, labelled, strata, by_class, patients))
    return found


def weigh(
    name: str,
    hit: NDArray[np.bool_],
    counted: NDArray[np.bool_],
    labelled: NDArray[np.bool_],
    strata: Integers,
    coarse: Integers,
    patients: Integers,
) -> Weighted:
    """Share of `hit` among `counted`, both [n] and only known where `labelled`: raw, and weighted by stratum (Hajek's ratio)."""
    flat = np.zeros(len(labelled), np.int64)
    raw, raw_influence = _ratio(hit, counted, labelled, flat, only_labelled=True)
    value, influence = _ratio(hit, counted, labelled, strata)
    check, _ = _ratio(hit, counted, labelled, coarse)
    units = len(np.unique(patients[counted]))
    weights = _weights(labelled, strata)[counted]
    effective = float(weights.sum() ** 2 / (weights @ weights))
    together = np.bincount(patients, influence - raw_influence)
    error = float(np.sqrt(together @ together))
    differs = 2 * float(ndtr(-abs(value - raw) / error)) if error else 1.0
    return Weighted(
        name=name,
        raw=matched(raw, spread(raw_influence, patients, units=units), units),
        weighted=matched(value, spread(influence, patients, units=units), max(int(effective), 1)),
        begg_greenes=check,
        differs=differs,
        effective_cases=effective,
        cases=int(counted.sum()),
    )


def _weights(labelled: NDArray[np.bool_], strata: Integers) -> Floats:
    """[n] predictions that each labelled case of its stratum stands for; 0 for those without a label."""
    total = np.bincount(strata).astype(float)
    known = np.bincount(strata, labelled, len(total))
    return np.where(labelled, (total / np.maximum(known, 1))[strata], 0.0)


def _ratio(
    hit: NDArray[np.bool_],
    counted: NDArray[np.bool_],
    labelled: NDArray[np.bool_],
    strata: Integers,
    *,
    only_labelled: bool = False,
) -> tuple[float, Floats]:
    """The ratio and each case's influence on it, which includes that the weights are estimated too.

    A labelled case has its weighted residual less the stratum's mean, and every case, labelled or not, that mean: it is how the
    mix of strata tells on the ratio (two-phase sampling; Särndal, Swensson and Wretman 1992, ch. 9).
    """
    weights = labelled.astype(float) if only_labelled else _weights(labelled, strata)
    below = float(weights @ counted)
    value = float(weights @ hit) / below
    residual = (hit - value * counted) / below
    if only_labelled:
        return value, weights * residual
    known = np.maximum(np.bincount(strata, labelled), 1)
    mean = (np.bincount(strata, labelled * residual) / known)[strata]
    return value, weights * (residual - mean * labelled) + mean

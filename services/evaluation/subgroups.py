"""Which groups of patients and scanners are read worse than the others, since when, and which are too few to tell.

Groups are compared with the other cases of the same batches, so what falls for everybody is the detector's business and no
group's. A group that is worse from its first batch on is told from one that got worse (`since`). How the risk is kept over all
facets, groups and evaluations of a year: `services.evaluation.subgroup_evidence`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import numpy as np
from scipy.stats import norm

from schemas.events import SubgroupResult
from services.evaluation.cases import Floats, Integers
from services.evaluation.detector import YEAR
from services.evaluation.intervals import jeffreys
from services.evaluation.stream import StreamCase
from services.evaluation.subgroup_evidence import ODDS_RATIOS, Leaf, adjusted, adjusted_facet, evidence, streams, weight
from services.evaluation.sufficiency import SEEN_FALL, USUAL_SHARE
from services.runtime.conventions import GROUP_FACETS, POWER

SUBGROUP_FACETS: Final = ("Site", *GROUP_FACETS)
"""What groups are made of; Site is the calling AE title."""
MOST_GROUPS: Final = 100
"""Groups of one facet that are judged, in the order in which they appeared; later ones are others to these."""
MOST_RESULTS: Final = 200
"""Groups that one evaluation lists: worse ones, then those too small to tell, the largest first, then the rest."""


@dataclass(frozen=True)
class _Facet:
    """Groups in the order of their first case, their counts [G, T, K], and those of all cases that have the facet [T, K]."""

    number: int
    groups: tuple[str, ...]
    errors: Integers
    cases: Integers
    every: tuple[Integers, Integers]
    ratios: Floats
    found: Floats
    times: Mapping[int, datetime]
    """Batch to the median time of its cases."""
    per_year: int


def with_site(facets: Mapping[str, str], calling_ae: str | None) -> dict[str, str]:
    """A case's facets with its site, the AE title that sent the study."""
    title = (calling_ae or "").strip()
    return {**facets, "Site": title} if title else dict(facets)


def judge(stream: Sequence[StreamCase], classes: Sequence[str], risk: float, per_year: int = YEAR) -> tuple[SubgroupResult, ...]:
    """Every group of every facet, after the stream's last batch; `stream` holds one case per patient.

    `risk` is the chance in a year of `per_year` batches that any group is called worse while all are read alike. Facets with
    a single group give nothing to compare. Worse groups come first, then by facet.
    """
    last = max((case.batch for case in stream), default=0)
    times = _times(stream)
    facets = [_facet(number, stream, classes, (last, per_year), times) for number in range(len(SUBGROUP_FACETS))]
    judged = [facet for facet in facets if len(facet.groups) > 1]
    leaves = [Leaf(facet.number, place, float(facet.found[place, -1])) for facet in judged for place in range(len(facet.groups))]
    bar, many = math.log(1 / risk), len(SUBGROUP_FACETS)
    worse = dict(zip(((leaf.facet, leaf.place) for leaf in leaves), adjusted(leaves, many), strict=True))
    somewhere = {facet.number: adjusted_facet(leaves, many, facet.number) >= bar for facet in judged}
    results = [
        _result(facet, place, classes, worse[facet.number, place] >= bar, somewhere[facet.number], bar)
        for facet in judged
        for place in range(len(facet.groups))
    ]
    ranked = sorted(results, key=lambda each: (not each.worse, each.more_cases is None, -each.cases))[:MOST_RESULTS]
    place = {name: number for number, name in enumerate(SUBGROUP_FACETS)}
    return tuple(sorted(ranked, key=lambda each: (not each.worse, -each.log_evidence if each.worse else 0.0, place[each.facet])))


def _times(stream: Sequence[StreamCase]) -> dict[int, datetime]:
    of_batch: dict[int, list[datetime]] = {}
    for case in stream:
        of_batch.setdefault(case.batch, []).append(case.acquired_at)
    return {batch: sorted(times)[len(times) // 2] for batch, times in of_batch.items()}


def _facet(
    number: int, stream: Sequence[StreamCase], classes: Sequence[str], span: tuple[int, int], times: Mapping[int, datetime]
) -> _Facet:
    """`span`: batches of the stream, and of a year."""
    name = SUBGROUP_FACETS[number]
    place = {label: column for column, label in enumerate(classes)}
    rows = [(case.facets[name], case.batch - 1, place[case.truth], case.predicted != case.truth) for case in stream
            if case.facets.get(name) and case.truth in place]  # fmt: skip
    groups = tuple(dict.fromkeys(row[0] for row in rows))[:MOST_GROUPS]
    order = {group: position for position, group in enumerate(groups)}
    # One more for the groups that are not judged.
    errors, cases = np.zeros((2, len(groups) + 1, span[0], len(classes)), np.int64)
    for group, batch, label, wrong in rows:
        position = order.get(group, len(groups))
        cases[position, batch, label] += 1
        errors[position, batch, label] += wrong
    every = errors.sum(0), cases.sum(0)
    errors, cases = errors[:-1], cases[:-1]
    if len(groups) < 2:
        return _Facet(number, groups, errors, cases, every, np.zeros((0, 0, 0, 0)), np.zeros((0, 0)), times, span[1])
    ratios = streams(errors, cases, every)
    return _Facet(number, groups, errors, cases, every, ratios, evidence(ratios, span[1]), times, span[1])


def _result(facet: _Facet, place: int, classes: Sequence[str], worse: bool, suspected: bool, bar: float) -> SubgroupResult:
    """`suspected`: some group of the facet is worse, whichever."""
    label, start, low, high = _located(facet.ratios[place])
    compared = _compared(facet, place)
    everybody = label == len(classes) or not compared
    chosen: slice | int = slice(None) if everybody else label
    mine = _sums(facet.errors[place, start:], facet.cases[place, start:], chosen)
    whole = _sums(facet.every[0][start:], facet.every[1][start:], chosen)
    before = _sums(facet.errors[place, :start], facet.cases[place, :start], chosen)
    limits = jeffreys(mine[1] - mine[0], mine[1]) if mine[1] else (None, None)
    return SubgroupResult(
        facet=SUBGROUP_FACETS[facet.number],
        group=facet.groups[place],
        cases=int(facet.cases[place].sum()),
        compared=compared,
        worse=worse,
        suspected=suspected,
        label="" if everybody else classes[label],
        recall=_share(mine),
        recall_low=limits[0],
        recall_high=limits[1],
        recall_others=_share((whole[0] - mine[0], whole[1] - mine[1])),
        recall_before=_share(before) if low > 0 else None,
        since=facet.times.get(start + 1),
        since_batch=start + 1,
        since_batch_low=low + 1,
        since_batch_high=high + 1,
        log_evidence=float(facet.found[place, -1]),
        threshold=bar + math.log(1 / weight(len(SUBGROUP_FACETS), place)),
        more_cases=None if worse else _more_cases(facet, place, bar),
    )


def _compared(facet: _Facet, place: int) -> int:
    """Cases of the group that have others of the same batch and class beside them."""
    return int(facet.cases[place][facet.every[1] > facet.cases[place]].sum())


def _sums(errors: Integers, cases: Integers, chosen: slice | int) -> tuple[int, int]:
    return int(errors[:, chosen].sum()), int(cases[:, chosen].sum())


def _share(counts: tuple[int, int]) -> float | None:
    return 1 - counts[0] / counts[1] if counts[1] else None


def _located(ratios: Floats) -> tuple[int, int, int, int]:
    """Stream (a class, or K for all) with most evidence, its likeliest first batch, and the 95 % credible set of that; from 0."""
    since = np.logaddexp.reduce(ratios[::-1].cumsum(0)[::-1], axis=-1)
    stream = int(np.logaddexp.reduce(since, axis=0).argmax())
    logs = since[:, stream]
    weights = np.exp(logs - logs.max())
    order = np.argsort(-weights, kind="stable")
    kept = order[: int(np.searchsorted(np.cumsum(weights[order]) / weights.sum(), 0.95)) + 1]
    return stream, int(logs.argmax()), int(kept.min()), int(kept.max())


def _more_cases(facet: _Facet, place: int, bar: float) -> int | None:
    """Cases that the group still lacks before a fall of 20 points of a usual class would show with 80 % power; None if none.

    Of those there are only the compared ones count. The sum of log likelihood ratios has to pay for the threshold and the
    mixtures; mean and spread of one case's follow from the error rates, the others' uncertainty as in a comparison of two samples.
    """
    errors, cases = facet.every[0].sum(0), facet.every[1].sum(0)
    share = cases / max(int(cases.sum()), 1)
    usual = share >= USUAL_SHARE
    if not usual.any():
        return None
    rate = ((errors + 0.5) / (cases + 1))[usual]
    worse = np.minimum(rate + SEEN_FALL, 0.98)
    odds = np.log(worse / rate), np.log((1 - worse) / (1 - rate))
    gain = worse * odds[0] + (1 - worse) * odds[1]
    sd = np.sqrt(worse * (1 - worse)) * (odds[0] - odds[1])
    streams_of_group = (len(share) + 1) * len(ODDS_RATIOS) * facet.per_year
    price = bar + math.log(streams_of_group / weight(len(SUBGROUP_FACETS), place))
    z = float(norm.ppf(POWER))
    root = (z * sd + np.sqrt((z * sd) ** 2 + 4 * gain * price)) / (2 * gain)
    mine = facet.cases[place].sum(0)
    rest = np.maximum(cases - mine, 1)
    balance = 1 + mine.sum() / rest.sum()
    needed = float((root**2 * balance / share[usual]).max())
    lacking = needed - _compared(facet, place)
    return math.ceil(lacking) if lacking > 0 else None

"""Subgroups: how often any group is called worse within a year while none is, and how soon one that is worse is found.

Simulated sites of 52 or 65 weekly batches of 100 cases, two classes (recall 0.90 and 0.97, the weaker one 26 % of cases), 8 facets
of 28 groups with shares from 5 to 90 %; what runs is the evidence and the closed test that the evaluation uses. The peer is
what is usually done: Fisher's exact test of each group against the others in each batch, Holm over the batch's groups.

python tests/benchmarks/subgroups.py [--quick] --json docs/benchmarks/subgroups.json
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from bench_report import arguments, at_least, at_most, finish
from numpy.typing import NDArray
from scipy.stats import beta, hypergeom

from services.evaluation.subgroup_evidence import Leaf, adjusted, evidence, streams

Integers = NDArray[np.int64]
Groups = Mapping[str, Integers]
Risk = Callable[[Integers, Integers, Groups], NDArray[np.float64]]
SHARES: Mapping[str, tuple[float, ...]] = {
    "Site": (0.6, 0.3, 0.1),
    "Manufacturer": (0.5, 0.3, 0.2),
    "Model": (0.3, 0.3, 0.2, 0.1, 0.1),
    "Station": (0.25, 0.2, 0.15, 0.1, 0.1, 0.1, 0.05, 0.05),
    "BodyPart": (0.9, 0.1),
    "Sex": (0.52, 0.48),
    "Age": (0.05, 0.2, 0.25, 0.35, 0.15),
    "Sequence": (0.7, 0.3),
}
FACETS, RISK, SIZE, BEFORE = 10, 0.05, 100, 13
RATES, PREVALENCE = np.array([0.10, 0.03]), np.array([0.26, 0.74])


@dataclass(frozen=True)
class Year:
    """Counts of every group, facet after facet: errors and cases [G, T, K], its facet, its place in it, those of all [T, K]."""

    errors: Integers
    cases: Integers
    facet: Integers
    place: Integers
    every: tuple[Integers, Integers]


def simulate(generator: np.random.Generator, batches: int, risk: Risk, mix: float = 0.0) -> Year:
    """One site. With `mix`, group 0 of each facet has that many more cases of the weaker class (recalls unchanged)."""
    count = batches * SIZE
    batch = np.repeat(np.arange(batches), SIZE)
    groups = {name: generator.choice(len(share), count, p=share) for name, share in SHARES.items()}
    weak = PREVALENCE[0] + mix * (groups["Site"] == 0)
    truth = (generator.random(count) >= weak).astype(np.int64)
    wrong = generator.random(count) < risk(batch, truth, groups)
    errors, cases, facet, place = [], [], [], []
    for number, (name, share) in enumerate(SHARES.items()):
        cell, size = (groups[name] * batches + batch) * 2 + truth, len(share) * batches * 2
        cases.append(np.bincount(cell, minlength=size).reshape(-1, batches, 2))
        errors.append(np.bincount(cell[wrong], minlength=size).reshape(-1, batches, 2))
        facet += [number] * len(share)
        first = [int(np.argmax(groups[name] == group)) for group in range(len(share))]
        place += np.argsort(np.argsort(first)).tolist()
    every = (errors[0].sum(0), cases[0].sum(0))
    return Year(np.concatenate(errors), np.concatenate(cases), np.array(facet), np.array(place), every)


def first_calls(year: Year) -> dict[int, int]:
    """Group to the first batch (from 0) after which it is called worse."""
    found = evidence(streams(year.errors, year.cases, year.every))
    calls: dict[int, int] = {}
    for end in np.flatnonzero(found.max(0) >= np.log(1 / RISK)):
        leaves = [Leaf(int(f), int(p), float(e)) for f, p, e in zip(year.facet, year.place, found[:, end], strict=True)]
        for group in np.flatnonzero(adjusted(leaves, FACETS) >= np.log(1 / RISK)):
            calls.setdefault(int(group), int(end))
    return calls


def fisher_calls(year: Year) -> dict[int, int]:
    """The same of Fisher's exact test in each batch and class, Holm over the batch."""
    drawn, wrong = year.cases, np.broadcast_to(year.every[0], year.cases.shape)
    total = np.broadcast_to(year.every[1], year.cases.shape)
    p = hypergeom.sf(year.errors - 1, total, wrong, drawn)
    calls: dict[int, int] = {}
    for end in range(p.shape[1]):
        flat = p[:, end].ravel()
        order = np.argsort(flat)
        failed = flat[order] > RISK / (len(flat) - np.arange(len(flat)))
        for cell in order[: int(np.argmax(failed))]:
            calls.setdefault(int(cell // 2), end)
    return calls


def false_alarms(runs: int, name: str, risk: Risk, mix: float = 0.0) -> dict[str, Any]:
    """Share of years with any call, none being right; 95 % limits (Clopper-Pearson)."""
    generator = np.random.default_rng([11, len(name)])
    ours = theirs = 0
    for _ in range(runs):
        year = simulate(generator, 52, risk, mix)
        ours += bool(first_calls(year))
        theirs += bool(fisher_calls(year))
    low, high = beta.ppf(0.025, ours, runs - ours + 1) if ours else 0.0, beta.ppf(0.975, ours + 1, runs - ours)
    limits = f"[{low:.3f}, {high:.3f}]"
    return {"world": name, "runs": runs, "any call in a year": ours / runs, "95 %": limits, "Fisher + Holm": theirs / runs}


def power(runs: int, facet: str, group: int, fall: float, label: int | None) -> dict[str, Any]:
    """A group falls after 13 batches: share found within 52 batches, median batches and cases of the group until then."""
    generator = np.random.default_rng([12, group, int(100 * fall)])
    target = sum(len(share) for share in list(SHARES.values())[: list(SHARES).index(facet)]) + group
    delays, others = [], 0

    def risk(batch: Integers, truth: Integers, groups: Groups) -> NDArray[np.float64]:
        hit = (batch >= BEFORE) & (groups[facet] == group) & ((truth == label) if label is not None else True)
        return RATES[truth] + fall * hit

    for _ in range(runs):
        calls = first_calls(simulate(generator, BEFORE + 52, risk))
        others += any(each != target for each in calls)
        delays.append(calls[target] - BEFORE + 1 if target in calls else 999)
    share, median = SHARES[facet][group], float(np.median(delays))
    what = f"{facet}, {100 * share:.0f} % of cases: {'all classes' if label is None else 'weaker class'} -{100 * fall:.0f} points"
    late = {
        "median batches": median if median < 999 else None,
        "median cases of it": share * SIZE * median if median < 999 else None,
    }
    found = sum(delay < 999 for delay in delays) / runs
    return {"world": what, "runs": runs, "found within 52 batches": found, **late, "another group called": others / runs}


def main() -> None:
    """Run all worlds."""
    options = arguments(__doc__ or "").parse_args()
    runs, few = (20, 10) if options.quick else (1500, 150)

    def steady(_batch: Integers, truth: Integers, _groups: Groups) -> NDArray[np.float64]:
        return RATES[truth]

    def everybody(batch: Integers, truth: Integers, _groups: Groups) -> NDArray[np.float64]:
        return RATES[truth] + 0.10 * (batch >= 20)

    def restless(batch: Integers, truth: Integers, groups: Groups) -> NDArray[np.float64]:
        """Recalls of each station vary from week to week, SD 0.4 on the logit scale, the same in every run."""
        odds = np.log(RATES[truth] / (1 - RATES[truth])) + restlessness[batch, groups["Station"]]
        return 1 / (1 + np.exp(-odds))

    restlessness = np.random.default_rng(13).normal(size=(52, 8)) * 0.4
    null = false_alarms(runs, "nothing changes", steady)
    rows = [
        null,
        false_alarms(runs // 3, "everybody falls by 10 points", everybody),
        false_alarms(runs // 3, "one site has twice the share of the weaker class", steady, 0.26),
        false_alarms(runs // 3, "each station varies by week, SD 0.4 (logit)", restless),
    ]
    cases = [("Sex", 1, 0.10, None), ("Sex", 1, 0.20, 0), ("Manufacturer", 1, 0.10, None), ("Manufacturer", 1, 0.20, 0)]
    cases += [("Site", 2, 0.10, None), ("Site", 2, 0.20, None), ("Station", 3, 0.40, 0), ("Station", 6, 0.20, None)]
    cases += [("Sex", 1, 0.05, None), ("Manufacturer", 1, 0.05, None), ("Manufacturer", 1, 0.10, 0), ("Station", 6, 0.10, None)]
    rows += [power(few, *case) for case in cases]
    targets = [
        at_most("nothing changes: chance of any call in a year", null["any call in a year"], RISK),
        at_most("everybody falls: chance of any call in a year", rows[1]["any call in a year"], RISK),
        at_most("another mix: chance of any call in a year", rows[2]["any call in a year"], RISK),
        at_most("stations vary by week: chance of any call in a year", rows[3]["any call in a year"], RISK),
        at_least("10 % site, all classes -20: found within a year", rows[9]["found within 52 batches"], 0.8),
    ]
    finish("subgroups", rows, targets, options.json, "Batches of 100 cases, 28 groups of 8 facets, risk 0.05 a year.")


if __name__ == "__main__":
    main()

"""Thresholds of 2, 5 and 10 percent against the deployed detector: repairs ordered for nothing, and harm that is missed.

    python tests/benchmarks/sensitivity.py [--quick | --full] [--data FOLDER] [--set NAME] [--network NAME] [--json FILE]

A classifier is trained on a real set; its confusions on clean and on changed test images are the truth from which streams of
batches are drawn: a year without change, and a change of each strength after a quiet quarter. A maintenance run is ordered
for the first batch at which a rule fires. Needless: ordered where nothing changed. Harm is missed where mean recall fell by
three points or more and nothing was ordered within 13 batches. The detector's thresholds are made from the test set alone.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from bench_report import Target, arguments, at_most, finish
from detector_bench import ours
from remedy_bench import images, ways
from remedy_bench.ways import Effort

from services.evaluation.reclaim_rule import apply_rule

LIMITS = (0.02, 0.05, 0.10)
YEAR, QUIET, FOLLOWED, HARM = 52, 13, 13, 0.03


@dataclass(frozen=True)
class Truth:
    """What the classifier does with images of one kind: rates [K, K] by true class, and the fall of mean recall."""

    name: str
    rates: np.ndarray
    fall: float


def truths(chosen: Any, size: int, most: int, effort: Effort) -> tuple[np.ndarray, list[Truth], tuple[str, ...]]:
    """The test set's confusion [K, K], and the truth under no change and under each."""
    pool, classes = images.load(chosen.data, chosen.set, size, most, effort.seed)
    sets = images.split(pool, effort.seed)
    model = ways.champion_of(images.spec_of(chosen.set, classes, chosen.network, size), sets, effort)
    clean = (
        np.concatenate([sets.inference.images, sets.finetune.images]),
        np.concatenate([sets.inference.labels, sets.finetune.labels]),
    )
    fresh = images.Pool(*clean)
    found = [("none", fresh)]
    for name in ("blur", "noise", "gamma", "contrast"):
        found += [(f"{name} {strength + 1}", images.shifted(fresh, name, strength, 0)) for strength in range(3)]
    base = confusion(model, sets.test)
    rates = [(name, smoothed(confusion(model, pool))) for name, pool in found]
    before = float(np.diagonal(rates[0][1]).mean())
    return base, [Truth(name, each, before - float(np.diagonal(each).mean())) for name, each in rates], model.spec.classes


def confusion(model: Any, pool: images.Pool) -> np.ndarray:
    """Counts [K, K], rows the truth."""
    classes = len(model.spec.classes)
    said = ways.probabilities(model, pool).argmax(1)
    return np.bincount(pool.labels * classes + said, minlength=classes**2).reshape(classes, classes)


def smoothed(counts: np.ndarray) -> np.ndarray:
    """Rates by true class, half a case added to each cell."""
    return (counts + 0.5) / (counts + 0.5).sum(1, keepdims=True)


def stream(path: list[np.ndarray], prior: np.ndarray, size: int, random: np.random.Generator) -> np.ndarray:
    """Confusions [T, K, K] of batches whose truth follows `path`."""
    found = []
    for rates in path:
        numbers = random.multinomial(size, prior)
        found.append(np.stack([random.multinomial(number, row) for number, row in zip(numbers, rates, strict=True)]))
    return np.stack(found)


def ordered_by_rule(base: np.ndarray, batches: np.ndarray, classes: tuple[str, ...], limit: float) -> int:
    """Batch of the first order, 0 for none."""
    return next((number for number, batch in enumerate(batches, 1) if apply_rule(base, batch, classes, -limit).declined), 0)


def ordered_by_ours(model: ours.Model, batches: np.ndarray) -> int:
    """Batch of the first alarm of the deployed detector, 0 for none."""
    return int(ours.first_alarms(model, ours.counts(model, batches[None]))[0] or 0)


def measured(base: np.ndarray, kinds: list[Truth], classes: tuple[str, ...], size: int, repeats: int) -> list[dict[str, Any]]:
    """A row for each rule."""
    random, prior = np.random.default_rng(0), base.sum(1) / base.sum()
    # The quiet quarter behaves as the test set did, so that only the change tells.
    quiet = smoothed(base)
    calm = [stream([quiet] * YEAR, prior, size, random) for _ in range(repeats)]
    harmful = [
        (kind, stream([quiet] * QUIET + [kind.rates] * FOLLOWED, prior, size, random))
        for kind in kinds
        if kind.fall >= HARM
        for _ in range(repeats)
    ]
    detector = ours.model(base, size, 0)
    rules = {f"{100 * limit:g} % rule": lambda each, limit=limit: ordered_by_rule(base, each, classes, limit) for limit in LIMITS}
    rules["ours"] = lambda each: ordered_by_ours(detector, each)
    rows = []
    for name, rule in rules.items():
        needless = [rule(each) for each in calm]
        found = [rule(each) for _, each in harmful]
        early = [0 < each <= QUIET for each in found]
        late = [each - QUIET for each in found if each > QUIET]
        rows.append(
            {
                "rule": name,
                "batch": size,
                "years without change with a needless run": round(float(np.mean([each > 0 for each in needless])), 3),
                "harmful streams": len(harmful),
                "run ordered before the harm": round(float(np.mean(early)), 3) if found else None,
                "harm missed": round(float(np.mean([each == 0 for each in found])), 3) if found else None,
                "median batches until ordered": float(np.median(late)) if late else None,
            }
        )
    return rows


def targets_of(rows: list[dict[str, Any]]) -> list[Target]:
    """Ours keeps its false-alarm budget and misses no more harm than the published rule would if it were silent before."""
    own = [row for row in rows if row["rule"] == "ours"]
    return [
        at_most(
            "ours: years without change with a needless run",
            max(row["years without change with a needless run"] for row in own),
            0.1,
        ),
        at_most("ours: harm missed", max((row["harm missed"] for row in own if row["harm missed"] is not None), default=None), 0.2),
    ]


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.set_defaults(data=Path(__file__).parents[3] / "shared" / "data")
    parser.add_argument("--full", action="store_true", help="larger images and more streams; wants a GPU")
    parser.add_argument("--set", default="cxr_pneumonia_kermany")
    parser.add_argument("--network", default="small")
    chosen = parser.parse_args()
    size, most, effort, repeats, batches = 64, 2400, Effort(10, 1), 60, (50, 100)
    if chosen.quick:
        size, most, effort, repeats, batches = 48, 700, Effort(4, 1), 6, (100,)
    elif chosen.full:
        size, most, effort, repeats = 112, 10_000, Effort(20, 1), 400
    started = time.perf_counter()
    base, kinds, classes = truths(chosen, size, most, effort)
    rows = [row for batch in batches for row in measured(base, kinds, classes, batch, repeats)]
    falls = ", ".join(f"{kind.name} {100 * kind.fall:.1f}" for kind in kinds[1:])
    note = f"Falls of mean recall in points: {falls}. {int(base.sum())} test cases; {time.perf_counter() - started:.0f} s."
    finish("sensitivity", rows, targets_of(rows), chosen.json, note)


if __name__ == "__main__":
    main()

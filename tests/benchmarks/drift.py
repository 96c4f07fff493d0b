"""How often does the early warning warn where nothing changes, and does it warn where something does?

    python tests/benchmarks/drift.py [--quick] [--years N] [--windows N] [--json FILE]

Whole years of windows through the deployed judge (`services.drift.signals.judge`), with levels calibrated by the deployed code
for a reference that is drawn anew each year: three classes, correlated statistics, a layout, an embedding, facets, probabilities
that are calibrated. Years have as many windows of 200 studies as the settings allow by default (365; the budget is a year's,
whatever their number). The chance of a false warning in a year is told with its 95 % interval (Wilson). Then single windows
under a change, for power. One thread; a year of 365 windows takes about two minutes on a busy machine, --quick is 4 years of
52. `--data` is not used.
"""

import time
from collections import Counter
from math import sqrt
from typing import Any

import numpy as np
import torch
from bench_report import arguments, at_most, finish

from models.signature import LAYOUT, QUALITY
from schemas.drift_settings import DriftSettings
from services.drift.budget import SEVERAL, SIGNALS, Budget, calibrate
from services.drift.sample import Reference, Sample
from services.drift.signals import judge
from services.runtime.signatures import Images

CLASSES = ("one", "two", "three")
SHARES = np.array([0.5, 0.3, 0.2])
DEFAULTS = DriftSettings()
CASES, WINDOW, CHANCE = 400, DEFAULTS.window_cases, DEFAULTS.warnings_per_year
MIXING = np.random.default_rng(99).normal(0, 0.4, (len(QUALITY), len(QUALITY))) + np.eye(len(QUALITY))
CENTRES = np.random.default_rng(98).normal(0, 1.0, (3, 32))
FAULTS = {
    name: np.random.default_rng(seed).normal(0, 0.6, LAYOUT) for seed, name in enumerate(("inverted", "turned by 90 degrees"))
}


def studies(count: int, random: np.random.Generator, *, shares: Any = SHARES, blur: float = 0.0) -> tuple[Sample, Any]:
    """Scored studies and their truth."""
    truth = random.choice(3, count, p=shares)
    logits = random.normal(0, 1, (count, 3))
    logits[np.arange(count), truth] += 2.5
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    quality = (random.normal(0, 1, (count, len(QUALITY))) @ MIXING + 0.3 * truth[:, None]).astype(np.float32)
    quality[:, QUALITY.index("sharpness")] -= blur
    layout = (random.normal(0.5, 0.3, (count, LAYOUT)) + 0.1 * truth[:, None]).astype(np.float32)
    embedding = (random.normal(0, 1, (count, 32)) + CENTRES[truth] + blur).astype(np.float32)
    facets = tuple({"StationName": f"S{station}", "EchoTime": f"{echo:.4g}"} for station, echo in
                   zip(random.choice(3, count, p=[0.6, 0.3, 0.1]), random.normal(80, 5, count), strict=True))  # fmt: skip
    images = Images(tuple(map(str, range(count))), quality, layout, embedding)
    return Sample(CLASSES, probabilities, probabilities.argmax(1), images, facets), truth


def reference(random: np.random.Generator) -> Reference:
    """A baseline, and 160 of its images under two faults and a variation."""
    sample, truth = studies(CASES, random)
    assert sample.images is not None
    probed = sample.images.take(range(160))
    changed = {name: Images(probed.keys, probed.quality, (probed.layout + fault).astype(np.float32), probed.embedding)
               for name, fault in FAULTS.items()}  # fmt: skip
    blurred = probed.quality.copy()
    blurred[:, QUALITY.index("sharpness")] -= 1
    changed["blurred"] = Images(probed.keys, blurred, probed.layout, probed.embedding)
    return Reference(sample, truth, probed, changed)


def main() -> None:
    """Run the years, then windows under changes."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--years", type=int, default=20)
    parser.add_argument("--windows", type=int, default=DEFAULTS.windows_per_year, help="windows a year")
    options = parser.parse_args()
    torch.set_num_threads(1)
    years, looks = (4, 52) if options.quick else (options.years, options.windows)
    budget = Budget(CHANCE, looks)
    warned: Counter[str] = Counter()
    alarmed, windows, started = 0, 0, time.monotonic()
    power: dict[str, list[bool]] = {"mix 0.5 to 0.7": [], "blurred by half a deviation": [], "a fault in half": []}
    for seed in range(years):
        random = np.random.default_rng([7, seed])
        known = reference(random)
        levels = calibrate(known, WINDOW, budget, seed)
        names = year(known, levels, budget, random)
        warned.update(names)
        alarmed, windows = alarmed + bool(names), windows + looks
        changes(known, levels, budget, random, power)
        if not options.quick:
            print(f"year {seed + 1}: {sorted(names) or 'quiet'}", flush=True)
    low, high = wilson(alarmed, years)
    interval = f"{low:.3f} to {high:.3f}"
    any_of_them = {"what": "any signal", "windows a year": looks, "years": years, "warned in": alarmed, "share": alarmed / years}
    rows: list[dict[str, Any]] = [any_of_them | {"95 % interval": interval, "budget": CHANCE}]
    rows += [{"what": name, "years": years, "warned in": warned[name], "share": warned[name] / years, "budget": budget.part}
             for name in SIGNALS[:-1]]  # fmt: skip
    rows += [{"what": f"changed: {name}", "windows": len(hits), "share": sum(hits) / len(hits)} for name, hits in power.items()]
    seconds = (time.monotonic() - started) / years
    target = at_most("chance of a false warning in a year, all signals of windows", alarmed / years, CHANCE)
    finish("drift", rows, [target], options.json, f"{windows} windows without change; {seconds:.0f} s a year with its calibration.")


def year(known: Reference, levels: Any, budget: Budget, random: np.random.Generator) -> set[str]:
    """Names of the signals that warned in a year in which nothing changed."""
    found: set[str] = set()
    newest: list[Sample] = []
    for number in range(1, budget.looks + 1):
        window, _ = studies(WINDOW, random)
        newest = [*newest, window][-SEVERAL:]
        several = joined(newest) if number % SEVERAL == 0 else window
        verdict = judge(known, window, several, levels, budget, number)
        found |= {signal.name for signal in verdict.signals if signal.warning}
    return found


def changes(known: Reference, levels: Any, budget: Budget, random: np.random.Generator, power: dict[str, list[bool]]) -> None:
    """One window under each change: does anything warn?"""
    for name, hits in power.items():
        shares = np.array([0.7, 0.2, 0.1]) if name.startswith("mix") else SHARES
        window, _ = studies(WINDOW, random, shares=shares, blur=0.5 if name.startswith("blurred") else 0.0)
        if name.startswith("a fault") and window.images is not None:
            window.images.layout[: WINDOW // 2] += FAULTS["inverted"].astype(np.float32)
        hits.append(judge(known, window, window, levels, budget, 0).warning)


def joined(samples: list[Sample]) -> Sample:
    """Windows as one."""
    first = samples[0].images
    assert first is not None
    for each in samples[1:]:
        assert each.images is not None
        first = first.joined(each.images)
    probabilities = np.concatenate([each.probabilities for each in samples])
    return Sample(CLASSES, probabilities, probabilities.argmax(1), first, tuple(facet for each in samples for facet in each.facets))


def wilson(hits: int, total: int) -> tuple[float, float]:
    """95 % interval of a share."""
    z, share = 1.96, hits / total
    centre, spread = share + z * z / (2 * total), z * sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max((centre - spread) / (1 + z * z / total), 0.0), (centre + spread) / (1 + z * z / total)


if __name__ == "__main__":
    main()

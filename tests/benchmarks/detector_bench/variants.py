"""Other choices of the first statistic at the same budget, and a rule that is told the fall: is a sooner detector to be had?"""

import numpy as np
from detector_bench.worlds import FALLS, FOLLOWED, STABLE, YEAR, World, path, per_class, streams, test_sets
from scipy.special import gammaln

from services.evaluation.calibration import balance
from services.evaluation.detector import A_DROPS, WINDOWS, Counts, e_detector

_TABLE = np.concatenate([[0.0], gammaln(np.arange(1, 200_001) / 2)])
CHUNK = 40
TOLD = "told class and size of the fall"
VARIANTS: dict[str, dict] = {
    "as it is": {},
    "A alone": {"alone": True},
    "A alone, reference with earlier stream only": {"alone": True, "references": (True,)},
    "priors 1.75 times as wide": {"spread": 0.7},
    "priors 0.6 times as wide": {"spread": 0.25},
    "all classes together weigh three times": {"together": 3.0},
    "three drops": {"drops": (0.05, 0.12, 0.30)},
    "seven drops": {"drops": (0.02, 0.04, 0.07, 0.12, 0.2, 0.3, 0.45)},
}


def variants(world: World, size: int, replicates: int, generator) -> dict:
    """Mean and median delay in batches of each variant for each fall; thresholds tuned to 5 % in the worse of two years."""
    stable = _counts(world, [world] * (2 * YEAR), size, 8 * replicates, generator)
    limits = {name: _tuned(_values(stable, size, options)) for name, options in VARIANTS.items()}
    found: dict = {}
    for name, fall in FALLS.items():
        changed = _counts(world, path(world, fall, STABLE + FOLLOWED), size, replicates, generator)
        found[name] = {other: _delay(_values(changed, size, options), limits[other]) for other, options in VARIANTS.items()}
        if fall.jump:
            told = {"alone": True, "drops": (fall.jump,), "spread": 0.05, "only": "all" if fall.everywhere else world.weak}
            found[name][TOLD] = _delay(_values(changed, size, told), _tuned(_values(stable, size, told)))
    return found


def _counts(world, worlds, size, replicates, generator) -> Counts:
    base, stream = test_sets(world, replicates, generator), streams(worlds, size, replicates, generator)
    return Counts(*per_class(base), *per_class(stream))


def _values(counts: Counts, size: int, options: dict):
    """[R, T, 2] both statistics; the second is no evidence at all where A is alone."""
    wanted = {name: value for name, value in options.items() if name != "alone"}
    found = []
    for start in range(0, len(counts.errors), CHUNK):
        part = Counts(*(getattr(counts, name)[start : start + CHUNK] for name in Counts.__dataclass_fields__))
        a = factors(part, **wanted)
        b = np.full_like(a, -99.0) if options.get("alone") else e_detector(part, size)
        found.append(np.stack([a, b], -1))
    return np.concatenate(found)


def factors(counts, drops=A_DROPS, spread=0.4, references=(True, False), together=1.0, only=None, *, held=True):
    """Statistic A written with its choices as parameters; [R, T]. `held`: windows no worse than their reference count at most 1."""
    running = [np.pad(part.cumsum(1), ((0, 0), (1, 0), (0, 0))).transpose(2, 0, 1) for part in (counts.errors, counts.cases)]
    e0, m0 = (part.T[:, :, None] for part in (counts.baseline_errors, counts.baseline_cases))
    rate, size = (e0 + 0.5) / (m0 + 1), np.array(drops)[:, None, None, None]
    mean = np.minimum(rate + size, 0.95)
    weight = np.maximum(mean * (1 - mean) / (spread * size) ** 2 - 1, 4)
    a, b = (np.maximum(1, np.rint(2 * part)).astype(int) for part in (mean * weight, (1 - mean) * weight))
    k, replicates, batches = running[0].shape
    total = np.zeros((replicates, batches - 1))
    for length in (length for length in WINDOWS if length < batches):
        before = [part[..., :-length] for part in running]
        e, m = (part[..., length:] - first for part, first in zip(running, before, strict=True))
        alternative = _beta(a + 2 * e, b + 2 * (m - e)) - _beta(a, b)
        for earlier in references:
            e1, m1 = e0 + earlier * before[0], m0 + earlier * before[1]
            null = _beta(2 * (e1 + e) + 1, 2 * (m1 - e1 + m - e) + 1) - _beta(2 * e1 + 1, 2 * (m1 - e1) + 1)
            evidence = np.exp(np.minimum(alternative - null, 150.0))
            evidence = np.where(held & (e * m1 <= e1 * m), np.minimum(evidence, 1), evidence)
            total[:, length - 1 :] += _streams(evidence, together, only)
    return np.log(np.maximum(total, 1e-300) / ((k + together) * len(references)))


def _streams(evidence, together, only):
    every = evidence.prod(1).mean(0)
    if only == "all":
        return every
    return evidence[:, only].mean(0) if only is not None else evidence.sum(1).mean(0) + together * every


def _beta(a, b):
    return _TABLE[a] + _TABLE[b] - _TABLE[a + b]


def _tuned(values):
    """Thresholds of equal exceedance with 5 % in the worse of two years."""
    return balance(np.stack([values[:, :YEAR].max(1), values[:, YEAR : 2 * YEAR].max(1)], 1), 0.05)


def _delay(values, limits) -> list[float]:
    alarmed = (values >= limits).any(-1)
    after = alarmed[~alarmed[:, :STABLE].any(1), STABLE:]
    first = np.where(after.any(1), after.argmax(1) + 1, FOLLOWED + 1)
    return [float(first.mean()), float(np.median(first))]

"""The acceptance table's own rule and the deployed one side by side: on the very streams that the table was made from, and others.

The table holds medians of 480 streams over 40 test sets a cell. The same random numbers are drawn here in the same order, so
that its own rule gives its own figures again to the last digit, and the deployed rule is compared on equal terms.
"""

import zlib
from dataclasses import dataclass

import numpy as np
from detector_bench import ours
from detector_bench.variants import factors
from detector_bench.worlds import FALLS, FOLLOWED, STABLE, YEAR, World, path, per_class, streams, test_sets
from scipy.special import betaincinv

from services.evaluation.calibration import SAFETY, balance
from services.evaluation.detector import B_DROPS, BASELINE_RISK, Counts, statistics
from services.evaluation.dispersion import steadied

SEED = 20251017
SETS, SIMULATED, STREAMS, STABLE_STREAMS, YEARS = 40, 1000, 12, 120, 3
WORLD_NAMES = {"2-class": "pneu2", "4-class": "brain4"}
ORDER = (
    "one class -5",
    "one class -10",
    "one class -20",
    "one class -41",
    "all classes -3",
    "all classes -5",
    "all classes -10",
    "all classes, 0.2 a batch",
    "one class, 0.5 a batch",
)
"""Falls of the table in the order in which they were drawn."""
CHUNK = 40
LOG_STEP, LARGEST = 60.0, 1e60


@dataclass(frozen=True)
class Material:
    """Of one test set [K, K]: streams to calibrate with (errors, cases), stable ones, and those of each fall [R, T, K, K]."""

    confusion: np.ndarray
    simulated: tuple[np.ndarray, np.ndarray]
    stable: np.ndarray
    falls: dict[str, np.ndarray]


def of_the_table(world: World, size: int):
    """The 40 test sets and their streams as the acceptance table was made from them."""
    key = ("nested", WORLD_NAMES[world.name], size, None, 0.0)
    generator = np.random.default_rng([SEED, zlib.crc32(repr(key).encode())])
    for _ in range(SETS):
        confusion = test_sets(world, 1, generator)[0]
        simulated = [_posterior(confusion, size, generator) for _ in range(2)]
        stable = _after_unused(world, [world] * (YEARS * YEAR), size, STABLE_STREAMS, generator)
        falls = {n: _after_unused(world, path(world, FALLS[n], STABLE + FOLLOWED), size, STREAMS, generator) for n in ORDER}
        yield Material(confusion, tuple(np.concatenate(part) for part in zip(*simulated, strict=True)), stable, falls)


def _posterior(confusion, size, generator):
    """Errors and cases [500, two years, K] with rates and prevalence of the test set's Jeffreys posterior."""
    errors, cases = per_class(confusion)
    half = SIMULATED // 2
    prevalence = generator.dirichlet(cases + 0.5, size=half)
    rates = generator.beta(errors + 0.5, cases - errors + 0.5, size=(half, len(cases)))
    seen = generator.multinomial(size, prevalence[:, None], size=(half, 2 * YEAR))
    return generator.binomial(seen, rates[:, None]), seen


def _after_unused(world, worlds, size, replicates, generator):
    """Streams, drawn after as many test sets that the table does not use."""
    test_sets(world, replicates, generator)
    return streams(worlds, size, replicates, generator)


def fresh(world: World, size: int, sets: int, replicates: int, generator):
    """Other test sets, calibrated the same way, with `replicates` streams of each fall and stable ones."""
    for confusion in test_sets(world, sets, generator):
        simulated = [_posterior(confusion, size, generator) for _ in range(2)]
        stable = streams([world] * (YEARS * YEAR), size, replicates, generator)
        falls = {n: streams(path(world, FALLS[n], STABLE + FOLLOWED), size, replicates, generator) for n in ORDER}
        yield Material(confusion, tuple(np.concatenate(part) for part in zip(*simulated, strict=True)), stable, falls)


def own_rule(counts: Counts, _size: int) -> np.ndarray:
    """[R, T, 2] the statistics as the acceptance table has them.

    Windows that are no worse than their reference count like others, the clock of the second ticks once a batch, and counts
    are not divided by the variation between batches.
    """
    return np.stack([factors(counts, held=False), _by_the_batch(counts)], -1)


def _by_the_batch(counts: Counts) -> np.ndarray:
    errors, cases = counts.baseline_errors, counts.baseline_cases
    limit = betaincinv(errors + 1.0, np.maximum(cases - errors, 0.5), 1 - BASELINE_RISK / errors.shape[-1])[:, None, None]
    worse = np.minimum(limit + np.array(B_DROPS)[:, None], 0.99)
    wrong, right = counts.errors[:, :, None], (counts.cases - counts.errors)[:, :, None]
    ratio = wrong * np.log(worse / limit) + right * np.log((1 - worse) / (1 - limit))
    ratio = np.concatenate([ratio, ratio.sum(-1, keepdims=True)], -1)
    value, found = np.zeros_like(ratio[:, 0]), np.empty(counts.errors.shape[:2])
    for batch in range(counts.errors.shape[1]):
        value = np.minimum((1 + value) * np.exp(np.minimum(ratio[:, batch], LOG_STEP)), LARGEST)
        found[:, batch] = np.log(value.mean((-2, -1)))
    return found


def as_deployed(counts: Counts, size: int) -> np.ndarray:
    """[R, T, 2] the statistics of the service."""
    return statistics(steadied(counts), size)


RULES = {"the table's own rule": own_rule, "as deployed": as_deployed}


def compared(size: int, material) -> dict:
    """By rule and test set: shares of stable streams with an alarm in each year, and delays in batches of each fall."""
    found = {name: {"hits": [], "delays": {fall: [] for fall in ORDER}} for name in RULES}
    for each in material:
        for name, rule in RULES.items():
            limits = balance(_yearly(_values(rule, each.confusion, *each.simulated, size), 2), SAFETY * ours.BUDGET)
            stable = _values(rule, each.confusion, *per_class(each.stable), size)
            found[name]["hits"].append((_yearly(stable, YEARS) >= limits).any(2).mean(0).tolist())
            for fall, confusion in each.falls.items():
                alarmed = (_values(rule, each.confusion, *per_class(confusion), size) >= limits).any(-1)
                found[name]["delays"][fall].append(_delays(alarmed))
    return found


def _values(rule, confusion, errors, cases, size):
    base = [np.broadcast_to(part, (CHUNK, len(part))) for part in per_class(confusion)]
    parts = []
    for start in range(0, len(errors), CHUNK):
        e, m = errors[start : start + CHUNK], cases[start : start + CHUNK]
        parts.append(rule(Counts(base[0][: len(e)], base[1][: len(e)], e, m), size))
    return np.concatenate(parts)


def _yearly(values, years):
    """[R, years, 2] maxima."""
    return np.stack([values[:, YEAR * year : YEAR * (year + 1)].max(1) for year in range(years)], 1)


def _delays(alarmed) -> list[int]:
    """Batches from the first changed one to the alarm, of streams without an earlier one."""
    after = alarmed[~alarmed[:, :STABLE].any(1), STABLE:]
    return np.where(after.any(1), after.argmax(1) + 1, FOLLOWED + 1).tolist()

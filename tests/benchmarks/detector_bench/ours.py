"""The deployed detector on many streams: thresholds from the observed test set alone, alarms as the service raises them."""

from dataclasses import dataclass

import numpy as np
from detector_bench.worlds import FALLS, FOLLOWED, STABLE, YEAR, World, path, per_class, streams

from services.evaluation.calibration import calibrate
from services.evaluation.detector import Counts, Thresholds, statistics
from services.evaluation.dispersion import UNKNOWN, Variation, steadied
from services.evaluation.fall import locate
from services.evaluation.verdict import Episode, episodes, raised

BUDGET = 0.05
CHUNK = 40
LATER = 8
"""Batches after an alarm at which its evidence is looked at again."""


@dataclass(frozen=True)
class Model:
    """A model with the test set it was registered with [K, K], and the thresholds made from it."""

    confusion: np.ndarray
    thresholds: Thresholds
    size: int


def model(confusion: np.ndarray, size: int, number: int) -> Model:
    """A model whose test set has these counts, calibrated from them alone."""
    errors, cases = per_class(confusion)
    return Model(confusion, calibrate(errors, cases, size, BUDGET, number), size)


def counts(model: Model, confusion: np.ndarray) -> Counts:
    """[R] streams of one model."""
    errors, cases = per_class(confusion)
    base = [np.broadcast_to(part, (len(errors), len(part))) for part in per_class(model.confusion)]
    return Counts(base[0], base[1], errors, cases)


def judged(model: Model, material: Counts, judge, known: Variation = UNKNOWN):
    """`judge(stream, its statistics)` for each stream in which one crosses its threshold, else None: there is nothing to judge."""
    found = []
    for start in range(0, len(material.errors), CHUNK):
        part = steadied(one(material, slice(start, start + CHUNK)), known)
        value = statistics(part, model.size)
        crossed = ((value[..., 0] >= model.thresholds.a) | (value[..., 1] >= model.thresholds.b)).any(1)
        for line, any_crossed in enumerate(crossed):
            found.append(judge(one(part, slice(line, line + 1)), value[line]) if any_crossed else None)
    return found


def first_alarms(model: Model, material: Counts, known: Variation = UNKNOWN) -> list[int | None]:
    """The batch of each stream's first alarm, None without one."""
    return judged(model, material, lambda stream, found: raised(stream, found, model.thresholds), known)


def one(material: Counts, lines: slice) -> Counts:
    """Some of the streams."""
    return Counts(material.baseline_errors[lines], material.baseline_cases[lines], material.errors[lines], material.cases[lines])


def false_alarms(world: World, fleet: list[Model], replicates: int, years: int, generator) -> dict:
    """Per model: in how many of `replicates` stable streams each year has an alarm, and how many alarms there are a year."""
    hits, total = [], 0
    for model in fleet:
        stable = streams([world] * (years * YEAR), model.size, replicates, generator)
        history = judged(
            model, counts(model, stable), lambda stream, _, model=model: episodes(stream, model.thresholds, model.size).found
        )
        found = [stream or () for stream in history]
        hits.append([sum(any(_year(episode) == year for episode in stream) for stream in found) for year in range(years)])
        total += sum(len(stream) for stream in found)
    return {"hits": hits, "replicates": replicates, "alarms": total, "stream_years": len(fleet) * replicates * years}


def _year(episode: Episode) -> int:
    return (episode.alarm - 1) // YEAR


def delays(world: World, fleet: list[Model], name: str, replicates: int, generator, start: int = STABLE) -> dict:
    """Batches from the first changed one to the alarm, FOLLOWED + 1 where there is none; streams with an earlier alarm are out."""
    found = []
    for _, _, alarm in _alarms(world, fleet, name, replicates, generator, start, FOLLOWED):
        found.append(alarm - start if alarm else FOLLOWED + 1)
    return {"delays": found}


def evidence(world: World, fleet: list[Model], name: str, replicates: int, generator) -> dict:
    """Of alarms within a year: is the class right, and do the 95 % intervals of the fall and of its start hold the truth?

    Both at the alarm and `LATER` batches on: [class, drop, start, class, drop, start] as sums.
    """
    fall, covered = FALLS[name], np.zeros(6, int)
    number = 0
    for _, stream, alarm in _alarms(world, fleet, name, replicates, generator, STABLE, YEAR + LATER):
        if alarm and alarm - STABLE <= YEAR:
            covered, number = covered + _coverage(world, stream, fall, STABLE, alarm), number + 1
    return {"covered": covered.tolist(), "alarms": number}


def _alarms(world, fleet, name, replicates, generator, start, followed):
    """(model, stream, first alarm or None) of every stream without an alarm before the fall."""
    for model in fleet:
        worlds = path(world, FALLS[name], start + followed, start)
        changed = counts(model, streams(worlds, model.size, replicates, generator))
        for line, alarm in enumerate(first_alarms(model, changed)):
            if not alarm or alarm > start:
                yield model, one(changed, slice(line, line + 1)), alarm


def _coverage(world: World, stream: Counts, fall, start: int, alarm: int) -> np.ndarray:
    """[class right, drop in its interval, start in its interval] at the alarm, then later; 0 or 1 each."""
    classes = [str(label) for label in range(stream.errors.shape[-1])]
    found = []
    for end in (alarm, alarm + LATER):
        seen = Counts(stream.baseline_errors, stream.baseline_cases, stream.errors[:, :end], stream.cases[:, :end])
        told = locate(steadied(seen), classes, np.random.default_rng(end))
        right = fall.everywhere or int(told.label) == world.weak
        drop = fall.jump if right else 0.0
        found += [int(right), int(told.low <= drop <= told.high), int(told.start_low <= start + 1 <= told.start_high)]
    return np.array(found)

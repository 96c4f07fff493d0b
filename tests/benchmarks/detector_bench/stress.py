"""Stable worlds that break an assumption: class mix, images of one patient, recall that varies by week, uneven batches."""

import numpy as np
from detector_bench.late import SIZE, alarms
from detector_bench.ours import Model, counts, first_alarms, model, one
from detector_bench.worlds import STABLE, YEAR, World, per_class, streams, test_sets

from services.evaluation.detector import Counts
from services.evaluation.dispersion import UNKNOWN, Variation, steadied, variation
from services.evaluation.verdict import first_alarm

IMAGES = 3
"""Images of each patient."""
KINDS = (
    "class mix jumps",
    "images of a patient 0.2",
    "images of a patient 0.5",
    "weekly 0.1",
    "weekly 0.2",
    "weekly 0.4",
    "uneven batches",
)


def stress(kind: str, world: World, fleet: list[Model], replicates: int, generator) -> dict:
    """Per way of counting, in how many of each model's `replicates` years there is an alarm."""
    name, *level = kind.rsplit(" ", 1) if kind[-1].isdigit() else [kind]
    return {
        "class mix jumps": _mix,
        "images of a patient": _images,
        "weekly": _weekly,
        "uneven batches": _uneven,
    }[name](world, fleet, replicates, generator, *map(float, level))


def _mix(world, fleet, replicates, generator):
    moved = np.full(len(world.prevalence), 0.5 / (len(world.prevalence) - 1))
    moved[world.weak] = 0.5
    later = World(world.name, moved, world.confusion, world.test_cases, world.weak)
    path = [world] * STABLE + [later] * (YEAR - STABLE)
    return {"as deployed": [_hits(each, counts(each, streams(path, SIZE, replicates, generator))) for each in fleet]}


def _hits(owner, material, known: Variation = UNKNOWN) -> int:
    return sum(alarm is not None for alarm in first_alarms(owner, material, known))


def _images(world, fleet, replicates, generator, correlation):
    """Errors of one patient's images are correlated (beta-binomial). Thresholds are made from what is counted."""
    found = {"every image counted": [], "one image of each patient (deployed)": []}
    for number in range(len(fleet)):
        for way, errors, cases in _patients(world, world.test_cases // IMAGES, correlation, 1, 1, generator):
            base = (errors[0, 0], cases[0, 0])
            owner = model(
                np.stack([_as_confusion(e, m, k, len(base[0])) for k, (e, m) in enumerate(zip(*base, strict=True))]), SIZE, number
            )
            for other, e, m in _patients(world, SIZE // IMAGES, correlation, replicates, YEAR, generator):
                if other == way:
                    part = _blocks(e, m) if way.startswith("one") else (e, m)
                    rows = [np.broadcast_to(each, (replicates, len(each))) for each in base]
                    found[way].append(_hits(owner, Counts(rows[0], rows[1], *part)))
    return found


def _as_confusion(errors, cases, label, k):
    row = np.zeros(k, int)
    row[label], row[(label + 1) % k] = cases - errors, errors
    return row


def _patients(world, patients, correlation, replicates, weeks, generator):
    """Errors and images [replicates, weeks, K] counted both ways."""
    number = generator.multinomial(patients, world.prevalence, size=(replicates, weeks))
    concentration, rate = 1 / correlation - 1, world.errors
    every, first = np.zeros_like(number), np.zeros_like(number)
    for place in range(number.max()):
        there = place < number
        own = generator.beta(rate * concentration, (1 - rate) * concentration, size=number.shape)
        wrong = generator.binomial(IMAGES, own) * there
        every += wrong
        first += (generator.random(number.shape) * IMAGES < wrong) & there
    yield "every image counted", every, number * IMAGES
    yield "one image of each patient (deployed)", first, number


def _blocks(errors, cases):
    """Three weeks of 33 patients are a block of 99: as near to SIZE as whole weeks come."""
    weeks = errors.shape[1] // IMAGES * IMAGES
    return tuple(part[:, :weeks].reshape(len(part), -1, IMAGES, part.shape[-1]).sum(2) for part in (errors, cases))


def _weekly(world, fleet, replicates, generator, deviation):
    """A first version's first year; the year of a version that follows one of a year; the first year of counts as they are."""
    found = {"first version": [], "a later version": [], "without the estimate": []}
    for owner in fleet:
        first, later = (_wandering(world, owner, replicates, generator, deviation) for _ in range(2))
        found["first version"].append(_hits(owner, first))
        streams_of = [(one(first, slice(line, line + 1)), one(later, slice(line, line + 1))) for line in range(replicates)]
        found["a later version"].append(sum(_hits(owner, new, variation(old).remembered()) for old, new in streams_of))
        plain = [first_alarm(old, owner.thresholds, owner.size)[0] for old, _ in streams_of]
        found["without the estimate"].append(sum(alarm is not None for alarm in plain))
    return found


def _wandering(world, owner, replicates, generator, deviation) -> Counts:
    """A year in which the logit of every error rate wanders by `deviation` from week to week."""
    rate = world.errors
    logit = np.log(rate / (1 - rate)) + deviation * generator.standard_normal((replicates, YEAR, 1))
    cases = generator.multinomial(SIZE, world.prevalence, size=(replicates, YEAR))
    base = [np.broadcast_to(part, (replicates, len(part))) for part in per_class(owner.confusion)]
    return Counts(base[0], base[1], generator.binomial(cases, 1 / (1 + np.exp(-logit))), cases)


def _uneven(world, fleet, replicates, generator):
    """Batches of log-normal size, a tenth empty: taken as they are, and in blocks of SIZE looked at after every batch."""
    found = {"blocks of equal size (deployed)": [], "batches as they come": []}
    for owner in fleet:
        hits = np.zeros(2, int)
        for _ in range(replicates):
            sizes = np.rint(SIZE * generator.lognormal(-0.32, 0.8, YEAR)).astype(int) * (generator.random(YEAR) > 0.1)
            truth = generator.choice(len(world.prevalence), size=sizes.sum(), p=world.prevalence)
            said = np.where(generator.random(len(truth)) < world.errors[truth], (truth + 1) % len(world.prevalence), truth)
            ends = np.cumsum(sizes[sizes > 0])
            hits[0] += any(alarms(owner, truth[:end], said[:end], np.arange(end)) for end in ends)
            hits[1] += _as_they_come(owner, truth, said, np.repeat(np.arange(YEAR), sizes))
        found["blocks of equal size (deployed)"].append(int(hits[0]))
        found["batches as they come"].append(int(hits[1]))
    return found


def _as_they_come(owner, truth, said, batch) -> bool:
    k = len(owner.confusion)
    cell = batch * k + truth
    cases = np.bincount(cell, minlength=YEAR * k).reshape(1, YEAR, k)
    errors = np.bincount(cell, truth != said, minlength=YEAR * k).reshape(1, YEAR, k).astype(int)
    base = [part[None] for part in per_class(owner.confusion)]
    return first_alarm(steadied(Counts(base[0], base[1], errors, cases)), owner.thresholds, SIZE)[0] is not None


def small(world: World, cases: int, sets: int, replicates: int, generator) -> dict:
    """False alarms of models with another number of test cases."""
    place = World(world.name, world.prevalence, world.confusion, cases, world.weak)
    fleet = [model(each, SIZE, number) for number, each in enumerate(test_sets(place, sets, generator))]
    return {"as deployed": [_hits(owner, counts(owner, streams([place] * YEAR, SIZE, replicates, generator))) for owner in fleet]}

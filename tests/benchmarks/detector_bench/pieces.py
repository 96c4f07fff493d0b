"""The pieces of the benchmark: each small, seeded by its own name, and kept on disk, so that a table grows over time."""

import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from detector_bench import acceptance, ours
from detector_bench.late import DELAYS, late
from detector_bench.rules import RULES
from detector_bench.stress import KINDS, stress
from detector_bench.variants import variants
from detector_bench.worlds import FALLS, FOLLOWED, SIZES, STABLE, WORLDS, YEAR, path, per_class, streams, test_sets

from services.evaluation.calibration import calibrate
from services.evaluation.detector import Thresholds

SEED = 20261121
YEARS = 3
FROM_THE_FIRST_DAY = ("one class -10", "one class -20", "all classes -5")


@dataclass(frozen=True)
class Amount:
    """How much is simulated: blocks of test sets, sets a block, stable streams a set, peers' streams.

    Falls and stress: in how many of the blocks. Streams a set and fall.
    """

    sizes: tuple[int, ...]
    blocks: int
    sets: int
    stable: int
    falling_blocks: int
    stress_blocks: int
    falling: int
    peers: int
    late: int
    years: tuple[int, ...]
    kinds: tuple[str, ...]
    delays: tuple[str, ...]


FULL = Amount(SIZES, 6, 40, 20, 6, 2, 4, 1000, 60, (26, 104, 416), KINDS, tuple(DELAYS))
QUICK = Amount((100,), 1, 6, 4, 1, 1, 2, 100, 2, (26,), ("class mix jumps", "weekly 0.4"), ("errors sooner",))


def generator(*key) -> np.random.Generator:
    """Random numbers that depend on the piece's name alone."""
    return np.random.default_rng([SEED, zlib.crc32(repr(key).encode())])


def own(world: str, size: int, block: int, amount: Amount) -> dict:
    """False alarms of the deployed detector over one block of fresh test sets, each calibrated by itself."""
    place = WORLDS[world]
    sets = test_sets(place, amount.sets, generator("sets", world, size, block))
    fleet = [ours.model(confusion, size, number) for number, confusion in enumerate(sets)]
    found = ours.false_alarms(place, fleet, amount.stable, YEARS, generator("stable", world, size, block))
    return found | {"thresholds": [[model.thresholds.a, model.thresholds.b] for model in fleet]}


def falls(world: str, size: int, block: int, amount: Amount, known: dict) -> dict:
    """Delays of the deployed detector, with the thresholds of that block's test sets."""
    place, found = WORLDS[world], {}
    sets = test_sets(place, amount.sets, generator("sets", world, size, block))
    fleet = [ours.Model(each, Thresholds(*pair, "simulation"), size) for each, pair in zip(sets, known["thresholds"], strict=True)]
    for name in FALLS:
        found[name] = ours.delays(place, fleet, name, amount.falling, generator(name, world, size, block))
    for name in FROM_THE_FIRST_DAY:
        key = f"{name}, from the first batch"
        found[key] = ours.delays(place, fleet, name, amount.falling, generator(key, world, size, block), start=0)
    return found


def on_the_table(world: str, size: int) -> dict:
    """The acceptance table's own rule and the deployed one on the streams that the table was made from."""
    return acceptance.compared(size, acceptance.of_the_table(WORLDS[world], size))


def side_by_side(world: str, size: int, block: int, amount: Amount) -> dict:
    """The same two on other test sets and streams."""
    material = acceptance.fresh(WORLDS[world], size, amount.sets, amount.falling, generator("side by side", world, size, block))
    return acceptance.compared(size, material)


def told(world: str, size: int, amount: Amount, known: dict) -> dict:
    """How often what stands beside an alarm is true."""
    place = WORLDS[world]
    sets = test_sets(place, amount.sets, generator("sets", world, size, 0))
    fleet = [ours.Model(each, Thresholds(*pair, "simulation"), size) for each, pair in zip(sets, known["thresholds"], strict=True)]
    names = [name for name, fall in FALLS.items() if fall.jump]
    return {name: ours.evidence(place, fleet, name, amount.falling, generator("told", name, world, size)) for name in names}


def peers(world: str, size: int, amount: Amount) -> dict:
    """False alarms of the published rules, their delays as published, and with limits raised to one false alarm in 20 years."""
    place, found = WORLDS[world], {}
    stable = _drawn(place, [place] * (2 * YEAR), size, amount.peers, generator("tune", world, size))
    fresh = _drawn(place, [place] * (2 * YEAR), size, amount.peers, generator("peers", world, size))
    for rule in RULES:
        published = rule.limit(len(place.prevalence))
        value = rule.statistic(*stable, size)
        if np.isnan(value).all():
            continue
        yearly = np.stack([value[:, :YEAR].max(1), value[:, YEAR:].max(1)])
        tuned = float(np.quantile(yearly, 0.95, axis=1, method="higher").max())
        alarmed = rule.statistic(*fresh, size) > published
        found[rule.name] = {
            "limit": published,
            "tuned": tuned,
            "alarmed_batches": float(alarmed.sum() / len(alarmed) / 2),
            "years": [int(alarmed[:, :YEAR].any(1).sum()), int(alarmed[:, YEAR:].any(1).sum())],
            "replicates": len(alarmed),
            "delays": {},
        }
    for name, fall in FALLS.items():
        changed = _drawn(place, path(place, fall, STABLE + FOLLOWED), size, amount.peers // 3, generator("p", name, world, size))
        for rule in RULES:
            if rule.name in found:
                value, row = rule.statistic(*changed, size), found[rule.name]
                row["delays"][name] = [_delays(value > limit) for limit in (row["limit"], row["tuned"])]
    return found


def _drawn(world, worlds, size, replicates, random):
    return test_sets(world, replicates, random), streams(worlds, size, replicates, random)


def _delays(alarmed) -> list[int]:
    """Batches from the first changed one to the alarm, of streams without an earlier one."""
    after = alarmed[~alarmed[:, :STABLE].any(1), STABLE:]
    return np.where(after.any(1), after.argmax(1) + 1, FOLLOWED + 1).tolist()


def stressed(kind: str, world: str, block: int, amount: Amount, known: dict) -> dict:
    """Years with an alarm in a stable world that breaks an assumption, of models with batches of 100."""
    place = WORLDS[world]
    sets = test_sets(place, amount.sets, generator("sets", world, 100, block))
    fleet = [ours.Model(each, Thresholds(*pair, "simulation"), 100) for each, pair in zip(sets, known["thresholds"], strict=True)]
    fleet = fleet[: max(amount.sets // 2, 2)]
    found = stress(kind, place, fleet, amount.stable // 2, generator(kind, world, block))
    return {"hits": found, "replicates": amount.stable // 2}


def horizon(world: str, per_year: int, amount: Amount) -> dict:
    """False alarms in a year of `per_year` batches of 50, thresholds made for that year."""
    place, random = WORLDS[world], generator("horizon", world, per_year)
    hits = []
    for number, confusion in enumerate(test_sets(place, amount.sets, random)):
        errors, cases = per_class(confusion)
        owner = ours.Model(confusion, calibrate(errors, cases, 50, ours.BUDGET, number, per_year), 50)
        stable = ours.counts(owner, streams([place] * per_year, 50, amount.stable, random))
        hits.append(sum(alarm is not None for alarm in ours.first_alarms(owner, stable)))
    return {"hits": {"as deployed": hits}, "replicates": amount.stable}


Piece = tuple[str, Callable[[dict], dict]]
"""Its name, and how it is computed from the pieces before it."""


def plan(amount: Amount) -> list[Piece]:
    """All pieces, those that every table needs first."""
    found: list[Piece] = []
    for block in range(amount.blocks):
        found += _own(amount, block)
        found += _peers(amount) if block == 0 else []
        found += _stresses(amount, block) if block < amount.stress_blocks else []
    return found


def _own(amount: Amount, block: int) -> list[Piece]:
    cells = [(world, size) for size in amount.sizes for world in WORLDS]
    found: list[Piece] = [(f"own|{w}|{n}|{block}", lambda _, w=w, n=n: own(w, n, block, amount)) for w, n in cells]
    for w, n in cells if block < amount.falling_blocks else ():
        need = f"own|{w}|{n}|{block}"
        found.append((f"falls|{w}|{n}|{block}", lambda known, w=w, n=n, m=need: falls(w, n, block, amount, known[m])))
    return found


def _peers(amount: Amount) -> list[Piece]:
    found: list[Piece] = [(f"peers|{w}|{n}", lambda _, w=w, n=n: peers(w, n, amount)) for n in amount.sizes for w in WORLDS]
    for n, w in product(amount.sizes, WORLDS):
        need = f"own|{w}|{n}|0"
        found.append((f"told|{w}|{n}", lambda known, w=w, n=n, m=need: told(w, n, amount, known[m])))
    chosen = product((100, 30, 500), WORLDS) if amount.peers >= FULL.peers else ()
    for n, w in chosen:
        random = generator("variants", w, n)
        found.append((f"variants|{w}|{n}", lambda _, w=w, n=n, r=random: variants(WORLDS[w], n, amount.peers // 3, r)))
    if amount.peers >= FULL.peers:
        cells = list(product(amount.sizes, WORLDS))
        found += [(f"acceptance|{w}|{n}", lambda _, w=w, n=n: on_the_table(w, n)) for n, w in cells]
        blocks = product(range(amount.blocks), cells)
        found += [(f"side by side|{w}|{n}|{b}", lambda _, w=w, n=n, b=b: side_by_side(w, n, b, amount)) for b, (n, w) in blocks]
    found += [(f"horizon|{w}|{y}", lambda _, w=w, y=y: horizon(w, y, amount)) for w, y in product(WORLDS, amount.years)]
    return found


def _stresses(amount: Amount, block: int) -> list[Piece]:
    found: list[Piece] = []
    for kind, w in product(amount.kinds, WORLDS):
        need = f"own|{w}|100|{block}"
        found.append((f"stress|{kind}|{w}|{block}", lambda known, k=kind, w=w, m=need: stressed(k, w, block, amount, known[m])))
    for kind, w, fall in product(amount.delays, WORLDS, ("", "one class -10")):
        random = generator("late", kind, w, fall, block)
        found.append(
            (f"late labels|{kind}|{w}|{fall}|{block}", lambda _, k=kind, w=w, f=fall, r=random: late(k, w, f, amount.late, r))
        )
    return found


class Store:
    """Results of pieces, one JSON line each; without a file they are kept in memory. Several processes may share a file."""

    def __init__(self, path: Path | None) -> None:
        self.path, self.found = path, {}
        self._read()

    def take(self, piece: Piece) -> None:
        """Compute the piece unless it is there."""
        name, compute = piece
        self._read()
        if name not in self.found:
            self.found[name] = json.loads(json.dumps(compute(self.found)))
            if self.path:
                line = json.dumps({name: self.found[name]}) + "\n"
                with self.path.open("ab", buffering=0) as file:
                    file.write(line.encode())

    def _read(self) -> None:
        if self.path and self.path.exists():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                self.found.update(json.loads(line))

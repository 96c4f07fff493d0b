"""The pieces of the benchmark: each small, seeded by its own name, and kept on disk, so that a table grows over time."""

import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from detector_bench import ours
from detector_bench.rules import RULES
from detector_bench.worlds import FALLS, FOLLOWED, SIZES, STABLE, WORLDS, YEAR, path, streams, test_sets

from services.evaluation.detector import Thresholds

SEED = 20261121
YEARS = 3
FROM_THE_FIRST_DAY = ("one class -10", "one class -20", "all classes -5")


@dataclass(frozen=True)
class Amount:
    """How much is simulated: blocks of test sets, sets a block, stable streams a set, peers' streams.

    Falls: in how many of the blocks, and streams a set and fall.
    """

    sizes: tuple[int, ...]
    blocks: int
    sets: int
    stable: int
    falling_blocks: int
    falling: int
    peers: int


FULL = Amount(SIZES, 6, 40, 20, 2, 6, 1000)
QUICK = Amount((100,), 1, 12, 10, 1, 2, 100)


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


Piece = tuple[str, Callable[[dict], dict]]
"""Its name, and how it is computed from the pieces before it."""


def plan(amount: Amount) -> list[Piece]:
    """All pieces, those that every table needs first."""
    cells = [(world, size) for size in amount.sizes for world in WORLDS]
    found: list[Piece] = []
    for block in range(amount.blocks):
        found += [(f"own|{w}|{n}|{block}", lambda _, w=w, n=n, b=block: own(w, n, b, amount)) for w, n in cells]
        for w, n in cells if block < amount.falling_blocks else ():
            need = f"own|{w}|{n}|{block}"
            found.append((f"falls|{w}|{n}|{block}", lambda known, w=w, n=n, b=block, m=need: falls(w, n, b, amount, known[m])))
        if block == 0:
            found += [(f"peers|{w}|{n}", lambda _, w=w, n=n: peers(w, n, amount)) for w, n in cells]
    return found


class Store:
    """Results of pieces, one JSON line each; without a file they are kept in memory."""

    def __init__(self, path: Path | None) -> None:
        self.path, self.found = path, {}
        if path and path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                self.found.update(json.loads(line))

    def take(self, piece: Piece) -> None:
        """Compute the piece unless it is there."""
        name, compute = piece
        if name not in self.found:
            self.found[name] = json.loads(json.dumps(compute(self.found)))
            if self.path:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({name: self.found[name]}) + "\n")

"""Stable worlds and worlds in which recall falls, as confusion counts. A test set is drawn anew for every replicate."""

from dataclasses import dataclass, replace

import numpy as np

YEAR = 52
STABLE = 13
"""Stable batches before a fall."""
FOLLOWED = 104
"""Batches followed after it."""
SIZES = (100, 30, 500, 50, 200)


@dataclass(frozen=True)
class World:
    """Class shares [K], P(predicted | true) [K, K], cases in the test set, and the class that falls."""

    name: str
    prevalence: np.ndarray
    confusion: np.ndarray
    test_cases: int
    weak: int

    @property
    def errors(self):
        return 1 - np.diag(self.confusion)


TWO = World("2-class", np.array([0.26, 0.74]), np.array([[0.90, 0.10], [0.03, 0.97]]), 624, 0)
FOUR = World(
    "4-class",
    np.array([300, 306, 405, 300]) / 1311,
    np.array([[0.93, 0.06, 0.005, 0.005], [0.05, 0.88, 0.05, 0.02], [0.005, 0.01, 0.98, 0.005], [0.005, 0.02, 0.005, 0.97]]),
    1311,
    1,
)
WORLDS = {world.name: world for world in (TWO, FOUR)}


@dataclass(frozen=True)
class Fall:
    """A fall of recall in points: at once, or so much with every batch up to 41 points; of the weak class or of all."""

    name: str
    everywhere: bool
    jump: float = 0.0
    slope: float = 0.0


ABRUPT = [Fall(f"one class -{points}", everywhere=False, jump=points / 100) for points in (3, 5, 10, 20, 41)]
ABRUPT += [Fall(f"all classes -{points}", everywhere=True, jump=points / 100) for points in (3, 5, 10)]
SLOW = [
    Fall("one class, 0.5 a batch", everywhere=False, slope=0.005),
    Fall("all classes, 0.2 a batch", everywhere=True, slope=0.002),
]
FALLS = {fall.name: fall for fall in (*ABRUPT, *SLOW)}


def lowered(world: World, everywhere: bool, drop: float) -> World:
    """The same world after a fall: what a class loses goes to its errors in proportion."""
    confusion = world.confusion.copy()
    for label in range(len(confusion)) if everywhere else [world.weak]:
        others = confusion[label].copy()
        others[label] = 0
        step = min(drop, confusion[label, label] - 0.01)
        confusion[label] += step * others / others.sum()
        confusion[label, label] -= step
    return replace(world, confusion=confusion)


def path(world: World, fall: Fall, batches: int, start: int = STABLE) -> list[World]:
    """The world of each batch."""
    drops = [fall.jump or min(fall.slope * (batch - start + 1), 0.41) for batch in range(batches)]
    return [lowered(world, fall.everywhere, drop) if batch >= start else world for batch, drop in enumerate(drops)]


def test_sets(world: World, sets: int, generator) -> np.ndarray:
    """[sets, K, K] confusion counts."""
    cells = (world.prevalence[:, None] * world.confusion).ravel()
    return generator.multinomial(world.test_cases, cells, size=sets).reshape(sets, *world.confusion.shape)


def streams(worlds: list[World], size: int, replicates: int, generator) -> np.ndarray:
    """[replicates, batches, K, K] confusion counts."""
    cells = np.stack([(world.prevalence[:, None] * world.confusion).ravel() for world in worlds])
    k = len(worlds[0].prevalence)
    return generator.multinomial(size, cells, size=(replicates, len(worlds))).reshape(replicates, len(worlds), k, k)


def per_class(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Errors and cases of each true class [..., K]."""
    cases = confusion.sum(-1)
    return cases - np.diagonal(confusion, axis1=-2, axis2=-1), cases

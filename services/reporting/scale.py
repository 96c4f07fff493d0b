"""Where batches and interventions stand on the time axis of a control chart, and where declines began."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise

from services.reporting.facts import EvaluationFacts, Intervention

_CROWDED = 0.3
"""Marks whose distance is below this share of the mean one would lie on each other: then the axis counts batches."""
_DAY = 86_400.0
_MOST_TICKS = 11


@dataclass(frozen=True)
class Start:
    """The estimated start of a decline: the place of the batch in the history, its 95 % interval, the classes (empty: all)."""

    place: int
    low: int
    high: int
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Scale:
    """Places of the batches on the axis: days where batches are spread over time, else one step for each."""

    times: tuple[datetime, ...]
    numbers: tuple[int, ...]
    places: tuple[float, ...]
    to_scale: bool
    limits: tuple[float, float]

    @classmethod
    def of(
        cls, history: Sequence[EvaluationFacts], interventions: Sequence[Intervention], others: Sequence[datetime] = ()
    ) -> "Scale":
        """The axis of a history, in order of closing, that is not empty; long enough for interventions and `others`."""
        times = tuple(each.closed_at for each in history)
        days = [(at - times[0]).total_seconds() / _DAY for at in times]
        gaps = [later - earlier for earlier, later in pairwise(days)]
        to_scale = bool(gaps) and min(gaps) > 0 and min(gaps) >= _CROWDED * (days[-1] / len(gaps))
        places = tuple(days) if to_scale else tuple(float(place) for place in range(len(times)))
        scale = cls(times, tuple(each.number for each in history), places, to_scale, (0.0, 0.0))
        moments = [*(each.at for each in interventions), *others]
        known = [place for moment in moments if (place := scale.at(moment)) is not None]
        step = scale.step
        margin = (0.6 if len(places) > 6 else 0.25) * step
        limits = (min([places[0], *known]) - margin, max([places[-1], *known]) + margin)
        return cls(times, scale.numbers, places, to_scale, limits)

    @property
    def step(self) -> float:
        """The usual distance of two batches."""
        return self.places[-1] / (len(self.places) - 1) if len(self.places) > 1 else 1.0

    @property
    def half(self) -> float:
        """Half the distance of the two closest batches: how far a batch's own stretch of the axis goes."""
        return min((later - earlier for earlier, later in pairwise(self.places)), default=1.0) / 2

    @property
    def mark(self) -> float:
        """Size of a mark in points: smaller where there are many."""
        return 7.0 if len(self.places) <= 20 else max(4.0, 7.0 - 0.075 * (len(self.places) - 20))

    @property
    def label(self) -> str:
        """What the axis counts."""
        return "batch, and when it was closed" + ("" if self.to_scale else " (one step a batch, not to scale in time)")

    def at(self, moment: datetime) -> float | None:
        """The place of a moment; None for one before the first batch was being filled."""
        reach = self._reach()
        if moment < self.times[0] - reach:
            return None
        if self.to_scale:
            return (moment - self.times[0]).total_seconds() / _DAY
        after = bisect_right(self.times, moment)
        if after == len(self.times):
            return self.places[-1] + 0.3
        if after == 0:
            return self.places[0] - 0.2
        span = (self.times[after] - self.times[after - 1]).total_seconds()
        return after - 1 + 0.25 + 0.5 * (moment - self.times[after - 1]).total_seconds() / span

    def _reach(self) -> timedelta:
        return (self.times[-1] - self.times[0]) / (2 * max(len(self.times) - 1, 1))

    def stretches(self, history: Sequence[EvaluationFacts]) -> list[tuple[int, float, float]]:
        """(version, from, to) of every stretch of batches of one version; neighbours meet halfway."""
        runs: list[tuple[int, int, int]] = []
        for place, each in enumerate(history):
            if runs and runs[-1][0] == each.version:
                runs[-1] = (each.version, runs[-1][1], place)
            else:
                runs.append((each.version, place, place))
        return [(version, self._before(start), self._before(end + 1)) for version, start, end in runs]

    def _before(self, place: int) -> float:
        """Halfway between a batch and the one before it; the ends of the axis at its ends."""
        if place == 0:
            return self.limits[0]
        if place == len(self.places):
            return self.limits[1]
        return (self.places[place - 1] + self.places[place]) / 2

    def alarms(self, history: Sequence[EvaluationFacts]) -> list[tuple[float, str, str]]:
        """(place, "alarm", words) of the batch at which each alarm was raised."""
        marks: list[tuple[float, str, str]] = []
        standing: dict[int, bool] = {}
        for place, each in enumerate(history):
            raised = each.status == "degraded"
            if raised and not standing.get(each.version):
                name = each.evidence.get("class")
                marks.append((self.places[place], "alarm", f"batch {each.number}" + (f": {name}" if isinstance(name, str) else "")))
            standing[each.version] = raised
        return marks

    def ticks(self) -> tuple[list[float], list[str]]:
        """At most eleven places with number and day of their batch, far enough apart to be read."""
        least = (self.limits[1] - self.limits[0]) / _MOST_TICKS
        kept: list[int] = []
        for index, place in enumerate(self.places):
            if not kept or place - self.places[kept[-1]] >= least:
                kept.append(index)
        return [self.places[index] for index in kept], [self._name(index, kept) for index in kept]

    def _name(self, index: int, kept: Sequence[int]) -> str:
        at = self.times[index]
        days = {self.times[each].date() for each in kept}
        if len(days) < len(kept):
            return f"{self.numbers[index]}\n{at:%d %b %H:%M}"
        new_year = index == kept[0] or self.times[kept[kept.index(index) - 1]].year != at.year
        return f"{self.numbers[index]}\n{at:%d %b}" + (f"\n{at:%Y}" if new_year else "")


def starts(history: Sequence[EvaluationFacts]) -> list[Start]:
    """Where each decline that raised an alarm began, by the newest judgement while it stood."""
    found: dict[tuple[int, int], Start] = {}
    places = {(each.version, each.number): place for place, each in enumerate(history)}
    run, standing = 0, False
    for each in history:
        raised = each.status == "degraded"
        run, standing = run + (raised and not standing), raised
        start = _start(each, places) if raised else None
        if start is not None:
            found[each.version, run] = start
    return list(found.values())


def _start(evaluation: EvaluationFacts, places: dict[tuple[int, int], int]) -> Start | None:
    evidence, version = evaluation.evidence, evaluation.version
    numbers = [evidence.get(key) for key in ("since_batch", "since_batch_low", "since_batch_high")]
    if not isinstance(numbers[0], int | float):
        return None
    at, low, high = (int(value) if isinstance(value, int | float) else int(numbers[0]) for value in numbers)
    if (version, at) not in places:
        return None
    shown = [place for (owner, number), place in places.items() if owner == version and low <= number <= high]
    name = evidence.get("class")
    everywhere = evidence.get("scope") == "all classes" or not isinstance(name, str)
    return Start(places[version, at], min(shown), max(shown), () if everywhere else (str(name),))

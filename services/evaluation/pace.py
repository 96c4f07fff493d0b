"""How many blocks of labelled cases a site has in a year: the year that the false-alarm budget speaks of."""

import math
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final

from services.evaluation.detector import YEAR

SHORTEST: Final = timedelta(days=28)
"""A rate is measured over at least so long, and over at least two blocks; before, one block a week is assumed."""
LONGEST: Final = timedelta(days=365)
"""Older cases say nothing about today's volume."""
LEAST: Final = 13
STEP: Final = math.sqrt(2)
TOLERANCE: Final = 0.05
_YEAR_S: Final = 365.25 * 86_400


def blocks_per_year(acquired: Iterable[datetime], size: int) -> int:
    """Expected blocks of `size` independent labelled cases a year, from when these cases were acquired.

    Rounded up to one of 13, 19, 26, 37, 52, 74, 104, … (steps of the square root of 2), so that thresholds change rarely and
    the budget holds at the measured rate, which is above the number given by 5 % at most (a block a week is 52.2 a year).
    """
    times = sorted(acquired)
    recent = [time for time in times if time >= times[-1] - LONGEST]
    if len(recent) < 2 * size or recent[-1] - recent[0] < SHORTEST:
        return YEAR
    rate = (len(recent) - 1) / (recent[-1] - recent[0]).total_seconds() * _YEAR_S / size
    step = math.ceil(math.log(rate / (1 + TOLERANCE) / YEAR, STEP))
    return max(LEAST, math.ceil(round(YEAR * STEP**step, 6)))

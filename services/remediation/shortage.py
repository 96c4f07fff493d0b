"""How many gate cases would settle what the gate's cases leave open: a gain that is seen, a loss that may be too much. Pure."""

import math
from dataclasses import dataclass
from typing import Final

from scipy.stats import norm

from services.runtime.conventions import POWER

REACHABLE: Final = 10
"""More labels are asked for as long as at most this many times the present gate cases would show what is to be shown."""


@dataclass(frozen=True, slots=True)
class Loss:
    """A loss of recall and its upper bound; `fixed` is the standard error that further cases of the gate leave as it is."""

    lost: float
    bound: float
    fixed: float = 0.0


def cases_that_bound(loss: Loss, cases: int, margin: float, level: float) -> int:
    """Gate cases, of the mix that there is, with which the bound at half of `level` falls within `margin` as likely as not.

    `loss` is bounded at `level` on `cases` cases; half the level counts, because one more judgement follows. 0 where no number
    would do. With a power of 80 % many repairs that lose nothing, but by chance seem to lose 2 points, would count as hopeless.
    """
    spread = max(loss.bound - loss.lost, 0.0) / float(norm.ppf(1 - level))
    wanted = (margin - loss.lost) / float(norm.ppf(1 - level / 2))
    left = wanted**2 - loss.fixed**2
    if wanted <= 0 or left <= 0:
        return 0
    return max(cases + 1, math.ceil(cases * max(spread**2 - loss.fixed**2, 0.0) / left))


def within_reach(needed: int, cases: int) -> bool:
    """Whether so many cases may be asked for where there are `cases`."""
    return 0 < needed <= REACHABLE * cases


def cases_needed(wins: int, losses: int, cases: int, alpha: float) -> int:
    """Gate cases with which the gain would be shown that these cases did not show; 0 when none is seen."""
    enough = cases_that_show(wins, losses, cases, alpha)
    return max(cases + 1, enough) if enough else 0


def cases_that_show(wins: int, losses: int, cases: int, alpha: float) -> int:
    """Cases with which McNemar's test shows the gain that is seen, with power 80 % (Connor 1987); 0 when none is seen."""
    gain, differing = (wins - losses) / cases, (wins + losses) / cases
    if gain <= 0:
        return 0
    spread = float(norm.ppf(1 - alpha)) * math.sqrt(differing) + float(norm.ppf(POWER)) * math.sqrt(max(differing - gain**2, 0.0))
    return math.ceil((spread / gain) ** 2)

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
    """A loss of recall and its upper bound, both beyond what is `granted`.

    `fixed` is the standard error that further cases of the gate leave as it is.
    """

    lost: float
    bound: float
    fixed: float = 0.0
    granted: float = 0.0


def cases_that_bound(loss: Loss, cases: int, margin: float, level: float) -> int:
    """Gate cases, of the mix that there is, with which a repair that loses little is shown to be within `margin`, power 80 %.

    Little is nothing, or half the margin where there are enough cases for nothing. `loss` is bounded at `level` on `cases` cases;
    half the level counts, because one more judgement follows. The number is that of a planned trial: it does not depend on the loss
    that was seen. 0 where there are so many cases already, where no number would do, and where the loss is more than the margin by
    a standard error and more: labels are not spent on what is likely lost.
    """
    spread = max(loss.bound - loss.lost, 0.0) / float(norm.ppf(1 - level))
    if loss.lost - spread > margin:
        return 0
    certainty = float(norm.ppf(1 - level / 2) + norm.ppf(POWER))
    left = [(room / certainty) ** 2 - loss.fixed**2 for room in (margin, margin / 2)]
    planned = [math.ceil(cases * max(spread**2 - loss.fixed**2, 0.0) / each) for each in left if each > 0]
    return next((needed for needed in planned if needed > cases), 0)


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

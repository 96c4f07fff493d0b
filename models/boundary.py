"""The place of the boundary between classes, held where it was on old cases.

A training moves the boundary: one old class loses what another one gains, and the mean recall shows nothing of it. Offsets of
the logits move it back. They are fitted so that each class keeps its share of the decisions on old cases. Version and
successor answer the same cases, so only those count on which both differ, and no label is used, so that rehearsed cases serve as
well as held-out ones: offsets fitted to the recalls of some dozens of labelled cases follow chance instead (decision 0028).

Decisions are counted by a smooth step. The offsets are the minimum of a convex function, the dual of assigning cases to
classes of given sizes (entropic optimal transport: Cuturi 2013), so there is one answer up to a constant.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from scipy.optimize import minimize
from scipy.special import logsumexp, softmax

from models.calibration import composed
from models.logits import Floats, StudyLogits
from models.spec import Calibration

WIDTH: Final = 0.25
"""Width of the smooth step in nats: cases near the boundary share in the count, so that single cases do not place it."""
FARTHEST: Final = 3.0
"""Largest offset in nats; more is asked for only where a class is hardly ever decided for."""
PULL: Final = 0.25
"""Cases that one nat of an offset costs: a class that old cases hardly show is not pushed away for a fraction of one of them."""
_LEAST: Final = 1e-5


@dataclass(frozen=True, slots=True)
class Held:
    """The successor's calibration with which the boundary lies where it lay, and the numbers; `moved` in nats."""

    calibration: Calibration
    record: dict[str, Any]

    @property
    def moved(self) -> float:
        """The largest offset."""
        return float(max(map(abs, self.record["offsets"]), default=0.0))


def hold(before: StudyLogits, after: StudyLogits, base: Calibration) -> Held:
    """Offsets for the successor's logits `after`, on the same old studies as the version's own, `before`.

    Both are calibrated by `base`. The result is `base` itself where nothing is to be moved. Raises ValueError for other studies.
    """
    if not len(before) or before.logits.shape != after.logits.shape or not np.array_equal(before.study, after.study):
        msg = "the boundary can only be held on old studies that both versions have answered"
        raise ValueError(msg)
    weights = _weights(before)
    wanted = shares(_calibrated(before, base), weights)
    given = _calibrated(after, base)
    offsets = _offsets(given, weights, wanted, PULL / len(before))
    record = {
        "cases": len(before),
        "offsets": [round(float(value), 4) for value in offsets],
        "shares": {
            name: [round(float(value), 5) for value in each]
            for name, each in (("before", wanted), ("moved", shares(given, weights)), ("held", shares(given + offsets, weights)))
        },
    }
    if float(np.abs(offsets).max()) < _LEAST:
        return Held(base, record)
    return Held(composed(base, Calibration(offsets=tuple(float(value) for value in offsets)), before.classes), record)


def shares(calibrated: Floats, weights: Floats) -> Floats:
    """Share of the decisions for each class [classes], of images' calibrated logits [images, classes] and weights [images]."""
    return np.asarray(weights @ softmax(calibrated / WIDTH, axis=1))


def _offsets(given: Floats, weights: Floats, wanted: Floats, price: float) -> Floats:
    def cost(offsets: Floats) -> tuple[float, Floats]:
        moved = given + offsets
        free = WIDTH * logsumexp(moved / WIDTH, axis=1)
        pull = price / 2 * float(offsets @ offsets)
        return float(weights @ free) - float(wanted @ offsets) + pull, shares(moved, weights) - wanted + price * offsets

    classes = len(wanted)
    found = minimize(cost, np.zeros(classes), jac=True, method="L-BFGS-B", bounds=[(-FARTHEST, FARTHEST)] * classes, tol=1e-12)
    return np.asarray(found.x - found.x.mean())


def _calibrated(cases: StudyLogits, base: Calibration) -> Floats:
    return np.asarray(cases.logits / base.temperature + (np.asarray(base.offsets) if base.offsets else 0.0))


def _weights(cases: StudyLogits) -> Floats:
    """Each study counts alike, and each of its images."""
    images = np.bincount(cases.study, minlength=len(cases))
    return np.asarray(1.0 / (images[cases.study] * len(cases)))

"""Corrected labels are further looks at the detector: how many false alarms do they add where nothing changes?

Null streams of 52 weekly batches of 100 cases, two classes (error rates 10 and 15 %), test sets of 120 cases a class, thresholds
and division by the variation as deployed. Of some labels another reader, no better and no worse, gives another one four weeks
later; after each week the whole stream is judged with the labels known by then, as re-opened evaluations do. The peer is the same
stream judged with the last labels only.

python tests/benchmarks/relabelling.py [--quick] --json docs/benchmarks/relabelling.json
"""

from typing import Any

import numpy as np
from bench_report import arguments, finish
from numpy.typing import NDArray

from services.evaluation.calibration import calibrate
from services.evaluation.detector import Counts, Thresholds, statistics
from services.evaluation.dispersion import steadied

Truths = NDArray[np.bool_]
WEEKS, SIZE, LATE, STREAMS = 52, 100, 4, 100
RATES, TEST = np.array([0.10, 0.15]), np.array([120, 120])
BUDGET = 0.05


def counts(wrong: Truths, first: Truths, test_errors: NDArray[np.int64]) -> Counts:
    """Errors and cases of both classes a week, [R, T, 2]."""
    split = np.stack([first, ~first], -1)
    errors, cases = (wrong[..., None] & split).sum(2), split.sum(2)
    baseline = (np.broadcast_to(each, (len(wrong), 2)) for each in (test_errors, TEST))
    return Counts(*baseline, errors, cases)


def alarmed(found: Counts, limits: Thresholds) -> Truths:
    """[R] whether either statistic passes its threshold after any week."""
    over: Truths = (statistics(steadied(found), SIZE) > np.array([limits.a, limits.b])).any((-1, -2))
    return over


def one_test_set(generator: np.random.Generator, share: float) -> tuple[int, int]:
    """Alarms of streams judged with the last labels, and of the same streams judged every week with those known by then."""
    test_errors = generator.binomial(TEST, RATES)
    limits = calibrate(test_errors, TEST, SIZE, BUDGET, 1, WEEKS)
    first = generator.random((STREAMS, WEEKS, SIZE)) < 0.5
    risk = np.where(first, *RATES)
    last = generator.random(first.shape) < risk
    early = np.where(generator.random(first.shape) < share, generator.random(first.shape) < risk, last)
    looks = np.zeros(STREAMS, bool)
    for week in range(1, WEEKS + LATE + 1):
        known = np.concatenate([last[:, : max(0, week - LATE)], early[:, max(0, week - LATE) :]], 1)[:, :week]
        looks |= alarmed(counts(known, first[:, :week], test_errors), limits)
    return int(alarmed(counts(last, first, test_errors), limits).sum()), int(looks.sum())


def row(share: float, sets: int) -> dict[str, Any]:
    """Both shares of streams with an alarm in a year, over the same test sets for every share of labels."""
    found = np.array([one_test_set(np.random.default_rng([5, number]), share) for number in range(sets)])
    last, looks = found.sum(0) / (sets * STREAMS)
    spread = found.std(0, ddof=1) / np.sqrt(sets) / STREAMS
    return {
        "labels replaced": share,
        "streams": sets * STREAMS,
        "alarm, last labels only": float(last),
        "alarm, every week": float(looks),
        "standard errors": f"{spread[0]:.3f}, {spread[1]:.3f}",
        "ratio": float(looks / last) if last else None,
    }


def main() -> None:
    """Run and report."""
    options = arguments(__doc__ or "").parse_args()
    rows = [row(share, 2 if options.quick else 30) for share in (0.0, 0.1, 0.3)]
    finish("relabelling", rows, [], options.json)


if __name__ == "__main__":
    main()

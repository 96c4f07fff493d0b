"""Would the score of the true class, bet on beside right or wrong, make a sooner detector? (docs/decisions, sooner detectors)

    python tests/benchmarks/score_evidence.py [--quick] [--json FILE]

One class of 26 cases a batch whose error rate of 10 % is known: Shiryaev-Roberts sums of likelihood ratios against falls of 5,
10 and 20 points, from right or wrong alone, from a normal score (an error is a score below 0), and from both with the budget
shared; each with the threshold that alarms in 5 % of stable years. Three changes: all scores move down; some right cases turn
into errors like any other; the model gets less sure and errs as before.
"""

import numpy as np
from bench_report import arguments, finish
from scipy.stats import norm

CASES, ERROR, STABLE, YEAR, FOLLOWED = 26, 0.10, 13, 52, 104
FALLS = (0.05, 0.10, 0.20)
MEAN = norm.ppf(1 - ERROR)
LESS_SURE = 0.8


def scores(streams, batches, generator):
    """[streams, batches, CASES] scores of a class in which nothing changes."""
    return generator.standard_normal((streams, batches, CASES)) + MEAN


def moved(score, drop):
    """All scores lower, so that the error rate rises by `drop`."""
    return score + norm.ppf(1 - ERROR - drop) - MEAN


def lost(score, drop, generator):
    """Right cases that turn into errors whose scores are those of the other errors."""
    hit = (score > 0) & (generator.random(score.shape) < drop / (1 - ERROR))
    return np.where(hit, norm.ppf(generator.random(score.shape) * ERROR) + MEAN, score)


def statistics(score):
    """[streams, batches] of each kind of evidence."""
    errors = (score < 0).sum(2)
    binary = [errors * np.log((ERROR + d) / ERROR) + (CASES - errors) * np.log((1 - ERROR - d) / (1 - ERROR)) for d in FALLS]
    shifts = [norm.ppf(1 - ERROR - d) - MEAN for d in FALLS]
    whole = [shift * (score - MEAN).sum(2) - CASES * shift**2 / 2 for shift in shifts]
    first, second = _summed(binary), _summed(whole)
    return {"right or wrong": first, "scores": second, "both, budget shared": (first + second) / 2}


def _summed(logs):
    value, found = np.zeros((len(logs), len(logs[0]))), np.empty(logs[0].shape)
    for batch in range(found.shape[1]):
        value = np.minimum((value + 1) * np.exp(np.stack([each[:, batch] for each in logs])), 1e200)
        found[:, batch] = value.mean(0)
    return found


def delays(value, limit):
    """Batches to the alarm, one more than followed where there is none, of streams without an earlier one."""
    alarmed = value >= limit
    after = alarmed[~alarmed[:, :STABLE].any(1), STABLE:]
    return np.where(after.any(1), after.argmax(1) + 1, FOLLOWED + 1)


def main() -> None:
    """Tune on stable years, then follow the three changes."""
    options = arguments("betting on scores beside right or wrong").parse_args()
    generator, number = np.random.default_rng(1), 300 if options.quick else 1500
    limits = {name: np.quantile(value.max(1), 0.95) for name, value in statistics(scores(4 * number, YEAR, generator)).items()}
    rows = []
    changes = {"scores move": moved, "cases are lost": lambda score, drop: lost(score, drop, generator)}
    for (name, change), drop in ((item, drop) for item in changes.items() for drop in FALLS):
        score = scores(number, STABLE + FOLLOWED, generator)
        score[:, STABLE:] = change(score[:, STABLE:], drop)
        found = {kind: delays(value, limits[kind]).mean() for kind, value in statistics(score).items()}
        rows.append(
            {"change": f"{name}, {100 * drop:.0f} points", "unit": "mean batches"} | {k: f"{v:.1f}" for k, v in found.items()}
        )
    score = scores(number, STABLE + YEAR, generator)
    later = score[:, STABLE:]
    score[:, STABLE:] = np.where(later > 0, LESS_SURE * later, later)
    share = {kind: (value[:, STABLE:] >= limits[kind]).any(1).mean() for kind, value in statistics(score).items()}
    rows.append({"change": "less sure, recall as before", "unit": "alarms a year"} | {k: f"{v:.2f}" for k, v in share.items()})
    finish("score_evidence", rows, [], options.json, f"{number} streams a row.")


if __name__ == "__main__":
    main()

"""False promotions, and real ones that are missed, when the gate's own code judges simulated pairs of versions.

    python tests/benchmarks/gate.py [--quick] [--json FILE]

Every gate is drawn anew: cases of three classes, patients with one or several studies, a champion and a challenger whose errors
coincide on a part of the cases. `judge` sees probabilities as in service. Challengers that are not better, of several kinds,
must be promoted in at most the stated share (alpha, 5 %) of the gates; those that are better show the gate's power. `series` are
four challengers in a row on the same patients, which share one level: a promotion of any of them counts.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from bench_report import Target, arguments, at_least, at_most, finish
from scipy.stats import binomtest

from schemas.vocabulary import Verdict
from services.remediation.gate import Endpoint, PairedCase, Rules, judge

CLASSES = ("a", "b", "c")
OLD_CASES, SERIES = 450, 4
Answers = np.ndarray
Draw = Callable[[np.random.Generator, np.ndarray], tuple[Answers, Answers]]


@dataclass(frozen=True)
class Kind:
    """A kind of challenger. `better` says that it really is better, so that its promotion is right.

    `draw(random, truth)` gives right answers of champion and challenger on the gate's cases; `forget` is the share of the old
    cases of the first class that it has unlearnt; `confidences` are those of either version, `endpoint` what has to be better.
    """

    name: str
    draw: Draw
    better: bool
    cases: int = 150
    per_patient: int = 1
    forget: float = 0.0
    confidences: tuple[float, float] = (0.8, 0.8)
    endpoint: Endpoint = "decisions"
    series: int = 1


def accuracies(old: float, new: float, agreement: float = 0.6) -> Draw:
    """Versions of given accuracies whose errors have the same cause on a share of the cases."""

    def draw(random: np.random.Generator, truth: np.ndarray) -> tuple[Answers, Answers]:
        shared = random.random(len(truth))
        other = np.where(random.random(len(truth)) < agreement, shared, random.random(len(truth)))
        return shared < old, other < new

    return draw


def by_class(old: tuple[float, ...], new: tuple[float, ...]) -> Draw:
    """Versions of given recalls, independent errors."""

    def draw(random: np.random.Generator, truth: np.ndarray) -> tuple[Answers, Answers]:
        return random.random(len(truth)) < np.array(old)[truth], random.random(len(truth)) < np.array(new)[truth]

    return draw


COLLAPSED = (0.99, 0.3, 0.3)
"""Recalls of a champion that calls other classes like the first one; usual are 0.95."""
KINDS = (
    Kind("equally good", accuracies(0.75, 0.75), better=False),
    Kind("equally good, 40 cases", accuracies(0.75, 0.75), better=False, cases=40),
    Kind("equally good, three studies a patient", accuracies(0.75, 0.75), better=False, per_patient=3),
    Kind("equally good, errors unrelated", accuracies(0.75, 0.75, 0.0), better=False),
    Kind("three points worse", accuracies(0.75, 0.72), better=False),
    Kind("trades one class for another", by_class((0.9, 0.6, 0.75), (0.6, 0.9, 0.75)), better=False),
    Kind("better here, forgets 15 % of an old class", accuracies(0.6, 0.85), better=False, forget=0.15),
    Kind(
        "the same probabilities made sharper",
        accuracies(0.75, 0.75, 1.0),
        better=False,
        confidences=(0.7, 0.8),
        endpoint="probabilities",
    ),
    Kind("four equally good ones in a row", accuracies(0.75, 0.75), better=False, series=SERIES),
    Kind("ten points better", accuracies(0.75, 0.85, 0.9), better=True),
    Kind("twenty points better", accuracies(0.65, 0.85, 0.9), better=True),
    Kind("thirty points better, 60 cases", accuracies(0.55, 0.85, 0.9), better=True, cases=60),
    Kind("mends a collapse, one class 15 points below usual", by_class(COLLAPSED, (0.8, 0.95, 0.95)), better=False, cases=450),
    Kind("collapses into another class", by_class(COLLAPSED, (0.3, 0.99, 0.3)), better=False, cases=450),
    Kind("mends a collapse", by_class(COLLAPSED, (0.95, 0.95, 0.95)), better=True, cases=450),
    Kind("mends a collapse, all classes 7 points below usual", by_class(COLLAPSED, (0.88, 0.88, 0.88)), better=True, cases=450),
)


def probabilities(truth: np.ndarray, right: Answers, confidence: float) -> list[dict[str, float]]:
    """What a version says of each case: its class with `confidence`, the rest even."""
    said = np.where(right, truth, (truth + 1) % len(CLASSES))
    rest = (1 - confidence) / (len(CLASSES) - 1)
    return [{name: confidence if place == label else rest for place, name in enumerate(CLASSES)} for label in said]


def paired(truth: np.ndarray, old: Answers, new: Answers, kind: Kind) -> list[PairedCase]:
    """Cases as the gate takes them."""
    sides = [probabilities(truth, right, confidence) for right, confidence in zip((old, new), kind.confidences, strict=True)]
    return [
        PairedCase(f"case{place}", f"patient{place // kind.per_patient}", CLASSES[label], sides[0][place], sides[1][place])
        for place, label in enumerate(truth.tolist())
    ]


def old_cases(random: np.random.Generator, kind: Kind) -> list[PairedCase]:
    """The development test set: both read 95 %, but for what the challenger has unlearnt of the first class."""
    truth = np.arange(OLD_CASES) % len(CLASSES)
    right = random.random(OLD_CASES) < 0.95
    return paired(truth, right, right & ~((truth == 0) & (random.random(OLD_CASES) < kind.forget)), kind)


def promoted(kind: Kind, seed: int) -> bool:
    """Whether one simulated gate, or any of a series of them on the same patients, promotes."""
    random = np.random.default_rng([seed, KINDS.index(kind)])
    truth = random.integers(0, len(CLASSES), kind.cases)
    champion, challenger = kind.draw(random, truth)
    if kind.per_patient > 1:
        # A patient's studies fail together, as they do in service.
        group = np.arange(kind.cases) // kind.per_patient * kind.per_patient
        champion, challenger = champion[group], challenger[group]
    for look in range(kind.series):
        if look:
            again = np.where(random.random(kind.cases) < 0.6, champion, random.random(kind.cases) < 0.75)
            challenger = again.astype(bool)
        rules = Rules(draws=200, looks=look, endpoint=kind.endpoint)
        verdict = judge(paired(truth, champion, challenger, kind), old_cases(random, kind), CLASSES, rules).verdict
        if verdict == Verdict.PROMOTE:
            return True
    return False


def measured(kind: Kind, gates: int) -> dict[str, Any]:
    """A row: how many of the gates promoted."""
    count = sum(promoted(kind, seed) for seed in range(gates))
    interval = binomtest(count, gates).proportion_ci()
    return {
        "challenger": kind.name,
        "better": "yes" if kind.better else "no",
        "cases": kind.cases,
        "gates": gates,
        "promoted": count,
        "share": f"{count / gates:.1%} [{interval.low:.1%}, {interval.high:.1%}]",
    }


def targets_of(rows: list[dict[str, Any]], alpha: float) -> list[Target]:
    """At most the stated share of false promotions for each kind; the gate's power where the gain is large."""
    false = {row["challenger"]: row["promoted"] / row["gates"] for row in rows if row["better"] == "no"}
    power = next(row["promoted"] / row["gates"] for row in rows if row["challenger"] == "twenty points better")
    worst = max(false, key=lambda name: false[name])
    return [
        at_most(f"largest share of false promotions ({worst})", round(false[worst], 4), alpha),
        at_least("twenty points better: promoted", round(power, 3), 0.8),
    ]


def main() -> None:
    chosen = arguments(__doc__.splitlines()[0]).parse_args()
    gates, started = (40 if chosen.quick else 200), time.perf_counter()
    rows = [measured(kind, gates) for kind in KINDS]
    note = f"{gates} gates a kind through `services.remediation.gate.judge`; {time.perf_counter() - started:.0f} s."
    finish("gate", rows, targets_of(rows, Rules().alpha), chosen.json, note)


if __name__ == "__main__":
    main()

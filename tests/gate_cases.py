"""Cases of a gate with given answers, and versions with given accuracies."""

import numpy as np

from services.remediation.gate import PairedCase, Rules

CLASSES = ("a", "b", "c")
RULES = Rules(draws=400)


def probabilities(predicted: str, confidence: float = 0.8) -> dict[str, float]:
    return {name: confidence if name == predicted else (1 - confidence) / 2 for name in CLASSES}


def wrong(truth: str) -> str:
    return CLASSES[(CLASSES.index(truth) + 1) % 3]


def cases(old_right: list[bool], new_right: list[bool], *, per_patient: int = 1, confidence: float = 0.8) -> list[PairedCase]:
    """Cases whose truths take turns; each side answers right or wrong as told."""
    found = []
    for index, (old, new) in enumerate(zip(old_right, new_right, strict=True)):
        truth = CLASSES[index % 3]
        sides = [probabilities(truth if right else wrong(truth), confidence) for right in (old, new)]
        found.append(PairedCase(f"case{index}", f"patient{index // per_patient}", truth, *sides))
    return found


def simulated(count: int, old: float, new: float, seed: int, agreement: float = 0.6) -> list[PairedCase]:
    """Versions with given accuracies whose errors coincide on a share of the cases."""
    random = np.random.default_rng(seed)
    shared = random.random(count)
    other = np.where(random.random(count) < agreement, shared, random.random(count))
    return cases((shared < old).tolist(), (other < new).tolist())

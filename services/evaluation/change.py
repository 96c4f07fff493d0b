"""What kind of change lies between two parts of a stream, from images, labels and answers together, with the tests behind it.

The order of the questions: does the step of the images look like a known fault of the feed? Have the images changed? If so,
also within the classes (covariate), or does another mix of patients explain it (prevalence)? If not, have the answers to the
same images changed: because two classes' labels are exchanged (pipeline), or because a label means something else (concept)?
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from models import two_sample
from models.likeness import Likeness
from models.signature import QUALITY
from schemas.vocabulary import Diagnosis
from services.evaluation.cause import Cause
from services.runtime.signatures import Images

RISK: Final = 0.01
"""Chance of naming a kind where nothing changed, for each question."""
MIX_RISK: Final = 0.001
"""The same for a moved mix of classes that nothing else speaks of."""
ALIKE: Final = 0.05
"""P-value from which the baseline's images count as like the stream's: then both together are what a change is seen against."""
MOST: Final = 600
"""Cases of either side that the tests on images use."""
LEAST: Final = 50
"""Cases of either side from which the tests on images are made."""
PERMUTATIONS: Final = 999
_SWAP_FIT: Final = 0.75
_SWAP_CASES: Final = 5
_WORDS: Final[Mapping[str, tuple[str, str]]] = {
    "mean": ("brighter", "darker"),
    "contrast": ("of more contrast", "of less contrast"),
    "dark_share": ("blacker", "less black"),
    "bright_share": ("whiter", "less white"),
    "sharpness": ("sharper or noisier", "more blurred"),
    "noise": ("noisier", "smoother"),
}


@dataclass(frozen=True)
class Side:
    """One side of a change: truth and prediction of each case, and the images of the same cases (None where not known)."""

    truth: Sequence[str]
    predicted: Sequence[str]
    images: Images | None = None

    def sample(self, generator: np.random.Generator) -> "Side":
        """At most `MOST` of the cases."""
        if len(self.truth) <= MOST or self.images is None:
            return self
        chosen = np.sort(generator.choice(len(self.truth), MOST, replace=False)).tolist()
        truth, predicted = ([values[place] for place in chosen] for values in (self.truth, self.predicted))
        return Side(truth, predicted, self.images.take(chosen))


def joined(first: Side, second: Side) -> Side:
    """Both sides as one; without images where one has none."""
    truth, predicted = [*first.truth, *second.truth], [*first.predicted, *second.predicted]
    if first.images is None or second.images is None:
        return Side(truth, predicted)
    return Side(truth, predicted, first.images.joined(second.images))


def alike(first: Side, second: Side, seed: int) -> bool:
    """Whether the images of two sides may be taken for one population."""
    if first.images is None or second.images is None or min(len(first.images), len(second.images)) < LEAST:
        return False
    if first.images.embedding.shape[1] != second.images.embedding.shape[1]:
        return False
    return images_changed(first.images, second.images, np.random.default_rng(seed)) >= ALIKE


def kind_of_change(
    before: Side, after: Side, likenesses: Sequence[Likeness], classes: Sequence[str], *, fallen: bool, seed: int
) -> Cause:
    """The kind of change from `before` to `after`, none where no test shows one. `fallen`: the detector knows that recall fell."""
    fault = fault_seen(likenesses)
    if fault is not None:
        return fault
    generator = np.random.default_rng(seed)
    before, after = before.sample(generator), after.sample(generator)
    tests = {"mix": two_sample.words(before.truth, after.truth).p_value, "answers": answers_changed(before, after, classes)}
    if before.images is not None and after.images is not None and min(len(before.images), len(after.images)) >= LEAST:
        tests["images"] = images_changed(before.images, after.images, generator)
        if tests["images"] < RISK:
            tests["images within classes"] = changed_within(before, after, generator)
            return _of_images(before.images, after.images, likenesses, tests)
        return _of_answers(before, after, classes, tests, fallen=fallen)
    return Cause(Diagnosis.UNKNOWN, tests=tests)


def fault_seen(likenesses: Sequence[Likeness]) -> Cause | None:
    """A fault of the feed that explains the step of the images, beyond chance."""
    if not likenesses or not (likenesses[0].fault and likenesses[0].certain):
        return None
    best = likenesses[0]
    name = best.name if best.name.startswith("window") else f"images {best.name}"
    return Cause(Diagnosis.PIPELINE, f"{name} in {min(best.share, 1.0):.0%} of the studies", tests={"standard errors": best.score})


def _of_images(before: Images, after: Images, likenesses: Sequence[Likeness], tests: dict[str, float]) -> Cause:
    if tests["images within classes"] >= RISK and tests["mix"] < RISK:
        return Cause(Diagnosis.PREVALENCE, "the mix of patients has changed", tests["mix"], tests)
    best = next((each for each in likenesses if each.certain), None)
    looks = best.name if best and not best.fault else _most_moved(before, after)
    return Cause(Diagnosis.COVARIATE, f"the images are {looks}" if looks else "the images have changed", tests["images"], tests)


def _of_answers(before: Side, after: Side, classes: Sequence[str], tests: dict[str, float], *, fallen: bool) -> Cause:
    if tests["answers"] < RISK or fallen:
        swapped = labels_swapped(before, after, classes)
        if swapped:
            return Cause(Diagnosis.PIPELINE, f"labels of {' and '.join(swapped)} are exchanged", tests["answers"], tests)
        return Cause(Diagnosis.CONCEPT, "the images and their descriptions are unchanged", tests["answers"], tests)
    if tests["mix"] < MIX_RISK:
        return Cause(Diagnosis.PREVALENCE, "the mix of patients has changed", tests["mix"], tests)
    return Cause(Diagnosis.NONE, tests=tests)


def images_changed(before: Images, after: Images, generator: np.random.Generator) -> float:
    """P-value that the images of both sides are alike (Bonferroni): each statistic; statistics, layout, embedding; all as one.

    A weak change that is spread over many numbers shows in none of them and hardly in a kernel on some: the classifier sees it.
    """
    columns = [two_sample.numbers(before.quality[:, one], after.quality[:, one]).p_value for one in range(len(QUALITY))]
    kernels = [
        two_sample.kernel(first, second, generator, PERMUTATIONS).p_value
        for first, second in (
            (before.quality, after.quality),
            (before.layout, after.layout),
            (before.embedding, after.embedding),
        )
        if first.shape[1] and first.shape[1] == second.shape[1]
    ]
    whole = two_sample.classifier(*_whole(before, after), generator, PERMUTATIONS).p_value
    found = [min(columns) * len(columns), *kernels, whole]
    return min(1.0, min(found) * len(found))


def _whole(before: Images, after: Images) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """All numbers of the images of both sides, [n, d] and [m, d]; embeddings of different width are left out."""
    if before.embedding.shape[1] != after.embedding.shape[1]:
        return _shown(before), _shown(after)
    first, second = (np.concatenate([_shown(each), each.embedding], axis=1) for each in (before, after))
    return first, second


def changed_within(before: Side, after: Side, generator: np.random.Generator) -> float:
    """P-value that the images of each class are alike, whatever the mix of classes."""
    assert before.images is not None
    assert after.images is not None
    pairs = [(_shown(before.images), _shown(after.images)), (before.images.embedding, after.images.embedding)]
    found = [
        two_sample.stratified_kernel(first, second, before.truth, after.truth, generator, PERMUTATIONS).p_value
        for first, second in pairs
        if first.shape[1] and first.shape[1] == second.shape[1]
    ]
    return min(1.0, min(found) * len(found))


def answers_changed(before: Side, after: Side, classes: Sequence[str]) -> float:
    """P-value that the model answers to each class of cases as before (Bonferroni over the classes)."""
    found = [
        two_sample.words(*([p for t, p in zip(side.truth, side.predicted, strict=True) if t == name] for side in (before, after)))
        for name in classes
    ]
    return min(1.0, min(each.p_value for each in found) * len(found))


def labels_swapped(before: Side, after: Side, classes: Sequence[str]) -> list[str]:
    """Classes whose labels are exchanged among each other: the answers fit as before once the labels are put back."""
    usual, now = _table(before, classes), _table(after, classes)
    rates = (usual + 0.5) / (usual + 0.5).sum(1, keepdims=True)
    # Row t, column s: log-likelihood of the answers to cases labelled t if they really were of class s.
    fit = now @ np.log(rates).T
    _, meant = linear_sum_assignment(-fit)
    moved = [place for place in range(len(classes)) if meant[place] != place]
    gain = float(sum(fit[place, meant[place]] - fit[place, place] for place in moved))
    if not moved or gain < -np.log(RISK):
        return []
    for place in moved:
        cases, hits = now[place].sum(), now[place, meant[place]]
        if cases < _SWAP_CASES or hits / cases < _SWAP_FIT * rates[meant[place], meant[place]]:
            return []
    return [classes[place] for place in moved]


def _table(side: Side, classes: Sequence[str]) -> NDArray[np.float64]:
    place = {name: number for number, name in enumerate(classes)}
    table = np.zeros((len(classes), len(classes)))
    for truth, predicted in zip(side.truth, side.predicted, strict=True):
        if truth in place and predicted in place:
            table[place[truth], place[predicted]] += 1
    return table


def _shown(images: Images) -> NDArray[np.float32]:
    return np.concatenate([images.quality, images.layout], axis=1)


def _most_moved(before: Images, after: Images) -> str:
    """The statistic that moved most, in words; empty where none moved by half a standard deviation."""
    best, word = 0.5, ""
    for place, name in enumerate(QUALITY):
        first, second = before.quality[:, place], after.quality[:, place]
        moved = float((second.mean() - first.mean()) / (first.std() + 1e-3))
        if name in _WORDS and abs(moved) > best:
            best, word = abs(moved), _WORDS[name][moved < 0]
    return word

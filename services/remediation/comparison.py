"""Two versions on the same studies: what each says of them, and, for the gate, how long each takes."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from models.bundle import LoadedModel
from models.data import LabelledStudy, TensorSet
from models.predictor import Predictor
from models.scoring import ScoredCase, score
from models.spec import SelectionRule
from schemas.settings import InferenceSettings
from services.remediation import data
from services.remediation.gate import PairedCase

TIMED = 16
"""Studies that the time is measured on."""
REPEATS = 9


@dataclass(frozen=True, slots=True)
class Answered:
    """Studies as the champion prepares them, and what it says of them."""

    tensors: TensorSet
    cases: Sequence[ScoredCase]


def answered(champion: LoadedModel, settings: InferenceSettings, tensors: TensorSet) -> Answered:
    """The champion's answers, as a `Duel` gets them."""
    return Answered(tensors, score(_side(champion, settings), tensors, champion.spec.classes))


@dataclass(frozen=True, slots=True)
class Compared:
    """Studies as both versions scored them: in pairs for the gate, and the challenger's scores. `tensors` as each takes them."""

    paired: Sequence[PairedCase]
    challenger: Sequence[ScoredCase]
    tensors: tuple[TensorSet, TensorSet]


class Duel:
    """Champion and challenger, ready to score; the challenger may know further classes behind the champion's."""

    def __init__(
        self,
        champion: LoadedModel,
        challenger: LoadedModel,
        settings: InferenceSettings,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._specs, self._check = (champion.spec, challenger.spec), check
        self._sides = tuple(_side(each, settings) for each in (champion, challenger))

    def score(self, studies: Sequence[LabelledStudy], rule: SelectionRule | None, known: Answered | None = None) -> Compared:
        """The same studies scored by both, each as it prepares them; `known` where the champion has been asked before.

        Raises InvalidDataset, and whatever `check` raises.
        """
        old, new = self._specs
        before = known.tensors if known else data.load(studies, old.model_copy(update={"classes": new.classes}), rule, self._check)
        # A repair prepares its images as the champion does, so that they are read once.
        same = old.preprocessing == new.preprocessing
        prepared = before if same else data.load(studies, new, rule, self._check)
        first = known.cases if known else score(self._sides[0], before, new.classes)
        second = score(self._sides[1], prepared, new.classes)
        return Compared([_paired(*both) for both in zip(first, second, strict=True)], second, (before, prepared))

    def latency_ratio(self, on: Compared) -> float:
        """Shortest time of the challenger over that of the champion on some of these studies, measured in turns.

        On a CPU it is the processor time of one thread that does all the work: a version must not be turned down because others
        kept the machine busy, or this process. The shortest, because whatever else happens only ever adds to a time.
        """
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(self._ratio, on).result()

    def _ratio(self, on: Compared) -> float:
        times: tuple[list[float], list[float]] = ([], [])
        with _one_core():
            for _ in range(REPEATS):
                for side, tensors, taken in zip(self._sides, on.tensors, times, strict=True):
                    taken.append(_seconds(side, tensors))
        return min(times[1]) / max(min(times[0]), 1e-9)


def _side(version: LoadedModel, settings: InferenceSettings) -> Predictor:
    return Predictor(version, settings.device, settings.precision, settings.batch_size)


@contextmanager
def _one_core() -> Iterator[None]:
    """Torch's operations of this thread on one core; threads that start later have as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _seconds(side: Predictor, tensors: TensorSet) -> float:
    on_gpu = side.device.type == "cuda"
    clock = time.perf_counter if on_gpu else time.thread_time
    started = clock()
    side.predict(tensors.studies[:TIMED])
    if on_gpu:
        torch.cuda.synchronize(side.device)
    return clock() - started


def _paired(champion: ScoredCase, challenger: ScoredCase) -> PairedCase:
    """One study as both scored it; a class that the champion does not know has no probability there."""
    facets = champion.seen.facets if champion.seen is not None else {}
    known = {name: champion.probabilities.get(name, 0.0) for name in challenger.probabilities}
    return PairedCase(champion.case_key, champion.patient, champion.truth, known, challenger.probabilities, facets)

"""Decoding and forward passes side by side: while one batch of images is scored, the next ones are read and prepared.

Decoding runs in threads (pydicom, numpy and torch leave the interpreter's lock for the heavy part), all forward passes in
one thread of their own, so that torch's worker threads and a GPU's context are made once.
"""

import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray

from models.errors import ModelError, NotSelected, UnsuitableStudy
from models.preprocessing import Prepared, load_study
from services.inference.bundles import ScoringModel
from services.inference.selection import Task, View


@dataclass(frozen=True)
class Score:
    """One version's probabilities and embedding of a task's study."""

    task: Task
    model: ScoringModel
    probabilities: dict[str, float]
    prepared: Prepared
    embedding: NDArray[np.float32]


@dataclass(frozen=True)
class Failure:
    """A task that gave no score, and why: by fault of the study's files, or because no image of them is for the model."""

    task: Task
    reason: str
    kind: str


@dataclass(frozen=True)
class Scored:
    """What came of the tasks. `unwanted` are those whose files no model is meant for after all."""

    scores: tuple[Score, ...]
    failures: tuple[Failure, ...]
    unwanted: tuple[Failure, ...]


@dataclass(frozen=True)
class _Ready:
    task: Task
    prepared: Prepared


class Scorer:
    """Scores tasks with `workers` decoding threads and one thread for the forward passes, which take `batch_size` images each."""

    def __init__(self, workers: int, batch_size: int, threads: int = 0) -> None:
        self._batch_size = batch_size
        cores = torch.get_num_threads()
        self._decoders = ThreadPoolExecutor(workers, "decode", _use_cores, (1,))
        _start_all(self._decoders, workers)
        # Last, because what was set last is what the process's other threads start with.
        self._device = ThreadPoolExecutor(1, "forward", _use_cores, (threads or cores,))
        self._device.submit(int).result()

    def score(self, tasks: Sequence[Task]) -> Scored:
        """Decode every task once and score it with all its models."""
        reading = [(task, self._decoders.submit(_decode, task)) for task in sorted(tasks, key=_order)]
        failures: list[Failure] = []
        unwanted: list[Failure] = []
        batches = _batches(_finished(reading, failures, unwanted), self._batch_size)
        passes = [self._device.submit(_forward, batch) for batch in batches]
        outcomes = [each.result() for each in passes]
        scores = tuple(score for found, _ in outcomes for score in found)
        return Scored(scores, (*failures, *(failure for _, lost in outcomes for failure in lost)), tuple(unwanted))

    def close(self) -> None:
        """End the threads; work in progress is finished first."""
        self._decoders.shutdown()
        self._device.shutdown()


def _use_cores(count: int) -> None:
    """Cores of this thread's torch operations."""
    torch.set_num_threads(count)
    # A thread takes the process's last setting at its first operation, whatever it set for itself; this is the first.
    torch.get_num_threads()


def _start_all(pool: ThreadPoolExecutor, workers: int) -> None:
    """Have every thread of the pool started; the pool itself would start the next one only when all others are busy."""
    barrier = threading.Barrier(workers)
    list(pool.map(lambda _: barrier.wait(), range(workers)))


def _order(task: Task) -> tuple[str, ...]:
    """Tasks of one view stand together, so that they share forward passes."""
    return (task.view.spec.model_dump_json(), task.view.rule.model_dump_json())


def _decode(task: Task) -> Prepared:
    return load_study(task.paths, task.view.spec, task.view.rule)


def _finished(
    reading: Iterable[tuple[Task, "Future[Prepared]"]], failures: list[Failure], unwanted: list[Failure]
) -> Iterator[_Ready]:
    """Decoded studies in order; the others go to `failures` and `unwanted`."""
    for task, future in reading:
        try:
            yield _Ready(task, future.result())
        except NotSelected as error:
            unwanted.append(Failure(task, error.reason, type(error).__name__))
        except ModelError as error:
            failures.append(Failure(task, error.reason, type(error).__name__))


def _batches(studies: Iterable[_Ready], size: int) -> Iterator[list[_Ready]]:
    """Studies of one view, about `size` images at a time."""
    for _, group in groupby(studies, key=_view_of):
        batch: list[_Ready] = []
        images = 0
        for ready in group:
            count = len(ready.prepared.tensor)
            if batch and images + count > size:
                yield batch
                batch, images = [], 0
            batch.append(ready)
            images += count
            if images >= size:
                yield batch
                batch, images = [], 0
        if batch:
            yield batch


def _view_of(ready: _Ready) -> View:
    return ready.task.view


def _forward(batch: Sequence[_Ready]) -> tuple[list[Score], list[Failure]]:
    scores: list[Score] = []
    failures: list[Failure] = []
    for model in batch[0].task.models:
        _predict(model, batch, scores, failures)
    return scores, failures


def _predict(model: ScoringModel, batch: Sequence[_Ready], scores: list[Score], failures: list[Failure]) -> None:
    """Score a batch; where the model refuses it, each study alone, so that one does not take the others with it."""
    try:
        found = model.predictor.examine([ready.prepared.tensor for ready in batch])
    except UnsuitableStudy as error:
        if len(batch) == 1:
            failures.append(Failure(batch[0].task, f"{model.name}: {error.reason}", type(error).__name__))
            return
        for ready in batch:
            _predict(model, [ready], scores, failures)
        return
    scores += [
        Score(ready.task, model, each.probabilities, ready.prepared, each.embedding)
        for ready, each in zip(batch, found, strict=True)
    ]

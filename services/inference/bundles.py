"""Loaded models: kept while their version scores, dropped when it does not, never used when altered."""

import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from models.bundle import LoadedModel, load_bundle
from models.errors import BrokenBundle, UnsuitableStudy
from models.predictor import Predictor
from models.spec import SelectionRule
from services.inference.repository import RegisteredVersion

logger = logging.getLogger(__name__)
RETRY_S: Final = 30.0
"""A damaged version is looked at again after so long: its bundle may have been restored."""


@dataclass(frozen=True)
class ScoringModel:
    """A version ready to score."""

    row: RegisteredVersion
    predictor: Predictor

    @property
    def rule(self) -> SelectionRule:
        """Which studies it scores."""
        return self.row.rule

    @property
    def name(self) -> str:
        """`model:version`."""
        return f"{self.row.model}:{self.row.version}"


@dataclass(frozen=True)
class _Damage:
    """Why a version could not be loaded, and when that was found (monotonic seconds)."""

    error: BrokenBundle
    found_at: float


class BundleCache:
    """Loads each (model, version, hash) once, a damaged one again every `RETRY_S`. `monotonic` gives seconds.

    Predictors are not for use from several threads at once; the cache is.
    """

    def __init__(self, models: Path, make_predictor: Callable[[LoadedModel], Predictor], monotonic: Callable[[], float]) -> None:
        self._models = models
        self._make_predictor = make_predictor
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._loaded: dict[tuple[str, int, str], Predictor | _Damage] = {}

    def refresh(self, rows: Iterable[RegisteredVersion]) -> tuple[list[ScoringModel], list[tuple[RegisteredVersion, str]]]:
        """Versions ready to score, and those that are broken with the reason. Others are forgotten."""
        listed = list(rows)
        keys = {_key(row) for row in listed}
        ready: list[ScoringModel] = []
        broken: list[tuple[RegisteredVersion, str]] = []
        with self._lock:
            self._loaded = {key: value for key, value in self._loaded.items() if key in keys}
            for row in listed:
                predictor = self._predictor(row)
                if isinstance(predictor, _Damage):
                    broken.append((row, predictor.error.reason))
                else:
                    ready.append(ScoringModel(row, predictor))
        return ready, broken

    def is_whole(self, row: RegisteredVersion) -> bool:
        """Look at a version anew, whatever is kept of it; one that can be loaded again will be at the next refresh."""
        try:
            self._made(row)
        except BrokenBundle:
            return False
        with self._lock:
            if isinstance(self._loaded.get(_key(row)), _Damage):
                del self._loaded[_key(row)]
        return True

    def _predictor(self, row: RegisteredVersion) -> Predictor | _Damage:
        kept, now = self._loaded.get(_key(row)), self._monotonic()
        if kept is None or (isinstance(kept, _Damage) and now - kept.found_at >= RETRY_S):
            try:
                kept = self._made(row)
                logger.info("loaded %s:%d", row.model, row.version)
            except BrokenBundle as error:
                kept = _Damage(error, now)
                logger.critical("%s:%d cannot score: %s", row.model, row.version, error.reason)
            self._loaded[_key(row)] = kept
        return kept

    def _made(self, row: RegisteredVersion) -> Predictor:
        predictor = self._make_predictor(self._load(row))
        _try_out(predictor)
        return predictor

    def _load(self, row: RegisteredVersion) -> LoadedModel:
        loaded = load_bundle(self._models / row.bundle)
        if loaded.info.sha256 != row.sha256:
            raise BrokenBundle("its weights are not those that were registered")
        if frozenset(loaded.spec.classes) != row.classes:
            raise BrokenBundle("its classes are not those that were registered")
        return loaded


def _try_out(predictor: Predictor) -> None:
    """One black image: a network that cannot take what its own specification prepares would end every batch it is in."""
    preprocessing = predictor.spec.preprocessing
    try:
        predictor.probabilities(torch.zeros(1, preprocessing.channels, *preprocessing.size))
    except torch.OutOfMemoryError:  # says something of this machine, nothing of the version
        raise
    except (RuntimeError, ValueError, UnsuitableStudy) as error:
        raise BrokenBundle(f"its network does not take images of its own specification ({type(error).__name__})") from error


def _key(row: RegisteredVersion) -> tuple[str, int, str]:
    return row.model, row.version, row.sha256

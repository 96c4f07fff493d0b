"""Loaded models: kept while their version scores, dropped when it does not, never used when altered."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from models.bundle import LoadedModel, load_bundle
from models.errors import BrokenBundle
from models.predictor import Predictor
from models.spec import SelectionRule
from services.inference.repository import RegisteredVersion

logger = logging.getLogger(__name__)


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


class BrokenChampion(Exception):  # noqa: N818 - named for what is wrong, not for the mechanism
    """The version in service cannot be loaded or is not the one that was registered: scoring stops loudly."""


class BundleCache:
    """Loads each (model, version, hash) once. Not for use from several threads at once."""

    def __init__(self, models: Path, make_predictor: Callable[[LoadedModel], Predictor]) -> None:
        self._models = models
        self._make_predictor = make_predictor
        self._loaded: dict[tuple[str, int, str], Predictor | BrokenBundle] = {}

    def refresh(self, rows: Iterable[RegisteredVersion]) -> tuple[list[ScoringModel], list[tuple[RegisteredVersion, str]]]:
        """Versions ready to score, and those that are broken with the reason. Others are forgotten."""
        listed = list(rows)
        keys = {_key(row) for row in listed}
        self._loaded = {key: value for key, value in self._loaded.items() if key in keys}
        ready: list[ScoringModel] = []
        broken: list[tuple[RegisteredVersion, str]] = []
        for row in listed:
            predictor = self._predictor(row)
            if isinstance(predictor, BrokenBundle):
                broken.append((row, predictor.reason))
            else:
                ready.append(ScoringModel(row, predictor))
        return ready, broken

    def _predictor(self, row: RegisteredVersion) -> Predictor | BrokenBundle:
        key = _key(row)
        if key not in self._loaded:
            try:
                self._loaded[key] = self._make_predictor(self._load(row))
                logger.info("loaded %s:%d", row.model, row.version)
            except BrokenBundle as error:
                self._loaded[key] = error
                logger.critical("%s:%d cannot score: %s", row.model, row.version, error.reason)
        return self._loaded[key]

    def _load(self, row: RegisteredVersion) -> LoadedModel:
        loaded = load_bundle(self._models / row.bundle)
        if loaded.info.sha256 != row.sha256:
            raise BrokenBundle("its weights are not those that were registered")
        if frozenset(loaded.spec.classes) != row.classes:
            raise BrokenBundle("its classes are not those that were registered")
        return loaded


def _key(row: RegisteredVersion) -> tuple[str, int, str]:
    return row.model, row.version, row.sha256

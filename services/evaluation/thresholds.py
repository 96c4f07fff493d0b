"""The detector's thresholds for a version: made from its own test matrix as soon as it serves, and again when conditions change."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from schemas.evaluation_settings import EvaluationSettings
from schemas.tables import DetectorCalibration
from services.evaluation import repository
from services.evaluation.calibration import bound, calibrate, fingerprint
from services.evaluation.cases import LabelledRow
from services.evaluation.detector import YEAR, Thresholds
from services.evaluation.power import with_smallest_fall
from services.evaluation.stream import count, one_per_patient
from services.runtime.database import Database
from services.runtime.errors import Transient
from services.runtime.service import StopSignal
from services.runtime.transaction import Transaction

logger = logging.getLogger(__name__)
ACTOR: Final = "evaluation"
INTERVAL_S: Final = 10.0


@dataclass(frozen=True)
class Conditions:
    """What thresholds hold for: a test set, the size of a block, and the blocks of a year."""

    baseline: Sequence[LabelledRow]
    classes: tuple[str, ...]
    batch_size: int
    per_year: int = YEAR

    def mark(self, settings: EvaluationSettings) -> str:
        """Their identity (`calibration.fingerprint`)."""
        counts = count(one_per_patient(self.baseline), (), self.classes, 1)
        errors, cases = counts.baseline_errors[0], counts.baseline_cases[0]
        return fingerprint(errors, cases, self.batch_size, settings.false_alarms_per_year, settings.seed, self.per_year)

    def thresholds(self, settings: EvaluationSettings) -> Thresholds:
        """Seconds of simulation; the bound where there is no test set to simulate from."""
        if not self.baseline:
            return bound(settings.false_alarms_per_year, self.per_year)
        counts = count(one_per_patient(self.baseline), (), self.classes, 1)
        errors, cases = counts.baseline_errors[0], counts.baseline_cases[0]
        made = calibrate(errors, cases, self.batch_size, settings.false_alarms_per_year, settings.seed, self.per_year)
        return with_smallest_fall(made, errors, cases, self.batch_size, settings.seed)


def keep(tx: Transaction, version: tuple[str, int], mark: str, thresholds: Thresholds, batch_size: int) -> bool:
    """Store thresholds; False where those of a mark are there already, which never change."""
    row = DetectorCalibration(
        model=version[0],
        version=version[1],
        fingerprint=mark,
        threshold_a=thresholds.a,
        threshold_b=thresholds.b,
        origin=thresholds.origin,
        batch_size=batch_size,
        batches_per_year=thresholds.per_year,
        smallest_fall=thresholds.smallest_fall,
        made_at=tx.clock.now(),
    )
    return bool(tx.insert_new(DetectorCalibration, [row], returning="model"))


class Prepare:
    """Makes thresholds for versions that serve and have none. Several processes may run it: the first to store them wins."""

    def __init__(self, database: Database, settings: EvaluationSettings, batch_size: int) -> None:
        self._database = database
        self._settings = settings
        self._batch_size = batch_size

    async def run(self, stop: StopSignal) -> None:
        """Look now and every so often, until `stop`."""
        while not stop.is_set:
            try:
                await asyncio.to_thread(self.once)
            except Transient as error:
                logger.warning("no thresholds are made now: %s", error)
            await _wait(stop, INTERVAL_S)

    def once(self) -> int:
        """Make what is missing; returns for how many versions."""
        with self._database.read() as session:
            wanted = repository.without_thresholds(session)
        return sum(self._one(version) for version in wanted)

    def _one(self, version: tuple[str, int]) -> bool:
        with self._database.read() as session:
            baseline = repository.baseline(session, *version)
            known = Conditions(baseline, repository.classes(session, *version), self._batch_size)
        if not baseline:
            return False
        mark, made = known.mark(self._settings), known.thresholds(self._settings)
        with self._database.transaction() as tx:
            fresh = keep(tx, version, mark, made, self._batch_size)
            if fresh:
                numbers = {"threshold_a": made.a, "threshold_b": made.b, "smallest_fall": made.smallest_fall}
                tx.audit(ACTOR, "detector.calibrated", f"{version[0]}:{version[1]}", fingerprint=mark, **numbers)
        return fresh


async def _wait(stop: StopSignal, seconds: float) -> None:
    try:
        await asyncio.wait_for(stop.wait(), seconds)
    except TimeoutError:
        return

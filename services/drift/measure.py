"""Judging full windows: read, compute outside of any transaction, then store what was seen in one that is short."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Final

from schemas.drift import DriftCase, DriftWindow
from schemas.drift_settings import DriftSettings
from services.drift import repository, wording
from services.drift.budget import SEVERAL, Budget, calibrate, fingerprint
from services.drift.performance import contradicted
from services.drift.repository import CASES, Answer, Version
from services.drift.sample import Reference, Sample
from services.drift.signals import RECALLS, Signal, Verdict, judge
from services.drift.storing import Observation, store
from services.runtime.database import Database
from services.runtime.errors import Transient
from services.runtime.service import StopSignal

logger = logging.getLogger(__name__)
YEAR: Final = timedelta(days=365.25)
NOTHING: Final = timedelta()
INTERVAL_S: Final = 20.0


@dataclass(frozen=True)
class Material:
    """A window that may close, and all that it is judged by. `several` is it with the two before, where three are complete."""

    version: Version
    number: int
    cases: Sequence[DriftCase]
    before: DriftWindow | None
    reference: Reference
    window: Sample
    several: Sample
    levels: dict[str, float] | None
    mark: str
    answers: Sequence[Answer]


class Measure:
    """Closes and judges windows. Several processes may run it: the first to store a window wins."""

    def __init__(self, database: Database, settings: DriftSettings) -> None:
        self._database = database
        self._settings = settings
        self._budget = Budget(settings.warnings_per_year, settings.windows_per_year)

    async def run(self, stop: StopSignal) -> None:
        """Judge what is full, now and every so often, until `stop`."""
        while not stop.is_set:
            try:
                await asyncio.to_thread(self.once)
            except Transient as error:
                logger.warning("drift is not measured now: %s", error)
            await _wait(stop, INTERVAL_S)

    def once(self) -> int:
        """Judge one window of every version that has a full one; returns how many."""
        with self._database.read() as session:
            versions = repository.scoring(session)
        return sum(self._one(version) for version in versions)

    def _one(self, version: Version) -> bool:
        material = self._read(version)
        if material is None:
            return False
        levels = material.levels or calibrate(material.reference, self._settings.window_cases, self._budget, self._settings.seed)
        verdict = judge(material.reference, material.window, material.several, levels, self._budget, self._settings.seed)
        return self._store(material, levels, beside_truth(verdict, material.answers, material.window.classes))

    def _read(self, version: Version) -> Material | None:
        """The window of a version that may close now: enough patients, not too soon after the last, and a baseline."""
        settings = self._settings
        with self._database.read() as session:
            last = repository.last_window(session, version, CASES)
            # A window of the future was measured by a clock that ran ahead and was put right: it holds up no other.
            if last is not None and NOTHING <= self._database.clock.now() - last.measured_at < YEAR / settings.windows_per_year:
                return None
            cases = repository.open_cases(session, version)
            if len({case.patient_key for case in cases}) < settings.window_cases:
                return None
            reference = repository.reference(session, version, settings.reference_cases)
            if reference is None:
                return None
            number, classes = last.number + 1 if last else 1, reference.sample.classes
            window = repository.sample(session, version, classes, cases)
            earlier = [each for each in range(number - SEVERAL + 1, number) if number % SEVERAL == 0]
            together = [*repository.windowed_cases(session, version, earlier), *cases]
            several = repository.sample(session, version, classes, together) if earlier else window
            mark = fingerprint(reference, settings.window_cases, self._budget, settings.seed)
            levels = repository.calibration(session, version, mark)
            answers = repository.answers(session, version)
        return Material(version, number, cases, last, reference, window, several, levels, mark, answers)

    def _store(self, material: Material, levels: dict[str, float], verdict: Verdict) -> bool:
        version, cases = material.version, material.cases
        new = verdict.warning and not (material.before and _same(material.before, verdict))
        acquired = [case.acquired_at for case in cases]
        seen = Observation(
            version=version,
            kind=CASES,
            number=material.number,
            cases=material.window.count,
            first_at=min(acquired),
            last_at=max(acquired),
            signals=verdict.signals,
            suspected=verdict.suspected,
            new=new,
            summary=wording.of_window(version[0], material.window.count, verdict, new=new),
        )
        with self._database.transaction() as tx:
            repository.lock_version(tx, version)
            last = repository.last_window(tx.session, version, CASES)
            if (last.number if last else 0) + 1 != material.number:
                return False
            repository.keep_calibration(tx, version, material.mark, levels)
            repository.close(tx, version, cases[-1].number, material.number)
            store(tx, seen)
        return True


def beside_truth(verdict: Verdict, answers: Sequence[Answer], classes: Sequence[str]) -> Verdict:
    """The estimated recalls beside the true ones that are known by now; off for a class where the two disagreed."""
    signals = (_with_truth(each, answers, classes) if each.name == RECALLS else each for each in verdict.signals)
    return Verdict(tuple(signals), verdict.suspected, verdict.because)


def _with_truth(signal: Signal, answers: Sequence[Answer], classes: Sequence[str]) -> Signal:
    detail, off = dict(signal.detail), []
    for name in classes:
        known = [answer for answer in answers if answer.truth == name]
        estimate = detail.get(f"{name}: value")
        if not known or not isinstance(estimate, float):
            continue
        hits = sum(answer.predicted == name for answer in known)
        detail |= {f"{name}: true": hits / len(known), f"{name}: labelled": float(len(known))}
        if contradicted(estimate, len(known), hits):
            off.append(name)
            detail |= {f"{name}: {part}": None for part in ("value", "low", "high")}
    told = f" Off for {', '.join(off)}: the truth that came says otherwise." if off else ""
    return replace(signal, sentence=signal.sentence + told, detail=detail)


def _same(before: DriftWindow, verdict: Verdict) -> bool:
    """Whether the window before warned of everything that this one warns of."""
    warned = {signal["name"] for signal in before.signals if signal["warning"]}
    return {signal.name for signal in verdict.signals if signal.warning} <= warned


async def _wait(stop: StopSignal, seconds: float) -> None:
    try:
        await asyncio.wait_for(stop.wait(), seconds)
    except TimeoutError:
        return

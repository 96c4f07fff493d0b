"""What a rule would have said of the stored cases of a version. Reads only; nothing is written or ordered."""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from sqlmodel import Session

from schemas.settings import Settings
from services.evaluation import repository
from services.evaluation.calibration import bound, calibrate, fingerprint
from services.evaluation.detector import Thresholds
from services.evaluation.pace import blocks_per_year
from services.evaluation.replay import Period, Record, Rule, counts_of, independent_of, replay
from services.evaluation.stream import StreamCase
from services.runtime.errors import InvalidInput


def retrospect(
    session: Session,
    settings: Settings,
    model: str,
    version: int,
    rule: Rule,
    threshold: float | None,
    period: Period,
    *,
    calibrating: Callable[[], None] = lambda: None,
    last_cases: int | None = None,
) -> dict[str, Any]:
    """The steps of one version as plain values; `batches` is empty where it has no case of the period.

    `last_cases` keeps the newest cases of the period only. `calibrating` is called before seconds of simulation. InvalidInput:
    a facet that no case has, or a version without a labelled test set.
    """
    stream = repository.stream(session, model, version, repository.last_number(session, model, version))
    _check_facets(stream, period)
    taught = repository.taught(session, model)
    kept = [case for case in stream if case.patient_key not in taught and period.holds(case)][-(last_cases or 0) :]
    if not kept:
        return {"version": version, "batches": []}
    record = _record(session, settings, model, version, period, kept, taught, whole=not last_cases)
    own = rule is Rule.PAIRED and not threshold
    limits = _thresholds(session, settings, model, version, record, calibrating) if own else bound(0.05)
    steps = replay(record, rule, threshold=threshold, thresholds=limits, run_length=settings.evaluation.cusum_run_length)
    alarms = [step.batch for step in steps if step.alarmed]
    origin = limits.origin if own else "given" if threshold else "default"
    return {"version": version, "limits": origin, "alarmed": alarms, "batches": [asdict(step) for step in steps]}


def _record(
    session: Session,
    settings: Settings,
    model: str,
    version: int,
    period: Period,
    kept: Sequence[StreamCase],
    taught: frozenset[str],
    *,
    whole: bool,
) -> Record:
    baseline = repository.baseline(session, model, version)
    if not baseline:
        raise InvalidInput(f"version {version} of {model} has no labelled test set, so there is nothing to compare with")
    # A subgroup's batches are smaller, and the detector's thresholds hold for the usual size.
    size = max(1, round(len(kept) / len({case.batch for case in kept}))) if period.facets else settings.join.batch_size
    # Predictions without a label tell no facets here, so a group's weeks count as complete without them.
    waiting = [] if period.facets or not whole else repository.pending(session, model, version)
    return Record(
        classes=repository.classes(session, model, version),
        baseline=baseline,
        stream=kept,
        batch_size=size,
        closed={row.number: row.closed_at for row in repository.batches(session, model) if row.version == version},
        pending=[row for row in waiting if row.patient_key not in taught and period.covers(row.acquired_at)],
        wait_days=settings.evaluation.label_wait_days,
        seed=settings.evaluation.seed,
        variation=repository.earlier_variation(session, model, version, size),
    )


def _thresholds(
    session: Session, settings: Settings, model: str, version: int, record: Record, calibrating: Callable[[], None]
) -> Thresholds:
    """Those that are kept; otherwise made now and not stored."""
    counts, chosen = counts_of(record), settings.evaluation
    per_year = blocks_per_year((case.acquired_at for case in independent_of(record)), record.batch_size)
    conditions = (counts.baseline_errors[0], counts.baseline_cases[0], record.batch_size, chosen.false_alarms_per_year)
    kept = repository.thresholds(session, model, version, fingerprint(*conditions, chosen.seed, per_year))
    if kept is None:
        calibrating()
    return kept or calibrate(*conditions, chosen.seed, per_year)


def _check_facets(stream: Sequence[StreamCase], period: Period) -> None:
    for name, value in (period.facets or {}).items():
        names = sorted({key for case in stream for key in case.facets})
        if stream and name not in names:
            raise InvalidInput(f"no case has the facet {name!r}{_near(name, names)}")
        values = sorted({case.facets[name] for case in stream if name in case.facets})
        if stream and value not in values:
            raise InvalidInput(f"no case has {name}={value}{_near(value, values)}")


def _near(name: str, known: Sequence[str], most: int = 5) -> str:
    """What to say after a name that was not found: names like it, else the first of those there are."""
    close = difflib.get_close_matches(name, known, 3, 0.5)
    if close:
        return f"; did you mean {' or '.join(close)}?"
    return f"; there are {', '.join(known[:most])}{' …' if len(known) > most else ''}" if known else "; there is none yet"

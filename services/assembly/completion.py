"""Closes quiet studies: the study's new state and its event commit together (DESIGN promise 3)."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Final

from schemas.events import SeriesReference, StudyReceived
from schemas.tables import Study
from schemas.topics import STUDY_RECEIVED
from schemas.vocabulary import Modality
from services.assembly.repository import SeriesRow, progress_of, quiet_studies, save_progress, series_of
from services.assembly.studies import on_quiet
from services.runtime.archive import series_folder
from services.runtime.identity import Pseudonyms
from services.runtime.transaction import Transaction

STUDIES_PER_TICK: Final = 200
QUIET_PERIOD: Final = "quiet_period"
UNKNOWN_MODALITY: Final = "OT"


def close_quiet_studies(tx: Transaction, pseudonyms: Pseudonyms, quiet_period_s: float) -> int:
    """Complete and announce studies that had no new instance for the quiet period; returns how many."""
    announced = 0
    for study in quiet_studies(tx, tx.clock.now() - timedelta(seconds=quiet_period_s), STUDIES_PER_TICK):
        progress, announce = on_quiet(progress_of(study))
        save_progress(tx, study, progress)
        if announce:
            event = study_received(study, series_of(tx.session, study.study_uid), pseudonyms)
            tx.emit(STUDY_RECEIVED, event, event_id=f"{study.study_key}:{study.revision}", cause=study.traceparent or None)
            announced += 1
    return announced


def study_received(study: Study, series: Sequence[SeriesRow], pseudonyms: Pseudonyms) -> StudyReceived:
    """The event of a completed study. Every series is listed, localisers and unscored modalities too: consumers select."""
    leading = leading_series(series)
    return StudyReceived(
        study_key=study.study_key,
        patient_key=study.patient_key,
        revision=study.revision,
        modality=leading.modality or UNKNOWN_MODALITY,
        body_part=leading.body_part,
        acquired_at=study.acquired_at,
        received_at=study.last_instance_at,
        completed_by=QUIET_PERIOD,
        series=tuple(_reference(study, row, pseudonyms) for row in series),
    )


def leading_series(series: Sequence[SeriesRow]) -> SeriesRow:
    """The first series of a modality that the service scores, else the first of all. `series` is never empty."""
    return next((row for row in series if row.modality in set(Modality)), series[0])


def _reference(study: Study, row: SeriesRow, pseudonyms: Pseudonyms) -> SeriesReference:
    key = pseudonyms.series(row.series_uid)
    return SeriesReference(
        series_key=key,
        modality=row.modality or UNKNOWN_MODALITY,
        path=series_folder(study.study_key, key),
        instances=row.instances,
    )

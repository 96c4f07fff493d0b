"""Completes studies: the study's new state and its event commit together (docs/promises.md, 3)."""

import logging
from collections.abc import Sequence
from datetime import timedelta
from typing import Final

from schemas.events import SeriesReference, StudyReceived
from schemas.tables import Study
from schemas.topics import STUDY_RECEIVED
from schemas.vocabulary import CompletedBy, Modality
from services.assembly.announcement_repository import count_uncommitted, named_by_steps, studies_with_steps
from services.assembly.repository import (
    ASSEMBLY_BELL,
    SeriesRow,
    has_purged_instances,
    progress_of,
    save_progress,
    series_of_studies,
    studies_to_look_at,
)
from services.assembly.rules import Evidence, Judgement, Named, Rules, judge
from services.assembly.studies import not_after, on_complete
from services.runtime import telemetry
from services.runtime.archive import series_folder
from services.runtime.identity import Pseudonyms
from services.runtime.transaction import Transaction

logger = logging.getLogger(__name__)
STUDIES_PER_TICK: Final = 200
UNKNOWN_MODALITY: Final = "OT"


def complete_studies(tx: Transaction, pseudonyms: Pseudonyms, rules: Rules) -> int:
    """Look at the studies whose time has come, complete and announce those that are complete; returns how many."""
    studies = studies_to_look_at(tx, STUDIES_PER_TICK)
    uids = [study.study_uid for study in studies]
    all_series, stepped = series_of_studies(tx.session, uids), studies_with_steps(tx.session, uids)
    announced = 0
    for study in studies:
        series = all_series.get(study.study_uid, [])
        named = _named(tx, study, rules) if study.study_uid in stepped else Named()
        save_progress(tx, study, not_after(progress_of(study), tx.clock.now()))
        judgement = judge(_evidence(tx, study, series, named), rules, tx.clock.now())
        study.look_at, study.ring_at = judgement.look_at, judgement.ring_at
        announced += _complete(tx, study, series, judgement, pseudonyms)
    if len(studies) == STUDIES_PER_TICK:
        tx.ring(ASSEMBLY_BELL)
    return announced


def _named(tx: Transaction, study: Study, rules: Rules) -> Named:
    return named_by_steps(tx.session, study, tx.clock.now(), timedelta(seconds=rules.longest_open_s))


def _evidence(tx: Transaction, study: Study, series: Sequence[SeriesRow], named: Named) -> Evidence:
    return Evidence(
        opened_at=study.opened_at or study.first_instance_at,
        last_instance_at=study.last_instance_at,
        instances=study.instances,
        modalities={row.modality for row in series},
        stated_instances=study.stated_instances,
        named=named,
        uncommitted=count_uncommitted(tx.session, study.study_uid) if study.committed_at else None,
    )


def _complete(tx: Transaction, study: Study, series: Sequence[SeriesRow], judgement: Judgement, pseudonyms: Pseudonyms) -> bool:
    """Complete and announce the study if it was found complete; True when it was announced."""
    if judgement.completed_by is None:
        tx.session.add(study)
        return False
    progress, announce = on_complete(progress_of(study))
    save_progress(tx, study, progress)
    if announce and study.purged_at is not None and has_purged_instances(tx.session, study.study_uid):
        # A model would see a fragment and score it as the study.
        logger.warning("RET-203 study %s got an instance after its images were deleted: not announced", study.study_key)
        tx.audit("retention", "study.not_announced", study.study_key, revision=study.revision)
        study.revision -= 1
        return False
    if announce:
        study.announced_at = tx.clock.now()
        event = study_received(study, series, pseudonyms, judgement.completed_by)
        telemetry.count("reclaim.studies.completed", completed_by=judgement.completed_by)
        tx.emit(STUDY_RECEIVED, event, event_id=f"{study.study_key}:{study.revision}", cause=study.traceparent or None)
    return announce


def study_received(study: Study, series: Sequence[SeriesRow], pseudonyms: Pseudonyms, completed_by: CompletedBy) -> StudyReceived:
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
        completed_by=completed_by,
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

"""Studies without a score: those that no model takes are noted, those that came while a model could not score wait for it."""

import hashlib
import logging
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Final

from models.spec import SelectionRule
from schemas.events import StudyReceived
from schemas.topics import STUDY_RECEIVED
from schemas.unscored import UnscoredStudy
from services.inference import repository
from services.runtime.steady_clock import is_steady
from services.runtime.transaction import Transaction

logger = logging.getLogger(__name__)

STOPPED: Final = "the model was stopped"
BROKEN: Final = "the version in service is damaged"
"""Why a study waits; one that waits for a damaged version is announced again when `release` has said so."""
AT_ONCE = 200
"""Studies announced again in one go, so that a long stop does not hold up new ones."""


def unmatched_row(study: StudyReceived, reason: str, now: datetime) -> UnscoredStudy:
    """The note on a study that no model takes."""
    return _row(study, "", reason, now)


def waits_for(study: StudyReceived, stopped: Mapping[str, SelectionRule]) -> tuple[str, ...]:
    """Stopped models that may take a study.

    What a rule says beyond the modality is found out when the files are read, after the model is resumed.
    """
    asked = {model: rule for model, rule in stopped.items() if not study.models or model in study.models}
    by_modality = {model: SelectionRule(modalities=rule.modalities) for model, rule in asked.items()}
    return tuple(model for model, rule in by_modality.items() if any(rule.matches(each.modality) for each in study.series))


def waiting_row(study: StudyReceived, model: str, now: datetime, reason: str = STOPPED) -> UnscoredStudy:
    """The note on a study that came while a model could not score, with all that is needed to announce it again."""
    row = _row(study, model, reason, now)
    row.event = study.model_dump(mode="json")
    return row


def catch_up(tx: Transaction) -> int:
    """Announce studies again whose model scores again, oldest first and only for that model; returns how many.

    Of several revisions the last is scored. Notes on studies without images go.
    """
    if purged := repository.forget_purged(tx):
        logger.warning("%d studies that waited for a model will have no score: retention has deleted their images", purged)
    rows = repository.resumed(tx.session, AT_ONCE, but=BROKEN)
    newest = {(row.study_key, row.model): row for row in sorted(rows, key=lambda row: row.revision)}
    for row in newest.values():
        study = StudyReceived.model_validate(row.event).model_copy(update={"models": (row.model,)})
        tx.emit(STUDY_RECEIVED, study, event_id=_again_id(row))
    for row in rows:
        tx.session.delete(row)
    return len(newest)


def tidy(tx: Transaction, keep_days: int) -> None:
    """Drop notes older than `keep_days`, unless the clock has leapt: a study that waits would have no score."""
    if is_steady(tx, "unscored", "note on a study that waits"):
        repository.forget_unscored(tx, tx.clock.now() - timedelta(days=keep_days))


def _again_id(row: UnscoredStudy) -> str:
    """Another one for each time that the study came while the model was stopped."""
    parts = ("resumed", row.study_key, str(row.revision), row.model, row.noticed_at.isoformat())
    return hashlib.sha256("|".join(parts).encode()).hexdigest()


def _row(study: StudyReceived, model: str, reason: str, now: datetime) -> UnscoredStudy:
    return UnscoredStudy(
        study_key=study.study_key,
        revision=study.revision,
        model=model,
        modality=study.modality[:16],
        body_part=study.body_part[:64],
        reason=reason[:255],
        noticed_at=now,
    )

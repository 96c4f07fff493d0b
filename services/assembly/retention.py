"""Deletes pixel data by age and keeps everything that was concluded from it.

Two steps, so that an instance which a sender is told is stored stays stored whenever retention strikes:
1. a study's files move to `purged/` and its instances are marked, under the study's lock;
2. later, when every answer given meanwhile has reached the index, what is still marked is deleted for good, and what came
   again without being written again (the sender saw the old file) moves back.
A crash between the two leaves files under `purged/`, which step 2 sorts out by the index and by the files' times. A file that
came again has the time of the repetition (`ArchiveFiles.publish`), whose row may be on its way, or may have died with its process.
"""

import contextlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from schemas.settings import RetentionSettings
from schemas.tables import Study
from services.assembly import expiry
from services.assembly.conflict_repository import forget_set_aside, refused_among
from services.assembly.files import CONFLICTS
from services.runtime.database import Database
from services.runtime.errors import Transient
from services.runtime.result_uids import is_result_uid
from services.runtime.transaction import Transaction

logger = logging.getLogger(__name__)
PURGED: Final = "purged"
ACTOR: Final = "retention"
STUDIES_AT_ONCE: Final = 20
INSTANCES_AT_ONCE: Final = 2_000
GRACE: Final = timedelta(seconds=120)
"""Longer than the index lags behind an answer."""


@dataclass(frozen=True)
class Purged:
    """What one step took out of the archive."""

    studies: int = 0
    instances: int = 0
    size: int = 0

    def __add__(self, other: "Purged") -> "Purged":
        return Purged(self.studies + other.studies, self.instances + other.instances, self.size + other.size)


@dataclass(frozen=True)
class Forecast:
    """What a run would do now: what may go, and how many old studies stay, by reason."""

    before: datetime
    due: Purged
    kept: dict[str, int]


def limit_of(settings: RetentionSettings, now: datetime, days: float | None = None) -> datetime | None:
    """Images that came before that time have outlived their retention; None when everything is kept."""
    chosen = settings.pixel_days if days is None else days
    return now - timedelta(days=chosen) if chosen > 0 else None


def run(tx: Transaction, archive: Path, settings: RetentionSettings) -> None:
    """One tick: finish what was taken out before, then take out more. Raises Transient for a disk that fails."""
    try:
        finish(tx, archive)
        before = limit_of(settings, tx.clock.now())
        if before is not None:
            done = take_out(tx, archive, before, committed=settings.committed)
            if done.studies:
                logger.info("RET-100 %d images of %d studies deleted at the end of their retention", done.instances, done.studies)
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise Transient(f"RET-201 images could not be deleted ({reason}): check the archive's disk") from None


def forecast(database: Database, before: datetime, *, committed: bool) -> Forecast:
    """What a run with this limit would do; changes nothing."""
    with database.read() as session:
        studies, instances, size = expiry.count_due(session, before, committed=committed)
        return Forecast(before, Purged(studies, instances, size), expiry.count_kept(session, before, committed=committed))


def take_out(tx: Transaction, archive: Path, before: datetime, *, committed: bool, actor: str = ACTOR) -> Purged:
    """Step 1 for the oldest studies, as many as one transaction should hold; Purged() when none is left."""
    total = Purged()
    while not total.studies and (studies := expiry.due(tx.session, before, STUDIES_AT_ONCE, committed=committed)):
        for study in studies:
            if total.instances >= INSTANCES_AT_ONCE:
                break
            total += _take_out_study(tx, archive, study, before, actor)
    return total


def finish(tx: Transaction, archive: Path) -> int:
    """Step 2 for studies taken out long enough ago; returns the number of files deleted."""
    deleted = 0
    for folder in _studies_taken_out(archive):
        files = sorted(folder.rglob("*.dcm"))
        paths = {file: file.relative_to(archive / PURGED).as_posix() for file in files}
        marks = expiry.purged_at_of_paths(tx.session, folder.name, paths.values())
        for file, path in paths.items():
            deleted += _settle(file, archive / path, marks.get(path), tx.clock.now())
        again = [path for path in paths.values() if marks.get(path) is not None and (archive / path).exists()]
        expiry.mark_present(tx.session, again, tx.clock.now())
        _remove_empty(folder)
    return deleted


def _settle(file: Path, original: Path, purged_at: datetime | None, now: datetime) -> bool:
    """Delete a file that is marked, or is there again, or move back one that the index counts as present, or that came again."""
    if purged_at is not None and now - purged_at < GRACE:
        return False
    came_again = purged_at is None or (file.exists() and _time_of(file) > purged_at - GRACE)
    if came_again and not original.exists():
        original.parent.mkdir(parents=True, exist_ok=True)
        file.rename(original)
        _synchronise(original.parent)
        logger.info("RET-101 %s came again while it was being deleted: it stays", original.name)
        return False
    file.unlink(missing_ok=True)
    return True


def _take_out_study(tx: Transaction, archive: Path, study: Study, before: datetime, actor: str) -> Purged:
    now = tx.clock.now()
    # Results of ours that came back from the PACS are results.
    instances = [row for row in expiry.instances_of(tx.session, study.study_uid) if not is_result_uid(row.sop_instance_uid)]
    last = max((_time_of(archive / row.path) for row in instances if (archive / row.path).exists()), default=None)
    if last is not None and last >= before:  # sent again, and its row is on its way or was lost in a crash
        study.last_instance_at = max(study.last_instance_at, min(last, now))
        tx.session.add(study)
        return Purged()
    for instance in instances:
        _move(archive / instance.path, archive / PURGED / instance.path)
        instance.purged_at = now
    for folder in {(archive / PURGED / instance.path).parent for instance in instances}:
        _synchronise(folder)
    conflicts = _delete_conflicts(tx, archive, study.study_key, before)
    study.purged_at = now
    tx.session.add_all([study, *instances])
    size = sum(instance.size for instance in instances)
    detail = {"instances": len(instances), "bytes": size, "conflicts": conflicts, "before": before.isoformat()}
    if instances or conflicts:
        tx.audit(actor, "study.purged", study.study_key, **detail)
    return Purged(1, len(instances), size)


def _time_of(file: Path) -> datetime:
    return datetime.fromtimestamp(file.stat().st_mtime, UTC)


def _move(source: Path, target: Path) -> None:
    """A file that is gone already needs no move: a crash after an earlier one, or a loss that `reclaim reindex` counts."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        source.rename(target)


def _delete_conflicts(tx: Transaction, archive: Path, study_key: str, before: datetime) -> int:
    """Other bytes that came for a UID of the study are pixel data too. What a sender was told is stored stays for a person."""
    folder = archive / CONFLICTS / study_key
    old = [file for file in folder.glob("*.dcm") if file.stat().st_mtime < before.timestamp()] if folder.is_dir() else []
    refused = refused_among(tx.session, [file.relative_to(archive).as_posix() for file in old])
    for path in refused:
        (archive / path).unlink(missing_ok=True)
    forget_set_aside(tx, sorted(refused))
    return len(refused)


def _studies_taken_out(archive: Path) -> Iterator[Path]:
    root = archive / PURGED
    for shard in sorted(root.iterdir()) if root.is_dir() else ():
        yield from sorted(folder for folder in shard.iterdir() if folder.is_dir())[:STUDIES_AT_ONCE]


def _remove_empty(folder: Path) -> None:
    for inner in (*folder.iterdir(), folder, folder.parent):
        with contextlib.suppress(OSError):
            inner.rmdir()


def _synchronise(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

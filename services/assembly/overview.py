"""What the archive holds, in numbers: for the command line and for a person who asks whether the disk will do."""

import shutil
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlmodel import Session, col, func, select

from schemas.tables import Instance, Study
from schemas.vocabulary import StudyState
from services.assembly.files import CONFLICTS, NotPart10Error, study_folders
from services.assembly.headers import MissingElement, UnreadableHeader
from services.assembly.reindex import read_stored
from services.assembly.retention import PURGED
from services.runtime.database import Database
from services.runtime.identity import Pseudonyms


@dataclass(frozen=True)
class Overview:
    """`size` is of the data sets in the archive by the index, `free` of its disk; times are of receipt."""

    studies: int
    open: int
    instances: int
    size: int
    deleted: int
    oldest: datetime | None
    newest: datetime | None
    modalities: dict[str, int]
    conflicts: int
    taken_out: int
    free: int


def overview(database: Database, archive: Path) -> Overview:
    """Look at index and disk; changes nothing."""
    with database.read() as session:
        numbers = _numbers(session)
    return Overview(
        **numbers,
        conflicts=_count(archive / CONFLICTS),
        taken_out=_count(archive / PURGED),
        free=shutil.disk_usage(archive).free if archive.is_dir() else 0,
    )


def key_fits(archive: Path, pseudonyms: Pseudonyms) -> bool | None:
    """Whether the archive's folders are named with this key; None when there is no file to tell by.

    With another key every study would be filed and announced a second time.
    """
    for folder in study_folders(archive) if archive.is_dir() else ():
        for file in folder.glob("*/*.dcm"):
            try:
                return pseudonyms.study(read_stored(file).facts.study_uid) == folder.name
            except (NotPart10Error, UnreadableHeader, MissingElement):
                continue
    return None


def count_files(archive: Path) -> int:
    """Files of instances in the archive."""
    shards = [folder for folder in archive.iterdir() if len(folder.name) == 2 and folder.is_dir()] if archive.is_dir() else []
    return sum(_count(shard) for shard in shards)


def _numbers(session: Session) -> dict[str, Any]:
    present = col(Instance.purged_at).is_(None)
    at = Instance.received_at
    totals = select(func.count(), func.coalesce(func.sum(Instance.size), 0), func.min(at), func.max(at))
    instances, size, oldest, newest = session.exec(totals.where(present)).one()
    by_modality = select(Instance.modality, func.count()).where(present).group_by(Instance.modality).order_by(Instance.modality)
    return {
        "studies": int(session.exec(select(func.count()).select_from(Study)).one()),
        "open": int(session.exec(select(func.count()).select_from(Study).where(Study.state == StudyState.OPEN)).one()),
        "instances": int(instances),
        "size": int(size),
        "deleted": int(session.exec(select(func.count()).select_from(Instance).where(~present)).one()),
        "oldest": oldest,
        "newest": newest,
        "modalities": {modality or "?": int(count) for modality, count in session.exec(by_modality)},
    }


def _count(folder: Path) -> int:
    return sum(1 for _ in folder.rglob("*.dcm"))

"""Where a study's files lie. The archive's layout uses pseudonyms only, so no tag a sender controls becomes a path.

ARCHIVE/STUDY_KEY[:2]/STUDY_KEY/SERIES_KEY/SHA256(SOPInstanceUID)[:32].dcm
"""

import hashlib
from pathlib import Path

from sqlmodel import Session, col, select

from schemas.tables import Instance, Study
from services.runtime.errors import InvalidInput


def series_folder(study_key: str, series_key: str) -> str:
    """Folder of a series relative to the archive root."""
    return f"{study_key[:2]}/{study_key}/{series_key}"


def instance_path(study_key: str, series_key: str, sop_instance_uid: str) -> str:
    """File of an instance relative to the archive root."""
    name = hashlib.sha256(sop_instance_uid.encode()).hexdigest()[:32]
    return f"{study_key[:2]}/{study_key}/{series_key}/{name}.dcm"


def study_files(session: Session, archive: Path, study_key: str) -> list[Path]:
    """All indexed files of a study, in order of their path; InvalidInput when the archive does not have them, or not all."""
    query = (
        select(Instance.path, Instance.purged_at)
        .join(Study, col(Study.study_uid) == col(Instance.study_uid))
        .where(Study.study_key == study_key)
        .order_by(Instance.path)
    )
    rows = session.exec(query).all()
    if not rows:
        raise InvalidInput(f"the archive has no files of study {study_key}")
    if any(purged_at is not None for _, purged_at in rows):
        raise InvalidInput(f"the images of study {study_key} were deleted at the end of their retention")
    return [archive / path for path, _ in rows]


def series_files(archive: Path, folder: str) -> list[Path]:
    """Files of one series folder as named in an event; InvalidInput when it leaves the archive or is empty."""
    root = archive.resolve()
    resolved = (root / folder).resolve()
    if root not in resolved.parents:
        raise InvalidInput("the series path leaves the archive")
    files = sorted(resolved.glob("*.dcm"))
    if not files:
        raise InvalidInput("the series folder holds no files")
    return files

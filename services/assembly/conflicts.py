"""Other bytes, or another study or series, for a SOP Instance UID that the archive has: kept aside, never in place of the first."""

from pathlib import Path

from services.assembly.files import CONFLICTS, ArchiveFiles, dataset_digest
from services.assembly.index import ArchiveIndex


def keep_aside(files: ArchiveFiles, index: ArchiveIndex, source: str | Path, path: str) -> str:
    """Move a file that would belong at `path` under `conflicts/` and record it once; returns its name there.

    Raises OSError, and Transient when the database is away: the file is then aside, and a repetition records nothing more.
    """
    digest = dataset_digest(Path(source))
    study_key, name = Path(path).parts[1], Path(path).stem
    kept_as = f"{CONFLICTS}/{study_key}/{name}-{digest[:16]}.dcm"
    if not (files.root / kept_as).exists():
        index.note_conflict(study_key, kept_as, digest)
    files.publish(source, kept_as)
    files.discard(source)
    return kept_as

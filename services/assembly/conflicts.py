"""Other bytes, or another study or series, for a SOP Instance UID that the archive has: kept aside, never in place of the first."""

from pathlib import Path

from services.assembly.conflict_repository import noted_among
from services.assembly.files import CONFLICTS, ArchiveFiles, dataset_digest
from services.assembly.index import ArchiveIndex


def keep_aside(files: ArchiveFiles, index: ArchiveIndex, source: str | Path, path: str, *, acknowledged: bool = True) -> str:
    """Move a file that would belong at `path` under `conflicts/` and record it once; returns its name there.

    `acknowledged`: its sender was told that it is stored. It is then never deleted here, and storage commitment of its UID
    fails, until somebody has decided which of the two is right and removed the file under `conflicts/`.
    Raises OSError, and Transient when the database is away: nothing has moved then.
    """
    digest = dataset_digest(Path(source))
    study_key, name = Path(path).parts[1], Path(path).stem
    kept_as = f"{CONFLICTS}/{study_key}/{name}-{digest[:16]}.dcm"
    index.note_conflict(study_key, name, kept_as, digest, acknowledged=acknowledged)
    files.publish(source, kept_as)
    files.discard(source)
    return kept_as


def note_missing(files: ArchiveFiles, index: ArchiveIndex) -> int:
    """Note again the files under `conflicts/` that an empty or restored database does not know; returns how many.

    Whether their senders were told of success is not known any more: they count as acknowledged, so nobody deletes them.
    """
    found = {path.relative_to(files.root).as_posix(): path for path in sorted((files.root / CONFLICTS).glob("*/*.dcm"))}
    with index.database.read() as session:
        noted = noted_among(session, list(found))
    missing = [(kept_as, path) for kept_as, path in found.items() if kept_as not in noted]
    for kept_as, path in missing:
        name = path.stem.rpartition("-")[0]
        index.note_conflict(path.parent.name, name, kept_as, dataset_digest(path), acknowledged=True)
    return len(missing)

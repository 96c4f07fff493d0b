"""Rebuilds the archive's index from its files: after a crash between file and row, after a restore, on demand."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Final

from services.assembly.conflicts import keep_aside, note_missing
from services.assembly.files import ArchiveFiles, NotPart10Error, dataset_digest, layout_of, study_folders
from services.assembly.headers import MissingElement, UnreadableHeader, read_facts
from services.assembly.index import ArchiveIndex, StoredFile
from services.assembly.repository import Recorded, paths_after, paths_of_studies
from services.assembly.sources import FileSource
from services.runtime.database import Database
from services.runtime.service import Context

logger = logging.getLogger(__name__)
STUDIES_AT_ONCE: Final = 100
ROWS_AT_ONCE: Final = 1000


@dataclass
class ReindexSummary:
    """What a run found and did. Paths are pseudonymous."""

    files: int = 0
    indexed: int = 0
    stale: int = 0
    aside: int = 0
    unreadable: list[str] = field(default_factory=list)
    misplaced: list[str] = field(default_factory=list)
    lost: int = 0
    noted: int = 0

    def text(self) -> str:
        """One sentence per fact, for a terminal or a log."""
        lines = [
            f"{self.files} files in the archive, {self.indexed} entered into the index, {self.stale} unfinished files removed."
        ]
        if self.unreadable:
            lines.append(f"{len(self.unreadable)} files cannot be read, e.g. {self.unreadable[0]}: restore them from a backup.")
        if self.misplaced:
            lines.append(f"{len(self.misplaced)} files are not what the index knows under their UID, e.g. {self.misplaced[0]}.")
        if self.aside:
            lines.append(f"{self.aside} objects with the UID of another study or series were put under conflicts/.")
        if self.noted:
            lines.append(f"{self.noted} objects under conflicts/ were noted again: decide which of two is right (runbook).")
        if self.lost:
            lines.append(f"{self.lost} indexed instances have no file: restore the archive, or send the studies again.")
        return "\n".join(lines)


def reindex(context: Context) -> ReindexSummary:
    """Compare every file with the index, enter what is missing, and count index rows whose file is gone."""
    context.settings.archive_dir.mkdir(parents=True, exist_ok=True)
    files = ArchiveFiles(context.settings.archive_dir)
    try:
        summary = enter_missing(context, files, lambda: False)
    finally:
        files.close()
    summary.lost = _count_lost(context.database, context.settings.archive_dir)
    return summary


def enter_missing(context: Context, files: ArchiveFiles, stopped: Callable[[], bool]) -> ReindexSummary:
    """Remove dead processes' unfinished files and enter whole files that have no row; safe beside running listeners."""
    summary = ReindexSummary(stale=files.sweep())
    index = ArchiveIndex(context.database, context.pseudonyms)
    for folders in _in_groups(study_folders(files.root), STUDIES_AT_ONCE):
        with context.database.read() as session:
            known = paths_of_studies(session, [folder.name for folder in folders])
        found = [path for folder in folders for path in folder.glob("*/*.dcm")]
        summary.files += len(found)
        missing = [path for path in found if path.relative_to(files.root).as_posix() not in known]
        for path in sorted(missing, key=lambda path: (path.stat().st_mtime_ns, path)):
            if stopped():
                return summary
            _enter(index, files, path, summary)
    summary.noted = note_missing(files, index)
    return summary


def enter_file(index: ArchiveIndex, root: Path, path: Path) -> Recorded:
    """Enter one file of the archive; CONFLICT when the index knows other bytes, or another place, for its UID.

    Raises NotPart10Error, UnreadableHeader or MissingElement for what cannot be an instance.
    """
    file = read_stored(path)
    if index.path_of(file.facts) != path.relative_to(root).as_posix():
        return Recorded.CONFLICT
    return index.enter(file)


def read_stored(path: Path) -> StoredFile:
    """Everything the index needs, from a file's own bytes, read as at its reception; its receipt is the file's time.

    Raises NotPart10Error, UnreadableHeader or MissingElement.
    """
    from services.assembly.pydicom_reading import read_file_meta_info  # noqa: PLC0415 - for the few files without row

    layout = layout_of(path)
    try:
        meta = read_file_meta_info(path)
        syntax = str(meta.TransferSyntaxUID)
        sender = str(meta.get("SourceApplicationEntityTitle", "") or "").strip()
    except Exception as error:  # noqa: BLE001 - pydicom raises many kinds; none may quote a value
        raise UnreadableHeader(type(error).__name__) from None
    size = layout.size - layout.dataset_offset
    with path.open("rb") as file:
        facts = read_facts(FileSource(file.fileno(), layout.dataset_offset, size), syntax)
    received_at = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    return StoredFile(facts, syntax, size, dataset_digest(path), received_at, sender[:16])


def _enter(index: ArchiveIndex, files: ArchiveFiles, path: Path, summary: ReindexSummary) -> None:
    name = path.relative_to(files.root).as_posix()
    try:
        recorded = enter_file(index, files.root, path)
        if recorded is Recorded.CONFLICT:
            _settle_conflict(index, files, path, summary)
    except (NotPart10Error, UnreadableHeader, MissingElement) as error:
        summary.unreadable.append(name)
        logger.warning("ASM-301 %s cannot be indexed (%s): restore it from a backup or move it away", name, type(error).__name__)
        return
    summary.indexed += recorded is Recorded.NEW


def _settle_conflict(index: ArchiveIndex, files: ArchiveFiles, path: Path, summary: ReindexSummary) -> None:
    """A UID that another study or series has goes aside, as at reception; a file that lies in a foreign place is reported."""
    name = path.relative_to(files.root).as_posix()
    if index.path_of(read_stored(path).facts) == name:
        kept_as = keep_aside(files, index, path, name)
        summary.aside += 1
        logger.warning("ASM-303 a UID of another study or series was used again; the object is kept as %s", kept_as)
        return
    summary.misplaced.append(name)
    logger.warning("ASM-302 %s is not what the index knows under its UID: compare the two files, keep one", name)


def _count_lost(database: Database, root: Path) -> int:
    lost, last = 0, ""
    while True:
        with database.read() as session:
            rows = paths_after(session, last, ROWS_AT_ONCE)
        if not rows:
            return lost
        lost += sum(not (root / path).is_file() for _, path in rows)
        last = rows[-1][0]


def _in_groups(folders: Iterator[Path], size: int) -> Iterator[Sequence[Path]]:
    while group := list(islice(folders, size)):
        yield group

"""Reports on disk: a folder appears whole or not at all."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path


def write_report(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write the files durably into `folder`, replacing an earlier writing of the same report."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = folder.with_name(f".{folder.name}.{os.getpid()}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    for name, content in files.items():
        _write(draft / name, content)
    _sync(draft)
    _publish(draft, folder)
    _sync(folder.parent)


def _publish(draft: Path, folder: Path) -> None:
    """Rename into place. A folder cannot replace a filled one, so an earlier writing steps aside first."""
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    draft.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

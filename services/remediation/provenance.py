"""Hashes that say with which code and data a verdict was reached (DESIGN promise 8)."""

import hashlib
from functools import cache
from pathlib import Path

import models
import services.remediation


@cache
def code_digest() -> str:
    """SHA-256 over the sources of the machine learning and of remediation."""
    digest = hashlib.sha256()
    for package in (models, services.remediation):
        folder = Path(str(package.__file__)).parent
        for path in sorted(folder.rglob("*.py")):
            digest.update(f"{folder.name}/{path.relative_to(folder)}\x1f".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

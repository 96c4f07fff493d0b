"""Hashes that say with which code and data a verdict was reached (promise 8)."""

import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import models
import services.remediation
from models.data import LabelledStudy


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


def data_digest(plan_digest: str, manifest: Path, studies: Iterable[LabelledStudy]) -> str:
    """SHA-256 over the chosen new cases, the development manifest, and name and content of each file that it names."""
    paths = sorted({path for study in studies for path in study.paths})
    digest = hashlib.sha256(f"{plan_digest}\x1f{file_digest(manifest)}".encode())
    for path in paths:
        digest.update(f"\x1f{path.resolve().relative_to(manifest.resolve().parent)}\x1f{file_digest(path)}".encode())
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""Turns labelled images into DICOM studies on disk, a manifest for development and a label file for the import."""

import csv
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from listeners.demo.cohort import Development, LabelledImage, Scanner, Source
from listeners.dicom.synthesize import StudyFacts, study_instance_uid, write_image

EPOCH = datetime(2026, 3, 2, 8, 0, tzinfo=UTC)
"""When the demonstration's first study is acquired; one study every 40 minutes from there."""


@dataclass(frozen=True)
class Phase:
    """Studies of one chapter: a folder to send and the labels that arrive later."""

    name: str
    folder: Path
    labels: Path
    study_uids: tuple[str, ...]


def write_development(source: Source, images: Development, folder: Path, scanner: Scanner, on_image: Callable[[], None]) -> Path:
    """Write train, valid and test images as DICOM and return their manifest (path,label,patient,split)."""
    rows: list[tuple[str, str, str, str]] = []
    for split, items in (("train", images.train), ("valid", images.valid), ("test", images.test)):
        for number, item in enumerate(items):
            file = folder / split / f"{number:05d}.dcm"
            _write(file, source, item, scanner, f"development-{split}-{number}", EPOCH - timedelta(days=90))
            rows.append((str(file.relative_to(folder)), item.label, item.patient, split))
            on_image()
    return _write_rows(folder / "manifest.csv", ("path", "label", "patient", "split"), rows)


def write_phase(
    name: str,
    source: Source,
    items: Sequence[LabelledImage],
    folder: Path,
    scanner: Scanner,
    first: int,
    on_image: Callable[[], None],
) -> Phase:
    """Write one chapter's studies; `first` is the number of studies acquired before."""
    uids: list[str] = []
    rows: list[tuple[str, ...]] = []
    for number, item in enumerate(items):
        seed, at = f"{name}-{number}", EPOCH + timedelta(minutes=40 * (first + number))
        _write(folder / name / f"{number:05d}.dcm", source, item, scanner, seed, at)
        uids.append(study_instance_uid(seed))
        rows.append((uids[-1], source.task, item.label, (at + timedelta(days=2)).isoformat()))
        on_image()
    labels = _write_rows(folder / f"{name}-labels.csv", ("study", "task", "label", "labelled_at"), rows)
    return Phase(name, folder / name, labels, tuple(uids))


def _write(file: Path, source: Source, item: LabelledImage, scanner: Scanner, seed: str, at: datetime) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    facts = StudyFacts(
        modality=source.modality,
        patient_id=item.patient,
        seed=seed,
        acquired_at=at,
        body_part=source.body_part,
        manufacturer=scanner.manufacturer,
        model_name=scanner.model,
        station=scanner.station,
    )
    write_image(file, item.image, facts)


def _write_rows(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    return path

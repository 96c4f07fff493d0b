"""Studies, labels and the model of the tests of the whole service.

The images are two textures that a small network tells apart after a few epochs. Every file carries identities that are
found nowhere else, so that a search for them finds any leak.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np
import pydicom

from listeners.dicom.synthesize import StudyFacts, study_instance_uid, write_image
from listeners.training import TrainingRequest, train_and_register
from schemas.settings import Settings
from schemas.vocabulary import CaseRole
from services.ground_truth.domain import role_of
from services.runtime.identity import Pseudonyms
from services.runtime.service import Context

MODEL, TASK, CLASSES = "texture", "texture-kind", ("disc", "stripes")
EDGE: Final = 32
KEY: Final = "a key for the tests of the whole loop, never used elsewhere"
START: Final = datetime(2026, 3, 2, 8, 0, tzinfo=UTC)
NAME, BIRTH_DATE, ACCESSION = "KANARIE^VOGEL", "19010217", "KANARIE-ACC"


def texture(label: str, generator: np.random.Generator) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A disc or stripes in noise, uint8 [EDGE, EDGE]."""
    rows, columns = np.mgrid[0:EDGE, 0:EDGE].astype(float)
    if label == "disc":
        centre = EDGE / 2 + generator.uniform(-3, 3, 2)
        signal_ = ((rows - centre[0]) ** 2 + (columns - centre[1]) ** 2) < (EDGE / 4) ** 2
    else:
        signal_ = np.sin(rows * 2 * np.pi / 6 + generator.uniform(0, 6)) > 0
    noisy = 60 + 120 * signal_ + generator.normal(0, 15, (EDGE, EDGE))
    return np.clip(noisy, 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class Sample:
    """One study on disk. `label` is the truth that will be told, `shown` what the image shows."""

    file: Path
    uid: str
    key: str
    patient_id: str
    role: CaseRole
    shown: str
    label: str
    labelled_at: datetime


def write_sample(folder: Path, number: int, shown: str, label: str, patient_id: str, role: CaseRole) -> Sample:
    """A single-image MR study full of identities."""
    folder.mkdir(parents=True, exist_ok=True)
    seed, file = f"loop-{folder.name}-{number}", folder / f"{number:04d}.dcm"
    at = START + timedelta(minutes=30 * number)
    facts = StudyFacts(
        modality="MR",
        patient_id=patient_id,
        seed=seed,
        acquired_at=at,
        body_part="HEAD",
        manufacturer="Aurora",
        accession_number=f"{ACCESSION}{number}",
    )
    write_image(file, texture(shown, np.random.default_rng(number)), facts)
    dataset = pydicom.dcmread(file)
    dataset.PatientName, dataset.PatientBirthDate = NAME, BIRTH_DATE
    dataset.OtherPatientIDs = f"{patient_id}-OTHER"
    dataset.ReferringPhysicianName = NAME
    dataset.save_as(file)
    uid = study_instance_uid(seed)
    return Sample(file, uid, Pseudonyms(KEY.encode()).study(uid), patient_id, role, shown, label, at + timedelta(days=2))


def samples(folder: Path, counts: Mapping[CaseRole, int], *, truthful: bool) -> list[Sample]:
    """Studies of different patients, `counts` of each role; without `truthful` every label is the other class."""
    pseudonyms, shares = Pseudonyms(KEY.encode()), (Settings().join.tune_share, Settings().join.gate_share)
    left, found, patient = dict(counts), [], 0
    while any(left.values()):
        patient += 1
        name = f"KANARIE-PID-{folder.name}-{patient}"
        role = role_of(pseudonyms.patient(name), *shares)
        if left.get(role, 0) > 0:
            left[role] -= 1
            shown = CLASSES[len(found) % 2]
            label = shown if truthful else CLASSES[1 - len(found) % 2]
            found.append(write_sample(folder, len(found), shown, label, name, role))
    return found


def write_labels(path: Path, chosen: Iterable[Sample]) -> Path:
    """A CSV file for the import."""
    rows = [f"{item.uid},{TASK},{item.label},{item.labelled_at.isoformat()}" for item in chosen]
    path.write_text("\n".join(["study,task,label,labelled_at", *rows]) + "\n")
    return path


def identities(chosen: Iterable[Sample]) -> list[str]:
    """All strings in the files that must not leave the archive."""
    found = {NAME, "KANARIE", "1901-02-17", "1901-2-17", BIRTH_DATE}
    for item in chosen:
        dataset = pydicom.dcmread(item.file, stop_before_pixels=True)
        found |= {item.uid, item.patient_id, str(dataset.SeriesInstanceUID), str(dataset.SOPInstanceUID)}
    return sorted(found)


def train_model(context: Context, folder: Path) -> int:
    """Train, baseline and register the model as `reclaim models train` does."""
    rows = ["path,label,patient,split"]
    for split, count in (("train", 60), ("valid", 20), ("test", 120)):
        for number in range(count):
            shown, patient = CLASSES[number % 2], f"development-{split}-{number}"
            file = folder / split / f"{number}.dcm"
            file.parent.mkdir(parents=True, exist_ok=True)
            facts = StudyFacts(modality="MR", patient_id=patient, seed=patient, acquired_at=START, body_part="HEAD")
            write_image(file, texture(shown, np.random.default_rng([number, count])), facts)
            rows.append(f"{split}/{number}.dcm,{shown},{patient},{split}")
    manifest = folder / "manifest.csv"
    manifest.write_text("\n".join(rows) + "\n")
    request = TrainingRequest(manifest=manifest, name=MODEL, task=TASK, modalities=("MR",), network="small", size=EDGE, epochs=12)
    return train_and_register(context, request, lambda _: None).version

"""Labelled data sets: a manifest that names studies, their labels, patients and splits, and their tensors in memory."""

import csv
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pydicom
import torch

from models.errors import InvalidDataset, ModelError
from models.patient_ids import same_id
from models.preprocessing import Prepared, load_study
from models.signature import Seen
from models.spec import PreprocessingSpec

COLUMNS = ("path", "label", "patient", "split")
ISSUER = "issuer"
"""Optional column: who issued the patient's ID, as IssuerOfPatientID (0010,0021) says it."""
MAX_LISTED = 20
"""Mistakes of a manifest that are told at once."""


@dataclass(frozen=True, slots=True)
class LabelledStudy:
    """One study of a data set: its DICOM files and its truth. `key` is unique in the set; `split` is free text such as train.

    `issuer` is the manifest's word on who issued the patient's ID, empty where it says nothing; `row` is its row there, 0 for
    a study that comes from elsewhere.
    """

    key: str
    paths: tuple[Path, ...]
    label: str
    patient: str
    split: str = ""
    issuer: str = ""
    row: int = 0

    @property
    def title(self) -> str:
        """The study in a message: a manifest's paths may name patients, and messages travel."""
        return f"study of row {self.row}" if self.row else f"study {self.key}"


@dataclass(frozen=True, slots=True)
class TensorSet:
    """Prepared studies in memory. `studies[i]` is [k, C, (D,) H, W]; `labels[i]` is an index into the model's classes.

    `findings` and `seen` are by key; `seen` may lack studies.
    """

    studies: tuple[torch.Tensor, ...]
    labels: tuple[int, ...]
    patients: tuple[str, ...]
    keys: tuple[str, ...]
    findings: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    seen: Mapping[str, Seen] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.studies)

    def subset(self, indices: Iterable[int]) -> "TensorSet":
        """The studies at `indices`, sharing memory."""
        chosen = list(indices)
        keys = tuple(self.keys[index] for index in chosen)
        return TensorSet(
            tuple(self.studies[index] for index in chosen),
            tuple(self.labels[index] for index in chosen),
            tuple(self.patients[index] for index in chosen),
            keys,
            {key: self.findings[key] for key in keys if key in self.findings},
            {key: self.seen[key] for key in keys if key in self.seen},
        )


def read_manifest(path: Path, classes: Sequence[str] | None = None) -> list[LabelledStudy]:
    """Studies of a CSV manifest with the columns path, label, patient, split and, optionally, issuer.

    `path` is a DICOM file or a folder of DICOM files, relative to the manifest. Raises InvalidDataset naming row and column
    of every mistake at once: a missing file, a path outside the manifest's folder, an empty cell, an unknown class, a path
    twice, or a patient in two splits. Cells are not quoted: a shifted column would put an identity into the message.
    """
    faults: list[str] = []
    rows: list[tuple[int, LabelledStudy]] = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, strict=True)
            missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
            if missing:
                is_or_are = "column {} is missing" if len(missing) == 1 else "columns {} are missing"
                raise InvalidDataset(f"{path.name}: {is_or_are.format(', '.join(missing))}; needed are {', '.join(COLUMNS)}")
            for number, row in enumerate(reader, start=2):
                study, wrong = _study(path, number, row, classes)
                faults += [f"{path.name} row {number}, column {fault}" for fault in wrong]
                rows.append((number, study))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InvalidDataset(f"{path.name} cannot be read ({type(error).__name__})") from error
    if not rows:
        raise InvalidDataset(f"{path.name} has no rows")
    faults += [f"{path.name} row {number}, column {fault}" for number, fault in _contradictions(rows)]
    if faults:
        more = [f"… and {len(faults) - MAX_LISTED} more"] if len(faults) > MAX_LISTED else []
        raise InvalidDataset("\n".join([*faults[:MAX_LISTED], *more]))
    return [study for _, study in rows]


def issuers_of(studies: Iterable[LabelledStudy]) -> dict[str, str]:
    """Study key to the issuer of its patient's ID: the manifest's word, else that of the study's first file.

    A file counts only where its PatientID is the manifest's patient: else the manifest speaks of IDs of its own.
    """
    return {study.key: study.issuer or _issuer_in_file(study) for study in studies}


def _issuer_in_file(study: LabelledStudy) -> str:
    try:
        header = pydicom.dcmread(study.paths[0], stop_before_pixels=True, specific_tags=["PatientID", "IssuerOfPatientID"])
        patient, issuer = (str(header.get(keyword) or "").strip() for keyword in ("PatientID", "IssuerOfPatientID"))
    except Exception:  # noqa: BLE001 - what is no DICOM file names no issuer; whoever decodes it will say so
        return ""
    return issuer if patient == study.patient else ""


def load_tensors(
    studies: Sequence[LabelledStudy],
    classes: Sequence[str],
    spec: PreprocessingSpec,
    *,
    workers: int = 1,
    on_study: Callable[[int], None] | None = None,
) -> TensorSet:
    """Read, decode and prepare every study once; the result stays in memory.

    `on_study` hears the number of studies done. Raises InvalidDataset naming the study that cannot be read.
    """

    def load(study: LabelledStudy) -> Prepared:
        try:
            return load_study(study.paths, spec)
        except ModelError as error:
            raise InvalidDataset(f"{study.title}: {error.reason}") from error

    prepared: list[Prepared] = []
    with ThreadPoolExecutor(max_workers=workers) as pool:
        for done in pool.map(load, studies):
            prepared.append(done)
            if on_study is not None:
                on_study(len(prepared))
    keys = tuple(study.key for study in studies)
    return TensorSet(
        tuple(each.tensor for each in prepared),
        tuple(_index_of(study, classes) for study in studies),
        tuple(study.patient for study in studies),
        keys,
        {key: each.codes for key, each in zip(keys, prepared, strict=True) if each.findings},
        seen_of(keys, prepared),
    )


def seen_of(keys: Iterable[str], prepared: Iterable[Prepared]) -> dict[str, Seen]:
    """What is kept of prepared studies, by their keys."""
    pairs = zip(keys, prepared, strict=True)
    return {key: Seen(each.signature, each.facets) for key, each in pairs if each.signature is not None}


def split_by_patient(patients: Sequence[str], labels: Sequence[int], shares: Sequence[float], seed: int) -> list[list[int]]:
    """Indices of len(shares) parts; no patient is in two parts, and each part's classes are near their overall shares.

    Patients are dealt, in seeded random order within the class they have most of, to the part that lacks most cases.
    """
    if not shares or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        msg = "shares must be at least zero and sum to one"
        raise ValueError(msg)
    cases: dict[str, list[int]] = {}
    for index, patient in enumerate(patients):
        cases.setdefault(patient, []).append(index)
    order = np.random.default_rng(seed).permutation(len(cases))
    shuffled = [list(cases.values())[place] for place in order]
    parts: list[list[int]] = [[] for _ in shares]
    for label in sorted(set(labels)):
        group = [indices for indices in shuffled if _majority(indices, labels) == label]
        _deal(group, shares, parts)
    return [sorted(part) for part in parts]


def _deal(group: Sequence[list[int]], shares: Sequence[float], parts: list[list[int]]) -> None:
    total = sum(len(indices) for indices in group)
    given = [0] * len(shares)
    for indices in group:
        lack = [share * total - have for share, have in zip(shares, given, strict=True)]
        part = int(np.argmax(lack))
        parts[part].extend(indices)
        given[part] += len(indices)


def _majority(indices: Sequence[int], labels: Sequence[int]) -> int:
    values, counts = np.unique([labels[index] for index in indices], return_counts=True)
    return int(values[int(np.argmax(counts))])


def _index_of(study: LabelledStudy, classes: Sequence[str]) -> int:
    if study.label not in classes:
        raise InvalidDataset(f"{study.title}: its label is not one of {', '.join(classes)}")
    return list(classes).index(study.label)


def _study(
    manifest: Path, number: int, row: Mapping[str, str | None], classes: Sequence[str] | None
) -> tuple[LabelledStudy, list[str]]:
    """A row as a study, and its mistakes as "COLUMN: what is wrong"."""
    cells = {column: (row.get(column) or "").strip() for column in (*COLUMNS, ISSUER)}
    faults = [f"{column}: empty" for column in COLUMNS if not cells[column]]
    if cells["label"] and classes is not None and cells["label"] not in classes:
        faults.append(f"label: not one of {', '.join(classes)}")
    target = manifest.parent / cells["path"]
    files: tuple[Path, ...] = ()
    if cells["path"] and not target.resolve().is_relative_to(manifest.parent.resolve()):
        faults.append("path: leaves the manifest's folder")
    elif cells["path"]:
        files = tuple(sorted(each for each in target.rglob("*") if each.is_file())) if target.is_dir() else (target,)
        if not files or not files[0].is_file():
            faults.append("path: no such file, or a folder without files")
    return LabelledStudy(cells["path"], files, cells["label"], cells["patient"], cells["split"], cells[ISSUER], number), faults


def _contradictions(rows: Sequence[tuple[int, LabelledStudy]]) -> Iterator[tuple[int, str]]:
    """Rows that contradict an earlier one: a path twice, a patient in two splits."""
    paths: dict[str, int] = {}
    splits: dict[tuple[str, str], tuple[str, int]] = {}
    for number, study in rows:
        if study.key and paths.setdefault(study.key, number) != number:
            yield number, f"path: the same as in row {paths[study.key]}"
        if study.patient and study.split:
            split, first = splits.setdefault((study.issuer, same_id(study.patient)), (study.split, number))
            if split != study.split:
                yield number, f"split: the patient of row {first} is in another split"

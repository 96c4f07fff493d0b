"""Labelled data sets: a manifest that names studies, their labels, patients and splits, and their tensors in memory."""

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from models.errors import InvalidDataset, ModelError
from models.preprocessing import Prepared, load_study
from models.spec import PreprocessingSpec

COLUMNS = ("path", "label", "patient", "split")


@dataclass(frozen=True, slots=True)
class LabelledStudy:
    """One study of a data set: its DICOM files and its truth. `key` is unique in the set; `split` is free text such as train."""

    key: str
    paths: tuple[Path, ...]
    label: str
    patient: str
    split: str = ""


@dataclass(frozen=True, slots=True)
class TensorSet:
    """Prepared studies in memory. `studies[i]` is [k, C, (D,) H, W]; `labels[i]` is an index into the model's classes."""

    studies: tuple[torch.Tensor, ...]
    labels: tuple[int, ...]
    patients: tuple[str, ...]
    keys: tuple[str, ...]
    findings: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

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
        )


def read_manifest(path: Path, classes: Sequence[str] | None = None) -> list[LabelledStudy]:
    """Studies of a CSV manifest with the columns path, label, patient, split.

    `path` is a DICOM file or a folder of DICOM files, relative to the manifest. Raises InvalidDataset naming row and
    column for a missing file, a path outside the manifest's folder, an empty cell, an unknown class, a path twice, or a
    patient in two splits.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, strict=True)
            missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
            if missing:
                raise InvalidDataset(f"{path.name}: column {missing[0]} is missing; needed are {', '.join(COLUMNS)}")
            studies = [_study(path, number, row, classes) for number, row in enumerate(reader, start=2)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InvalidDataset(f"{path.name} cannot be read ({type(error).__name__})") from error
    _check_unique(path, studies)
    return studies


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
            raise InvalidDataset(f"study {study.key}: {error.reason}") from error

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
    )


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
        raise InvalidDataset(f"study {study.key}: label {study.label!r} is not one of {', '.join(classes)}")
    return list(classes).index(study.label)


def _study(manifest: Path, number: int, row: Mapping[str, str | None], classes: Sequence[str] | None) -> LabelledStudy:
    cells = {column: (row.get(column) or "").strip() for column in COLUMNS}
    where = f"{manifest.name} row {number}, column"
    for column, value in cells.items():
        if not value:
            raise InvalidDataset(f"{where} {column}: empty")
    if classes is not None and cells["label"] not in classes:
        raise InvalidDataset(f"{where} label: {cells['label']!r} is not one of {', '.join(classes)}")
    target = manifest.parent / cells["path"]
    if not target.resolve().is_relative_to(manifest.parent.resolve()):
        raise InvalidDataset(f"{where} path: leaves the manifest's folder")
    files = tuple(sorted(each for each in target.rglob("*") if each.is_file())) if target.is_dir() else (target,)
    if not files or not files[0].is_file():
        raise InvalidDataset(f"{where} path: no such file, or a folder without files")
    return LabelledStudy(cells["path"], files, cells["label"], cells["patient"], cells["split"])


def _check_unique(manifest: Path, studies: Sequence[LabelledStudy]) -> None:
    rows: dict[str, int] = {}
    splits: dict[str, tuple[str, int]] = {}
    if not studies:
        raise InvalidDataset(f"{manifest.name} has no rows")
    for number, study in enumerate(studies, start=2):
        if study.key in rows:
            raise InvalidDataset(f"{manifest.name} row {number}, column path: the same as in row {rows[study.key]}")
        rows[study.key] = number
        split, first = splits.setdefault(study.patient, (study.split, number))
        if split != study.split:
            raise InvalidDataset(f"{manifest.name} row {number}, column split: the patient of row {first} is in split {split!r}")

"""Splits of a labelled data set by patient: behind `reclaim models split`."""

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from models.data import COLUMNS, ISSUER, split_by_patient
from models.patient_ids import same_id
from services.runtime.errors import InvalidInput

SPLITS = ("train", "valid", "test")
SPLIT = "split"
NEEDED = tuple(column for column in COLUMNS if column != SPLIT)


def split_manifest(source: Path, target: Path, shares: Sequence[float], seed: int) -> dict[str, Counter[str]]:
    """Write the rows of `source` with a column `split` to `target`; gives the number of rows of each split by label.

    All rows of a patient (as spelt by `same_id`, with the issuer where the manifest names one) get the same split, and each split's
    labels are near their overall shares. The same rows and seed give the same splits. Raises InvalidInput for a column that is
    missing, an empty cell, a target that exists or lies elsewhere, or a split that no patient is left for.
    """
    columns, rows = _read(source)
    if target.resolve().parent != source.resolve().parent:
        raise InvalidInput(f"the paths in {source.name} are relative to its folder: write {target.name} beside it")
    if target.exists():
        raise InvalidInput(f"{target.name} is there already; name another file")
    patients = ["\x1f".join((row.get(ISSUER) or "", same_id(row["patient"]))) for row in rows]
    names = sorted({row["label"] for row in rows})
    parts = split_by_patient(patients, [names.index(row["label"]) for row in rows], shares, seed)
    if empty := [name for name, part in zip(SPLITS, parts, strict=True) if not part]:
        raise InvalidInput(f"{source.name} has too few patients: none is left for {', '.join(empty)}")
    for name, part in zip(SPLITS, parts, strict=True):
        for place in part:
            rows[place][SPLIT] = name
    with target.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, [*columns, *([] if SPLIT in columns else [SPLIT])])
        writer.writeheader()
        writer.writerows(rows)
    return {name: Counter(rows[place]["label"] for place in part) for name, part in zip(SPLITS, parts, strict=True)}


def _read(source: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and rows. Cells are not quoted in a reason: a shifted column would put an identity into it."""
    try:
        with source.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, strict=True)
            columns, rows = list(reader.fieldnames or ()), list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InvalidInput(f"{source.name} cannot be read ({type(error).__name__})") from error
    if missing := [column for column in NEEDED if column not in columns]:
        raise InvalidInput(f"{source.name} lacks the column {', '.join(missing)}")
    for number, row in enumerate(rows, start=2):
        if None in row or not all((row[column] or "").strip() for column in NEEDED):
            raise InvalidInput(f"{source.name} row {number}: an empty cell, or more cells than columns")
    if not rows:
        raise InvalidInput(f"{source.name} has no rows")
    return columns, rows

"""Labels from a CSV file: a stream of rows, checked one by one, committed in chunks."""

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from io import TextIOWrapper
from pathlib import Path
from typing import Any, Final

from listeners.labels.intake import ALIASES, REFERENCES, Fault, Outcome, RawLabel, canonical, take_in
from services.ground_truth.domain import NAME, NAME_RULE
from services.runtime.errors import InvalidInput
from services.runtime.service import Context

CHUNK: Final = 500
MAX_LISTED: Final = 100
Progress = Callable[[int], None]
Parsed = RawLabel | Fault


@dataclass
class ImportSummary:
    """What became of a file. `faults` are the first `MAX_LISTED` of `faulty`; row 1 is the header. `warnings` need no action."""

    rows: int = 0
    accepted: int = 0
    known: int = 0
    faulty: int = 0
    faults: list[Fault] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def add(self, rows: int, outcome: Outcome) -> None:
        """Count a chunk in."""
        self.rows += rows
        self.accepted += outcome.accepted
        self.known += outcome.known
        self.faulty += len(outcome.faults)
        self.faults.extend(outcome.faults[: MAX_LISTED - len(self.faults)])
        self.warnings.extend(text for text in outcome.warnings[:MAX_LISTED] if text not in self.warnings)

    def text(self) -> str:
        """For a person: one line of counts, then one per listed fault."""
        head = f"{self.rows} rows: {self.accepted} labels taken in, {self.known} known already, {self.faulty} refused"
        more = [f"… and {self.faulty - len(self.faults)} more"] if self.faulty > len(self.faults) else []
        warnings = [f"  warning: {text}" for text in self.warnings[:MAX_LISTED]]
        return "\n".join([head, *warnings, *(f"  row {fault.row}: {fault.reason}" for fault in self.faults), *more])


def import_csv(context: Context, path: Path, *, source: str = "csv", on_progress: Progress | None = None) -> ImportSummary:
    """Import a file with a header; InvalidInput when it cannot be read as one at all.

    Columns (any order; see `intake.ALIASES`): a study reference, task, label; optional source, labelled_at and status. A row
    without labelled_at counts as said when the file was last written, so that the same file again changes nothing and an
    edited one corrects. Good rows go in whatever the others are like; comma, semicolon and tab separate.
    """
    if not NAME.fullmatch(source):
        raise InvalidInput(f"source must be {NAME_RULE}")
    summary = ImportSummary()
    written = min(datetime.fromtimestamp(path.stat().st_mtime, UTC), context.clock.now()) if path.is_file() else None
    if written is None:
        raise InvalidInput(f"{path} is not a file")
    # Surrogates keep one bad byte from hiding the good rows around it; the row itself is refused below.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        for chunk in _chunks(_rows(file)):
            outcome = take_in(context, [item for item in chunk if isinstance(item, RawLabel)], source, written)
            unread = tuple(item for item in chunk if isinstance(item, Fault))
            faults = tuple(sorted((*unread, *outcome.faults), key=lambda fault: fault.row))
            summary.add(len(chunk), Outcome(outcome.accepted, outcome.known, faults, outcome.warnings))
            if on_progress:
                on_progress(summary.rows)
    return summary


def _rows(file: TextIOWrapper) -> Iterator[Parsed]:
    reader = csv.reader(file, delimiter=_delimiter(file), strict=True)
    header = next(_safely(reader), None)
    if not isinstance(header, list):
        raise InvalidInput("the file is empty or its first row is not CSV")
    columns = _columns(header)
    for number, values in enumerate(_safely(reader), start=2):
        if values:
            yield _row(number, columns, values)


def _delimiter(file: TextIOWrapper) -> str:
    first = file.readline(65_536)
    file.seek(0)
    return max(",;\t", key=first.count)


def _safely(reader: Any) -> Iterator[list[str] | str]:
    """Rows, or the reason why a row is none; ends with the file."""
    while True:
        try:
            yield next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield f"not CSV ({error})"


def _columns(header: Sequence[str]) -> list[str | None]:
    columns = [canonical(name) for name in header]
    known = [name for name in columns if name]
    twice = sorted({name for name in known if known.count(name) > 1})
    wanted = ("task",) if "status" in known else ("task", "label")  # a list of withdrawals need not say what it takes back
    missing = [name for name in wanted if name not in known]
    missing += [] if set(REFERENCES) & set(known) else ["study (or accession, or study_key)"]
    wrong = [f"lacks {', '.join(missing)}"] if missing else []
    wrong += [f"has two columns for {', '.join(twice)}"] if twice else []
    if wrong:
        raise InvalidInput(f"the header {' and '.join(wrong)}; columns are {', '.join(ALIASES)}")
    return columns


def _row(number: int, columns: Sequence[str | None], values: list[str] | str) -> Parsed:
    if isinstance(values, str):
        return Fault(number, values)
    if len(values) != len(columns):
        return Fault(number, f"{len(values)} fields where the header has {len(columns)}")
    fields = {name: value.strip() for name, value in zip(columns, values, strict=True) if name and value.strip()}
    if any(not char.isprintable() for value in fields.values() for char in value):
        return Fault(number, "a field holds bytes that are not UTF-8 text, or control characters")
    return RawLabel(number, fields)


def _chunks(rows: Iterator[Parsed]) -> Iterator[list[Parsed]]:
    chunk: list[Parsed] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk

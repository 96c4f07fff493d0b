"""Finished pieces of a run in a file of JSON lines, so that a run that was ended goes on where it stopped."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from remedy_bench.ways import Loss

Rows = list[dict[str, Any]]
LOST = "_lost"
"""Where a row keeps the losses as numbers, which the tables do not show."""


class Kept:
    """Rows by piece. A piece's name tells all that its rows depend on, so that other settings find nothing here."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path is not None and path.exists() else []
        self._found: dict[str, Rows] = {each["piece"]: [_read(row) for row in each["rows"]] for each in map(json.loads, lines)}

    def has(self, piece: str) -> bool:
        """Whether it is done."""
        return piece in self._found

    def take(self, piece: str, make: Callable[[], Rows]) -> Rows:
        """The rows of a piece: those that are there, else those that are made now."""
        if piece not in self._found:
            self._found[piece] = make()
            if self._path is not None:
                line = json.dumps({"piece": piece, "rows": [_written(row) for row in self._found[piece]]})
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(line + "\n")
        return self._found[piece]


def _written(row: dict[str, Any]) -> dict[str, Any]:
    return row | {LOST: [asdict(loss) for loss in row[LOST]]} if LOST in row else row


def _read(row: dict[str, Any]) -> dict[str, Any]:
    return row | {LOST: [Loss(**loss) for loss in row[LOST]]} if LOST in row else row

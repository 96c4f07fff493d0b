"""A report as data: what the HTML, Markdown and JSON forms are all made from."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from services.reporting.drawing import Drawing

_SENTENCE = 40
"""Characters beyond which a cell is no number and no word."""
_NOTHING = ("", "\N{EN DASH}")


@dataclass(frozen=True)
class KeyFigure:
    """One number that stands out, with what it is compared with."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A table; the first column and those of words read from the left, numbers stand right. `mono` tells ids from words."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    mono: bool = False

    @property
    def texts(self) -> frozenset[int]:
        """Places of the columns that hold sentences or mostly words: they read from the left, as the first one does."""
        if self.mono:
            return frozenset({0})
        return frozenset({0, *(place for place in range(1, len(self.columns)) if self._reads(place))})

    def _reads(self, place: int) -> bool:
        cells = [row[place] for row in self.rows if row[place] not in _NOTHING]
        words = sum(cell[0].isalpha() for cell in cells)
        return any(len(cell) > _SENTENCE for cell in cells) or 2 * words > len(cells)


@dataclass(frozen=True)
class Picture:
    """A figure: file name without ending, the text for those who cannot see it, the caption, and the figure as PNG and SVG."""

    name: str
    title: str
    alt: str
    caption: str
    drawing: Drawing
    share: float = 1.0
    """Of the width of the text."""


@dataclass(frozen=True)
class Section:
    """A heading with paragraphs, then points, then figures, then tables."""

    title: str
    paragraphs: Sequence[str] = ()
    points: Sequence[str] = ()
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()


@dataclass(frozen=True)
class Part:
    """A chapter of the report; `note` says whose headings its sections follow."""

    title: str
    sections: Sequence[Section]
    note: str = ""


@dataclass(frozen=True)
class Page:
    """A whole report. `data` holds the numbers behind it for machines; `tone` colours the badge where it is not the status."""

    report_id: str
    kind: str
    status: str
    status_word: str
    title: str
    summary: str
    model: str
    task: str
    version: int
    as_of: datetime
    key_figures: Sequence[KeyFigure]
    parts: Sequence[Part]
    data: dict[str, Any]
    tone: str = ""

    @property
    def sections(self) -> list[Section]:
        """The sections of all parts, in order."""
        return [section for part in self.parts for section in part.sections]

    @property
    def pictures(self) -> list[Picture]:
        """The figures of all sections, in order."""
        return [picture for section in self.sections for picture in section.pictures]

    @property
    def tables(self) -> list[Table]:
        """The tables of all sections, in order."""
        return [table for section in self.sections for table in section.tables]

"""A page as PDF: the content of the HTML on A4, with page numbers, a table of contents in the outline, and metadata.

The same page gives the same bytes: the dates are those of the facts, and the file's identity follows from its content.
The text is set in DejaVu Sans, which comes with the figures' library and holds the signs that the wording uses.
"""

import io
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from PIL import Image as Pixels
from reportlab.lib.colors import HexColor
from reportlab.lib.enums import TA_RIGHT
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.ttfonts import TTFont
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import (
    CondPageBreak,
    Flowable,
    HRFlowable,
    Image,
    KeepTogether,
    ListFlowable,
    ListItem,
    LongTable,
    Paragraph,
    SimpleDocTemplate,
    Spacer,
    TableStyle,
)
from reportlab.platypus import Table as Grid

from services.reporting.page import KeyFigure, Page, Part, Picture, Section, Table
from services.reporting.pdf_text import markup, split_long

SIDE, EDGE = 18 * mm, 20 * mm
WIDTH: Final = A4[0] - 2 * SIDE
HEIGHT: Final = A4[1] - 2 * EDGE
_FRAME: Final = 6
"""Padding, in points, that the library puts around the text."""
INK, MUTED, LINE, SOFT = HexColor("#1f2933"), HexColor("#55606c"), HexColor("#c9d0d8"), HexColor("#f5f7fa")
TONES: Final = {"healthy": "#1f6b3f", "watch": "#7a4f00", "degraded": "#a11d17", "undecided": "#4a5560"}
_WHOLE: Final = 12
"""Rows up to which a table is kept on one page."""
_PADDING: Final = 13.0
_WIDE: Final = 220.0
"""Points beyond which a cell may go on in the next line."""
FONT, BOLD, MONO = "DejaVuSans", "DejaVuSans-Bold", "DejaVuSansMono"


def _style(name: str, size: float, **values: Any) -> ParagraphStyle:
    # Words are never cut except where one alone is wider than its column.
    return ParagraphStyle(
        name, **({"fontName": FONT, "fontSize": size, "leading": 1.4 * size, "textColor": INK, "splitLongWords": 1} | values)
    )


_TITLE = _style("title", 18, fontName=BOLD, spaceBefore=6, spaceAfter=6)
_PART = _style("part", 14, fontName=BOLD, spaceBefore=16, spaceAfter=3)
_SECTION = _style("section", 10.5, fontName=BOLD, spaceBefore=10, spaceAfter=2)
_CAPTION = _style("caption", 9, fontName=BOLD, spaceBefore=8, spaceAfter=3)
_BODY = _style("body", 9, spaceAfter=3)
_LEAD = _style("lead", 11, spaceBefore=4, spaceAfter=6)
_NOTE = _style("note", 7.8, textColor=MUTED, spaceBefore=2, spaceAfter=3)
_CELL = _style("cell", 7.8)
_RIGHT = _style("right", 7.8, alignment=TA_RIGHT)
_CODE = _style("code", 6.6, fontName=MONO, alignment=TA_RIGHT)
_HEAD = _style("head", 7.8, fontName=BOLD)
_HEAD_RIGHT = _style("head right", 7.8, fontName=BOLD, alignment=TA_RIGHT)
_FIGURE = _style("figure", 13, fontName=BOLD)


def pdf(page: Page, kind: str, as_of: str) -> bytes:
    """The report; `kind` and `as_of` are the words of its head line."""
    _fonts()
    buffer = io.BytesIO()
    document = SimpleDocTemplate(
        buffer,
        pagesize=A4,
        leftMargin=SIDE - _FRAME,
        rightMargin=SIDE - _FRAME,
        topMargin=EDGE - _FRAME,
        bottomMargin=EDGE - _FRAME,
        title=page.title,
        author="reclaim",
        subject=page.summary,
        keywords=[page.model, page.task, kind, page.report_id],
        creator="reclaim",
        lang="en",
        invariant=1,
    )
    story = [*_head(page, kind, as_of), *(each for part in page.parts for each in _part(part)), *_foot(page)]
    document.build(story, canvasmaker=lambda *args, **values: _Numbered(page, *args, **values))
    return buffer.getvalue()


@cache
def _fonts() -> None:
    folder = Path(mpl.get_data_path()) / "fonts" / "ttf"
    for name in (FONT, BOLD, MONO):
        pdfmetrics.registerFont(TTFont(name, str(folder / f"{name}.ttf")))
    pdfmetrics.registerFontFamily(FONT, normal=FONT, bold=BOLD, italic=FONT, boldItalic=BOLD)


class _Numbered(Canvas):  # type: ignore[misc]
    """A canvas that knows how many pages there are before it writes the foot of the first."""

    def __init__(self, page: Page, *args: Any, **values: Any) -> None:
        super().__init__(*args, **values)
        at = page.as_of
        self.setDateFormatter(lambda *_: f"D:{at:%Y%m%d%H%M%S}+00'00'")
        self._page = page
        self._states: list[dict[str, Any]] = []

    def showPage(self) -> None:  # noqa: N802 - reportlab's name
        """Keep the page's state until all are known."""
        self._states.append(dict(self.__dict__))
        self._startPage()

    def save(self) -> None:
        """Write all pages, each with its number."""
        for number, state in enumerate(self._states, start=1):
            self.__dict__.update(state)
            self._foot(number, len(self._states))
            super().showPage()
        super().save()

    def _foot(self, number: int, pages: int) -> None:
        self.setFont(FONT, 7)
        self.setFillColor(MUTED)
        self.drawString(SIDE, 11 * mm, f"{self._page.model} · report {self._page.report_id}")
        self.drawRightString(A4[0] - SIDE, 11 * mm, f"page {number} of {pages}")


class _Entry(Flowable):  # type: ignore[misc]
    """An entry of the outline, at the place where it stands."""

    width = height = 0

    def __init__(self, key: str, title: str, level: int) -> None:
        super().__init__()
        self._entry = (key, title, level)

    def draw(self) -> None:
        """Enter it; nothing is to be seen."""
        key, title, level = self._entry
        self.canv.bookmarkPage(key)
        self.canv.addOutlineEntry(title, key, level, closed=level > 0)


def _head(page: Page, kind: str, as_of: str) -> list[Flowable]:
    colour = TONES[page.tone or page.status]
    status = f'<font color="{colour}"><b>{markup(page.status_word)}</b></font>'
    return [
        Paragraph(markup(f"Maintenance report · {kind} · {as_of}"), _NOTE),
        Paragraph(markup(page.title), _TITLE),
        Paragraph(status, _LEAD),
        Paragraph(markup(page.summary), _LEAD),
        HRFlowable(width="100%", thickness=1.2, color=INK, spaceAfter=8),
        *_key_figures(page.key_figures),
    ]


def _key_figures(figures: Sequence[KeyFigure]) -> list[Flowable]:
    if not figures:
        return []
    cells = [
        [Paragraph(markup(each.label), _NOTE), Paragraph(markup(each.value), _FIGURE), Paragraph(markup(each.note), _NOTE)]
        for each in figures
    ]
    across = min(len(cells), 4)
    rows = [cells[start : start + across] for start in range(0, len(cells), across)]
    rows[-1] += [[] for _ in range(across - len(rows[-1]))]
    style = [("BOX", (0, 0), (-1, -1), 0.5, LINE), ("INNERGRID", (0, 0), (-1, -1), 0.5, LINE), ("VALIGN", (0, 0), (-1, -1), "TOP")]
    return [Grid(rows, colWidths=[WIDTH / across] * across, style=TableStyle([*style, ("BACKGROUND", (0, 0), (-1, -1), SOFT)]))]


def _part(part: Part) -> list[Flowable]:
    title = [_Entry(part.title, part.title, 0), Paragraph(markup(part.title), _PART)]
    note = [Paragraph(markup(part.note), _NOTE)] if part.note else []
    # A heading does not stand alone at the foot of a page.
    return [CondPageBreak(45 * mm), *title, *note, *(each for section in part.sections for each in _section(part, section))]


def _section(part: Part, section: Section) -> list[Flowable]:
    key = f"{part.title}/{section.title}"
    head = [_Entry(key, section.title, 1), Paragraph(markup(section.title), _SECTION)]
    texts = [Paragraph(markup(each), _BODY) for each in section.paragraphs]
    points = [ListItem(Paragraph(markup(each), _BODY), leftIndent=12) for each in section.points]
    bullets = [ListFlowable(points, bulletType="bullet", start="•", bulletFontSize=8, leftIndent=12)] if points else []
    figures = [KeepTogether(_picture(picture)) for picture in section.pictures]
    tables = [_table(table) for table in section.tables]
    # A heading stays with what comes first under it.
    if not texts and not bullets and section.pictures:
        figures[0] = KeepTogether([*head, *_picture(section.pictures[0])])
        head = []
    elif not texts and not bullets and tables:
        tables[0] = (
            [KeepTogether([*head, *tables[0]])]
            if len(section.tables[0].rows) <= _WHOLE
            else [CondPageBreak(60 * mm), *head, *tables[0]]
        )
        head = []
    begun = [CondPageBreak(28 * mm), KeepTogether([*head, *texts[:1]])] if head else []
    return [*begun, *texts[1:], *bullets, *figures, *(each for table in tables for each in table)]


def _picture(picture: Picture) -> list[Flowable]:
    """Title, figure and caption, to be kept on one page, the figure as large as it may be there."""
    with Pixels.open(io.BytesIO(picture.drawing.png)) as image:
        wide, high = image.size
    points = 72 / 150
    scale = min(picture.share * WIDTH / wide, 0.74 * HEIGHT / high, points)
    figure = Image(io.BytesIO(picture.drawing.png), wide * scale, high * scale, hAlign="LEFT")
    return [Paragraph(markup(picture.title), _CAPTION), figure, Paragraph(markup(picture.caption), _NOTE)]


def _table(table: Table) -> list[Flowable]:
    """A table that goes on over pages between rows only, with its head on each."""
    headed = any(table.columns)
    body = [_row(row, table.texts, _CELL, _CODE if table.mono else _RIGHT) for row in table.rows]
    rows = ([_row(table.columns, table.texts, _HEAD, _HEAD_RIGHT)] if headed else []) + body
    if not rows:
        return [Paragraph(markup(table.title), _CAPTION), Paragraph(markup(table.note or "Nothing to show."), _NOTE)]
    style = [
        ("LINEBELOW", (0, 0), (-1, -1), 0.4, LINE),
        ("VALIGN", (0, 0), (-1, -1), "TOP"),
        ("LEFTPADDING", (0, 0), (0, -1), 0),
        ("RIGHTPADDING", (-1, 0), (-1, -1), 2),
        ("TOPPADDING", (0, 0), (-1, -1), 2),
        ("BOTTOMPADDING", (0, 0), (-1, -1), 2.5),
        *([("LINEBELOW", (0, 0), (-1, 0), 0.9, INK)] if headed else []),
    ]
    grid = LongTable(
        rows, colWidths=_widths(table), repeatRows=1 if headed else 0, style=TableStyle(style), hAlign="LEFT", splitInRow=0
    )
    title = [CondPageBreak(30 * mm), Paragraph(markup(table.title), _CAPTION)]
    note = [Paragraph(markup(table.note), _NOTE)] if table.note else []
    whole = [*title[1:], grid, *note]
    return [KeepTogether(whole)] if len(rows) <= _WHOLE else [*title, grid, *note, Spacer(0, 2)]


def _row(cells: Sequence[str], texts: frozenset[int], left: ParagraphStyle, right: ParagraphStyle) -> list[Paragraph]:
    return [Paragraph(markup(split_long(cell)), left if place in texts else right) for place, cell in enumerate(cells)]


def _widths(table: Table) -> list[float]:
    """Widths in points: no column is narrower than its longest word; what is left goes where long cells are."""
    columns = len(table.columns) or max((len(row) for row in table.rows), default=1)
    texts = [[row[place] for row in (table.columns, *table.rows) if place < len(row)] for place in range(columns)]
    least = [
        max((_long(word) for cell in column for word in split_long(cell).split(" ")), default=0) + _PADDING for column in texts
    ]
    liked = [max(min(max(map(_long, column), default=0), _WIDE) + _PADDING, low) for column, low in zip(texts, least, strict=True)]
    if sum(least) >= WIDTH:
        return [WIDTH * low / sum(least) for low in least]
    if sum(liked) <= WIDTH:
        return [WIDTH * like / sum(liked) for like in liked]
    share = (WIDTH - sum(least)) / (sum(liked) - sum(least))
    return [low + share * (like - low) for low, like in zip(least, liked, strict=True)]


def _long(text: str) -> float:
    """Points that a text takes in a cell, or in a column's head where that is longer."""
    return float(pdfmetrics.stringWidth(text, BOLD, _CELL.fontSize))


def _foot(page: Page) -> list[Flowable]:
    words = (
        f"Report {page.report_id} on model {page.model} (task {page.task}), written by software from stored evaluations. "
        "It holds no patient's identity. Research use; it does not replace a clinical judgement."
    )
    return [Spacer(0, 8), HRFlowable(width="100%", thickness=0.5, color=LINE), Paragraph(markup(words), _NOTE)]

"""A page as files: self-contained HTML, PDF, Markdown beside its figures, JSON for machines, figures as PNG and SVG."""

import base64
import json
import re
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from services.reporting.page import Page
from services.reporting.pdf import pdf
from services.reporting.wording import on

SCHEMA = "org.reclaim.report.v1"
_KINDS = {"monitoring": "monitoring", "routine": "routine", "remedy": "repair", "label_request": "request for labels"}
_TEXT_REM = 54
"""Width of the text in the style sheet."""
_MARKDOWN = re.compile(r"([\\`*_\[\]|])")
_BLOCK_START = re.compile(r"^(\s*)(#|>|[-+](?=\s)|\d+[.)](?=\s))")


def render(page: Page) -> dict[str, bytes]:
    """File name to content; the same page gives the same bytes."""
    files = {
        "report.html": _html(page).encode(),
        "report.md": _markdown(page).encode(),
        "report.pdf": pdf(page, **_heading(page)),
        "report.json": (json.dumps(_document(page), indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode(),
    }
    drawings = {picture.name: picture.drawing for picture in page.pictures}
    return (
        files
        | {f"{name}.png": drawing.png for name, drawing in drawings.items()}
        | {f"{name}.svg": drawing.svg for name, drawing in drawings.items()}
    )


def _html(page: Page) -> str:
    loader = PackageLoader("services.reporting", "templates")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, finalize=_unbroken)
    style = Markup(environment.get_template("report.css").render())  # noqa: S704 - our own file, no data in it
    images = {picture.name: f"data:image/png;base64,{base64.b64encode(picture.drawing.png).decode()}" for picture in page.pictures}
    widths = {picture.name: f"{_TEXT_REM * picture.share:.0f}rem" for picture in page.pictures}
    return environment.get_template("report.html").render(page=page, style=style, images=images, widths=widths, **_heading(page))


def _unbroken(value: Any) -> Any:
    """A number and its per cent sign stay on one line."""
    return value.replace(" %", "\N{NO-BREAK SPACE}%") if isinstance(value, str) and not isinstance(value, Markup) else value


def _markdown(page: Page) -> str:
    # Markdown is no markup language of Jinja's: `finalize` escapes every value for it, HTML included.
    environment = Environment(
        loader=PackageLoader("services.reporting", "templates"),
        autoescape=False,  # noqa: S701
        undefined=StrictUndefined,
        finalize=escape_markdown,
        keep_trailing_newline=True,
    )
    return environment.get_template("report.md").render(page=page, **_heading(page))


def escape_markdown(value: Any) -> Any:
    """Text that stands as itself in Markdown, on one line; values marked safe and values that are no text stay as they are."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    line = _MARKDOWN.sub(r"\\\1", " ".join(value.split()))
    return _BLOCK_START.sub(r"\1\\\2", line.replace("&", "&amp;").replace("<", "&lt;"))


def _heading(page: Page) -> dict[str, str]:
    return {"kind": _KINDS[page.kind], "as_of": on(page.as_of)}


def _document(page: Page) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "report_id": page.report_id,
        "kind": page.kind,
        "status": page.status,
        "title": page.title,
        "summary": page.summary,
        "model": page.model,
        "task": page.task,
        "version": page.version,
        "as_of": page.as_of.isoformat(),
        "parts": [{"title": part.title, "sections": [each.title for each in part.sections]} for part in page.parts],
        "sections": [
            {"title": each.title, "paragraphs": list(each.paragraphs), "points": list(each.points)} for each in page.sections
        ],
        "tables": [
            {"title": each.title, "columns": list(each.columns), "rows": [list(row) for row in each.rows], "note": each.note}
            for each in page.tables
        ],
        "figures": [
            {
                "file": f"{each.name}.png",
                "vector": f"{each.name}.svg",
                "title": each.title,
                "alt": each.alt,
                "caption": each.caption,
            }
            for each in page.pictures
        ],
        "data": page.data,
    }

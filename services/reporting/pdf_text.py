"""Text as the PDF's paragraphs want it. Pure."""

import re
import unicodedata
from typing import Final
from xml.sax.saxutils import escape

_LONG: Final = 34
_NARROW_SPACE: Final = "\N{NARROW NO-BREAK SPACE}"


def markup(text: str) -> str:
    """Text that stands as itself in a paragraph, its per cent signs beside their numbers; characters no font has are left out."""
    kept = "".join(each for each in text if each in "\n\t" or unicodedata.category(each)[0] != "C")
    joined = kept.replace(_NARROW_SPACE, "\N{NO-BREAK SPACE}").replace(" %", "\N{NO-BREAK SPACE}%")
    return escape(joined)


def split_long(cell: str) -> str:
    """A hash or id that is longer than a column may be goes on in the next line after 32 characters."""
    return re.sub(rf"\S{{{_LONG},}}", lambda found: _in_pieces(found[0]), cell)


def _in_pieces(word: str) -> str:
    return " ".join(word[start : start + 32] for start in range(0, len(word), 32))

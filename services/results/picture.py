"""Draws a result as text and bars. Nothing of the patient is drawn, so that the image identifies nobody."""

from functools import cache
from typing import Final

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from services.results.finding import NOT_FOR_DIAGNOSIS, Result

WIDTH: Final = 768
HEIGHT: Final = 512
MARGIN: Final = 32
BAR_LEFT: Final = 300
BAR_WIDTH: Final = 330
MOST_CLASSES: Final = 6
MOST_FINDINGS: Final = 3
WHITE: Final = (235, 235, 235)
GREY: Final = (150, 150, 150)
BLUE: Final = (90, 160, 230)
AMBER: Final = (240, 190, 60)
BLACK: Final = (0, 0, 0)


def draw(result: Result) -> npt.NDArray[np.uint8]:
    """RGB image uint8 [HEIGHT, WIDTH, 3]; the same result gives the same bytes with the same font and library."""
    image = Image.new("RGB", (WIDTH, HEIGHT), BLACK)
    pen = ImageDraw.Draw(image)
    _text(pen, MARGIN, 24, f"{result.model}, version {result.version}", 26, WHITE, WIDTH - 2 * MARGIN)
    _text(pen, MARGIN, 60, f"{result.task}: {result.predicted}", 24, BLUE, WIDTH - 2 * MARGIN)
    top = _bars(pen, result, 110)
    top = _findings(pen, result, top + 14)
    when = f"{result.scored_at:%Y-%m-%d %H:%M} UTC, study revision {result.revision}, {len(result.images)} images"
    _text(pen, MARGIN, HEIGHT - 78, when, 16, GREY, WIDTH - 2 * MARGIN)
    _text(pen, MARGIN, HEIGHT - 48, NOT_FOR_DIAGNOSIS, 20, AMBER, WIDTH - 2 * MARGIN)
    return np.asarray(image, dtype=np.uint8)


def _bars(pen: ImageDraw.ImageDraw, result: Result, top: int) -> int:
    """One line a class, the likeliest first; returns where the next line may stand."""
    for name, probability in result.ranked[:MOST_CLASSES]:
        colour = BLUE if name == result.predicted else GREY
        _text(pen, MARGIN, top, name, 18, WHITE, BAR_LEFT - MARGIN - 12)
        pen.rectangle((BAR_LEFT, top + 3, BAR_LEFT + BAR_WIDTH, top + 19), outline=GREY)
        pen.rectangle((BAR_LEFT, top + 3, BAR_LEFT + round(BAR_WIDTH * probability), top + 19), fill=colour)
        _text(pen, BAR_LEFT + BAR_WIDTH + 14, top, f"{probability * 100:.1f} %", 18, WHITE, 90)
        top += 32
    left_out = len(result.ranked) - MOST_CLASSES
    if left_out > 0:
        _text(pen, MARGIN, top, f"and {left_out} less likely", 16, GREY, WIDTH - 2 * MARGIN)
        top += 26
    return top


def _findings(pen: ImageDraw.ImageDraw, result: Result, top: int) -> int:
    for finding in result.findings[:MOST_FINDINGS]:
        _text(pen, MARGIN, top, finding, 16, AMBER, WIDTH - 2 * MARGIN)
        top += 24
    return top


def _text(pen: ImageDraw.ImageDraw, left: int, top: int, text: str, size: int, colour: tuple[int, int, int], width: int) -> None:
    """One line, cut with … where it is too wide."""
    shown, font = " ".join(text.split()), _font(size)
    while shown and pen.textlength(shown, font) > width:
        shown = shown.rstrip("…")[:-1] + "…" if len(shown) > 1 else ""
    pen.text((left, top), shown, colour, font)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings along: Latin, Greek and Cyrillic."""
    return ImageFont.truetype(f"{mpl.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)

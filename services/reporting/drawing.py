"""What all figures share: colours, frames, and the two forms they are kept in. Matplotlib's object interface only.

Every state is told by shape and word as well as by colour, so that a printed or colour-blind reading loses nothing. The
colours are those of Okabe and Ito (2008), apart in lightness as well as in hue.
"""

import io
import re
from dataclasses import dataclass, field
from typing import Any, Final

from matplotlib import rcParams
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

INK: Final = "#1f2933"
MUTED: Final = "#6b7785"
FAINT: Final = "#e4e7eb"
BASELINE: Final = "#0072b2"
RECENT: Final = "#d55e00"
TEXT: Final[dict[str, Any]] = {"fontsize": 9, "color": INK}

# The ids inside an SVG follow from this and not from chance: the same figure gives the same bytes.
rcParams["svg.hashsalt"] = "reclaim"


_CLIP_PATH: Final = re.compile(r"\bp[0-9a-f]{10}\b")


@dataclass(frozen=True)
class Drawing:
    """A figure as PNG and as SVG bytes."""

    png: bytes = field(repr=False)
    svg: bytes = field(repr=False)


def drawn(figure: Figure) -> Drawing:
    """Both forms of a figure, free of dates and of the software's version."""
    png, svg = io.BytesIO(), io.BytesIO()
    FigureCanvasAgg(figure).print_png(png, metadata={"Software": None})
    figure.set_layout_engine("none")  # the places are found: both forms have the same
    FigureCanvasSVG(figure).print_svg(svg, metadata={"Date": None, "Creator": None})
    return Drawing(png.getvalue(), _numbered(svg.getvalue().decode()).encode())


def _numbered(svg: str) -> str:
    """The clip paths counted in order: their own ids hash coordinates whose last binary digit the layout leaves to chance."""
    names = {name: f"clip{place}" for place, name in enumerate(dict.fromkeys(_CLIP_PATH.findall(svg)), start=1)}
    return _CLIP_PATH.sub(lambda found: names[found[0]], svg)


def frame(axis: Any, grid: str = "y") -> None:
    """A light grid and two spines."""
    axis.grid(axis=grid, color=FAINT, linewidth=0.7)
    axis.set_axisbelow(True)
    axis.tick_params(labelsize=8, colors=INK, length=2)
    for side, spine in axis.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(MUTED)


def percent(value: float, _position: float | None = None) -> str:
    """A share as a tick label."""
    return f"{100 * value:.0f} %"

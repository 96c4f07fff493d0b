"""The figures of a report besides the control chart."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from services.reporting.drawing import BASELINE, INK, MUTED, RECENT, TEXT, Drawing, drawn, frame, percent
from services.reporting.statistics import ReliabilityBin


def confusion_matrices(named: Sequence[tuple[str, NDArray[np.int64]]], classes: Sequence[str]) -> Drawing:
    """Confusion matrices beside each other: counts, shaded by the share of the true class."""
    side = max(2.6, 0.62 * len(classes) + 1.5)
    figure = Figure(dpi=150, figsize=(min(9.2, side * len(named) + 1.0), min(side, 7.0)), layout="constrained")
    for axis, (title, matrix) in zip(figure.subplots(1, len(named), squeeze=False)[0], named, strict=True):
        _draw_matrix(axis, title, matrix, classes)
    return drawn(figure)


def _draw_matrix(axis: Any, title: str, matrix: NDArray[np.int64], classes: Sequence[str]) -> None:
    totals = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(matrix, totals, out=np.zeros(matrix.shape), where=totals > 0)
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(matrix.shape):
        colour = "white" if shares[row, column] > 0.55 else INK
        axis.text(column, row, str(matrix[row, column]), ha="center", va="center", fontsize=9, color=colour)
    names = [_short(name) for name in classes]
    axis.set_xticks(range(len(classes)), names, rotation=30, ha="right", fontsize=8)
    axis.set_yticks(range(len(classes)), names, fontsize=8)
    axis.set_xlabel("model said", **TEXT)
    axis.set_ylabel("truth", **TEXT)
    axis.set_title(f"{title} ({int(matrix.sum())} cases)", fontweight="bold", **TEXT)
    axis.tick_params(length=0)
    for spine in axis.spines.values():
        spine.set_visible(False)


def reliability_curve(named: Sequence[tuple[str, Sequence[ReliabilityBin]]]) -> Drawing:
    """How often the model is right at a given confidence, with 95 % intervals; on the diagonal it keeps its word."""
    figure = Figure(dpi=150, figsize=(5.0, 4.4), layout="constrained")
    axis = figure.subplots()
    frame(axis)
    axis.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=":", label="perfectly calibrated")
    colours = (BASELINE, RECENT)
    for (label, bins), colour, marker in zip(named, colours, ("s", "o"), strict=False):
        _draw_bins(axis, label, bins, colour, marker)
    least = min(each.confidence for _, bins in named for each in bins)
    axis.set_xlim(max(0.0, least - 0.08), 1.01)
    axis.set_ylim(-0.03, 1.03)
    axis.xaxis.set_major_formatter(percent)
    axis.yaxis.set_major_formatter(percent)
    axis.set_xlabel("model's confidence in its answer", **TEXT)
    axis.set_ylabel("share that was right", **TEXT)
    figure.legend(frameon=False, fontsize=8.5, loc="outside lower center")
    return drawn(figure)


def _draw_bins(axis: Any, label: str, bins: Sequence[ReliabilityBin], colour: str, marker: str) -> None:
    confidence = [each.confidence for each in bins]
    axis.vlines(confidence, [each.rate.low for each in bins], [each.rate.high for each in bins], color=colour, linewidth=1.2)
    shares = [each.rate.value for each in bins]
    axis.plot(confidence, shares, color=colour, marker=marker, markersize=5, linewidth=1.2, label=label)


def before_after(rows: Sequence[tuple[str, float, float]], names: tuple[str, str]) -> Drawing:
    """Pairs of shares (label, before, after) as a dumbbell chart."""
    figure = Figure(dpi=150, figsize=(9.2, 0.42 * len(rows) + 1.2), layout="constrained")
    axis = figure.subplots()
    frame(axis, grid="x")
    for place, (_, before, after) in enumerate(reversed(rows)):
        axis.hlines(place, before, after, color=MUTED, linewidth=2.2, zorder=1)
        axis.plot([before], [place], "s", color=RECENT, markersize=7, zorder=2, label=names[0] if place == 0 else None)
        axis.plot([after], [place], "o", color=BASELINE, markersize=8, zorder=3, label=names[1] if place == 0 else None)
    axis.set_yticks(range(len(rows)), [label for label, _, _ in reversed(rows)], fontsize=9)
    axis.set_ylim(-0.6, len(rows) - 0.4)
    axis.set_xlim(-0.02, 1.02)
    axis.xaxis.set_major_formatter(percent)
    figure.legend(frameon=False, fontsize=9, loc="outside lower center", ncols=2)
    return drawn(figure)


def _short(name: str) -> str:
    return name if len(name) <= 16 else f"{name[:15]}…"

"""The figures of a report as PNG bytes. Matplotlib's object interface only: no global state, safe in any thread.

Every state is told by shape and word as well as by colour, so that a printed or colour-blind reading loses nothing.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from services.reporting.facts import EvaluationFacts, Metric
from services.reporting.statistics import Rate, ReliabilityBin

INK: Final = "#1f2933"
MUTED: Final = "#7b8794"
BASELINE: Final = "#3d6fa3"
RECENT: Final = "#b4430f"
MARKS: Final[dict[str, tuple[str, str, str]]] = {
    "healthy": ("o", "#2f7d4f", "healthy"),
    "watch": ("D", "#c58a00", "watch"),
    "degraded": ("v", "#b3261e", "degraded (alarm)"),
    "undecided": ("s", "#7b8794", "undecided"),
}
_STYLE: Final[dict[str, Any]] = {"fontsize": 9, "color": INK}


def recall_history(
    history: Sequence[EvaluationFacts],
    classes: Sequence[str],
    baseline: Mapping[tuple[int, str], Rate],
    promoted: int | None = None,
) -> bytes:
    """Recall of every class over the batches with 95 % intervals, the baseline's interval as a band, alarms and new versions.

    `promoted` is a version that took over after the last batch.
    """
    columns = min(len(classes), 2)
    rows = -(-len(classes) // columns)
    figure = Figure(dpi=150, figsize=(9.2, 2.35 * rows + 0.75), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for axis, name in zip(axes, classes, strict=False):
        _draw_class(axis, history, name, baseline)
        if promoted is not None:
            _draw_takeover(axis, len(history) - 0.5, promoted, "right")
    for axis in axes[len(classes) :]:
        axis.set_axis_off()
    _legend(figure, history, takeover=promoted is not None or len(_runs(history)) > 1)
    return _png(figure)


def _draw_class(axis: Any, history: Sequence[EvaluationFacts], name: str, baseline: Mapping[tuple[int, str], Rate]) -> None:
    _frame(axis)
    axis.set_title(name, loc="left", fontweight="bold", **_STYLE)
    axis.set_ylim(-0.04, 1.04)
    axis.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    _draw_baseline(axis, history, name, baseline)
    _draw_versions(axis, history)
    points = [(place, each.status, each.metric(f"recall:{name}")) for place, each in enumerate(history)]
    seen = [(place, status, metric) for place, status, metric in points if metric is not None and metric.value is not None]
    axis.plot([place for place, _, _ in seen], [metric.value for _, _, metric in seen], color=MUTED, linewidth=0.8, zorder=2)
    for place, status, metric in seen:
        _draw_point(axis, place, status, metric)
    axis.set_xticks(_ticks(len(history)), [_batch_name(history[place]) for place in _ticks(len(history))])


def _draw_point(axis: Any, place: int, status: str, metric: Metric) -> None:
    marker, colour, _ = MARKS[status]
    value = metric.value or 0.0
    low, high = metric.low if metric.low is not None else value, metric.high if metric.high is not None else value
    axis.vlines(place, low, high, color=colour, linewidth=1.4, zorder=3)
    axis.plot([place], [value], marker, color=colour, markersize=6.5, markeredgecolor="white", markeredgewidth=0.6, zorder=4)


def _draw_baseline(axis: Any, history: Sequence[EvaluationFacts], name: str, baseline: Mapping[tuple[int, str], Rate]) -> None:
    for version, start, end in _runs(history):
        known = baseline.get((version, name))
        if known is not None:
            axis.fill_between([start - 0.5, end + 0.5], known.low, known.high, color=BASELINE, alpha=0.16, linewidth=0, zorder=0)
            axis.hlines(known.value, start - 0.5, end + 0.5, color=BASELINE, linewidth=1.2, linestyle="--", zorder=1)


def _draw_versions(axis: Any, history: Sequence[EvaluationFacts]) -> None:
    for version, start, _ in _runs(history)[1:]:
        _draw_takeover(axis, start - 0.5, version, "left")


def _draw_takeover(axis: Any, place: float, version: int, side: str) -> None:
    axis.axvline(place, color=INK, linewidth=1.1, zorder=1)
    shift = 0.07 if side == "left" else -0.07
    axis.text(place + shift, 0.0, f"version {version} serves", fontsize=8, color=INK, ha=side, va="bottom")


def _runs(history: Sequence[EvaluationFacts]) -> list[tuple[int, int, int]]:
    """(version, first place, last place) of every stretch of batches of one version."""
    runs: list[tuple[int, int, int]] = []
    for place, each in enumerate(history):
        if runs and runs[-1][0] == each.version:
            runs[-1] = (each.version, runs[-1][1], place)
        else:
            runs.append((each.version, place, place))
    return runs


def _ticks(count: int) -> list[int]:
    step = max(1, -(-count // 10))
    return list(range(0, count, step))


def _batch_name(evaluation: EvaluationFacts) -> str:
    return f"{evaluation.number}\n{evaluation.evaluated_at:%d %b}"


def _legend(figure: Figure, history: Sequence[EvaluationFacts], *, takeover: bool) -> None:
    present = [mark for status, mark in MARKS.items() if any(each.status == status for each in history)]
    handles: list[Any] = [
        Line2D([], [], marker=marker, color=colour, linestyle="none", markersize=6.5, label=f"batch: {word}")
        for marker, colour, word in present
    ]
    handles.append(Patch(facecolor=BASELINE, alpha=0.3, label="baseline with 95 % interval"))
    if takeover:
        handles.append(Line2D([], [], color=INK, linewidth=1.1, label="another version serves"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=8.5)
    figure.supylabel("recall (share found)", **_STYLE)


def confusion_matrices(named: Sequence[tuple[str, NDArray[np.int64]]], classes: Sequence[str]) -> bytes:
    """Confusion matrices beside each other: counts, shaded by the share of the true class."""
    side = max(2.6, 0.62 * len(classes) + 1.5)
    figure = Figure(dpi=150, figsize=(min(9.2, side * len(named) + 1.0), min(side, 7.0)), layout="constrained")
    for axis, (title, matrix) in zip(figure.subplots(1, len(named), squeeze=False)[0], named, strict=True):
        _draw_matrix(axis, title, matrix, classes)
    return _png(figure)


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
    axis.set_xlabel("model said", **_STYLE)
    axis.set_ylabel("truth", **_STYLE)
    axis.set_title(f"{title} ({int(matrix.sum())} cases)", fontweight="bold", **_STYLE)
    axis.tick_params(length=0)
    for spine in axis.spines.values():
        spine.set_visible(False)


def reliability_curve(named: Sequence[tuple[str, Sequence[ReliabilityBin]]]) -> bytes:
    """How often the model is right at a given confidence, with 95 % intervals; on the diagonal it keeps its word."""
    figure = Figure(dpi=150, figsize=(5.0, 4.0), layout="constrained")
    axis = figure.subplots()
    _frame(axis)
    axis.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=":", label="perfectly calibrated")
    colours = (BASELINE, RECENT)
    for (label, bins), colour, marker in zip(named, colours, ("s", "o"), strict=False):
        _draw_bins(axis, label, bins, colour, marker)
    least = min(each.confidence for _, bins in named for each in bins)
    axis.set_xlim(max(0.0, least - 0.08), 1.01)
    axis.set_ylim(-0.03, 1.03)
    axis.xaxis.set_major_formatter(_percent)
    axis.yaxis.set_major_formatter(_percent)
    axis.set_xlabel("model's confidence in its answer", **_STYLE)
    axis.set_ylabel("share that was right", **_STYLE)
    axis.legend(frameon=False, fontsize=8.5, loc="best")
    return _png(figure)


def _draw_bins(axis: Any, label: str, bins: Sequence[ReliabilityBin], colour: str, marker: str) -> None:
    confidence = [each.confidence for each in bins]
    axis.vlines(confidence, [each.rate.low for each in bins], [each.rate.high for each in bins], color=colour, linewidth=1.2)
    shares = [each.rate.value for each in bins]
    axis.plot(confidence, shares, color=colour, marker=marker, markersize=5, linewidth=1.2, label=label)


def before_after(rows: Sequence[tuple[str, float, float]], names: tuple[str, str]) -> bytes:
    """Pairs of shares (label, before, after) as a dumbbell chart."""
    figure = Figure(dpi=150, figsize=(9.2, 0.42 * len(rows) + 1.2), layout="constrained")
    axis = figure.subplots()
    _frame(axis, grid="x")
    for place, (_, before, after) in enumerate(reversed(rows)):
        axis.hlines(place, before, after, color=MUTED, linewidth=2.2, zorder=1)
        axis.plot([before], [place], "s", color=RECENT, markersize=7, zorder=2, label=names[0] if place == 0 else None)
        axis.plot([after], [place], "o", color=BASELINE, markersize=8, zorder=3, label=names[1] if place == 0 else None)
    axis.set_yticks(range(len(rows)), [label for label, _, _ in reversed(rows)], fontsize=9)
    axis.set_ylim(-0.6, len(rows) - 0.4)
    axis.set_xlim(-0.02, 1.02)
    axis.xaxis.set_major_formatter(_percent)
    figure.legend(frameon=False, fontsize=9, loc="outside lower center", ncols=2)
    return _png(figure)


def _percent(value: float, _position: float | None = None) -> str:
    return f"{100 * value:.0f} %"


def _short(name: str) -> str:
    return name if len(name) <= 16 else f"{name[:15]}…"


def _frame(axis: Any, grid: str = "y") -> None:
    axis.grid(axis=grid, color="#e4e7eb", linewidth=0.7)
    axis.set_axisbelow(True)
    axis.tick_params(labelsize=8, colors=INK, length=2)
    for side, spine in axis.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(MUTED)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    # Without the Software entry the bytes do not change with matplotlib's patch version.
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()

"""The control chart: recall of every class batch by batch, the detector's evidence, and what was done when, on one time axis.

It is to be read without the report around it: what a mark means stands in the legend, what it shows in the titles.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter

from services.reporting.drawing import BASELINE, FAINT, INK, MUTED, RECENT, TEXT, Drawing, drawn, frame, percent
from services.reporting.early import Stretch
from services.reporting.facts import EvaluationFacts, Intervention, Metric
from services.reporting.scale import Scale, Start, starts
from services.reporting.statistics import Rate

CLASSES_A_CHART: Final = 4
"""More panels would not fit on a page."""
OTHER: Final = "degraded elsewhere"
MARKS: Final[dict[str, tuple[str, str, str, float]]] = {
    "healthy": ("o", BASELINE, "healthy", 0.8),
    "watch": ("D", "#e69f00", "watch", 0.9),
    "degraded": ("v", RECENT, "alarm, this class", 1.35),
    OTHER: ("v", "white", "alarm, another class", 0.95),
    "undecided": ("s", "white", "undecided (too few cases)", 0.8),
}
"""Status to marker, colour, word and relative size; the edges are dark, so that shape and lightness tell them apart in grey."""
ROWS: Final = {"alarm": 3, "early": 2, "order": 1, "version": 0, "service": 0}
_ROW_NAMES: Final = {3: "alarms", 2: "early warnings", 1: "orders", 0: "serving"}
_EARLY: Final = "#cc79a7"
_ROW_MARKS: Final = {
    "alarm": ("v", RECENT),
    "early": ("p", _EARLY),
    "order": (">", "#e69f00"),
    "version": ("s", BASELINE),
    "service": ("X", INK),
}
_CEILING: Final = 2.0


@dataclass(frozen=True)
class Story:
    """What a control chart shows. `history`, `interventions`, `warnings` in order of time; baselines by (version, class).

    `warnings` are the times in which the early warning stood; None: it has measured nothing.
    """

    title: str
    history: Sequence[EvaluationFacts]
    classes: Sequence[str]
    baseline: Mapping[tuple[int, str], Rate]
    interventions: Sequence[Intervention]
    warnings: Sequence[Stretch] | None = None


def control_charts(story: Story) -> list[tuple[tuple[str, ...], Drawing]]:
    """The classes of each chart and the chart: one for up to four classes, several where there are more."""
    parts = -(-len(story.classes) // CLASSES_A_CHART)
    size = -(-len(story.classes) // parts)
    groups = [tuple(story.classes[start : start + size]) for start in range(0, len(story.classes), size)]
    return [(group, _control_chart(story, group)) for group in groups]


def _control_chart(story: Story, classes: Sequence[str]) -> Drawing:
    heights = [0.8, *[1.25] * len(classes), 1.0]
    layout = ConstrainedLayoutEngine(h_pad=0.04, hspace=0.02)
    figure = Figure(dpi=150, figsize=(9.2, 1.12 * sum(heights) + 1.35), layout=layout)
    axes = figure.subplots(len(heights), 1, height_ratios=heights, sharex=True)
    scale = Scale.of(story.history, story.interventions, [at for each in story.warnings or () for at in each[:2]])
    begun = starts(story.history)
    lane, panels, evidence = axes[0], axes[1:-1], axes[-1]
    _draw_lane(lane, story, scale)
    floor = _floor(story, classes)
    for axis, name in zip(panels, classes, strict=True):
        _draw_class(axis, story, name, scale, floor)
        _draw_starts(axis, [start for start in begun if name in start.classes or not start.classes], scale)
    _draw_evidence(evidence, story.history, scale)
    for axis in axes[1:]:
        _draw_interventions(axis, story.interventions, scale)
    evidence.set_xlim(*scale.limits)
    evidence.set_xticks(*scale.ticks())
    evidence.set_xlabel(scale.label, **TEXT)
    figure.suptitle(story.title, x=0.01, ha="left", fontsize=11, fontweight="bold", color=INK)
    figure.legend(handles=_legend(story, classes, begun), loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return drawn(figure)


def _floor(story: Story, classes: Sequence[str]) -> float:
    """The lowest share that the panels show: 0, 25 or 50 %, below everything that is drawn."""
    lows = [rate.low for (_, name), rate in story.baseline.items() if name in classes]
    for each in story.history:
        known = [each.metric(f"recall:{name}") for name in classes]
        lows += [metric.low if metric.low is not None else metric.value for metric in known if metric and metric.value is not None]
    least = min(lows, default=0.0)
    return max(edge for edge in (0.0, 0.25, 0.5) if edge == 0.0 or edge + 0.03 <= least)


def _draw_class(axis: Any, story: Story, name: str, scale: Scale, floor: float) -> None:
    frame(axis)
    axis.set_ylim(floor - 0.05 * (1 - floor), 1 + 0.06 * (1 - floor))
    axis.yaxis.set_major_formatter(FuncFormatter(percent))
    axis.set_yticks([edge for edge in (0.0, 0.25, 0.5, 0.75, 1.0) if edge >= floor])
    axis.set_ylabel("recall", fontsize=8, color=INK)
    _draw_baseline(axis, story, name, scale)
    seen = [(place, each, metric) for place, each in enumerate(story.history) if (metric := _recall(each, name)) is not None]
    axis.plot([scale.places[place] for place, _, _ in seen], [metric.value for _, _, metric in seen], color=MUTED, lw=0.7, zorder=2)
    for place, each, metric in seen:
        _draw_revisions(axis, scale.places[place], each, metric)
        _draw_point(axis, scale.places[place], _mark(each, name), metric, scale.mark)
    axis.set_title(name, loc="left", fontweight="bold", pad=3, **TEXT)
    axis.set_title(_latest_words(story, name, seen), loc="right", fontsize=8, color=INK, pad=3)


def _recall(evaluation: EvaluationFacts, name: str) -> Metric | None:
    metric = evaluation.metric(f"recall:{name}")
    return metric if metric is not None and metric.value is not None else None


def _latest_words(story: Story, name: str, seen: Sequence[tuple[int, EvaluationFacts, Metric]]) -> str:
    """What the last mark says, in words."""
    if not seen:
        return "no labelled case yet"
    _, each, metric = seen[-1]
    known = story.baseline.get((each.version, name))
    before = f"; baseline {100 * known.value:.0f} %" if known is not None else ""
    limits = (
        "" if metric.low is None or metric.high is None else f" (95 % interval {100 * metric.low:.0f} to {100 * metric.high:.0f})"
    )
    return f"version {each.version}, batch {each.number}: {100 * (metric.value or 0):.0f} % found of {metric.cases}{limits}{before}"


def _mark(evaluation: EvaluationFacts, name: str) -> str:
    """The mark of a batch in the panel of a class: an alarm for one class is another's too, but not because of it."""
    behind = evaluation.evidence.get("class")
    elsewhere = isinstance(behind, str) and behind != name and evaluation.evidence.get("scope") != "all classes"
    return OTHER if evaluation.status == "degraded" and elsewhere else evaluation.status


def _draw_point(axis: Any, place: float, status: str, metric: Metric, size: float) -> None:
    marker, colour, _, relative = MARKS[status]
    value = metric.value or 0.0
    low, high = metric.low if metric.low is not None else value, metric.high if metric.high is not None else value
    axis.vlines(place, low, high, color=INK if status == "degraded" else MUTED, linewidth=0.18 * size, zorder=3)
    edge = INK if status != "healthy" else "white"
    axis.plot([place], [value], marker, color=colour, markersize=size * relative, mec=edge, mew=0.7, zorder=4, clip_on=False)


def _draw_revisions(axis: Any, place: float, evaluation: EvaluationFacts, metric: Metric) -> None:
    """What the batch showed before its labels were corrected: a hollow circle tied to the newest value."""
    for revision in evaluation.revisions:
        old = revision.metric(metric.name)
        if old is not None and old.value is not None and old.value != metric.value:
            axis.plot([place, place], [old.value, metric.value], color=INK, linewidth=0.9, linestyle=":", zorder=3)
            axis.plot([place], [old.value], "o", markerfacecolor="none", markeredgecolor=INK, markersize=4.5, zorder=5)


def _draw_baseline(axis: Any, story: Story, name: str, scale: Scale) -> None:
    for version, start, end in scale.stretches(story.history):
        known = story.baseline.get((version, name))
        if known is not None:
            axis.fill_between([start, end], known.low, known.high, color=BASELINE, alpha=0.17, linewidth=0, zorder=0)
            axis.hlines(known.value, start, end, color=BASELINE, linewidth=1.1, linestyle="--", zorder=1)


def _draw_starts(axis: Any, begun: Sequence[Start], scale: Scale) -> None:
    for each in begun:
        low, at, high = scale.places[each.low], scale.places[each.place], scale.places[each.high]
        half = scale.half
        axis.axvspan(
            low - half, high + half, facecolor="none", edgecolor="#c9a227", hatch="////", linewidth=0, alpha=0.75, zorder=0
        )
        axis.axvline(at, color="#8a6d00", linewidth=1.3, linestyle=(0, (4, 2)), zorder=1)


def _draw_interventions(axis: Any, interventions: Sequence[Intervention], scale: Scale) -> None:
    for each in interventions:
        place = scale.at(each.at)
        if place is not None and each.kind in ("version", "service"):
            axis.axvline(place, color=INK, linewidth=1.0, linestyle="-" if each.kind == "version" else "--", zorder=1)
        elif place is not None:
            axis.axvline(place, color="#e69f00", linewidth=0.8, linestyle=":", zorder=1)


def _draw_lane(axis: Any, story: Story, scale: Scale) -> None:
    """One row each for alarms, orders and what serves, with a word beside each mark where there is room for it."""
    axis.set_ylim(-0.6, len(_ROW_NAMES) - 0.4)
    axis.set_yticks(list(_ROW_NAMES), list(_ROW_NAMES.values()), fontsize=8, color=INK)
    axis.tick_params(length=0, labelbottom=False)
    for spine in axis.spines.values():
        spine.set_visible(False)
    for row in _ROW_NAMES:
        axis.axhline(row, color=FAINT, linewidth=0.7, zorder=0)
    done = [(place, each.kind, each.word) for each in story.interventions if (place := scale.at(each.at)) is not None]
    marks = sorted([*scale.alarms(story.history), *done, *_draw_warnings(axis, story, scale)])
    empty = {
        ROWS["version"]: f"version {story.history[0].version}",
        ROWS["early"]: "none" if story.warnings is not None else "not measured",
    }
    for row in _ROW_NAMES:
        own = [mark for mark in marks if ROWS[mark[1]] == row]
        first = empty.get(row, "none") if row == ROWS["version"] or not own else ""
        if first and (not own or own[0][0] - scale.limits[0] > _length(first) * (scale.limits[1] - scale.limits[0])):
            axis.text(scale.limits[0], row, f" {first}", fontsize=7.5, color=MUTED, va="center", zorder=4)
        _draw_row(axis, row, own, scale)


def _draw_warnings(axis: Any, story: Story, scale: Scale) -> list[tuple[float, str, str]]:
    """Each stretch of an early warning as a bar; returns the marks at their beginnings. One that began before is cut off."""
    marks: list[tuple[float, str, str]] = []
    for since, until, word in story.warnings or ():
        end = scale.at(until)
        if end is not None:
            begun = scale.at(since)
            place = scale.limits[0] if begun is None else begun
            axis.hlines(ROWS["early"], place, end, color=_EARLY, linewidth=4, alpha=0.45, zorder=1)
            marks.append((place, "early", word))
    return marks


def _draw_row(axis: Any, row: int, marks: Sequence[tuple[float, str, str]], scale: Scale) -> None:
    width = scale.limits[1] - scale.limits[0]
    for place, kind, _ in marks:
        marker, colour = _ROW_MARKS[kind]
        axis.plot([place], [row], marker, color=colour, markersize=6.5, mec=INK, mew=0.6, zorder=3, clip_on=False)
    for first, last, words in _beside(marks, width, scale.limits[1] + 0.01 * width):
        fits = last + _length(words) * width <= scale.limits[1] + 0.01 * width
        place, side = (last + 0.009 * width, "left") if fits else (first - 0.009 * width, "right")
        axis.text(place, row, words, fontsize=7.5, color=INK, va="center", ha=side, zorder=4)


def _beside(marks: Sequence[tuple[float, str, str]], width: float, end: float) -> list[tuple[float, float, str]]:
    """(first mark, last mark, words) of marks that are too close for a word after each: their words stand together.

    The last words go before their marks where there is no room after them, with those that would be in the way.
    """
    groups: list[tuple[float, float, str]] = []
    for place, _, word in marks:
        if groups and place - groups[-1][1] < _length(groups[-1][2]) * width:
            first, _, words = groups.pop()
            groups.append((first, place, f"{words}, {word}"))
        else:
            groups.append((place, place, word))
    while len(groups) > 1 and groups[-1][1] + _length(groups[-1][2]) * width > end:
        (first, last, words), (before, _, earlier) = groups[-1], groups[-2]
        if groups[-2][1] + (_length(words) + _length(earlier)) * width <= first:
            break
        groups[-2:] = [(before, last, f"{earlier}, {words}")]
    return [(first, last, _cut(words)) for first, last, words in groups]


def _length(words: str) -> float:
    """The room that words take, as a share of the axis."""
    return 0.018 + 0.0078 * len(_cut(words))


def _cut(words: str) -> str:
    return words if len(words) <= 60 else f"{words[:59]}…"


def _draw_evidence(axis: Any, history: Sequence[EvaluationFacts], scale: Scale) -> None:
    """Both statistics of the detector as a share of their thresholds; at 100 % the alarm is raised."""
    frame(axis)
    axis.axhline(1.0, color=RECENT, linewidth=1.3, zorder=1)
    top = 1.25
    for key, marker, style, face in (("a", "o", "-", INK), ("b", "s", "--", "white")):
        known = [(place, share) for place, each in enumerate(history) if (share := evidence_share(each, key)) is not None]
        places, shares = [scale.places[place] for place, _ in known], [min(share, _CEILING) for _, share in known]
        axis.plot(
            places, shares, color=INK, linestyle=style, linewidth=1, marker=marker, markersize=0.55 * scale.mark, mfc=face, zorder=3
        )
        over = [place for place, (_, share) in zip(places, known, strict=True) if share > _CEILING]
        axis.plot(over, [_CEILING] * len(over), "^", color=INK, markersize=0.9 * scale.mark, zorder=4)
        top = max([top, *shares])
    axis.set_ylim(-0.08, top + 0.14)
    axis.yaxis.set_major_formatter(FuncFormatter(percent))
    axis.set_yticks([0, 0.5, 1] if top < 1.6 else [0, 1, 2])
    axis.set_ylabel("of threshold", fontsize=8, color=INK)
    axis.set_title("Detector's evidence", loc="left", fontweight="bold", pad=3, **TEXT)
    axis.set_title(
        "at 100 % the alarm is raised" + (f"; above {percent(_CEILING)} cut off" if top >= _CEILING else ""),
        loc="right",
        fontsize=8,
        color=INK,
        pad=3,
    )


def evidence_share(evaluation: EvaluationFacts, statistic: str) -> float | None:
    """A statistic of the detector over its threshold, at least 0; None where the evaluation has none."""
    value, threshold = evaluation.evidence.get(f"statistic_{statistic}"), evaluation.evidence.get(f"threshold_{statistic}")
    if not isinstance(value, int | float) or not isinstance(threshold, int | float) or threshold <= 0:
        return None
    return max(float(value) / float(threshold), 0.0)


def _legend(story: Story, classes: Sequence[str], begun: Sequence[Start]) -> list[Any]:
    handles: list[Any] = [
        Line2D([], [], marker=marker, color=colour, mec=INK, mew=0.6, linestyle="none", markersize=6 * size, label=f"batch: {word}")
        for status, (marker, colour, word, size) in MARKS.items()
        if any(_mark(each, name) == status for each in story.history for name in classes)
    ]
    handles.append(
        Line2D([], [], color=MUTED, linewidth=1.4, marker="|", markersize=7, linestyle="none", label="its 95 % interval")
    )
    handles.append(Patch(facecolor=BASELINE, alpha=0.3, label="baseline, 95 % interval"))
    if begun:
        handles.append(Patch(facecolor="none", edgecolor="#c9a227", hatch="////", label="start of the fall, 95 % interval"))
    if any(each.revisions for each in story.history):
        handles.append(Line2D([], [], marker="o", mfc="none", mec=INK, linestyle=":", color=INK, label="before labels changed"))
    if any(evidence_share(each, "a") is not None for each in story.history):
        handles.append(Line2D([], [], color=INK, marker="o", markersize=3.5, linewidth=1, label="A: worse than all before"))
        handles.append(
            Line2D(
                [],
                [],
                color=INK,
                marker="s",
                mfc="white",
                markersize=3.5,
                linestyle="--",
                linewidth=1,
                label="B: worse than the baseline",
            )
        )
    return handles

"""What the label-free early warning saw: which warning stands, in words, and its windows and signals as tables."""

from collections.abc import Sequence
from datetime import datetime
from itertools import groupby
from typing import Any, Final, NamedTuple

from services.reporting.facts import Facts, Sign, Window
from services.reporting.page import Table
from services.reporting.wording import DASH, counted, day, joined, number

SHOWN_RUNS: Final = 20
FEED: Final = "feed"
LOOKS: Final = {
    "pipeline": "a broken feed",
    "covariate": "other images",
    "prevalence": "another mix of patients",
    "concept": "labels that mean something else",
    "unknown": "a change of an unknown kind",
}
"""What a warning looks like, by its suspected kind."""
TITLE: Final = "Early warning without labels"
_NOTE: Final = (
    "Windows that say the same stand in one row, the newest first. No repair is ordered by an early warning alone: labels decide."
)
_SIGNALS_NOTE: Final = "A dash under “limit”: the signal is shown and never warns. A limit of p is the largest p-value that warns."


class Stretch(NamedTuple):
    """Windows of one version that warned one after the other; `until` is the last one's time."""

    since: datetime
    until: datetime
    word: str


def stretches(windows: Sequence[Window], version: int, end: datetime) -> list[Stretch]:
    """Every time that a warning stood, in order of its beginning, with a short word for the chart.

    One of this version that no quiet window has ended stands to the `end` of the chart.
    """
    found = []
    runs = _runs(windows, lambda each: each.warning)
    newest = {(run[0].version, run[0].kind): run for run in runs}
    for run in runs:
        if run[0].warning:
            kinds = dict.fromkeys(FEED if each.kind == FEED else LOOKS.get(each.suspected, "") for each in run)
            stands = run[0].version == version and newest[version, run[0].kind] is run
            found.append(Stretch(run[0].at, max(run[-1].at, end) if stands else run[-1].at, " / ".join(kinds)))
    return sorted(found)


def standing(facts: Facts) -> list[str]:
    """One sentence on each warning of the version that stands at the end: since when, by which signals, what it looks like."""
    own = [each for each in facts.windows if each.version == facts.version]
    last: dict[str, list[Window]] = {run[-1].kind: run for run in _runs(own, lambda each: each.warning)}
    return [_sentence(run) for run in last.values() if run[-1].warning]


def tables(facts: Facts) -> list[Table]:
    """The windows of the report's period, and the signals of the newest one; nothing where none was measured."""
    seen = [each for each in facts.windows if facts.period is None or facts.period.holds(each.at)]
    if not seen:
        return []
    runs = sorted(_runs(seen, lambda each: (each.warned, each.suspected)), key=lambda run: run[-1].at, reverse=True)
    columns = ("Windows", "Measured", "Studies", "Warns", "Looks like", "In words")
    several = len({each.version for each in seen}) > 1
    rows = [_row(run, several=several) for run in runs[:SHOWN_RUNS]]
    return [Table(TITLE, columns, rows, _NOTE), *_signals(seen)]


def data(facts: Facts) -> list[dict[str, Any]]:
    """The windows of the period for machines, oldest first."""
    return [
        {
            "at": each.at.isoformat(),
            "kind": each.kind,
            "number": each.number,
            "version": each.version,
            "cases": each.cases,
            "warning": each.warning,
            "suspected": each.suspected,
            "signals": sorted(each.warned),
            "summary": each.summary,
        }
        for each in facts.windows
        if facts.period is None or facts.period.holds(each.at)
    ]


def _runs(windows: Sequence[Window], alike: Any) -> list[list[Window]]:
    """Windows of one version and kind, in order, that are alike without a break."""
    ordered = sorted(windows, key=lambda each: (each.version, each.kind, each.number))
    return [list(run) for _, run in groupby(ordered, lambda each: (each.version, each.kind, alike(each)))]


def _sentence(run: Sequence[Window]) -> str:
    last, first = run[-1], run[0]
    if last.kind == FEED:
        return f"Since {day(first.at)} the early warning tells of a fault of the feed. {last.summary}"
    size = f"{counted(len(run), 'window')} of {number(sum(each.cases for each in run))} studies"
    seen = joined([_inside(each.sentence) for each in last.signs if each.warning] or ["something has changed"])
    looks = LOOKS.get(last.suspected, LOOKS["unknown"])
    return (
        f"The early warning without labels has stood since {day(first.at)} ({size}). In the newest window {seen}; "
        f"it looks like {looks}, and labels have to tell whether the model reads worse."
    )


def _inside(sentence: str) -> str:
    """A sentence as a part of another one."""
    return f"{sentence[:1].lower()}{sentence[1:].rstrip('.')}"


def _row(run: Sequence[Window], *, several: bool) -> tuple[str, ...]:
    first, last = run[0], run[-1]
    numbers = f"{first.number}" if first is last else f"{first.number} to {last.number}"
    owner = f"version {first.version}: " if several else ""
    named = f"{owner}{'feed ' if first.kind == FEED else ''}{numbers}"
    days = f"{last.at:%d %b %Y}" if first.at.date() == last.at.date() else f"{first.at:%d %b} to {last.at:%d %b %Y}"
    looks = LOOKS.get(last.suspected, DASH) if last.warning else DASH
    return named, days, number(sum(each.cases for each in run)), ", ".join(sorted(last.warned)) or "quiet", looks, last.summary


def _signals(seen: Sequence[Window]) -> list[Table]:
    newest = max((each for each in seen if each.kind != FEED), key=lambda each: (each.at, each.number), default=None)
    if newest is None or not newest.signs:
        return []
    columns = ("Signal", "Statistic", "Limit", "p", "Warns", "In words")
    title = f"Signals of window {newest.number}, {day(newest.at)}"
    return [Table(title, columns, [_sign(each) for each in newest.signs], _SIGNALS_NOTE)]


def _sign(each: Sign) -> tuple[str, ...]:
    limit = number(each.limit) if each.limit is not None else f"p {each.p_limit:.1e}" if each.p_limit is not None else DASH
    p_value = DASH if each.p_value is None else f"{each.p_value:.2g}"
    return each.name, number(each.statistic), limit, p_value, "yes" if each.warning else "no", each.sentence

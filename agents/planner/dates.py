"""Days in plain words: `since Monday`, `last week`, `between 1 and 10 March`, `in the last 30 days`. Pure; today is given."""

import re
from calendar import monthrange
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Final

WEEKDAYS: Final = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
MONTHS: Final = (
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
)
_NAMES: Final = {name[:size]: number for number, name in enumerate(MONTHS, 1) for size in (3, len(name))} | {"sept": 9}
_MONTH: Final = rf"(?:{'|'.join(sorted(_NAMES, key=len, reverse=True))})"
FROM: Final = "day-from-"
TO: Final = "day-to-"
_ISO: Final = r"\d{4} ?- ?\d{1,2} ?- ?\d{1,2}"
_DAY: Final = (
    rf"(?:{_ISO}|\d{{1,2}} ?\. ?\d{{1,2}} ?\. ?\d{{4}}"
    rf"|(?:the )?\d{{1,2}}(?:st|nd|rd|th)?(?: ?\.)?(?: of)? {_MONTH}(?: \d{{4}})?"
    rf"|{_MONTH} \d{{1,2}}(?:st|nd|rd|th)?(?: ?,)?(?: \d{{4}})?|(?:last )?(?:{'|'.join(WEEKDAYS)})"
    rf"|yesterday|today|{_MONTH}(?: \d{{4}})?)"
)
_SINCE: Final = re.compile(
    rf"\b(?:since|after|starting)(?: on| with)?(?: the)?(?: (?:start|beginning) of)? (?P<a>{_DAY})(?! (?:to|until|till) )\b"
)
_FROM: Final = re.compile(rf"\bfrom(?: the)? (?P<a>{_DAY})\b")
_UNTIL: Final = re.compile(rf"\b(?:until|till|up to|before)(?: the)? (?P<b>{_DAY})\b")
_BETWEEN: Final = re.compile(
    rf"\b(?:between|from)(?: the)? (?P<a>{_DAY}|\d{{1,2}}(?:st|nd|rd|th)?) (?:and|to|until|till|-)(?: the)? (?P<b>{_DAY})\b"
)
_SPAN: Final = re.compile(r"\b(?:last|past|previous)(?: the)? (?P<n>\d{1,4}) (?P<unit>days?|weeks?|months?|years?)\b")
_NAMED: Final = re.compile(r"\b(?P<which>last|past|previous|this|current) (?P<unit>week|month|year)\b")
_IN: Final = re.compile(rf"\b(?:in|during|for|from|of|over)(?: the)? (?P<m>{_MONTH})(?: (?P<y>\d{{4}}))?\b(?! \d)")
_ON: Final = re.compile(rf"\b(?:on |from )?(?P<a>yesterday|today)\b|\bon (?P<b>{_DAY})\b")
_BARE: Final = re.compile(r"(\d{1,2})(?:st|nd|rd|th)?")
_ANCHOR: Final = re.compile(
    r"\b(?:since|from|after|starting)(?: the)? (?:start|beginning) of (?:the |this )?(?P<unit>week|month|year)\b"
)


@dataclass(frozen=True)
class Span:
    """From `since` to `until`, both days included; None is open."""

    since: date | None = None
    until: date | None = None

    def marks(self) -> str:
        """As words that stand in a text for the days."""
        return " ".join(f"{mark}{day}" for mark, day in ((FROM, self.since), (TO, self.until)) if day)


def marked(text: str, today: date) -> str:
    """Folded English text with each span of days as marks (`day-from-2026-03-16 day-to-2026-03-18`)."""
    for pattern, meaning in _MEANINGS:
        text = pattern.sub(lambda match, meaning=meaning: _put(match, meaning(match, today)), text)  # type: ignore[misc]
    return text


def slots(text: str) -> dict[str, str]:
    """The days that stand as marks in a text, as arguments of a tool."""
    found = ((name, re.search(rf"{mark}(\d{{4}}-\d\d-\d\d)", text)) for name, mark in (("since", FROM), ("until", TO)))
    return {name: match[1] for name, match in found if match}


def named(text: str) -> bool:
    """Whether a text names days."""
    return bool(slots(text))


def _put(match: re.Match[str], span: Span | None) -> str:
    return span.marks() if span is not None and span != Span() else match.group()


def _since(match: re.Match[str], today: date) -> Span:
    return Span(since=_first(match["a"], today))


def _until(match: re.Match[str], today: date) -> Span:
    return Span(until=_last(match["b"], today))


def _between(match: re.Match[str], today: date) -> Span | None:
    start, end = match["a"], match["b"]
    last, bare = _last(end, today), _BARE.fullmatch(start)
    first = _dated(last.year, last.month, int(bare[1])) if bare and last else _first(start, today)
    return Span(first, last) if first and last else None


def _back(match: re.Match[str], today: date) -> Span:
    count, unit = int(match["n"]), match["unit"].rstrip("s")
    if unit in {"day", "week"}:
        return Span(today - timedelta(days=count * (7 if unit == "week" else 1)))
    months = today.year * 12 + today.month - 1 - count * (12 if unit == "year" else 1)
    year, month = max(1, months // 12), months % 12 + 1
    return Span(date(year, month, min(today.day, monthrange(year, month)[1])))


def _named(match: re.Match[str], today: date) -> Span:
    unit, now = match["unit"], match["which"] in {"this", "current"}
    start = _start(unit, today)
    if now:
        return Span(start)
    last = start - timedelta(days=1)
    return Span(_start(unit, last), last)


def _start(unit: str, day: date) -> date:
    if unit == "week":
        return day - timedelta(days=day.weekday())
    return day.replace(day=1) if unit == "month" else day.replace(month=1, day=1)


def _whole_month(match: re.Match[str], today: date) -> Span | None:
    first = _first(f"{match['m']} {match['y'] or ''}".strip(), today)
    return Span(first, _month_end(first)) if first else None


def _one_day(match: re.Match[str], today: date) -> Span | None:
    day = _first(match["a"] or match["b"], today)
    return Span(day, day) if day else None


def _anchored(match: re.Match[str], today: date) -> Span:
    return Span(_start(match["unit"], today))


_MEANINGS: Final[tuple[tuple[re.Pattern[str], Callable[[re.Match[str], date], Span | None]], ...]] = (
    (_BETWEEN, _between),
    (_ANCHOR, _anchored),
    (_SPAN, _back),
    (_NAMED, _named),
    (_SINCE, _since),
    (_UNTIL, _until),
    (_ON, _one_day),
    (_IN, _whole_month),
    (_FROM, _since),
)


def _last(text: str, today: date) -> date | None:
    """The last day that the words mean: a month's name means its end."""
    day = _first(text, today)
    month_only = re.fullmatch(rf"{_MONTH}(?: \d{{4}})?", text) is not None
    return _month_end(day) if day and month_only else day


def _month_end(day: date) -> date:
    return day.replace(day=monthrange(day.year, day.month)[1])


def _first(text: str, today: date) -> date | None:
    """The first day that the words mean; without a year the newest such day that is not in the future. None: no real day."""
    word = text.removeprefix("last ").removeprefix("the ")
    if word in {"today", "yesterday"}:
        return today - timedelta(days=word == "yesterday")
    if word in WEEKDAYS:
        return today - timedelta(days=(today.weekday() - WEEKDAYS.index(word)) % 7 or 7)
    numbers = [int(number) for number in re.findall(r"\d+", word)]
    if len(numbers) == 3:
        return _dated(*(numbers if numbers[0] > 31 else reversed(numbers)))
    return _in_month(word, numbers, today)


def _in_month(word: str, numbers: list[int], today: date) -> date | None:
    name = re.search(_MONTH, word)
    if name is None:
        return None
    month = _NAMES[name.group()]
    year = next((number for number in numbers if number > 31), 0)
    day = next((number for number in numbers if number <= 31), 1)
    found = _dated(year or today.year, month, day)
    return _dated(today.year - 1, month, day) if found and not year and found > today else found


def _dated(year: int, month: int, day: int) -> date | None:
    try:
        return date(year, month, day)
    except ValueError:
        return None

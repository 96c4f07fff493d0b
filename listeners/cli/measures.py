"""Spans of time as a person reads them."""

from datetime import datetime


def ago(now: datetime, then: datetime) -> str:
    """How long ago a moment was."""
    return f"{age((now - then).total_seconds())} ago"


def age(seconds: float) -> str:
    """A span in its largest unit of which it has two, else in seconds."""
    for size, unit in ((86_400, "days"), (3_600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"

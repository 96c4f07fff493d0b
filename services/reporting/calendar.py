"""When routine reports are due and what they cover. Pure; all times are aware UTC."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, get_args

from schemas.report_settings import ReportSettings, Weekday
from services.reporting.facts import Period

WEEK: Final = timedelta(days=7)
_WEEKDAYS: Final = get_args(Weekday)


@dataclass(frozen=True)
class Slot:
    """A moment at which a routine report is due. `week` names it: one report per model and ISO week, whatever the hour."""

    at: datetime

    @property
    def week(self) -> str:
        """Year and week of ISO 8601, e.g. 2026-W11."""
        return f"{self.at:%G-W%V}"


def latest_slot(now: datetime, settings: ReportSettings) -> Slot:
    """The newest moment, `now` included, that is the settings' day and hour."""
    days = (now.weekday() - _WEEKDAYS.index(settings.weekday)) % 7
    at = now.replace(hour=settings.hour, minute=0, second=0, microsecond=0) - timedelta(days=days)
    return Slot(at if at <= now else at - WEEK)


def period_of(slot: Slot, made: datetime, covered: datetime | None) -> Period | None:
    """What the report of a slot covers: from the end of the last one on, at first a week; None when nothing is due.

    `made`: when the model was registered; `covered`: to where the last routine report went. After a downtime the newest
    slot alone is due, and its report covers all that no other did.
    """
    if made >= slot.at or (covered is not None and covered >= slot.at):
        return None
    return Period(slot.at - WEEK if covered is None else covered, slot.at)

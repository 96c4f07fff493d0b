"""Settings of the reports."""

from typing import Literal

from pydantic import Field

from schemas.group import Group

Weekday = Literal["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]


class ReportSettings(Group):
    """The routine report on every model that serves, once a week. Times are UTC, so that no week has an hour more or less."""

    weekly: bool = Field(True, description="False: reports are written only when they are ordered")
    weekday: Weekday = Field("monday", description="Day of the routine report")
    hour: int = Field(6, ge=0, le=23, description="Hour (UTC) of the routine report, which looks back from there")

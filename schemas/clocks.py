"""The table of what jobs that delete by age know of the clock."""

from datetime import datetime

from sqlmodel import Field, SQLModel


class ClockLook(SQLModel, table=True):
    """When a job that deletes by age looked at the clock last, and until when it deletes nothing because the clock leapt."""

    __tablename__ = "clock_look"
    job: str = Field(primary_key=True, max_length=32)
    looked_at: datetime
    held_until: datetime | None = None

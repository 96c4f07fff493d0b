"""The table of events that consumers with tables of their own have dealt with."""

from datetime import datetime

from sqlalchemy import Column, Index, Text
from sqlmodel import Field, SQLModel

from schemas.tables import BigId


class InboxPage(SQLModel, table=True):
    """Events that one transaction of a consumer has dealt with, whose own tables tell it which events are repeated.

    Sequential, where `inbox` is written at random places. Says for others what has been dealt with; an event that was delivered
    again may stand in several.
    """

    __tablename__ = "inbox_page"
    __table_args__ = (Index(None, "consumer", "handled_at"),)
    id: int | None = Field(default=None, sa_column=Column(BigId, primary_key=True, autoincrement=True))
    consumer: str = Field(max_length=64)
    handled_at: datetime
    event_ids: str = Field(sa_column=Column(Text, nullable=False), description="JSON array")

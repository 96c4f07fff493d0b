"""Tables of the chat: where a thread is to be answered, and messages on their way there. They hold pseudonyms only."""

from datetime import datetime
from typing import Any

from sqlalchemy import Column
from sqlmodel import Field, Index, SQLModel

from schemas.tables import BigId, Json, one_of
from schemas.vocabulary import MessageState


class ChatThread(SQLModel, table=True):
    """A thread of a channel, and what the channel needs to answer in it after any time and restart."""

    __tablename__ = "chat_thread"
    thread: str = Field(primary_key=True, max_length=128)
    channel: str = Field(max_length=16, description="console, http, slack or teams")
    reference: dict[str, Any] = Field(default_factory=dict, sa_column=Column(Json, nullable=False))
    used_at: datetime


class ChatMessage(SQLModel, table=True):
    """A message as it shall stand in a thread. `revision` above `sent_revision`: it is to be sent, or edited where it stands.

    `attempt` fences a worker that lost its lease; `uncertain`: an earlier attempt may have arrived without our learning of it.
    """

    __tablename__ = "chat_message"
    __table_args__ = (one_of("state", MessageState), Index(None, "state", "due_at"), Index(None, "thread", "id"))
    id: int | None = Field(default=None, sa_column=Column(BigId, primary_key=True, autoincrement=True))
    message_id: str = Field(max_length=64, unique=True, description="Derived from thread and cause: the same news is one message")
    thread: str = Field(max_length=128)
    kind: str = Field(max_length=16, description="question, reply, progress, report, picture, verdict, approval or warning")
    content: dict[str, Any] = Field(sa_column=Column(Json, nullable=False))
    state: str = Field(default=MessageState.QUEUED, max_length=16)
    revision: int = 1
    sent_revision: int = 0
    external_id: str = Field(default="", max_length=255, description="What the channel calls it: Slack's ts, Teams' activity id")
    uncertain: bool = False
    attempt: int = 0
    owner: str = Field(default="", max_length=64)
    lease_until: datetime | None = None
    due_at: datetime
    sent_at: datetime | None = None
    error: str = Field(default="", max_length=1000)
    traceparent: str = Field(default="", max_length=64)
    created_at: datetime

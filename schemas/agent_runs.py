"""The table of the agents' runs."""

from datetime import datetime
from typing import Any

from sqlalchemy import Column
from sqlmodel import Field, SQLModel

from schemas.tables import Json


class AgentRun(SQLModel, table=True):
    """One run of the agents: what caused it, each step taken, and the reply. Holds no identifiers."""

    __tablename__ = "agent_run"
    run_id: str = Field(primary_key=True, max_length=64)
    cause: str = Field(max_length=64, index=True, description="Event id of the command or evaluation")
    thread: str = Field(default="", max_length=128, index=True)
    planner: str = Field(max_length=64, description="rules, or the LLM's name")
    text: str = Field(default="", max_length=4000)
    reply: str = Field(default="", max_length=8000)
    steps: list[dict[str, Any]] = Field(default_factory=list, sa_column=Column(Json, nullable=False))
    order_ids: list[str] = Field(default_factory=list, sa_column=Column(Json, nullable=False))
    usage: dict[str, Any] = Field(default_factory=dict, sa_column=Column(Json, nullable=False))
    created_at: datetime

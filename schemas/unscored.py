"""Table of studies without a score. It holds pseudonyms only."""

from datetime import datetime
from typing import Any

from sqlmodel import Column, Field, Index, SQLModel

from schemas.tables import Json


class UnscoredStudy(SQLModel, table=True):
    """A study that came while `model` was stopped and is scored when it is resumed, or, with `model` empty, that no model takes."""

    __tablename__ = "unscored_study"
    __table_args__ = (Index(None, "model", "noticed_at"),)
    study_key: str = Field(primary_key=True, max_length=32)
    revision: int = Field(primary_key=True)
    model: str = Field(primary_key=True, max_length=64)
    modality: str = Field(default="", max_length=16)
    body_part: str = Field(default="", max_length=64)
    reason: str = Field(default="", max_length=255)
    event: dict[str, Any] = Field(
        default_factory=dict, sa_column=Column(Json, nullable=False), description="The study's event, to be announced again"
    )
    noticed_at: datetime

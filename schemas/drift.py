"""Tables of the label-free early warning. They hold pseudonyms, bounded numbers and facets; no image can be rebuilt from them."""

from datetime import datetime
from typing import Any

from sqlalchemy import LargeBinary
from sqlmodel import Column, Field, Index, SQLModel

from schemas.tables import Json


class ImageSignature(SQLModel, table=True):
    """What a prediction leaves of the images behind it (`models.signature`, `models.embedding`), little-endian."""

    __tablename__ = "image_signature"
    __table_args__ = (Index(None, "model", "version", "scored_at"),)
    study_key: str = Field(primary_key=True, max_length=32)
    revision: int = Field(primary_key=True)
    model: str = Field(primary_key=True, max_length=64)
    version: int = Field(primary_key=True)
    form: int = Field(description="Which list of statistics `quality` holds")
    quality: bytes = Field(sa_column=Column(LargeBinary, nullable=False), description="float32")
    layout: bytes = Field(sa_column=Column(LargeBinary, nullable=False), description="float16")
    embedding: bytes = Field(sa_column=Column(LargeBinary, nullable=False), description="float16")
    scored_at: datetime


class ReferenceSignature(SQLModel, table=True):
    """The same of a baseline case, as it is (`fault` empty) or as it would look under a known fault of the feed."""

    __tablename__ = "reference_signature"
    model: str = Field(primary_key=True, max_length=64)
    version: int = Field(primary_key=True)
    fault: str = Field(primary_key=True, max_length=32)
    case_key: str = Field(primary_key=True, max_length=64)
    form: int
    quality: bytes = Field(sa_column=Column(LargeBinary, nullable=False), description="float32")
    layout: bytes = Field(sa_column=Column(LargeBinary, nullable=False), description="float16")
    embedding: bytes = Field(sa_column=Column(LargeBinary, nullable=False), description="float16; empty for a fault")
    facets: dict[str, str] = Field(default_factory=dict, sa_column=Column(Json, nullable=False))


class DriftCase(SQLModel, table=True):
    """A prediction as the early warning keeps it: in the order of arrival within its version, and in which window."""

    __tablename__ = "drift_case"
    __table_args__ = (
        Index(None, "model", "version", "number"),
        Index(None, "model", "version", "window_number"),
        Index(None, "scored_at"),
    )
    study_key: str = Field(primary_key=True, max_length=32)
    model: str = Field(primary_key=True, max_length=64)
    version: int = Field(primary_key=True)
    revision: int
    number: int = Field(description="1, 2, 3 … within the version, in the order of arrival")
    window_number: int | None = Field(default=None, description="None while its window is open")
    patient_key: str = Field(max_length=32)
    serving: bool
    predicted: str = Field(max_length=64)
    probabilities: dict[str, float] = Field(sa_column=Column(Json, nullable=False))
    facets: dict[str, str] = Field(default_factory=dict, sa_column=Column(Json, nullable=False))
    acquired_at: datetime
    scored_at: datetime


class DriftWindow(SQLModel, table=True):
    """What the early warning measured on a window of predictions, or (`kind` feed) on the arrival of studies."""

    __tablename__ = "drift_window"
    __table_args__ = (Index(None, "model", "version", "measured_at"),)
    drift_id: str = Field(primary_key=True, max_length=64)
    model: str = Field(max_length=64)
    version: int
    kind: str = Field(max_length=16, description="cases or feed")
    number: int = Field(description="1, 2, 3 … within version and kind")
    cases: int
    first_at: datetime
    last_at: datetime
    warning: bool
    suspected: str = Field(max_length=16, description="Kind of change that fits, none without a warning")
    signals: list[dict[str, Any]] = Field(sa_column=Column(Json, nullable=False))
    summary: str = Field(max_length=1000)
    measured_at: datetime


class DriftCalibration(SQLModel, table=True):
    """Thresholds of a version's signals, kept because they cost seconds to simulate; the fingerprint names what they hold for."""

    __tablename__ = "drift_calibration"
    model: str = Field(primary_key=True, max_length=64)
    version: int = Field(primary_key=True)
    fingerprint: str = Field(primary_key=True, max_length=32)
    thresholds: dict[str, float] = Field(sa_column=Column(Json, nullable=False))
    made_at: datetime

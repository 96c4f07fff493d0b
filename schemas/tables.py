"""Tables of the service's database.

Identity (UIDs) stays in `instance`, `study` and the tables of `schemas.announcements`; all other tables hold pseudonyms.

States are strings with a check constraint instead of database enums: a new member is then an ordinary migration on
SQLite and PostgreSQL alike. Every datetime is aware UTC (SQLModel maps `datetime` to its own UTC type).
"""

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlmodel import Field, SQLModel

from schemas.vocabulary import CaseRole, CaseState, JobState, OrderKind, OrderState, Status, StudyState, VersionState

SQLModel.metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

Json = JSON().with_variant(JSONB(), "postgresql")
"""JSON on SQLite, JSONB on PostgreSQL."""

BigId = BigInteger().with_variant(Integer(), "sqlite")
"""64-bit identity that SQLite can still auto-increment."""

KEYED: dict[str, Any] = {"sqlite_with_rowid": False}
"""On SQLite the table lies in its primary key's tree, instead of beside it: a row is written once and not twice."""


def one_of(column: str, words: type[StrEnum]) -> CheckConstraint:
    """Check constraint that holds `column` to the members of a vocabulary."""
    listed = ", ".join(f"'{word.value}'" for word in words)
    return CheckConstraint(f"{column} IN ({listed})", name=column)


class Study(SQLModel, table=True):
    """A study in the archive. Derived: can be rebuilt from the files."""

    __tablename__ = "study"
    __table_args__ = (one_of("state", StudyState), Index(None, "state", "look_at"))
    study_uid: str = Field(primary_key=True, max_length=64)
    study_key: str = Field(max_length=32, unique=True)
    patient_key: str = Field(max_length=32, index=True)
    accession_key: str | None = Field(default=None, max_length=32, index=True)
    state: str = Field(default=StudyState.OPEN, max_length=16)
    revision: int = 0
    instances: int = 0
    calling_ae: str = Field(default="", max_length=16)
    acquired_at: datetime
    first_instance_at: datetime
    last_instance_at: datetime
    opened_at: datetime | None = Field(default=None, description="First instance since the last announcement")
    announced_at: datetime | None = None
    committed_at: datetime | None = Field(default=None, description="Last storage commitment request that names instances of it")
    stated_instances: int = Field(default=0, description="Number of Study Related Instances (0020,1208) where sent, else 0")
    look_at: datetime | None = Field(default=None, description="When to look next whether an open study is complete; None: at once")
    ring_at: int | None = Field(default=None, description="Number of instances at which to look at once")
    purged_at: datetime | None = Field(default=None, description="When retention last took the study's images out of the archive")
    traceparent: str = Field(default="", max_length=64, description="Trace of the last C-STORE, which the study's event continues")


class Instance(SQLModel, table=True):
    """A stored SOP instance. `path` is relative to the archive root; `size` and `sha256` are of the data set without file meta.

    `sha256` is empty for a file that was never read as a whole: reception compares bytes, not digests.
    """

    __tablename__ = "instance"
    sop_instance_uid: str = Field(primary_key=True, max_length=64)
    study_uid: str = Field(max_length=64, foreign_key="study.study_uid", index=True)
    series_uid: str = Field(max_length=64, index=True)
    sop_class_uid: str = Field(max_length=64)
    transfer_syntax_uid: str = Field(max_length=64)
    modality: str = Field(default="", max_length=16)
    body_part: str = Field(default="", max_length=64)
    path: str = Field(max_length=255)
    size: int = Field(sa_column=Column(BigInteger, nullable=False))
    sha256: str = Field(default="", max_length=64)
    received_at: datetime
    purged_at: datetime | None = Field(
        default=None, description="When retention took the file out of the archive; None: it is there"
    )


class Outbox(SQLModel, table=True):
    """An event that commits with the state change behind it; the relay sends it and keeps it for replay."""

    __tablename__ = "outbox"
    __table_args__ = (Index(None, "sent_at", "id"), Index(None, "topic", "created_at"))
    id: int | None = Field(default=None, sa_column=Column(BigId, primary_key=True, autoincrement=True))
    event_id: str = Field(max_length=64, unique=True)
    topic: str = Field(max_length=128)
    key: str = Field(max_length=255)
    headers: dict[str, str] = Field(default_factory=dict, sa_column=Column(Json, nullable=False))
    body: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    created_at: datetime
    sent_at: datetime | None = None
    sent_to: str = Field(default="", max_length=64, description="Incarnation of the broker that has it")


class Inbox(SQLModel, table=True):
    """An event that a consumer has dealt with, by effect or by dead letter."""

    __tablename__ = "inbox"
    __table_args__ = KEYED
    consumer: str = Field(primary_key=True, max_length=64)
    event_id: str = Field(primary_key=True, max_length=64)
    handled_at: datetime


class DeadLetter(SQLModel, table=True):
    """A message that cannot be processed, with its reason, until somebody replays or discards it."""

    __tablename__ = "dead_letter"
    __table_args__ = (UniqueConstraint("consumer", "event_id"),)
    id: int | None = Field(default=None, sa_column=Column(BigId, primary_key=True, autoincrement=True))
    consumer: str = Field(max_length=64)
    event_id: str = Field(max_length=128)
    topic: str = Field(max_length=128)
    partition: int
    offset: int = Field(sa_column=Column("offset", BigInteger, nullable=False))
    key: str = Field(default="", max_length=255)
    headers: dict[str, str] = Field(default_factory=dict, sa_column=Column(Json, nullable=False))
    body: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    error: str = Field(max_length=64)
    reason: str = Field(max_length=1000)
    created_at: datetime
    replayed_at: datetime | None = None
    replays: int = Field(default=0, description="How often it was entered again; a letter that failed again has no replayed_at")
    discarded_at: datetime | None = None


class Lease(SQLModel, table=True):
    """A role that one process holds at a time (the relay, a ticker), until it expires."""

    __tablename__ = "lease"
    name: str = Field(primary_key=True, max_length=64)
    owner: str = Field(max_length=64)
    expires_at: datetime


class RegisteredModel(SQLModel, table=True):
    """A model: its task, classes and which studies it scores. The champion version serves while `serving` is true."""

    __tablename__ = "model"
    name: str = Field(primary_key=True, max_length=64)
    task: str = Field(max_length=64, index=True)
    classes: list[str] = Field(sa_column=Column(Json, nullable=False))
    selection: dict[str, Any] = Field(default_factory=dict, sa_column=Column(Json, nullable=False))
    champion: int | None = None
    serving: bool = True
    created_at: datetime


class ModelVersion(SQLModel, table=True):
    """A version of a model. `bundle` is relative to the models folder."""

    __tablename__ = "model_version"
    __table_args__ = (one_of("state", VersionState),)
    model: str = Field(primary_key=True, max_length=64, foreign_key="model.name")
    version: int = Field(primary_key=True)
    state: str = Field(default=VersionState.CANDIDATE, max_length=16)
    bundle: str = Field(max_length=255)
    sha256: str = Field(max_length=64, description="Hash of the weights file")
    parent: int | None = None
    champion_before: int | None = Field(default=None, description="The version this one replaced, where a rollback goes back to")
    origin: str = Field(default="", max_length=64, description="registered, or the run that made it")
    dataset: str = Field(default="", max_length=512, description="Manifest of the development data: splits train, valid, test")
    classes: list[str] = Field(
        default_factory=list, sa_column=Column(Json, nullable=False), description="In the order of its outputs; empty: the model's"
    )
    metrics: dict[str, Any] = Field(default_factory=dict, sa_column=Column(Json, nullable=False))
    created_at: datetime


class BaselineCase(SQLModel, table=True):
    """One case of a version's development test set: what the detector compares with."""

    __tablename__ = "baseline_case"
    model: str = Field(primary_key=True, max_length=64)
    version: int = Field(primary_key=True)
    case_key: str = Field(primary_key=True, max_length=64)
    patient_key: str = Field(max_length=64)
    truth: str = Field(max_length=64)
    predicted: str = Field(max_length=64)
    probabilities: dict[str, float] = Field(sa_column=Column(Json, nullable=False))
    findings: list[str] | None = Field(
        default=None, sa_column=Column(Json, nullable=True), description="Codes of its findings; None where they were not kept"
    )


class TrainingPatient(SQLModel, table=True):
    """A patient whose studies trained a model or chose its weights (splits train and valid): no evidence about that model."""

    __tablename__ = "training_patient"
    model: str = Field(primary_key=True, max_length=64)
    patient_key: str = Field(primary_key=True, max_length=64)


OPEN_CASE = text("state = 'joined' AND role = 'trigger' AND serving")
"""Joined cases that wait for a batch. Written without parameters: a partial index serves only a query with the same literals."""

IN_BATCH = text("batch_id IS NOT NULL")


class Case(SQLModel, table=True):
    """A prediction waiting for, or joined with, its label. `serving` is false for a challenger's shadow score."""

    __tablename__ = "case"
    __table_args__ = (
        one_of("state", CaseState),
        one_of("role", CaseRole),
        # None of them names a column that changes while a case waits, so that the join rewrites few pages.
        # With more of the open cases' columns, SQLite would take the first one to find them, and read every case of the version.
        Index(None, "model", "version", "scored_at"),
        Index(None, "batch_id", sqlite_where=IN_BATCH, postgresql_where=IN_BATCH),
        Index(None, "patient_key", "role"),
        Index("ix_case_open", "model", "version", "joined_at", sqlite_where=OPEN_CASE, postgresql_where=OPEN_CASE),
    )
    study_key: str = Field(primary_key=True, max_length=32)
    model: str = Field(primary_key=True, max_length=64)
    version: int = Field(primary_key=True)
    task: str = Field(max_length=64)
    patient_key: str = Field(max_length=32)
    role: str = Field(max_length=16)
    state: str = Field(default=CaseState.WAITING, max_length=16)
    revision: int = 1
    serving: bool = True
    predicted: str = Field(max_length=64)
    probabilities: dict[str, float] = Field(sa_column=Column(Json, nullable=False))
    facets: dict[str, str] = Field(default_factory=dict, sa_column=Column(Json, nullable=False))
    findings: list[str] = Field(default_factory=list, sa_column=Column(Json, nullable=False))
    truth: str | None = Field(default=None, max_length=64)
    batch_id: str | None = Field(default=None, max_length=64)
    acquired_at: datetime
    scored_at: datetime
    joined_at: datetime | None = None


class GroundTruth(SQLModel, table=True):
    """One source's newest label of a study and task, no value once withdrawn. The most recent source decides the truth."""

    __tablename__ = "ground_truth"
    __table_args__ = KEYED
    study_key: str = Field(primary_key=True, max_length=32)
    task: str = Field(primary_key=True, max_length=64)
    source: str = Field(primary_key=True, max_length=64)
    value: str | None = Field(default=None, max_length=64)
    labelled_at: datetime
    received_at: datetime


class Batch(SQLModel, table=True):
    """A closed batch of labelled trigger cases of one model version."""

    __tablename__ = "batch"
    __table_args__ = (UniqueConstraint("model", "version", "number"),)
    batch_id: str = Field(primary_key=True, max_length=64)
    model: str = Field(max_length=64)
    version: int
    number: int = Field(description="1, 2, 3 … within the version")
    cases: int
    closed_by: str = Field(max_length=16)
    closed_at: datetime


class Evaluation(SQLModel, table=True):
    """The stored outcome of evaluating a batch; a corrected label brings another row for the same batch."""

    __tablename__ = "evaluation"
    __table_args__ = (one_of("status", Status), Index(None, "model", "version", "evaluated_at"))
    evaluation_id: str = Field(primary_key=True, max_length=64)
    batch_id: str = Field(max_length=64, index=True)
    model: str = Field(max_length=64)
    version: int
    status: str = Field(max_length=16)
    diagnosis: str = Field(max_length=16)
    cases: int
    stream_cases: int
    metrics: list[dict[str, Any]] = Field(sa_column=Column(Json, nullable=False))
    evidence: dict[str, Any] = Field(sa_column=Column(Json, nullable=False))
    reclaim_rule: bool
    subgroups: list[dict[str, Any]] = Field(default_factory=list, sa_column=Column(Json, nullable=False))
    rules: list[dict[str, Any]] = Field(default_factory=list, sa_column=Column(Json, nullable=False))
    confusion: dict[str, Any] | None = Field(default=None, sa_column=Column(Json, nullable=True))
    summary: str = Field(max_length=1000)
    evaluated_at: datetime


class DetectorCalibration(SQLModel, table=True):
    """Alarm thresholds of a version, kept because they cost seconds to simulate; the fingerprint names what they hold for."""

    __tablename__ = "detector_calibration"
    model: str = Field(primary_key=True, max_length=64)
    version: int = Field(primary_key=True)
    fingerprint: str = Field(primary_key=True, max_length=32)
    threshold_a: float
    threshold_b: float
    origin: str = Field(max_length=16, description="simulation or bound")
    batch_size: int = Field(description="Independent labelled cases of a block")
    batches_per_year: int = Field(description="Blocks of the year over which the false-alarm budget holds")
    smallest_fall: float | None = Field(default=None, description="Fall of one class that shows within a year; 1 for none")
    made_at: datetime


class Order(SQLModel, table=True):
    """A typed order, from proposal to outcome. The idempotency key makes the same cause order once."""

    __tablename__ = "maintenance_order"
    __table_args__ = (one_of("state", OrderState), one_of("kind", OrderKind), Index(None, "model", "created_at"))
    order_id: str = Field(primary_key=True, max_length=64)
    idempotency_key: str = Field(max_length=128, unique=True)
    kind: str = Field(max_length=32)
    state: str = Field(default=OrderState.PROPOSED, max_length=32)
    model: str = Field(max_length=64)
    version: int | None = None
    remedy: str | None = Field(default=None, max_length=32)
    settings: dict[str, Any] = Field(default_factory=dict, sa_column=Column(Json, nullable=False))
    reason: str = Field(max_length=1000)
    evaluation_id: str | None = Field(default=None, max_length=64)
    actor: str = Field(max_length=128)
    thread: str = Field(default="", max_length=128, description="Thread of the chat in which it was ordered")
    explanation: str = Field(default="", max_length=1000, description="Why it was refused, or what came of it")
    created_at: datetime
    updated_at: datetime


class Job(SQLModel, table=True):
    """A long job, claimed by a worker with a lease; `attempt` fences a worker that lost its lease."""

    __tablename__ = "job"
    __table_args__ = (one_of("state", JobState),)
    job_id: str = Field(primary_key=True, max_length=64)
    order_id: str = Field(max_length=64, unique=True)
    model: str = Field(max_length=64, index=True)
    remedy: str = Field(max_length=32)
    state: str = Field(default=JobState.QUEUED, max_length=16)
    attempt: int = 0
    owner: str = Field(default="", max_length=64)
    lease_until: datetime | None = None
    settings: dict[str, Any] = Field(default_factory=dict, sa_column=Column(Json, nullable=False))
    progress: dict[str, Any] = Field(default_factory=dict, sa_column=Column(Json, nullable=False))
    result: dict[str, Any] = Field(default_factory=dict, sa_column=Column(Json, nullable=False))
    error: str = Field(default="", max_length=1000)
    traceparent: str = Field(default="", max_length=64)
    created_at: datetime
    updated_at: datetime


class Report(SQLModel, table=True):
    """A written report. Paths are relative to the reports folder."""

    __tablename__ = "report"
    report_id: str = Field(primary_key=True, max_length=64)
    model: str = Field(max_length=64, index=True)
    version: int
    kind: str = Field(max_length=32)
    status: str = Field(max_length=16)
    title: str = Field(max_length=255)
    summary: str = Field(max_length=1000)
    html: str = Field(max_length=255)
    markdown: str = Field(max_length=255)
    data: str = Field(max_length=255)
    pdf: str = Field(default="", max_length=255, description="Empty in reports of older versions")
    order_id: str | None = Field(default=None, max_length=64)
    written_at: datetime


class Audit(SQLModel, table=True):
    """Append-only record of every decision (promise 8); triggers refuse UPDATE and DELETE."""

    __tablename__ = "audit"
    id: int | None = Field(default=None, sa_column=Column(BigId, primary_key=True, autoincrement=True))
    at: datetime
    actor: str = Field(max_length=128)
    action: str = Field(max_length=64)
    subject: str = Field(max_length=128, index=True)
    detail: dict[str, Any] = Field(default_factory=dict, sa_column=Column(Json, nullable=False))
    trace_id: str = Field(default="", sa_column=Column(String(32), nullable=False))

"""The table of results on their way to the PACS. It holds pseudonyms only."""

from datetime import datetime

from sqlalchemy import BigInteger, Column, LargeBinary
from sqlmodel import Field, Index, SQLModel

from schemas.tables import Json, one_of
from schemas.vocabulary import ResultState


class ResultJob(SQLModel, table=True):
    """A prediction on its way to the PACS as DICOM objects; `attempt` fences a worker that lost its lease.

    The message itself is kept, so that giving up makes a dead letter that can be replayed.
    """

    __tablename__ = "result_job"
    __table_args__ = (one_of("state", ResultState), Index(None, "state", "due_at"))
    job_id: str = Field(primary_key=True, max_length=64, description="Event id of the prediction")
    study_key: str = Field(max_length=32, index=True)
    model: str = Field(max_length=64)
    version: int
    revision: int
    destination: str = Field(
        max_length=64, description="Name of the peer; where it is and what it is called stands in the settings"
    )
    state: str = Field(default=ResultState.QUEUED, max_length=16)
    attempt: int = 0
    owner: str = Field(default="", max_length=64)
    lease_until: datetime | None = None
    due_at: datetime
    error: str = Field(default="", max_length=1000)
    topic: str = Field(max_length=128)
    partition: int
    offset: int = Field(sa_column=Column("offset", BigInteger, nullable=False))
    key: str = Field(default="", max_length=255)
    headers: dict[str, str] = Field(default_factory=dict, sa_column=Column(Json, nullable=False))
    body: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    traceparent: str = Field(default="", max_length=64)
    created_at: datetime
    updated_at: datetime

"""Tables of what modalities say about their instances (steps, commitment requests), and of those whose UID is in dispute.

They hold UIDs, which the answers have to repeat, and nothing else of a patient.
"""

from datetime import datetime

from sqlmodel import Field, Index, SQLModel

from schemas.tables import one_of
from schemas.vocabulary import CommitmentState, CompletedBy, StepState


class PerformedStep(SQLModel, table=True):
    """A Modality Performed Procedure Step (PS3.4 Annex F) as far as it says when a study is complete."""

    __tablename__ = "performed_step"
    __table_args__ = (one_of("state", StepState), Index(None, "updated_at"))
    sop_instance_uid: str = Field(primary_key=True, max_length=64)
    state: str = Field(default=StepState.IN_PROGRESS, max_length=16)
    calling_ae: str = Field(default="", max_length=16)
    created_at: datetime
    updated_at: datetime


class StepStudy(SQLModel, table=True):
    """A study that a performed procedure step belongs to; more than one in a group case."""

    __tablename__ = "performed_step_study"
    step_uid: str = Field(primary_key=True, max_length=64)
    study_uid: str = Field(primary_key=True, max_length=64, index=True)


class NamedInstance(SQLModel, table=True):
    """An instance that a step or a commitment request names. `source` is the step's SOP Instance UID or the Transaction UID."""

    __tablename__ = "named_instance"
    __table_args__ = (one_of("kind", CompletedBy),)
    kind: str = Field(primary_key=True, max_length=32)
    source: str = Field(primary_key=True, max_length=64)
    sop_instance_uid: str = Field(primary_key=True, max_length=64, index=True)
    sop_class_uid: str = Field(max_length=64)


class Commitment(SQLModel, table=True):
    """A storage commitment request (PS3.4 Annex J) and the report that is owed for it."""

    __tablename__ = "storage_commitment"
    __table_args__ = (one_of("state", CommitmentState), Index(None, "state", "next_at"), Index(None, "updated_at"))
    transaction_uid: str = Field(primary_key=True, max_length=64)
    digest: str = Field(max_length=64, description="SHA-256 of peer and references, to know a request that is sent again")
    state: str = Field(default=CommitmentState.OWED, max_length=16)
    peer_ae: str = Field(max_length=16, description="Who asked, and gets the report")
    own_ae: str = Field(max_length=16, description="The title it called us by")
    attempts: int = 0
    next_at: datetime = Field(description="When to try next to deliver the report")
    created_at: datetime
    updated_at: datetime


class SetAside(SQLModel, table=True):
    """An object under `conflicts/`, for as long as its file is there: somebody has yet to decide which of two is right."""

    __tablename__ = "set_aside"
    kept_as: str = Field(primary_key=True, max_length=160, description="File, relative to the archive's root")
    name: str = Field(
        max_length=64, index=True, description="Name of the file that the archive has under the same SOP Instance UID"
    )
    acknowledged: bool = Field(description="Its sender was told that it is stored, and may have deleted its copy")
    created_at: datetime

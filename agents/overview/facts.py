"""What an overview says. No identity of a patient or a study is in it; every moment is aware UTC."""

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field


class Fact(BaseModel):
    """Base of all parts."""

    model_config = ConfigDict(frozen=True)


class Studies(Fact):
    """Studies by the archive's index."""

    received: int
    open: int = Field(description="Not complete yet")
    last_day: int = Field(description="Those whose last image came within 24 hours")
    last_received_at: datetime | None


class Consumer(Fact):
    """A consumer with what waits for it. Only the newest events of each of its topics are looked at (`LOOKED_AT`)."""

    name: str
    waiting: int
    at_least: bool = Field(description="Every event that was looked at waits, so there may be more")
    oldest_waiting: datetime | None
    last_active_at: datetime | None


class Outlook(Fact):
    """How many labelled cases the coming evaluation of a version has and lacks; only patients who may raise the alarm count.

    `labels` is about how many studies have to be labelled for the missing ones, where nobody chooses whose. What is ready is
    evaluated at `closes_at` at the latest.
    """

    first: bool
    ready: int
    needed: int
    missing: int
    labels: int
    closes_at: datetime | None = None


class Warned(Fact):
    """The early warning that the newest window of a model gives."""

    at: datetime
    suspected: str
    summary: str


class ModelState(Fact):
    """One model. `status` is empty before the first evaluation of the version that serves; `since` is when it became so."""

    name: str
    task: str
    champion: int | None
    serving: bool
    status: str = ""
    diagnosis: str = ""
    since: datetime | None = None
    evaluated_at: datetime | None = None
    judged_cases: int = 0
    last_scored_at: datetime | None = None
    unlabelled: int = Field(0, description="Scored studies of the version that serves which wait for a label")
    outlook: Outlook | None = Field(None, description="None where no version serves")
    challenger: int | None = Field(None, description="A version that waits in the shadow for the gate")
    gate_cases: int = 0
    gate_cases_needed: int = 0
    warning: Warned | None = None


class Work(Fact):
    """An order that is not finished; `epoch` and what follows are of its job."""

    order_id: str
    kind: str
    remedy: str
    model: str
    state: str
    actor: str
    since: datetime
    job: str = ""
    epoch: int | None = None
    epochs: int | None = None
    message: str = ""


class Letters(Fact):
    """Dead letters that wait for a person."""

    waiting: int
    by_consumer: dict[str, int]
    newest_at: datetime | None


class Outgoing(Fact):
    """Events that no broker has yet."""

    waiting: int
    oldest: datetime | None


class Overview(Fact):
    """All that the database says."""

    at: datetime
    studies: Studies
    models: tuple[ModelState, ...]
    work: tuple[Work, ...]
    letters: Letters
    outgoing: Outgoing
    consumers: tuple[Consumer, ...]

    @property
    def approvals(self) -> tuple[Work, ...]:
        """Orders that wait for a person."""
        return tuple(each for each in self.work if each.state == "awaiting_approval")

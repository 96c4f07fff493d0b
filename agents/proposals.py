"""What an agent run leaves behind: proposals and decisions in memory. Nothing here touches the database or the bus."""

import hashlib
from dataclasses import dataclass, field
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from schemas.events import EvaluationCompleted, MaintenancePromotion
from schemas.vocabulary import Diagnosis, OrderKind, Remedy, UserRole

Setting = float | int | str | bool


class Proposal(BaseModel):
    """An order that an agent proposes; the guardrails decide what becomes of it."""

    model_config = ConfigDict(frozen=True)

    kind: OrderKind
    model: str
    version: int | None = None
    remedy: Remedy | None = None
    settings: dict[str, Setting] = Field(default_factory=dict)
    reason: str = ""
    evaluation_id: str | None = None


class Decision(BaseModel):
    """A person's word on an order that waits."""

    model_config = ConfigDict(frozen=True)

    order_id: str
    approve: bool


@dataclass(frozen=True)
class Cause:
    """Why the agents run: an evaluation, the gate's verdict, or a person's command. `role` is None unless a person asks.

    `evaluation_id` is the evaluation that orders refer to; `needs_help`: the gate left a degraded model without a repair;
    `pressed` is a button that a person pressed, which no planner has to understand.
    """

    event_id: str
    kind: Literal["evaluation", "promotion", "command"]
    actor: str
    prompt: str
    role: UserRole | None = None
    thread: str = ""
    channel: str = ""
    text: str = ""
    pressed: Decision | None = None
    evaluation: EvaluationCompleted | None = None
    promotion: MaintenancePromotion | None = None
    evaluation_id: str | None = None
    needs_help: bool = False
    traceparent: str = ""

    @property
    def model(self) -> str | None:
        """The one model that may be ordered for, None where a person names it."""
        about = self.evaluation or self.promotion
        return about.model if about is not None else None

    @property
    def event(self) -> str:
        """What happened, for those who read of the run later; empty for a person's command."""
        if self.evaluation is not None:
            found = self.evaluation
            why = f", {found.diagnosis}" if found.diagnosis != Diagnosis.NONE else ""
            return f"evaluation of {found.model} version {found.version}: {found.status}{why}"
        if self.promotion is not None:
            said = self.promotion
            if said.origin == "rollback":
                return f"rollback of {said.model} to version {said.champion_after}"
            return f"the gate's verdict on {said.model} version {said.challenger}: {said.verdict.replace('_', ' ')}"
        return ""


@dataclass
class Ledger:
    """Records what one run proposes. The same kind for the same model is one proposal, the first."""

    proposals: list[Proposal] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)

    def propose(self, proposal: Proposal) -> bool:
        """Record a proposal; False when this run has already proposed the same kind for the model."""
        if any((known.kind, known.model) == (proposal.kind, proposal.model) for known in self.proposals):
            return False
        self.proposals.append(proposal)
        return True

    def decide(self, decision: Decision) -> bool:
        """Record a decision; False when this run has already decided on the order."""
        if any(known.order_id == decision.order_id for known in self.decisions):
            return False
        self.decisions.append(decision)
        return True


def idempotency_key(cause: str, kind: OrderKind, model: str) -> str:
    """The key by which one cause orders one kind for one model once, however often it is handled."""
    return hashlib.sha256(f"{cause}|{kind}|{model}".encode()).hexdigest()


def order_id(key: str) -> str:
    """The order's id: derived from its idempotency key, short enough to be typed into a chat."""
    return f"ord-{key[:12]}"


def reply_event_id(command_id: str) -> str:
    """Event id of the one reply to a command; whoever waits for the reply looks for it in the outbox."""
    return f"reply-{hashlib.sha256(command_id.encode()).hexdigest()[:40]}"

"""What modalities announce, entered in one transaction each: performed procedure steps and storage commitment requests."""

from collections.abc import Sequence
from enum import StrEnum

from schemas.vocabulary import CompletedBy, StepState
from services.assembly.announcement_repository import (
    digest_of,
    insert_commitment,
    insert_step,
    owe_again,
    replace_named,
    save_step,
    step_of,
)
from services.assembly.commitments import Reference, Request
from services.assembly.steps import EVENT_OF, StepEvent, StepRefusal, next_state
from services.runtime.transaction import Transaction


class Entered(StrEnum):
    """What became of a commitment request."""

    NEW = "new"
    REPEATED = "repeated"
    OTHER_CONTENT = "other_content"


def create_step(
    tx: Transaction, step_uid: str, studies: Sequence[str], calling_ae: str, references: Sequence[Reference] | None
) -> StepState | StepRefusal:
    """Enter a step in progress (N-CREATE). `references`: what its Performed Series Sequence names, None without one."""
    if not insert_step(tx, step_uid, studies, calling_ae):
        known = step_of(tx, step_uid)
        return next_state(known.state if known else None, StepEvent.CREATE)
    if references:
        replace_named(tx, CompletedBy.MPPS, step_uid, references)
    return StepState.IN_PROGRESS


def set_step(
    tx: Transaction, step_uid: str, calling_ae: str, status: StepState | None, references: Sequence[Reference] | None
) -> StepState | StepRefusal:
    """Update, complete or discontinue a step (N-SET); `status` None leaves it, `references` None leaves what it names.

    Only the title that created a step may: another one could end it early and so announce a study that is not whole.
    """
    event = EVENT_OF[status] if status else StepEvent.UPDATE
    known = step_of(tx, step_uid)
    if known is not None and known.calling_ae != calling_ae:
        return StepRefusal.FOREIGN
    outcome = next_state(known.state if known else None, event)
    if isinstance(outcome, StepState):
        if references is not None:
            replace_named(tx, CompletedBy.MPPS, step_uid, references)
        save_step(tx, step_uid, outcome)
    return outcome


def request_commitment(tx: Transaction, request: Request) -> Entered:
    """Enter a request; the same one once more has its report delivered once more."""
    if insert_commitment(tx, request):
        return Entered.NEW
    if digest_of(tx.session, request.transaction_uid) != request.digest:
        return Entered.OTHER_CONTENT
    owe_again(tx, request.transaction_uid)
    return Entered.REPEATED

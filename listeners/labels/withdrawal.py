"""Withdrawing the labels of one study by hand, and what they have been used for already."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlmodel import Session, col, select

from listeners.labels.intake import Fault, RawLabel, take_in
from schemas.tables import BaselineCase, Batch, Case, GroundTruth, Job, ModelVersion, Study
from schemas.vocabulary import CaseState, JobState
from services.remediation.options import PLAN
from services.runtime.errors import InvalidInput
from services.runtime.service import Context

REFERENCES: Final = ((re.compile(r"[0-9a-f]{32}"), "study_key"), (re.compile(r"\d+(\.\d+)+"), "study"))


@dataclass(frozen=True)
class Withdrawn:
    """A label that was withdrawn: of which task, by whom, and what it had said."""

    task: str
    source: str
    value: str


@dataclass(frozen=True)
class Withdrawal:
    """What was withdrawn, and one sentence for every use that was made of it before."""

    study_key: str
    labels: tuple[Withdrawn, ...]
    uses: tuple[str, ...]


def withdraw(context: Context, study: str, task: str | None, source: str | None, actor: str) -> Withdrawal:
    """Withdraw what sources (one of them, or all) have said of a study (of one task, or all), as if each had done so itself.

    `study` is a StudyInstanceUID, a pseudonym or an accession number. InvalidInput: nothing of that has been said. Nothing is
    deleted: the audit record keeps who withdrew what, and evaluations keep what they found before.
    """
    key = _study(context, study)
    with context.database.read() as session:
        said = _said(session, key, task, source)
        uses = uses_of(session, key, {row.task for row in said})
    if not said:
        raise InvalidInput("no label of this study" + (" fits the task and source" if task or source else " has come"))
    # Not before the label itself, whose time may be by a clock that is ahead of this one.
    moment = max(context.clock.now(), *(row.labelled_at for row in said))
    raw = [
        RawLabel(number, {"study_key": key, "task": row.task, "source": row.source, "status": "withdrawn"})
        for number, row in enumerate(said, 1)
    ]
    _refuse(take_in(context, raw, "", moment).faults)
    taken = tuple(Withdrawn(row.task, row.source, row.value or "") for row in said)
    with context.database.transaction() as tx:
        tx.audit(actor, "label.withdrawn", key, labels=[vars(each) for each in taken])
    return Withdrawal(key, taken, uses)


def _refuse(faults: Sequence[Fault]) -> None:
    if faults:
        raise InvalidInput("; ".join(fault.reason for fault in faults))


def _study(context: Context, study: str) -> str:
    """The pseudonym, by the rules of labels; what is neither UID nor pseudonym is an accession number."""
    name = next((name for pattern, name in REFERENCES if pattern.fullmatch(study)), "accession")
    if name == "study_key":
        return study
    if name == "study":
        return context.pseudonyms.study(study)
    with context.database.read() as session:
        return _by_accession(session, context.pseudonyms.accession(study))


def _by_accession(session: Session, accession_key: str) -> str:
    found = session.exec(select(Study.study_key).where(Study.accession_key == accession_key)).all()
    if len(found) != 1:
        raise InvalidInput(f"{len(found) or 'no'} studies have this accession number: give the StudyInstanceUID")
    return found[0]


def _said(session: Session, study: str, task: str | None, source: str | None) -> list[GroundTruth]:
    query = select(GroundTruth).where(GroundTruth.study_key == study, col(GroundTruth.value).is_not(None))
    query = query.where(GroundTruth.task == task) if task else query
    query = query.where(GroundTruth.source == source) if source else query
    return list(session.exec(query.order_by(col(GroundTruth.task), col(GroundTruth.source))))


def uses_of(session: Session, study: str, tasks: set[str]) -> tuple[str, ...]:
    """What the truth of a study has been used for: batches, repairs, gates, baselines. One sentence each."""
    return (*_batches(session, study, tasks), *_plans(session, study), *_baselines(session, study))


def _batches(session: Session, study: str, tasks: set[str]) -> list[str]:
    query = (
        select(Case, Batch.number)
        .join(Batch, col(Batch.batch_id) == col(Case.batch_id))
        .where(Case.study_key == study, Case.state == CaseState.BATCHED, col(Case.task).in_(sorted(tasks)))
        .order_by(col(Case.model), col(Case.version))
    )
    return [
        f"It is in batch {number} of {case.model} version {case.version}, which is evaluated again where its truth changes."
        for case, number in session.execute(query)
    ]


def _plans(session: Session, study: str) -> list[str]:
    """Runs that were given the case. A run that has begun keeps the data of its first attempt."""
    query = select(Job, ModelVersion.version, ModelVersion.state).join(
        ModelVersion, (col(ModelVersion.origin) == col(Job.job_id)) & (col(ModelVersion.model) == col(Job.model)), isouter=True
    )
    found = []
    for job, version, state in session.execute(query.order_by(col(Job.created_at))):
        plan: dict[str, Any] = job.settings.get(PLAN, {})
        for part, did in (("tune", "taught"), ("gate", "judged")):
            if any(case["study_key"] == study for case in plan.get(part, ())):
                made = f"version {version} ({state})" if version else f"a run that {_became(job.state)}"
                found.append(f"It {did} {made} of {job.model}, order {job.order_id}: that is not undone.")
    return found


def _became(state: str) -> str:
    return {JobState.FAILED: "failed", JobState.SUCCEEDED: "ended without a version"}.get(JobState(state), "is under way")


def _baselines(session: Session, study: str) -> list[str]:
    query = select(BaselineCase.model, BaselineCase.version).where(BaselineCase.case_key == study)
    return [
        f"It is in the baseline of {model} version {version}, which follows its truth from the next evaluation on."
        for model, version in sorted(session.execute(query).tuples())
    ]

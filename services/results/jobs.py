"""Results as durable jobs: claimed with a lease, fenced by (owner, attempt), postponed with growing delays.

A job is entered in the transaction that takes the prediction off the bus. One that is given up is a dead letter of that very
message, so replaying the letter sends the result again.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from schemas.events import Prediction
from schemas.results import ResultJob
from schemas.settings import ResultsSettings
from schemas.vocabulary import ResultState
from services.results import repository
from services.results.states import ResultEvent, after
from services.runtime.backoff import doubled
from services.runtime.messages import Received, Record
from services.runtime.transaction import Transaction

ACTOR = "service:results"
CONSUMER = "results"
ADVICE = "mend the cause, test it with `reclaim pacs echo`, then `reclaim dead-letters replay`"


class JobLost(Exception):  # noqa: N818 - named for what happened, not for the mechanism
    """Another attempt has taken over; this one must not write."""


@dataclass(frozen=True, slots=True)
class Claim:
    """One attempt at sending a result. Every write names it; a later attempt shuts an earlier one out."""

    job_id: str
    destination: str
    prediction: Prediction
    attempt: int
    owner: str
    traceparent: str


def enqueue(tx: Transaction, event: Received[Prediction], destination: str) -> None:
    """Enter the job of a prediction; one that was given up (a replayed dead letter) starts anew."""
    now, data, record = tx.clock.now(), event.data, event.record
    job = ResultJob(
        job_id=event.event_id,
        study_key=data.study_key,
        model=data.model,
        version=data.version,
        revision=data.revision,
        destination=destination,
        due_at=now,
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        key=record.key,
        headers=dict(record.headers),
        body=record.body,
        traceparent=event.traceparent,
        created_at=now,
        updated_at=now,
    )
    if not repository.insert(tx, job):
        _replay(tx, event.event_id, destination)


def _replay(tx: Transaction, job_id: str, destination: str) -> None:
    job = repository.locked(tx.session, job_id)
    if job.state == ResultState.GIVEN_UP:
        job.attempt, job.destination, job.due_at = 0, destination, tx.clock.now()
        _move(tx, job, ResultEvent.REPLAY, error="")


def claim_next(tx: Transaction, owner: str, settings: ResultsSettings) -> Claim | None:
    """Take the job that is due for longest, None when there is none. A job without attempts left is given up on the way."""
    times = settings.lease_s, settings.longest_delay_s
    while (job := repository.claimable(tx.session, tx.clock.now(), owner, *times)) is not None:
        if job.attempt >= settings.max_attempts:
            _give_up(tx, job, "Exhausted", f"given up after {job.attempt} attempts without a word: the worker ended each time")
            tx.session.flush()
            continue
        event = ResultEvent.CLAIM if job.state == ResultState.QUEUED else ResultEvent.RECLAIM
        job.owner, job.attempt = owner, job.attempt + 1
        job.lease_until = tx.clock.now() + timedelta(seconds=settings.lease_s)
        _move(tx, job, event, error=job.error)
        prediction = Prediction.model_validate_json(job.body)
        return Claim(job.job_id, job.destination, prediction, job.attempt, owner, job.traceparent)
    return None


def succeed(tx: Transaction, claim: Claim, objects: Mapping[str, str]) -> None:
    """The PACS has it. `objects` maps kinds to statuses."""
    job = _held(tx, claim)
    _move(tx, job, ResultEvent.SUCCEED, error="")
    tx.audit(ACTOR, "result.sent", job.study_key, **_facts(job), objects=dict(objects))


def postpone(tx: Transaction, claim: Claim, reason: str, settings: ResultsSettings) -> bool:
    """Try again later, or give up when no attempt is left; True when it was given up."""
    job = _held(tx, claim)
    if job.attempt >= settings.max_attempts:
        _give_up(tx, job, "Undelivered", f"given up after {job.attempt} attempts; the last one: {reason}")
        return True
    job.due_at = tx.clock.now() + timedelta(seconds=doubled(job.attempt - 1, settings.first_delay_s, settings.longest_delay_s))
    _move(tx, job, ResultEvent.POSTPONE, error=reason)
    return False


def give_up(tx: Transaction, claim: Claim, error: str, reason: str) -> None:
    """Close a job that no further attempt can help."""
    _give_up(tx, _held(tx, claim), error, reason)


def release(tx: Transaction, claim: Claim) -> None:
    """Put the job back because this process ends; the attempt does not count."""
    job = _held(tx, claim)
    job.attempt -= 1
    _move(tx, job, ResultEvent.RELEASE, error=job.error)


def _held(tx: Transaction, claim: Claim) -> ResultJob:
    job = repository.held(tx.session, claim.job_id, claim.owner, claim.attempt)
    if job is None:
        raise JobLost(f"result {claim.job_id}: attempt {claim.attempt} no longer holds the lease")
    return job


def _give_up(tx: Transaction, job: ResultJob, error: str, reason: str) -> None:
    record = Record(job.topic, job.partition, job.offset, job.key, job.headers, job.body)
    advised = f"result to {job.destination}: {reason}; {ADVICE}"[:1000]
    _move(tx, job, ResultEvent.GIVE_UP, error=advised)
    tx.reject(CONSUMER, record, error, advised)
    tx.audit(ACTOR, "result.given_up", job.study_key, **_facts(job), reason=reason[:500])


def _move(tx: Transaction, job: ResultJob, event: ResultEvent, *, error: str) -> None:
    job.state = after(ResultState(job.state), event)
    job.error, job.updated_at = error[:1000], tx.clock.now()
    if job.state != ResultState.SENDING:
        job.owner, job.lease_until = "", None
    tx.session.add(job)


def _facts(job: ResultJob) -> dict[str, str | int]:
    return {
        "model": job.model,
        "version": job.version,
        "revision": job.revision,
        "destination": job.destination,
        "attempts": job.attempt,
    }

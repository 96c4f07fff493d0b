"""Reads an overview: a few bounded queries, so that it is quick with a full database too."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import and_, or_
from sqlmodel import Session, col, func, select

from agents import repository
from agents.overview.facts import Consumer, Letters, ModelState, Outgoing, Outlook, Overview, Studies, Warned, Work
from agents.redaction import plain
from schemas.drift import DriftWindow
from schemas.inbox_pages import InboxPage
from schemas.settings import Settings
from schemas.tables import (
    Case,
    DeadLetter,
    Evaluation,
    Inbox,
    ModelVersion,
    Order,
    Outbox,
    RegisteredModel,
    Study,
)
from schemas.topics import TOPICS, Topic
from schemas.vocabulary import CaseRole, StudyState, VersionState
from services.evaluation.next_batch import next_batch
from services.runtime import registry
from services.runtime.dead_letters import WAITING
from services.runtime.outbox import REFUSED
from services.runtime.pages import standing

LOOKED_AT: Final = 1000
"""Newest events of a topic that are looked at to say how far its consumers are."""
MOST: Final = 50
"""Orders, and evaluations of a version, that are looked at."""


def read(session: Session, settings: Settings, now: datetime) -> Overview:
    """Everything that the database says about how things stand."""
    return Overview(
        at=now,
        studies=_studies(session, now),
        models=tuple(model_state(session, settings, row) for row in registry.models(session)),
        work=tuple(_work(session, row) for row in repository.orders(session, states=repository.ACTIVE, limit=MOST)),
        letters=_letters(session),
        outgoing=_outgoing(session),
        consumers=tuple(consumers(session)),
    )


def _studies(session: Session, now: datetime) -> Studies:
    at = col(Study.last_instance_at)
    counts = (
        func.count(),
        func.count().filter(col(Study.state) == StudyState.OPEN),
        func.count().filter(at >= now - timedelta(days=1)),
        func.max(at),
    )
    received, unfinished, last_day, last = session.execute(select(*counts).select_from(Study)).one()
    return Studies(received=received, open=unfinished, last_day=last_day, last_received_at=last)


def model_state(session: Session, settings: Settings, row: RegisteredModel) -> ModelState:
    """One model: what serves, what was said of it and since when, and how many labels the next evaluation lacks."""
    plain_facts = {"name": row.name, "task": plain(row.task), "champion": row.champion, "serving": row.serving}
    if row.champion is None:
        return ModelState.model_validate(plain_facts)
    judged = repository.evaluations(session, row.name, row.champion, MOST)
    newest = judged[0] if judged else None
    scored = select(func.max(Case.scored_at)).where(Case.model == row.name, Case.version == row.champion)
    return ModelState(
        **plain_facts,
        status=newest.status if newest else "",
        diagnosis=newest.diagnosis if newest else "",
        since=_since(judged),
        evaluated_at=newest.evaluated_at if newest else None,
        judged_cases=newest.stream_cases if newest else 0,
        last_scored_at=session.exec(scored).one(),
        unlabelled=repository.unlabelled(session, row.name, row.champion),
        outlook=_outlook(session, settings, row.name),
        **_challenger(session, row.name, row.champion),
        warning=_warning(session, row.name),
    )


def _since(judged: Sequence[Evaluation]) -> datetime | None:
    """When a version came to its present status; of more than `MOST` evaluations alike, when the oldest of them was made."""
    alike = []
    for row in judged:
        if row.status != judged[0].status:
            break
        alike.append(row.evaluated_at)
    return min(alike, default=None)


def _outlook(session: Session, settings: Settings, model: str) -> Outlook | None:
    found = next_batch(session, settings.join, model)
    if found is None:
        return None
    return Outlook(
        first=not found.batches,
        ready=found.ready,
        needed=found.size,
        missing=found.missing,
        labels=found.studies,
        closes_at=found.closes_at,
    )


def _challenger(session: Session, model: str, champion: int) -> dict[str, int]:
    """The version that waits in the shadow for labels of the gate, with how many there are."""
    query = select(ModelVersion).where(
        ModelVersion.model == model, ModelVersion.parent == champion, ModelVersion.state == VersionState.CHALLENGER
    )
    row = session.exec(query.order_by(col(ModelVersion.version).desc()).limit(1)).first()
    if row is None:
        return {}
    needed = int(row.metrics.get("gate_cases_needed") or 0)
    cases = repository.labelled(session, model, row.version, CaseRole.GATE)
    return {"challenger": row.version, "gate_cases": cases, "gate_cases_needed": needed}


def _warning(session: Session, model: str) -> Warned | None:
    """What the newest window of either kind warns of."""
    newest = (col(DriftWindow.measured_at).desc(), col(DriftWindow.number).desc())
    for kind in ("cases", "feed"):
        query = select(DriftWindow).where(DriftWindow.model == model, DriftWindow.kind == kind)
        row = session.exec(query.order_by(*newest).limit(1)).first()
        if row is not None and row.warning:
            return Warned(at=row.measured_at, suspected=row.suspected, summary=plain(row.summary, 300))
    return None


def _work(session: Session, row: Order) -> Work:
    job = repository.job_of(session, row.order_id)
    facts = {} if job is None else {"job": job.state, **{name: job.progress.get(name) for name in ("epoch", "epochs")}}
    message = plain(str(job.progress.get("message") or ""), 200) if job is not None else ""
    return Work(
        order_id=row.order_id,
        kind=row.kind,
        remedy=row.remedy or "",
        model=row.model,
        state=row.state,
        actor=plain(row.actor, 60),
        since=row.created_at,
        message=message,
        **facts,
    )


def _letters(session: Session) -> Letters:
    query = select(DeadLetter.consumer, func.count(), func.max(DeadLetter.created_at)).where(WAITING)
    rows = list(session.exec(query.group_by(DeadLetter.consumer).order_by(DeadLetter.consumer)))
    counts = {consumer: count for consumer, count, _ in rows}
    return Letters(waiting=sum(counts.values()), by_consumer=counts, newest_at=max((at for *_, at in rows), default=None))


def _outgoing(session: Session) -> Outgoing:
    query = select(func.count(), func.min(Outbox.created_at)).where(col(Outbox.sent_at).is_(None))
    count, oldest = session.exec(query).one()
    return Outgoing(waiting=count, oldest=oldest)


def consumers(session: Session) -> list[Consumer]:
    """Every reader of a topic, in the order in which events come past them."""
    readers = dict.fromkeys(reader for topic in TOPICS for reader in topic.readers)
    return [_consumer(session, name, [topic for topic in TOPICS if name in topic.readers]) for name in readers]


def _consumer(session: Session, name: str, topics: Sequence[Topic]) -> Consumer:
    seen = [_behind(session, name, topic) for topic in topics]
    return Consumer(
        name=name,
        waiting=sum(waiting for waiting, *_ in seen),
        at_least=any(waiting == LOOKED_AT for waiting, *_ in seen),
        oldest_waiting=min((oldest for _, oldest, _ in seen if oldest), default=None),
        last_active_at=max((last for *_, last in seen if last), default=None),
    )


def _behind(session: Session, reader: str, topic: Topic) -> tuple[int, datetime | None, datetime | None]:
    """Of a topic's newest events: how many the reader has not dealt with, since when, and when it dealt with one last."""
    ours = col(Outbox.headers)["ce_id"].as_string() == col(Outbox.event_id)  # as in services.runtime.outbox
    columns = (col(Outbox.event_id), col(Outbox.created_at))
    query = select(*columns).where(Outbox.topic == topic.name, Outbox.sent_to != REFUSED, ours)
    newest = query.order_by(col(Outbox.created_at).desc()).limit(LOOKED_AT).subquery()
    own = and_(col(Inbox.consumer) == reader, col(Inbox.event_id) == newest.c.event_id)
    rejected = and_(col(DeadLetter.consumer) == reader, col(DeadLetter.event_id) == newest.c.event_id)
    joined = newest.outerjoin(Inbox, own).outerjoin(DeadLetter, rejected)
    noted = or_(col(Inbox.event_id).is_not(None), col(DeadLetter.event_id).is_not(None))
    found = session.execute(select(newest.c.event_id, newest.c.created_at, noted, Inbox.handled_at).select_from(joined)).all()
    doubtful = {event_id: at for event_id, at, is_noted, _ in found if not is_noted}
    paged = standing(session, reader, doubtful)
    waiting = [at for event_id, at in doubtful.items() if event_id not in paged]
    by_page = session.exec(select(func.max(InboxPage.handled_at)).where(InboxPage.consumer == reader)).one()
    last = max((at for at in (by_page, *(handled for *_, handled in found)) if at), default=None)
    return len(waiting), min(waiting, default=None), last

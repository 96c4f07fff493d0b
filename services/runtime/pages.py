"""Inbox pages: which events stand in them, and which pages may go (`schemas.inbox_pages.InboxPage`).

They are walked in the order of time and not joined: a join has to take all of them apart for every question, and PostgreSQL
did it anew for every event.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from datetime import datetime, timedelta
from itertools import chain
from typing import Any, Final

import orjson
from sqlalchemy import ColumnElement, delete, exists
from sqlmodel import Session, col, select

from schemas.inbox_pages import InboxPage
from schemas.tables import Outbox
from services.runtime.lease import MOST_APART_S

APART: Final = timedelta(seconds=MOST_APART_S)
AT_ONCE: Final = 200
"""Pages that are read together."""
ASKED: Final = 5000
"""Events that are looked for in the outbox with one statement."""


def keepers(session: Session, consumers: Iterable[str]) -> list[str]:
    """Those of the consumers that keep pages."""
    return [name for name in consumers if session.scalar(select(exists().where(col(InboxPage.consumer) == name)))]


def standing(session: Session, consumer: str, events: Mapping[str, datetime], *, anywhere: bool = False) -> set[str]:
    """Those of some events, by id with the time when each was made, that stand in a page of the consumer.

    Looked for in the pages from the first event on, as far as clocks agree; with `anywhere` in the others too.
    """
    left = set(events)
    if left:
        first = min(events.values()) - APART
        spans = (col(InboxPage.handled_at) >= first, col(InboxPage.handled_at) < first)
        for span in spans if anywhere else spans[:1]:
            _strike_out(session, consumer, span, left)
    return set(events) - left


def _strike_out(session: Session, consumer: str, span: ColumnElement[bool], left: set[str]) -> None:
    query = select(InboxPage.event_ids).where(InboxPage.consumer == consumer, span).order_by(col(InboxPage.handled_at))
    with closing(session.exec(query.execution_options(yield_per=AT_ONCE))) as pages:
        for page in pages:
            if not left:
                return
            left.difference_update(orjson.loads(page))


def forget_pages(session: Session, consumer: str, before: datetime) -> None:
    """Delete pages older than `before` of which the outbox has no event any more: nobody asks for what stands in them.

    The oldest first; ends at `AT_ONCE` pages of which none may go.
    """
    last = 0
    while rows := _oldest(session, consumer, before, last):
        last = rows[-1][0]
        pages = {identity: orjson.loads(event_ids) for identity, event_ids in rows}
        kept = _in_outbox(session, list(chain.from_iterable(pages.values())))
        gone = [identity for identity, event_ids in pages.items() if kept.isdisjoint(event_ids)]
        if not gone:
            return
        session.execute(delete(InboxPage).where(col(InboxPage.id).in_(gone)))


def _oldest(session: Session, consumer: str, before: datetime, last: int) -> Sequence[Any]:
    query = select(InboxPage.id, InboxPage.event_ids).where(InboxPage.consumer == consumer, InboxPage.handled_at < before)
    return session.exec(query.where(col(InboxPage.id) > last).order_by(col(InboxPage.id)).limit(AT_ONCE)).all()


def _in_outbox(session: Session, event_ids: Sequence[str]) -> set[str]:
    parts = (event_ids[start : start + ASKED] for start in range(0, len(event_ids), ASKED))
    query = select(Outbox.event_id)
    return {found for part in parts for found in session.exec(query.where(col(Outbox.event_id).in_(part)))}

"""Inbox pages as SQL sees them: the ids that stand in them, and when they may go (`schemas.inbox_pages.InboxPage`)."""

from datetime import datetime

from sqlalchemy import JSON, ColumnElement, Select, cast, delete, func, select, true
from sqlalchemy.orm import Mapped
from sqlmodel import Session, col

from schemas.inbox_pages import InboxPage
from schemas.tables import Outbox


def paged(session: Session, consumer: str, event_id: ColumnElement[str] | Mapped[str]) -> ColumnElement[bool]:
    """Whether an event stands in a page of the consumer."""
    return event_id.in_(_ids(session.get_bind().dialect.name).where(col(InboxPage.consumer) == consumer))


def _ids(dialect: str) -> Select[tuple[str]]:
    if dialect == "sqlite":
        listed = func.json_each(col(InboxPage.event_ids)).table_valued("value")
    else:
        listed = func.json_array_elements_text(cast(col(InboxPage.event_ids), JSON)).table_valued("value")
    return select(listed.c.value).select_from(InboxPage).join(listed, true())


def forget_pages(session: Session, before: datetime) -> None:
    """Delete pages older than `before` and than every event in the outbox: nobody asks for what stands in them any more."""
    oldest = func.coalesce(select(func.min(col(Outbox.created_at))).scalar_subquery(), before)
    session.execute(delete(InboxPage).where(col(InboxPage.handled_at) < before, col(InboxPage.handled_at) < oldest))

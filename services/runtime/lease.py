"""Leases: a role that one process holds at a time, kept as a row so that it works on SQLite and PostgreSQL alike.

Expiry is compared with the caller's clock: hosts that share a database need clocks that agree to within a lease's length. Nobody
holds a lease for longer than its length, so one that ends much later was written by a clock that has been set back since.
"""

import os
import socket
import uuid
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import ColumnElement, delete, or_, update
from sqlalchemy.orm import Mapped
from sqlmodel import Session, col

from schemas.tables import Lease
from services.runtime.transaction import Transaction

MOST_APART_S: Final = 60.0
"""Clocks that are further apart are not in order."""


def new_owner() -> str:
    """A name that no other holder has: host, process and a random part, at most 64 characters."""
    return f"{socket.gethostname()[:32]}:{os.getpid()}:{uuid.uuid4().hex[:12]}"


def hold(tx: Transaction, name: str, owner: str, seconds: float) -> bool:
    """Take or renew the lease; False while somebody else holds it.

    The row stays locked until the transaction ends, so what else the transaction does is fenced by the lease.
    """
    now = tx.clock.now()
    until = now + timedelta(seconds=seconds)
    if tx.insert_new(Lease, [Lease(name=name, owner=owner, expires_at=until)], returning="name"):
        return True
    mine_or_expired = or_(col(Lease.owner) == owner, is_over(col(Lease.expires_at), now, seconds))
    statement = update(Lease).where(col(Lease.name) == name, mine_or_expired).values(owner=owner, expires_at=until)
    return tx.session.execute(statement.returning(col(Lease.name))).first() is not None


def is_over(until: Mapped[Any], now: datetime, seconds: float) -> ColumnElement[bool]:
    """Whether a time that was to come after `seconds` at most has come, or was written by a clock that ran ahead."""
    return or_(until <= now, until > now + timedelta(seconds=seconds + MOST_APART_S))


def is_held(session: Session, name: str, now: datetime) -> bool:
    """Whether somebody holds the lease, for those who only ask."""
    row = session.get(Lease, name)
    return row is not None and row.expires_at > now


def release(tx: Transaction, name: str, owner: str) -> None:
    """Give the lease back, so that a successor need not wait for its expiry."""
    tx.session.execute(delete(Lease).where(col(Lease.name) == name, col(Lease.owner) == owner))

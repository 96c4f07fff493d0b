"""What services share that write many rows by statements of their own, on SQLite and on PostgreSQL."""

from functools import cache
from typing import Any

import orjson
from sqlmodel import Session


def on_sqlite(session: Session) -> bool:
    """Whether the session's database is SQLite; else it is PostgreSQL."""
    return session.get_bind().dialect.name == "sqlite"


def json_text(value: Any) -> str:
    """A value as JSON: lists and rows go into a statement as one parameter."""
    return orjson.dumps(value).decode()


@cache
def several(statement: str, columns: int, rows: int) -> str:
    """A statement of SQLite's with parameters for so many rows where it says `{rows}`."""
    row = f"({', '.join('?' * columns)})"
    return statement.replace("{rows}", ", ".join([row] * rows))

"""Database migrations (Alembic), run by the program itself so that no process ever meets tables older than its code.

`upgrade` is safe when several processes start at once: the whole upgrade is one transaction, which SQLite opens with
BEGIN IMMEDIATE and PostgreSQL puts behind an advisory lock, so later ones wait and then find nothing to do.
"""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, Engine, inspect, text

from services.runtime.database import Database, outages_as_transient

if TYPE_CHECKING:
    from alembic.config import Config

FOLDER = Path(__file__).parent
ADVISORY_LOCK = 0x7265636C61696D
"""Key of PostgreSQL's advisory lock: `reclaim` in ASCII."""
NEWEST = "0002"
"""Revision of the tables that this code works with."""


class UnknownTables(Exception):  # noqa: N818 - says what is the matter
    """The database is of another version, or no database of ours."""


def upgrade(database: Database, revision: str = NEWEST) -> None:
    """Bring the tables to a revision (default: the newest). Idempotent; concurrent callers wait for each other.

    Raises Transient while the database is away, UnknownTables for one that this code cannot bring there.
    """
    with _alone(database.engine), outages_as_transient(), database.engine.begin() as connection:
        if database.dialect == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK})
        if _revision(connection) != revision:
            _migrate(connection, revision)


def _revision(connection: Connection) -> str | None:
    """The revision of the tables, None where there are none."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    found: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return found


def _migrate(connection: Connection, revision: str) -> None:
    from alembic import command  # noqa: PLC0415 - a process whose tables are right saves the memory
    from alembic.util import CommandError  # noqa: PLC0415 - see above

    try:
        command.upgrade(configuration(connection), revision)
    except CommandError as error:
        raise UnknownTables(str(error)) from error


def configuration(connection: Connection) -> "Config":
    """Alembic's configuration for one open connection; nothing is read from an ini file."""
    from alembic.config import Config  # noqa: PLC0415 - see above

    config = Config()
    config.set_main_option("script_location", str(FOLDER))
    config.attributes["connection"] = connection
    return config


@contextmanager
def _alone(engine: Engine) -> Iterator[None]:
    """A file lock beside a SQLite file: turning WAL on answers `locked` at once instead of waiting."""
    name = engine.url.database
    if engine.dialect.name != "sqlite" or not name or name == ":memory:":
        yield
        return
    with Path(f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield

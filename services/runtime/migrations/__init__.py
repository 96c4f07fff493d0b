"""Database migrations (Alembic), run by the program itself so that no process ever meets tables older than its code.

`upgrade` is safe when several processes start at once: the whole upgrade is one transaction, which SQLite opens with
BEGIN IMMEDIATE and PostgreSQL puts behind an advisory lock, so later ones wait and then find nothing to do.
"""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, text

from services.runtime.database import Database, outages_as_transient

FOLDER = Path(__file__).parent
ADVISORY_LOCK = 0x7265636C61696D
"""Key of PostgreSQL's advisory lock: `reclaim` in ASCII."""


def upgrade(database: Database, revision: str = "head") -> None:
    """Bring the tables to a revision (default: the newest). Idempotent; concurrent callers wait for each other.

    Raises Transient while the database is away.
    """
    with _alone(database.engine), outages_as_transient(), database.engine.begin() as connection:
        if database.dialect == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK})
        command.upgrade(configuration(connection), revision)


def configuration(connection: Connection) -> Config:
    """Alembic's configuration for one open connection; nothing is read from an ini file."""
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

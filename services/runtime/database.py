"""The database: SQLite on one machine, PostgreSQL everywhere else, behind one way to open a transaction.

SQLite runs in WAL with foreign keys, synchronous=FULL and BEGIN IMMEDIATE for every writing transaction: with deferred
transactions two claimers can both read a row as free.
"""

import asyncio
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlmodel import Session

from schemas.settings import Settings
from services.runtime.bells import Bells, listen_to_notifications, notify
from services.runtime.clock import Clock, SystemClock
from services.runtime.errors import InvalidInput, Transient
from services.runtime.transaction import Transaction

READ_ONLY = "reclaim_read_only"
READ_ONLY_SERVER = "25006"
"""SQLSTATE of a server that takes no writes: a standby that is about to take over, or one that was demoted."""
SAFETY = ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=30000")
SPEED = ("cache_size=-32000", "wal_autocheckpoint=8000")
"""At most 32 MB of pages a connection, of which only those used take memory; a checkpoint every 32 MB of WAL. Pseudonyms are
random keys: with SQLite's 2 MB and 4 MB most pages of a batch are read and written several times."""


class Database:
    """Opens transactions. Thread-safe; one per process."""

    def __init__(self, url: str, clock: Clock | None = None, pool_size: int = 5, bells: Bells | None = None) -> None:
        self.engine = _make_engine(url, pool_size)
        self.clock = clock or SystemClock()
        self._bells = bells

    @classmethod
    def from_settings(cls, settings: Settings, clock: Clock | None = None) -> "Database":
        """The configured database; makes the state folder for SQLite."""
        settings.state_dir.mkdir(parents=True, exist_ok=True)
        return cls(settings.database_url, clock, settings.database.pool_size, Bells(settings.bells_dir))

    @property
    def dialect(self) -> str:
        """`sqlite` or `postgresql`."""
        return self.engine.dialect.name

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """One writing transaction: commits at the end, rolls back on any exception; raises Transient when the database is away."""
        with self._session() as session:
            transaction = Transaction(session, self.clock)
            yield transaction
            transaction.finish()
            if self.dialect == "postgresql":
                for bell in sorted(transaction.rings):
                    notify(session, bell)
            session.commit()
        if self._bells is not None and self.dialect != "postgresql":
            for bell in transaction.rings:
                self._bells.ring(bell)

    def listen(self, bell: str, awake: asyncio.Event) -> AbstractContextManager[None]:
        """Have `awake` set whenever a transaction that rings `bell` is committed (see `services.runtime.bells`)."""
        if self.dialect == "postgresql":
            return listen_to_notifications(self.engine, bell, awake)
        return self._bells.listen(bell, awake) if self._bells is not None else nullcontext()

    @contextmanager
    def read(self) -> Iterator[Session]:
        """One reading transaction; never blocks writers."""
        with self._session(**{READ_ONLY: True}) as session:
            yield session

    @contextmanager
    def _session(self, **options: Any) -> Iterator[Session]:
        with outages_as_transient(), Session(self.engine.execution_options(**options), expire_on_commit=False) as session:
            yield session

    def close(self) -> None:
        """Close all pooled connections."""
        self.engine.dispose()


@contextmanager
def outages_as_transient() -> Iterator[None]:
    """Raise Transient for what may pass: a database that is away, locked or shutting down."""
    try:
        yield
    except DBAPIError as error:
        if is_transient(error):
            raise Transient(f"the database is away ({reason_of(error)})") from error
        raise
    except PoolTimeoutError as error:
        raise Transient("all connections to the database are in use") from error


def reason_of(error: DBAPIError) -> str:
    """The driver's own first line, which names no value of a row: those stand in the lines after it."""
    lines = str(error.orig).strip().splitlines()
    return (lines[0] if lines else type(error.orig).__name__)[:200]


def is_transient(error: DBAPIError) -> bool:
    """Whether trying again may help: lost connections, locks, serialisation failures, server shut-downs, disks."""
    if error.connection_invalidated or isinstance(error, InterfaceError):
        return True
    sqlstate = getattr(error.orig, "sqlstate", None)
    if sqlstate is not None:
        return str(sqlstate)[:2] in {"08", "40", "53", "55", "57", "58"} or sqlstate == READ_ONLY_SERVER
    passing = ("locked", "busy", "connection", "resolve host", "full", "disk I/O error", "unable to open database", "readonly")
    return isinstance(error, OperationalError) and any(word in str(error.orig) for word in passing)


def _make_engine(url: str, pool_size: int) -> Engine:
    parsed = _parsed(url)
    if parsed.get_backend_name() == "sqlite":
        if parsed.database and parsed.database != ":memory:":
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(parsed, hide_parameters=True, connect_args={"timeout": 30, "check_same_thread": False})
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    return create_engine(parsed, hide_parameters=True, pool_size=pool_size, pool_pre_ping=True)


def _parsed(url: str) -> URL:
    """The address; InvalidInput, which does not repeat it, when it is none or names a driver that is not installed."""
    try:
        parsed = make_url(url)
        parsed.get_dialect().import_dbapi()
    except (ArgumentError, ImportError, ValueError):
        raise InvalidInput(
            "database.url is no SQLAlchemy address with an installed driver, such as postgresql+psycopg://user:secret@host/reclaim"
        ) from None
    return parsed


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # SQLAlchemy's begin event below opens the transaction, not the driver
    for pragma in (*SAFETY, *SPEED):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    read_only = connection.get_execution_options().get(READ_ONLY, False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

"""Shared fixtures: databases made by the real migrations on both engines, a clock that tests move, a process context."""

import logging
import os
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import psutil
import pytest
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.exc import OperationalError

from schemas.settings import DatabaseSettings, Settings
from services.runtime.database import Database
from services.runtime.identity import Pseudonyms
from services.runtime.migrations import upgrade
from services.runtime.service import Context

START = datetime(2026, 3, 2, 8, 0, tzinfo=UTC)
MEMORY = Path("/dev/shm")
ROOM, LEFT = 4 * 2**30, 6 * 2**30
"""Bytes that must be free in the file system in memory, and in memory itself: a whole run writes about half a gigabyte."""


def _keep_files_in_memory() -> None:
    """Where there is room and TMPDIR names no other place, tests and the processes they start write into memory.

    SQLite waits for the disk at every commit, and that is most of what tests wait for. Calls to sync are made as ever, and
    what a killed process has written is as safe here as on a disk.
    """
    if "TMPDIR" in os.environ or not MEMORY.is_dir() or not os.access(MEMORY, os.W_OK | os.X_OK):
        return
    place = os.statvfs(MEMORY)
    if place.f_bavail * place.f_frsize < ROOM or place.f_flag & os.ST_NOEXEC or psutil.virtual_memory().available < LEFT:
        return
    os.environ["TMPDIR"] = tempfile.tempdir = str(MEMORY)


_keep_files_in_memory()


@pytest.fixture(autouse=True)
def _log_to_nobody() -> Iterator[None]:
    """A command run in this process sends the log to the standard error of its test, which is closed after it."""
    yield
    root = logging.getLogger()
    root.handlers[:] = [handler for handler in root.handlers if type(handler) is not logging.StreamHandler]


class FakeClock:
    """Time that stands still until a test moves it."""

    def __init__(self) -> None:
        self.at = START
        self.seconds = 1_000.0

    def now(self) -> datetime:
        return self.at

    def monotonic(self) -> float:
        return self.seconds

    def advance(self, seconds: float) -> None:
        self.at += timedelta(seconds=seconds)
        self.seconds += seconds

    def set(self, at: datetime) -> None:
        self.at = at


class PostgresServer:
    """A private PostgreSQL on a unix socket (no TCP), without fsync: its data need not outlive the tests."""

    def __init__(self, binaries: Path) -> None:
        self.binaries = binaries
        self.folder = Path(tempfile.mkdtemp(prefix="reclaim-pg-"))
        self.user = "postgres" if os.geteuid() == 0 else None  # PostgreSQL refuses to run as root
        self.process: subprocess.Popen[bytes] | None = None
        self._initialise()

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://postgres@/postgres?host={self.folder}"

    def _initialise(self) -> None:
        if self.user:
            shutil.chown(self.folder, self.user)
        command = [self.binaries / "initdb", "-D", self.folder / "data", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"]
        subprocess.run(command, check=True, capture_output=True, user=self.user, cwd=self.folder)

    def start(self) -> None:
        options = {"listen_addresses": "", "unix_socket_directories": self.folder, "fsync": "off", "max_connections": 60}
        command = [self.binaries / "postgres", "-D", self.folder / "data"]
        for name, value in options.items():
            command += ["-c", f"{name}={value}"]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, user=self.user, cwd=self.folder)
        self._wait()

    def _wait(self) -> None:
        engine = create_engine(self.url)
        for _ in range(300):
            try:
                with engine.connect():
                    engine.dispose()
                    return
            except OperationalError:
                time.sleep(0.05)
        pytest.fail(f"PostgreSQL did not start:\n{(self.folder / 'log').read_text()}")

    def stop(self) -> None:
        """Immediate shutdown, as when the machine goes down."""
        if self.process is not None:
            self.process.send_signal(3)
            self.process.wait(20)
            self.process = None

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


def _postgres_binaries() -> Path | None:
    on_path = shutil.which("initdb")
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if found:
        return found[-1].parent
    return Path(on_path).resolve().parent if on_path else None


@pytest.fixture(scope="session")
def postgres_binaries() -> Path:
    """Folder of PostgreSQL's programs; skips loudly where it is not installed."""
    binaries = _postgres_binaries()
    if binaries is None:
        pytest.skip("NOT TESTED on PostgreSQL: no initdb in /usr/lib/postgresql/*/bin or on PATH (Debian package: postgresql)")
    return binaries


@pytest.fixture(scope="session")
def postgres_url(postgres_binaries: Path) -> Iterator[str]:
    """Administrator's address of a private PostgreSQL server that lives as long as the test session."""
    server = PostgresServer(postgres_binaries)
    try:
        server.start()
        yield server.url
    finally:
        server.remove()


@pytest.fixture
def postgres_server(postgres_binaries: Path) -> Iterator[PostgresServer]:
    """A running PostgreSQL of the test's own, which it may stop and start."""
    server = PostgresServer(postgres_binaries)
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite file to copy from."""
    path = tmp_path_factory.mktemp("sqlite") / "template.sqlite"
    database = Database(f"sqlite:///{path}")
    upgrade(database)
    with database.engine.connect() as connection:
        connection.exec_driver_sql("COMMIT")
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.exec_driver_sql("BEGIN")
    database.close()
    return path


@pytest.fixture(scope="session")
def postgres_template(postgres_url: str) -> str:
    """Name of a migrated PostgreSQL database to copy from."""
    name = "reclaim_template"
    _administer(postgres_url, f"CREATE DATABASE {name}")
    database = Database(_address(postgres_url, name))
    upgrade(database)
    database.close()
    return name


def _administer(url: str, statement: str) -> None:
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(statement))
    engine.dispose()


def _address(url: str, name: str) -> str:
    return make_url(url).set(database=name).render_as_string(hide_password=False)


@pytest.fixture
def sqlite_url(tmp_path: Path, sqlite_template: Path) -> str:
    """Address of a fresh, migrated SQLite database."""
    path = tmp_path / "database" / "reclaim.sqlite"
    path.parent.mkdir()
    shutil.copy(sqlite_template, path)
    return f"sqlite:///{path}"


@pytest.fixture
def postgres_database_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """Address of a fresh, migrated PostgreSQL database."""
    url, template = request.getfixturevalue("postgres_url"), request.getfixturevalue("postgres_template")
    name = f"test_{uuid.uuid4().hex[:12]}"
    _administer(url, f"CREATE DATABASE {name} TEMPLATE {template}")
    yield _address(url, name)
    _administer(url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def database_url(request: pytest.FixtureRequest) -> str:
    """Address of a fresh, migrated database, once on each engine."""
    return str(request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "postgres_database_url"))


@pytest.fixture
def clock() -> FakeClock:
    """A clock that stands at START; `advance(seconds)` and `set(datetime)` move it."""
    return FakeClock()


@pytest.fixture
def database(database_url: str, clock: FakeClock) -> Iterator[Database]:
    """A fresh, migrated database, once on each engine."""
    database = Database(database_url, clock)
    yield database
    database.close()


@pytest.fixture
def sqlite_database(sqlite_url: str, clock: FakeClock) -> Iterator[Database]:
    """A fresh, migrated SQLite database, for tests in which the engine makes no difference."""
    database = Database(sqlite_url, clock)
    yield database
    database.close()


def _context(database: Database, clock: FakeClock, tmp_path: Path) -> Context:
    url = database.engine.url.render_as_string(hide_password=False)
    settings = Settings(state_dir=tmp_path / "state", database=DatabaseSettings(url=url))
    for folder in (settings.archive_dir, settings.models_dir, settings.reports_dir):
        folder.mkdir(parents=True, exist_ok=True)
    return Context(settings, database, clock, Pseudonyms(b"test key, thirty-two bytes long!"))


@pytest.fixture
def context(database: Database, clock: FakeClock, tmp_path: Path) -> Context:
    """What a service's `build` is given, once on each database engine; the state folder is the test's own."""
    return _context(database, clock, tmp_path)


@pytest.fixture
def sqlite_context(sqlite_database: Database, clock: FakeClock, tmp_path: Path) -> Context:
    """The same on SQLite only."""
    return _context(sqlite_database, clock, tmp_path)


@pytest.fixture
def free_port() -> int:
    """A TCP port of the loopback interface that was free a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])

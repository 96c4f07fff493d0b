"""`reclaim status`: how everything stands, on one screen or as JSON. Reads only, and needs nothing that runs."""

import shutil
from datetime import datetime
from pathlib import Path

from pydantic import Field
from sqlalchemy.exc import DBAPIError

from agents.overview.facts import Fact, Overview
from agents.overview.reading import read
from listeners.cli.ports import actual_port, connects, held_by_another
from schemas.settings import Settings
from services.runtime.clock import Clock
from services.runtime.database import Database, reason_of
from services.runtime.errors import Transient
from services.runtime.presence import is_at_work
from services.runtime.run_state import read_state


class Running(Fact):
    """The service. Where another machine, or single `reclaim serve` processes, hold the relay, only `at_work` is known."""

    at_work: bool
    starting: bool = Field(False, description="`reclaim up` runs in this state folder, and nothing sends events to the bus yet")
    since: datetime | None = Field(None, description="Start of `reclaim up` in this state folder")
    down: tuple[str, ...] = Field((), description="Processes of `reclaim up` that are not there at the moment")
    misconfigured: tuple[str, ...] = Field((), description="Those of them that are not tried again: their settings are at fault")


class Listener(Fact):
    """The DICOM listener as this machine reaches it: a TCP connection, no association."""

    port: int
    up: bool
    foreign: bool = Field(False, description="Another program has the port of this folder's `reclaim up`, and what is sent to it")


class Disk(Fact):
    """The disk of the archive. Below the watermark C-STORE is refused."""

    free_bytes: int
    watermark_bytes: int

    @property
    def low(self) -> bool:
        """Whether C-STORE is refused."""
        return self.free_bytes < self.watermark_bytes


class Status(Fact):
    """The whole; `overview` is None where the database cannot be read, for the reason in `fault`."""

    at: datetime
    state_dir: str
    service: Running
    listener: Listener
    disk: Disk | None
    overview: Overview | None
    fault: str = ""


def status_of(settings: Settings, clock: Clock) -> Status:
    """Look at settings, state folder, port and database. Makes, changes and deletes nothing."""
    now = clock.now()
    running, overview, fault = _from_database(settings, clock)
    return Status(
        at=now,
        state_dir=str(settings.state_dir.absolute()),
        service=running,
        listener=_listener(settings),
        disk=_disk(settings),
        overview=overview,
        fault=fault,
    )


def _listener(settings: Settings) -> Listener:
    number = actual_port(settings, "dicom", settings.dicom.port)
    up = bool(number) and connects(_near(settings.dicom.host), number)
    return Listener(port=number, up=up, foreign=up and held_by_another(settings, "dicom"))


def _near(host: str) -> str:
    """Where a listener on this machine is reached: at its own address, or at the loopback where it listens on all."""
    return "127.0.0.1" if host in {"", "0.0.0.0", "::"} else host  # noqa: S104 - an address that is compared, not bound


def _from_database(settings: Settings, clock: Clock) -> tuple[Running, Overview | None, str]:
    supervised = _supervised(settings)
    file = settings.database_url.removeprefix("sqlite:///")
    if file != settings.database_url and not Path(file).is_file():
        return supervised, None, "nothing has been written here yet"
    database = Database(settings.database_url, clock, 1)
    try:
        at_work = is_at_work(database)
        with database.read() as session:
            overview = read(session, settings, clock.now())
    except (DBAPIError, Transient) as error:
        reason = reason_of(error) if isinstance(error, DBAPIError) else str(error)
        return supervised, None, f"the database cannot be read ({reason}): `reclaim doctor` says what to do"
    finally:
        database.close()
    return supervised.model_copy(update={"at_work": at_work, "starting": supervised.at_work and not at_work}), overview, ""


def _supervised(settings: Settings) -> Running:
    """What `reclaim up` of this state folder says of itself; asking makes a lock file, so only where it has run."""
    if not (settings.state_dir / "run" / "supervisor.lock").is_file():
        return Running(at_work=False)
    found = read_state(settings.state_dir)
    if found is None:
        return Running(at_work=False)
    down = tuple(name for name, pid in found.children.items() if not pid)
    return Running(at_work=True, since=found.started_at, down=down, misconfigured=found.misconfigured)


def _disk(settings: Settings) -> Disk | None:
    folder = settings.archive_dir if settings.archive_dir.is_dir() else settings.state_dir
    if not folder.is_dir():
        return None
    return Disk(free_bytes=shutil.disk_usage(folder).free, watermark_bytes=settings.dicom.min_free_bytes)

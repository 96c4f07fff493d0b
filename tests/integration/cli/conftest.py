"""The command line in this process, over a state folder of the test's own."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from listeners.cli.context import console, open_context
from listeners.cli.main import main
from schemas.tables import Lease
from services.runtime.outbox import RELAY
from services.runtime.service import Context


@dataclass(frozen=True)
class Said:
    """What a command printed, and its exit code."""

    code: int
    text: str


Reclaim = Callable[..., Said]


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sqlite_template: Path) -> Path:
    """A state folder with a migrated database; the only RECLAIM_ setting is its place."""
    for name in [name for name in os.environ if name.startswith("RECLAIM_")]:
        monkeypatch.delenv(name)
    folder = tmp_path / "state"
    folder.mkdir(mode=0o700)
    shutil.copy(sqlite_template, folder / "reclaim.sqlite")
    monkeypatch.setenv("RECLAIM_STATE_DIR", str(folder))
    monkeypatch.setenv("COLUMNS", "200")
    # A console takes its width when it is made, which may have been before.
    monkeypatch.setattr(console, "width", 200)
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.fixture
def reclaim(state: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Reclaim]:
    """Call `reclaim` with these arguments. A traceback is the test's failure: nothing but SystemExit may leave `main`."""
    before = os.umask(0o077)

    def call(*arguments: str) -> Said:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["reclaim", *arguments])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(bool(end.code))
        captured = capsys.readouterr()
        return Said(code, captured.out + captured.err)

    yield call
    os.umask(before)


@pytest.fixture
def site(state: Path) -> Iterator[Context]:
    """The same state folder as the service sees it."""
    context = open_context()
    yield context
    context.database.close()


@pytest.fixture
def running(site: Context) -> None:
    """A relay holds its lease, as in a running service."""
    from datetime import timedelta

    with site.database.transaction() as tx:
        tx.session.add(Lease(name=RELAY, owner="test", expires_at=tx.clock.now() + timedelta(hours=1)))

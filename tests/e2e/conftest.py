"""Fixtures of the whole loop: a model trained once, a service over a copy of its state, DCMTK."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.loop_samples import train_model
from tests.loop_world import STORESCU, Loop

MakeLoop = Callable[..., Loop]


@pytest.fixture(scope="session")
def trained_state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state folder (SQLite) with the model registered and serving, to copy from."""
    folder = tmp_path_factory.mktemp("trained")
    loop = Loop(folder / "state", folder / "log")
    train_model(loop.context, folder / "development")
    loop.close()
    return folder


@pytest.fixture
def make_loop(trained_state: Path, tmp_path: Path) -> Iterator[MakeLoop]:
    """Makes a stopped service with the trained model; keyword arguments are settings (`RECLAIM_…`)."""
    made: list[Loop] = []

    def make(**overrides: str) -> Loop:
        state = tmp_path / "state"
        if "RECLAIM_DATABASE_URL" not in overrides:
            shutil.copytree(trained_state / "state", state)
        made.append(Loop(state, tmp_path / "service.log", **overrides))
        if "RECLAIM_DATABASE_URL" in overrides:
            train_model(made[-1].context, tmp_path / "development")
        return made[-1]

    yield make
    for loop in made:
        loop.close()


@pytest.fixture(scope="session")
def storescu() -> Path:
    """DCMTK's storescu; skips loudly where it is not installed."""
    if not STORESCU.is_file():
        pytest.skip(f"NOT TESTED with DCMTK: no {STORESCU} (Debian package: dcmtk)")
    return STORESCU

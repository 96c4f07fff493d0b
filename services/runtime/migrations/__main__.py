"""Developer's commands: `python -m services.runtime.migrations initial | new MESSAGE | upgrade`.

`initial` rewrites the first migration from the tables; only before a first release, afterwards `new` adds one.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from alembic import command

from schemas.settings import load_settings
from services.runtime.database import Database
from services.runtime.migrations import FOLDER, configuration, upgrade

INITIAL = FOLDER / "versions" / "0001_initial.py"


def main(arguments: list[str]) -> int:
    """Run one command; returns the exit status."""
    match arguments:
        case ["initial"]:
            _write_initial()
        case ["new", message]:
            _write_new(message)
        case ["upgrade"]:
            upgrade(Database.from_settings(load_settings()))
        case _:
            sys.stderr.write(__doc__ or "")
            return 2
    return 0


def _write_initial() -> None:
    with tempfile.TemporaryDirectory() as versions:
        _autogenerate("The first tables", "0001", INITIAL, versions)


def _write_new(message: str) -> None:
    number = f"{len(list((FOLDER / 'versions').glob('0*.py'))) + 1:04d}"
    _autogenerate(message, number, FOLDER / "versions" / f"{number}_{'_'.join(message.lower().split())}.py", None)


def _autogenerate(message: str, revision: str, path: Path, versions: str | None) -> None:
    """Write what the tables have and the migrations in `versions` (None: our own) do not."""
    with tempfile.TemporaryDirectory() as folder:
        database = Database(f"sqlite:///{Path(folder) / 'empty.sqlite'}")
        if versions is None:
            upgrade(database)
        with database.engine.begin() as connection:
            config = configuration(connection)
            config.set_main_option("version_locations", versions or str(FOLDER / "versions"))
            config.set_main_option("path_separator", "os")
            script = command.revision(config, message, autogenerate=True, rev_id=revision)
        database.close()
    shutil.move(script.path, path)  # type: ignore[union-attr]
    _tidy(path)


def _tidy(path: Path) -> None:
    for tool in (["check", "--fix", "--quiet"], ["format", "--quiet"]):
        subprocess.run([sys.executable, "-m", "ruff", *tool, str(path)], check=True)  # noqa: S603 - our own interpreter


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

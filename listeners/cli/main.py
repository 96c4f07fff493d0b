"""`reclaim`: the entry point. Sub-commands live in their own modules and import what they need when they run."""

import sys
import warnings
from tomllib import TOMLDecodeError
from typing import TYPE_CHECKING

import typer
from pydantic import ValidationError
from rich.markup import escape
from sqlalchemy.exc import DBAPIError

from listeners.cli import run
from listeners.cli.context import console, nearest
from models.errors import ModelError
from schemas.settings import Settings, UnknownSetting, settings_file
from services.runtime.database import reason_of
from services.runtime.errors import InvalidInput, Transient
from services.runtime.health import EX_CONFIG
from services.runtime.migrations import UnknownTables
from services.runtime.privacy import keep_to_this_user

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

RUNNING_ONLY = (["serve"], ["up"])
"""Started with these, a process runs for weeks: it loads what it serves, and none of the other commands."""

app = typer.Typer(
    name="reclaim",
    help="Keeps medical-imaging AI healthy: scores studies that arrive over DICOM, finds decline, repairs, gates, rolls back.\n\n"
    "Start with `reclaim demo`, or `reclaim up` for your own site. Settings: environment RECLAIM_… or reclaim.toml.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(run.up)
app.command()(run.serve)
app.command()(run.demo)
app.command()(run.settings)
app.command()(run.doctor)
if sys.argv[1:2] not in RUNNING_ONLY:
    from listeners.cli.commands import add_to

    add_to(app, next(iter(sys.argv[1:2]), None))


def main() -> None:
    """Run the command line; expected faults are one readable line and an exit code, bugs a traceback.

    Archive, database and traces hold patients' data: what this process and its children write is its own user's only.
    """
    keep_to_this_user()
    warnings.filterwarnings("ignore", module="pydicom")  # it quotes its own source and header values; we say what is wrong
    try:
        app()
    except ValidationError as error:
        where = "settings" if error.title == Settings.__name__ else f"{error.title} is not valid"
        _fail(f"{where}: {_first_faults(error)}", EX_CONFIG if error.title == Settings.__name__ else 2)
    except UnknownSetting as error:
        _fail(f"settings: {error}", EX_CONFIG)
    except (TOMLDecodeError, UnicodeDecodeError) as error:
        _fail(f"settings: {settings_file()} is not TOML: {error}", EX_CONFIG)
    except (InvalidInput, ModelError) as error:
        _fail(str(error), EX_CONFIG if sys.argv[1:2] in RUNNING_ONLY else 2)  # these are given nothing but settings
    except BrokenPipeError:
        sys.exit(0)  # whoever read our output has seen enough
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error), 2)
    except (DBAPIError, UnknownTables) as error:
        reason = reason_of(error) if isinstance(error, DBAPIError) else str(error)
        _fail(f"the database cannot be used ({reason}): is it ours, and of this version?", 70)
    except Transient as error:
        _fail(f"{error}; try again, or ask `reclaim doctor`", 75)


def _fail(message: str, code: int) -> None:
    console.print(f"[red]error:[/red] {escape(message)}", soft_wrap=True)
    sys.exit(code)


def _first_faults(error: ValidationError) -> str:
    return "; ".join(f"{'.'.join(map(str, item['loc']))}: {_fault(item)}" for item in error.errors(include_input=False))


def _fault(item: "ErrorDetails") -> str:
    """What is wrong with one value; a name that does not exist is told with those like it."""
    group = Settings.model_fields.get(str(item["loc"][0])) if len(item["loc"]) == 2 else None
    if item["type"] != "extra_forbidden":
        return item["msg"]
    known = getattr(group.annotation, "model_fields", {}) if group else {}
    return f"there is no such setting{nearest(str(item['loc'][-1]), sorted(known)) if known else ''}"

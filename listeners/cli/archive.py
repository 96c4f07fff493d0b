"""Commands about the archive: what it holds, its index, the end of its images' retention."""

import time
from typing import TYPE_CHECKING, Annotated

import typer
from rich.filesize import decimal
from rich.progress import Progress
from rich.table import Table

from listeners.cli.context import ask_leave, console, open_context, remark_on_service
from services.runtime.errors import InvalidInput
from services.runtime.login import login
from services.runtime.service import Context

if TYPE_CHECKING:
    from services.assembly.retention import Forecast

app = typer.Typer(help="The archive: what it holds, its index, how long images stay.", no_args_is_help=True)
WHAT_TO_DO = {"unscored": " (one that cannot be scored waits in `reclaim dead-letters list`: replay or discard it)"}
BREATH_S = 0.2
"""Pause between two steps: without one a running service, whose SQLite database it is too, would not come to write for as long."""
WRONG_KEY = "restore STATE_DIR/pseudonym.key or RECLAIM_PSEUDONYM_KEY; docs/runbook.md says what else to do"


@app.command()
def status() -> None:
    """Show what the archive holds, how much room is left and what retention will delete next.

    Example: reclaim archive status
    """
    from services.assembly.overview import key_fits, overview

    context = open_context()
    seen = overview(context.database, context.settings.archive_dir)
    table = Table(show_header=False)
    modalities = ", ".join(f"{count} {modality}" for modality, count in seen.modalities.items())
    table.add_row("studies", f"{seen.studies}, {seen.open} of them open")
    table.add_row("images and other objects", f"{seen.instances} ({modalities or 'none'}), {decimal(seen.size)}")
    table.add_row("received", f"{seen.oldest:%Y-%m-%d} to {seen.newest:%Y-%m-%d}" if seen.oldest and seen.newest else "-")
    table.add_row("deleted by retention", f"{seen.deleted}; {seen.taken_out} files are taken out and not deleted yet")
    table.add_row("conflicting objects kept aside", f"{seen.conflicts}")
    table.add_row(
        "free on the disk", f"{decimal(seen.free)}; C-STORE is refused below {decimal(context.settings.dicom.min_free_bytes)}"
    )
    fits = key_fits(context.settings.archive_dir, context.pseudonyms)
    table.add_row("pseudonym key", f"[red]does not fit[/]: {WRONG_KEY}" if fits is False else "fits the archive")
    table.add_row("retention", _policy(context))
    console.print(table)
    outlook = _forecast(context, None)
    if outlook is not None:
        _tell(outlook)


@app.command()
def reindex() -> None:
    """Rebuild the index from the files, also into an empty database; entries that are right stay as they are.

    Example: reclaim archive reindex
    """
    from services.assembly.files import ArchiveFiles
    from services.assembly.overview import count_files, key_fits
    from services.assembly.reindex import enter_missing
    from services.assembly.reindex import reindex as check

    context = open_context()
    archive = context.settings.archive_dir
    if not archive.is_dir():
        raise InvalidInput(f"there is no archive at {archive}: set RECLAIM_STATE_DIR to where it lies")
    if key_fits(archive, context.pseudonyms) is False:
        raise InvalidInput(f"the files were filed with another pseudonym key: {WRONG_KEY}")
    files = ArchiveFiles(archive)
    try:
        with Progress(console=console, transient=True) as progress:
            task = progress.add_task("entering files", total=count_files(archive))

            def entered() -> bool:
                progress.advance(task)
                return False

            summary = enter_missing(context, files, entered)
    finally:
        files.close()
    summary.lost = check(context).lost
    console.print(summary.text(), soft_wrap=True)
    raise typer.Exit(0 if not (summary.unreadable or summary.misplaced or summary.lost) else 1)


@app.command()
def purge(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go")] = False,
    older_than: Annotated[float | None, typer.Option(min=0.01, help="Days; default: retention.pixel_days of the settings")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask")] = False,
) -> None:
    """Delete the images of studies that have outlived their retention now; results, cases and reports stay.

    Example: reclaim archive purge --dry-run --older-than 90
    """
    context = open_context()
    outlook = _forecast(context, older_than)
    if outlook is None:
        raise InvalidInput("retention.pixel_days is 0, so everything is kept: set RECLAIM_RETENTION_PIXEL_DAYS or say --older-than")
    _tell(outlook)
    if dry_run or not outlook.due.studies:
        return
    due = outlook.due
    ask_leave(f"Delete {_count(due.instances, 'image')} of {_count(due.studies, 'study')} for good?", yes=yes)
    done = _purge(context, outlook)
    console.print(f"{_count(done, 'study')} taken out; the service deletes their files two minutes later.", soft_wrap=True)
    remark_on_service(context, "The files stay under archive/purged until it runs")


def _purge(context: Context, outlook: "Forecast") -> int:
    from services.assembly import retention

    settings, done, actor = context.settings, 0, f"user:{login()}"
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("taking out studies", total=outlook.due.studies)
        while True:
            with context.database.transaction() as tx:
                step = retention.take_out(
                    tx, settings.archive_dir, outlook.before, committed=settings.retention.committed, actor=actor
                )
            if not step.studies:
                return done
            done += step.studies
            progress.update(task, completed=done)
            time.sleep(BREATH_S)


def _forecast(context: Context, days: float | None) -> "Forecast | None":
    from services.assembly import retention

    before = retention.limit_of(context.settings.retention, context.clock.now(), days)
    if before is None:
        return None
    return retention.forecast(context.database, before, committed=context.settings.retention.committed)


def _tell(outlook: "Forecast") -> None:
    due = outlook.due
    console.print(
        f"Last image before {outlook.before:%Y-%m-%d %H:%M} UTC: {_count(due.instances, 'image')} of {_count(due.studies, 'study')}"
        f" ({decimal(due.size)}) may be deleted.",
        soft_wrap=True,
    )
    for reason, count in outlook.kept.items():
        stay = f"{_count(count, 'older study')} {'stay' if count > 1 else 'stays'}"
        console.print(f"  {stay}: {reason}{WHAT_TO_DO.get(reason, '')}", soft_wrap=True)


def _count(number: int, noun: str) -> str:
    """`1 study`, `2 studies`, `0 images`."""
    several = f"{noun.removesuffix('y')}ies" if noun.endswith("y") else f"{noun}s"
    return f"{number} {noun if number == 1 else several}"


def _policy(context: Context) -> str:
    retention = context.settings.retention
    if not retention.pixel_days:
        return "everything is kept (retention.pixel_days is 0)"
    kept = "" if retention.committed else "; what was committed to a sender stays"
    return f"images are deleted after {retention.pixel_days:g} days{kept}"

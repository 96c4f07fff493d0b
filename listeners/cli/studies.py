"""Commands about studies: send them to a listener, rebuild the archive's index."""

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress

from listeners.cli.context import console, open_context
from schemas.settings import load_settings


def send(
    folder: Annotated[Path, typer.Argument(help="Folder (or file) with DICOM files, searched recursively")],
    host: Annotated[str, typer.Option(help="Host of the receiver")] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(help="Port of the receiver; default: this site's listener")] = None,
    called_ae: Annotated[str | None, typer.Option(help="Called AE title; default: this site's")] = None,
    calling_ae: Annotated[str, typer.Option(help="Calling AE title")] = "RECLAIM_SCU",
    associations: Annotated[int, typer.Option(min=1, max=32, help="Parallel associations")] = 1,
) -> None:
    """Push DICOM files with C-STORE, as a modality would. Exit code 1 when any instance was refused."""
    from listeners.dicom.send import send_folder

    loaded = load_settings()
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("sending", total=None)

        def show(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        summary = send_folder(
            folder,
            host,
            port or loaded.dicom.port,
            calling_ae=calling_ae,
            called_ae=called_ae or loaded.dicom.ae_title,
            associations=associations,
            on_progress=show,
        )
    console.print(summary.text(), soft_wrap=True)
    raise typer.Exit(0 if summary.complete else 1)


def reindex() -> None:
    """Rebuild the archive's index from its files (after a restore, or when `doctor` says so)."""
    from services.assembly.reindex import reindex as rebuild

    context = open_context()
    console.print(rebuild(context).text())

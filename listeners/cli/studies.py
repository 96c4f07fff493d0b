"""Commands about studies: send them to a listener, rebuild the archive's index."""

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress

from listeners.cli.context import console, open_context
from schemas.settings import load_settings


def send(
    folder: Annotated[Path, typer.Argument(help="Folder (or file) with DICOM files, searched recursively")],
    peer: Annotated[str | None, typer.Option(help="Name of a peer in the settings (dicom.peers), instead of --host")] = None,
    host: Annotated[str, typer.Option(help="Host of the receiver")] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(help="Port of the receiver; default: this site's listener")] = None,
    called_ae: Annotated[str | None, typer.Option(help="Called AE title; default: this site's")] = None,
    calling_ae: Annotated[str | None, typer.Option(help="Calling AE title; default: RECLAIM_SCU, with --peer this site's")] = None,
    associations: Annotated[int, typer.Option(min=1, max=32, help="Parallel associations")] = 1,
) -> None:
    """Push DICOM files with C-STORE, as a modality would. Exit code 1 when any instance was not stored; see the tally.

    Example: reclaim send study/; reclaim send study/ --host pacs.example --port 104 --called-ae PACS
    """
    from listeners.dicom.send import send_to
    from services.runtime import scu

    loaded = load_settings()
    if peer is not None:
        receiver, calling = scu.peer(loaded.dicom.peers, peer), calling_ae or loaded.dicom.ae_title
    else:
        number, calling = port or loaded.dicom.port, calling_ae or "RECLAIM_SCU"
        receiver = scu.Peer(f"{host}:{number}", called_ae or loaded.dicom.ae_title, host, number)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("sending", total=None)

        def show(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        summary = send_to(receiver, folder, calling_ae=calling, associations=associations, on_progress=show)
    console.print(summary.text(), soft_wrap=True, markup=False)
    raise typer.Exit(0 if summary.complete else 1)


def reindex() -> None:
    """Rebuild the archive's index from its files (after a restore, or when `doctor` says so).

    Example: reclaim reindex
    """
    from services.assembly.reindex import reindex as rebuild

    context = open_context()
    console.print(rebuild(context).text())

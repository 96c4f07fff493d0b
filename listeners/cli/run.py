"""Commands that run things: up, serve, demo, settings, doctor."""

import asyncio
import sys
from pathlib import Path
from typing import Annotated

import typer

from listeners.cli.catalogue import BUILDERS, PROCESSES, build
from listeners.cli.context import console, open_context
from listeners.cli.ports import forget_ports
from listeners.cli.start_checks import refuse_another_key
from schemas.settings import load_settings
from services.runtime.errors import InvalidInput


def up() -> None:
    """Run everything on this machine: embedded broker (unless RECLAIM_KAFKA_BOOTSTRAP is set), all services, one terminal.

    Ctrl-C ends it. Example: RECLAIM_DICOM_PORT=104 reclaim up
    """
    from services.runtime import logs
    from services.runtime.supervisor import AlreadyRunning, ChildSpec, supervise

    loaded = load_settings()
    logs.setup(loaded, "supervisor")
    context = open_context(loaded)
    refuse_another_key(context)
    context.database.close()
    children = [
        ChildSpec(name, [sys.executable, "-m", "listeners.cli", "serve", *parts], uses_bus=name != "dicom")
        for name, parts in PROCESSES.items()
    ]
    try:
        sys.exit(asyncio.run(supervise(loaded, children)))
    except AlreadyRunning as error:
        console.print(f"[red]error:[/red] {error}", soft_wrap=True)
        sys.exit(75)


def serve(
    service: Annotated[list[str], typer.Argument(help=f"One or more of: {', '.join(BUILDERS)}")],
) -> None:
    """Run the named services in one process, for real deployments.

    Example: RECLAIM_KAFKA_BOOTSTRAP=kafka:9092 reclaim serve inference
    """
    from services.runtime import logs, process, telemetry
    from services.runtime.outbox import RELAY

    if unknown := sorted(set(service) - set(BUILDERS)):
        raise typer.BadParameter(f"there is no service {', '.join(unknown)}; known: {', '.join(BUILDERS)}")
    loaded = load_settings()
    logs.setup(loaded, "+".join(service))
    telemetry.setup(loaded, "+".join(service))
    context = open_context(loaded)
    refuse_another_key(context)
    forget_ports(loaded, service)
    services = [build(name, context) for name in service]
    if not loaded.kafka.servers and any(each.consumers or each.name == RELAY for each in services):
        raise InvalidInput("no broker is named: set RECLAIM_KAFKA_BOOTSTRAP, or run `reclaim up`, which brings its own")
    code = asyncio.run(process.run(services, context))
    telemetry.shutdown()
    sys.exit(code)


def demo(
    data: Annotated[
        Path | None, typer.Option(help="Folder with one .npz, or one sub-folder per class; default: built-in MR")
    ] = None,
    shifted: Annotated[
        Path | None, typer.Option(help="The same task after a real change; default: a simulated scanner change")
    ] = None,
    modality: Annotated[str, typer.Option(help="Modality of --data: MR, CT, CR or DX")] = "MR",
    state: Annotated[Path, typer.Option(help="Folder for everything the demonstration writes; emptied first")] = Path(".demo"),
    network: Annotated[str, typer.Option(help="Network to train")] = "small",
    seed: Annotated[int, typer.Option(help="Seed of images and training")] = 0,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the service running at the end, until Ctrl-C")] = False,
) -> None:
    """Watch a classifier decay and recover on studies pushed over DICOM (three to seven minutes).

    Example: reclaim demo --data FOLDER
    """
    from listeners.demo.story import DemoOptions, tell

    sys.exit(tell(DemoOptions(data, shifted, modality, state, network, seed, keep), console))


def settings() -> None:
    """Print all settings in use; secrets are redacted. Each may be set as RECLAIM_GROUP_NAME or in reclaim.toml.

    Example: RECLAIM_DICOM_PORT=104 reclaim settings
    """
    loaded = load_settings()
    console.print_json(loaded.model_dump_json())
    console.print(f"database in use: {_redacted_url(loaded.database_url)}", soft_wrap=True)


def _redacted_url(url: str) -> str:
    from sqlalchemy.engine import make_url

    return make_url(url).render_as_string(hide_password=True)


def doctor(
    repair: Annotated[bool, typer.Option("--repair", help="First close what other users may read in the state folder")] = False,
) -> None:
    """Check disk, permissions, ports, broker, database, GPU, models, feed and LLM, and say what to do about each fault.

    Exit code 1 when something is at fault. Example: reclaim doctor
    """
    from listeners.cli.checks import examine
    from listeners.cli.site_checks import close_entries

    loaded = load_settings()
    if repair:
        console.print(f"closed {close_entries(loaded.state_dir)} files and folders to other users")
    findings = examine(loaded)
    for finding in findings:
        console.print(finding.line(), soft_wrap=True)
    sys.exit(1 if any(finding.bad for finding in findings) else 0)

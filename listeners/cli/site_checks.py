"""What `reclaim doctor` looks at in the state of a site: who may read it, what is waiting, what has stopped coming in."""

import os
import stat
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from sqlalchemy import text
from sqlmodel import Session, col, func, select

from agents.overview.reading import consumers
from listeners.cli.findings import Finding
from listeners.cli.measures import age, ago
from schemas.settings import Settings
from schemas.tables import Audit, Case, GroundTruth, Outbox, Study
from schemas.vocabulary import VersionState
from services.assembly.overview import count_files, key_fits
from services.inference import repository as inference
from services.inference.unscored import BROKEN
from services.runtime import dead_letters, registry
from services.runtime.chance import standing
from services.runtime.database import Database
from services.runtime.identity import KEY_FILE, load_pseudonyms
from services.runtime.presence import HOW_TO_START, is_at_work

OURS: Final = ("archive", "models", "reports", "run", "runs", "traces", "chat_history", "pseudonym.key", "reclaim.sqlite*")
"""What we make in the state folder."""
LATE_S: Final = 60.0
SILENT_S: Final = 900.0
"""A consumer at work deals with something in less: a batch of studies takes minutes at most."""
CLOCK_TOLERANCE_S: Final = 5.0
MOST_CASES: Final = 2_000
RESTORE_KEY: Final = "stop the service and restore STATE_DIR/pseudonym.key or RECLAIM_PSEUDONYM_KEY; see docs/runbook.md"


def permissions(settings: Settings) -> Iterator[Finding]:
    """Archive, database and key hold patients' data: their own user's only. A closed state folder closes all in it."""
    folder = settings.state_dir
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        yield Finding("state folder", f"{folder} cannot be written by this user", "give it to the user of the service", bad=True)
    elif loose := loose_entries(folder):
        named = ", ".join(path.name for path in loose[:4]) + (" …" if len(loose) > 4 else "")
        yield Finding("permissions", f"other users may read {named}", "`reclaim doctor --repair` closes it to them", bad=True)
    else:
        yield Finding("permissions", f"{folder.absolute()} is its user's only")


def pseudonym_key(settings: Settings) -> Iterator[Finding]:
    """Whether the key is the one that the archive was filed with; with another every study would be a new one."""
    if not settings.pseudonym_key.get_secret_value() and not (settings.state_dir / KEY_FILE).exists():
        lost = settings.archive_dir.is_dir() and count_files(settings.archive_dir) > 0
        yield Finding("pseudonym key", "is missing", RESTORE_KEY if lost else "it is made at first use: back it up then", bad=lost)
        return
    fits = key_fits(settings.archive_dir, load_pseudonyms(settings))
    if fits is False:
        yield Finding("pseudonym key", "is not the one that the archive was filed with", RESTORE_KEY, bad=True)
    else:
        yield Finding("pseudonym key", "fits the archive" if fits else "there is one")


def loose_entries(folder: Path) -> list[Path]:
    """Our entries that group or others may enter; none when the folder itself lets nobody in."""
    if not _mode(folder) & 0o077:
        return []
    return [path for name in OURS for path in sorted(folder.glob(name)) if not path.is_symlink() and _mode(path) & 0o077]


def close_entries(folder: Path) -> int:
    """Take group's and others' rights from everything we have made in the folder; returns how many paths changed."""
    changed = 0
    for top in loose_entries(folder):
        for path in [top, *(top.rglob("*") if top.is_dir() else ())]:
            if not path.is_symlink() and (mode := _mode(path)) & 0o077:
                path.chmod(mode & ~0o077)
                changed += 1
    return changed


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def service(settings: Settings) -> Iterator[Finding]:
    """Whether anything is at work, and what waits for it or for a person."""
    database = Database.from_settings(settings)
    at_work, now = is_at_work(database), database.clock.now()
    yield Finding("service", "running" if at_work else "not running", "" if at_work else HOW_TO_START)
    with database.read() as session:
        yield _backlog(session, now, at_work=at_work)
        letters = dead_letters.waiting(session)
        yield _clock(session, now)
    if at_work:
        yield from _silent_consumers(database, now)
    advice = "`reclaim dead-letters list`, mend the cause, then `replay` them, or `discard` with a reason" if letters else ""
    yield Finding("dead letters", f"{letters} waiting", advice)


def _backlog(session: Session, now: datetime, *, at_work: bool) -> Finding:
    unsent = col(Outbox.sent_at).is_(None)
    count, oldest = session.exec(select(func.count(), func.min(Outbox.created_at)).where(unsent)).one()
    waited = (now - oldest).total_seconds() if oldest else 0.0
    if not count:
        return Finding("outbox", "no event waits for the bus")
    found = f"{count} event{'s wait' if count > 1 else ' waits'} for the bus, the oldest for {age(waited)}"
    if not at_work:
        return Finding("outbox", found, f"they go out when the service runs: {HOW_TO_START}")
    late = waited > LATE_S
    return Finding("outbox", found, "the broker does not take them: see the log of the bus process" if late else "", bad=late)


def _silent_consumers(database: Database, now: datetime) -> Iterator[Finding]:
    """Consumers that have dealt with nothing for long although something waits: their process is down, or hangs."""
    with database.read() as session:
        found = consumers(session)
    for each in found:
        since = max(filter(None, (each.oldest_waiting, each.last_active_at)), default=now)
        if each.oldest_waiting is not None and (now - since).total_seconds() > SILENT_S:
            events = f"{each.waiting} event{'s' if each.waiting > 1 else ''}"
            text = f"{each.name} has not read {events}, the oldest for {age((now - each.oldest_waiting).total_seconds())}"
            yield Finding(
                "consumers", text, "`reclaim status` says which process is down; its last lines in the log say why", bad=True
            )


def _clock(session: Session, now: datetime) -> Finding:
    """Our clock against the database server's, and against the newest decision on record."""
    newest = session.exec(select(func.max(Audit.at))).one()
    if newest is not None and (newest - now).total_seconds() > CLOCK_TOLERANCE_S:
        ahead = age((newest - now).total_seconds())
        return Finding("clock", f"the audit record is {ahead} ahead of this machine's clock", "set the clock (NTP)", bad=True)
    if session.get_bind().dialect.name == "postgresql":
        server = session.connection().execute(text("SELECT clock_timestamp()")).scalar_one()
        apart = abs((server - now).total_seconds())
        if apart > CLOCK_TOLERANCE_S:
            found = f"the database server's clock is {apart:.0f} s away from this machine's"
            return Finding("clock", found, "set both clocks (NTP): leases expire by them", bad=True)
    return Finding("clock", f"{now:%F %T} UTC")


def feed(settings: Settings) -> Iterator[Finding]:
    """When the last study and the last label came in. Silence is a fault where a model serves, not health."""
    database = Database.from_settings(settings)
    now, patience = database.clock.now(), timedelta(seconds=settings.dicom.silent_after_s)
    with database.read() as session:
        study, count = session.exec(select(func.max(Study.last_instance_at), func.count()).select_from(Study)).one()
        label = session.exec(select(func.max(GroundTruth.received_at))).one()
        began = [version.created_at for model, version in registry.scoring_versions(session)]
    waiting_since = study or min(began, default=None)
    silent = bool(began) and waiting_since is not None and now - waiting_since > patience
    found = f"{count} in the archive, the last came {ago(now, study)}" if study else "none has come yet"
    advice = (
        "check the sender and its route, `storescu` or `reclaim send` a test study; RECLAIM_DICOM_SILENT_AFTER_S" if silent else ""
    )
    yield Finding("studies", found, advice or ("" if study else "send one: `reclaim send FOLDER`"), bad=silent)
    if study is not None:
        lacking = "" if label else "without labels nothing can be evaluated: `reclaim labels import FILE`"
        yield Finding("labels", f"the last came {ago(now, label)}" if label else "none has come yet", lacking)


def unscored(settings: Settings) -> Iterator[Finding]:
    """Studies that no model took, and those that wait for a stopped or a damaged one."""
    database = Database.from_settings(settings)
    with database.read() as session:
        for kind in inference.unscored(session, database.clock.now() - timedelta(days=1), BROKEN):
            of = f"modality {kind.modality or 'unknown'}, body part {kind.body_part or 'not given'}"
            if kind.model:
                back = "restore its bundle, or `reclaim models rollback {}`; they are scored then"
                advice = (back if kind.damaged else "`reclaim models resume {}`").format(kind.model)
                yield Finding("unscored", f"{_studies(kind.studies)} waiting for {kind.model}: {of}", advice, bad=kind.damaged)
            else:
                advice = "if a model is meant for them, check its selection rule (modality, body part, description) and the sender"
                yield Finding("unscored", f"{_studies(kind.studies)} in the last day matched no model: {of}", advice)


def images(settings: Settings) -> Iterator[Finding]:
    """Doubts about the last day's images that are far commoner than in the test set. No label is needed to see them."""
    from services.evaluation.diagnosis import feed_doubt

    database = Database.from_settings(settings)
    with database.read() as session:
        for model in registry.models(session):
            newest = Case.serving, Case.scored_at >= database.clock.now() - timedelta(days=1)
            query = select(Case.findings).where(Case.model == model.name, Case.version == model.champion, *newest)
            recent = session.exec(query.limit(MOST_CASES)).all()
            baseline = registry.baseline(session, model.name, model.champion) if model.champion else ()
            doubt = feed_doubt([], [row.findings for row in baseline if row.findings is not None], recent)
            if doubt:
                advice = "look at the feed before the labels tell: docs/models.md says what the finding means"
                yield Finding("images", f"{model.name}, last day: {doubt.what}", advice, bad=True)


def _studies(count: int) -> str:
    return "1 study" if count == 1 else f"{count} studies"


def models(settings: Settings) -> Iterator[Finding]:
    """What serves, and whether its baseline says that it knows anything."""
    database = Database.from_settings(settings)
    with database.read() as session:
        for row in registry.models(session):
            if row.champion is None:
                retired = all(each.state == VersionState.RETIRED for each in registry.versions(session, row.name))
                advice = "" if retired else f"`reclaim models list`, then `reclaim models promote {row.name} VERSION --reason …`"
                yield Finding("model", f"{row.name} is retired" if retired else f"no version of {row.name} serves", advice)
                continue
            found = standing(registry.baseline(session, row.name, row.champion), row.classes)
            if found.at_chance:
                advice = f"do not trust it: train it anew, or `reclaim models retire {row.name}`"
                yield Finding(
                    "model", f"{row.name} version {row.champion} is no better than guessing: {found.text}", advice, bad=True
                )
            if not row.serving:
                yield Finding("model", f"{row.name} is stopped", f"`reclaim models resume {row.name}` when it shall score again")

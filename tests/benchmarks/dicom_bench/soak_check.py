"""After a soak: what was acknowledged, what lies in the archive, what the index knows and what was announced must be the same."""

import hashlib
import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from dicom_bench.loads import dataset_offset, sample_of
from dicom_bench.soak_senders import Ledger
from dicom_bench.soak_world import World
from sqlmodel import select

from schemas.settings import DatabaseSettings, Settings
from schemas.tables import Instance, Outbox, Study
from schemas.topics import STUDY_RECEIVED
from schemas.vocabulary import StudyState
from services.runtime.clock import SystemClock
from services.runtime.database import Database

_SHOWN: Final = 5
_SETTLE_S: Final = 180.0


def open_database(state: Path, url: str) -> Database:
    """The database of the soaked service."""
    return Database.from_settings(Settings(state_dir=state, database=DatabaseSettings(url=url)), SystemClock())


def settle(database: Database, world: World, ledger: Ledger) -> None:
    """Wait until the index has caught up, every study is announced as it is, and the bus has it all; not for ever."""
    end = time.monotonic() + _SETTLE_S
    while time.monotonic() < end:
        world.watch()
        with database.read() as session:
            studies = session.exec(select(Study.state, Study.instances)).all()
            rows = session.exec(select(Outbox.sent_at).where(Outbox.topic == STUDY_RECEIVED.name)).all()
        complete = all(state == StudyState.COMPLETE for state, _ in studies)
        indexed = sum(count for _, count in studies) >= len(ledger.acknowledged)
        if complete and indexed and all(rows) and len(world.reader.seen) >= len(rows):
            return
        time.sleep(0.5)


def differences(database: Database, world: World, ledger: Ledger, sent: int) -> Iterator[str]:
    """One sentence for each promise that was not kept, with a few of the UIDs; none when all is well."""
    yield from ledger.wrong
    if len(ledger.acknowledged) != sent:
        yield f"{sent} instances were sent, {len(ledger.acknowledged)} acknowledged"
    yield from _files(world.state / "archive", ledger)
    yield from _index(database, world.state / "archive", ledger)
    yield from _announcements(database, ledger, world.reader.seen)


def _files(archive: Path, ledger: Ledger) -> Iterator[str]:
    """acknowledged = stored, byte for byte, each once; conflicts aside, nothing half-written."""
    stored: dict[str, list[str]] = defaultdict(list)
    aside: set[str] = set()
    for path in archive.rglob("*"):
        kind = path.relative_to(archive).parts[0]
        if not path.is_file() or kind == "incoming":
            continue
        try:
            sample = sample_of(path)
        except ValueError:
            yield f"{path.relative_to(archive)} is no DICOM file"
            continue
        if kind == "conflicts":
            aside.add(sample.digest)
        else:
            stored[sample.sop_instance].append(sample.digest)
    expected = ledger.acknowledged
    yield from _say("acknowledged and not stored", expected.keys() - stored.keys())
    yield from _say("stored and never acknowledged", stored.keys() - expected.keys())
    yield from _say("stored twice", [uid for uid, digests in stored.items() if len(digests) > 1])
    yield from _say(
        "stored with other bytes", [uid for uid, digests in stored.items() if uid in expected and expected[uid] not in digests]
    )
    yield from _say(
        "conflicting bytes answered C000 and not kept", {digest for digest, said in ledger.conflicts.items() if said} - aside
    )
    yield from _say("files under conflicts/ that nobody sent", aside - ledger.conflicts.keys())
    left = [path for path in (archive / "incoming").rglob("*") if path.is_file()]
    yield from _say("files left under incoming/", [path.name for path in left])


def _index(database: Database, archive: Path, ledger: Ledger) -> Iterator[str]:
    """stored = indexed, at the path that the row gives; each study counts its rows."""
    with database.read() as session:
        rows = session.exec(select(Instance)).all()
        studies = {study.study_uid: study.instances for study in session.exec(select(Study))}
    indexed = {row.sop_instance_uid for row in rows}
    yield from _say("acknowledged and not in the index", ledger.acknowledged.keys() - indexed)
    yield from _say("in the index and never acknowledged", indexed - ledger.acknowledged.keys())
    yield from _say(
        "rows whose file has other bytes", [row.sop_instance_uid for row in rows if not _holds(archive / row.path, row, ledger)]
    )
    counted = Counter(row.study_uid for row in rows)
    yield from _say("studies that miscount their instances", [uid for uid in counted if counted[uid] != studies.get(uid)])


def _holds(path: Path, row: Instance, ledger: Ledger) -> bool:
    if not path.is_file():
        return False
    content = path.read_bytes()
    dataset = content[dataset_offset(content) :]
    digest = hashlib.sha256(dataset).hexdigest()
    return (
        row.size == len(dataset) and row.sha256 in ("", digest) and ledger.acknowledged.get(row.sop_instance_uid, digest) == digest
    )


def _announcements(database: Database, ledger: Ledger, on_bus: Counter[tuple[str, int]]) -> Iterator[str]:
    """stored = announced: revisions 1, 2, … of each study once each, the last one with all its instances; the bus has them all."""
    with database.read() as session:
        studies = session.exec(select(Study)).all()
        bodies = [json.loads(row.body) for row in session.exec(select(Outbox).where(Outbox.topic == STUDY_RECEIVED.name))]
    counts: dict[str, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for body in bodies:
        counts[body["study_key"]][body["revision"]].append(sum(series["instances"] for series in body["series"]))
    announced = 0
    for study in studies:
        of = counts.pop(study.study_key, {})
        if sorted(of) != list(range(1, study.revision + 1)) or not of:
            yield f"study {study.study_key} is at revision {study.revision}, announced {sorted(of)}"
            continue
        if any(len(totals) > 1 for totals in of.values()):
            yield f"study {study.study_key}: a revision was announced more than once"
        totals = [of[revision][0] for revision in sorted(of)]
        if totals != sorted(set(totals)) or totals[-1] != study.instances:
            yield f"study {study.study_key} has {study.instances} instances, announced {totals}"
        announced += totals[-1]
    yield from _say("announced studies that do not exist", list(counts))
    if announced != len(ledger.acknowledged):
        yield f"{len(ledger.acknowledged)} instances acknowledged, {announced} announced"
    wanted = {(body["study_key"], body["revision"]) for body in bodies}
    yield from _say("announcements that did not reach the bus", [f"{key}:{revision}" for key, revision in wanted - on_bus.keys()])
    yield from _say("announcements on the bus alone", [f"{key}:{revision}" for key, revision in on_bus.keys() - wanted])


def _say(what: str, found: object) -> Iterator[str]:
    names = sorted(map(str, found))  # type: ignore[call-overload]
    if names:
        yield f"{len(names)} {what}: {', '.join(names[:_SHOWN])}{' …' if len(names) > _SHOWN else ''}"

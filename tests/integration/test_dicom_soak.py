"""The soak test in small, and proof that its comparison sees every kind of loss."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from sqlmodel import delete, select

from schemas.tables import Instance, Outbox, Study
from services.assembly.completion import complete_studies
from services.assembly.files import ArchiveFiles
from services.assembly.headers import read_facts
from services.assembly.index import ArchiveIndex, StoredFile
from services.assembly.rules import Rules
from services.assembly.sources import BytesSource

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SENT = 8


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_thousand_instances_under_faults_are_acknowledged_stored_and_announced(tmp_path):
    _soak(tmp_path, 2000)


@pytest.mark.slow
@pytest.mark.postgres
@pytest.mark.timeout(600)
def test_the_same_on_postgresql(tmp_path, postgres_database_url):
    _soak(tmp_path, 1000, "--database", postgres_database_url)


def _soak(tmp_path, count, *options):
    command = [sys.executable, BENCHMARKS / "soak.py", str(count), "--senders", "4", "--state", tmp_path, *options]
    command += ["--json", tmp_path / "soak.json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=580, cwd=BENCHMARKS.parents[1], check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    happened = {row["what"]: row["value"] for row in json.loads((tmp_path / "soak.json").read_text())["rows"]}
    assert happened["instances acknowledged"] == count
    for fault in (
        "SIGKILL of dicom",
        "SIGKILL of assembly",
        "SIGKILL of relay",
        "cut inside a request",
        "other bytes answered C000",
    ):
        assert happened.get(fault, 0) > 0, f"no {fault}: the soak proves nothing"


@pytest.fixture
def soaked(sqlite_context, clock, monkeypatch):
    """What a faultless soak leaves: two studies of four instances in archive, index, outbox and on the bus."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from dicom_bench.loads import KINDS, Template
    from dicom_bench.soak_check import differences
    from dicom_bench.soak_senders import Ledger

    context, template, ledger = sqlite_context, Template(KINDS["MR"], side=32), Ledger()
    files = ArchiveFiles(context.settings.archive_dir)
    index = ArchiveIndex(context.database, context.pseudonyms)
    for number in range(SENT):
        item = template.item(number % 2, number)
        ledger.acknowledge(item, (number % 2, number))
        facts = read_facts(BytesSource(item.dataset), item.syntax)
        assert files.publish(files.write((template.file_of(number % 2, number),)), index.path_of(facts))
        index.enter(StoredFile(facts, item.syntax, len(item.dataset), "", clock.now(), "BENCH"))
    files.close()
    clock.advance(1)
    with context.database.transaction() as tx:
        complete_studies(tx, context.pseudonyms, Rules(0.1))
    with context.database.read() as session:
        keys = [row.key for row in session.exec(select(Outbox))]
    world = SimpleNamespace(state=context.settings.state_dir, reader=SimpleNamespace(seen=Counter((key, 1) for key in keys)))
    found = SimpleNamespace(archive=context.settings.archive_dir, database=context.database, ledger=ledger, world=world)
    found.differences = lambda: list(differences(context.database, world, ledger, SENT))
    return found


def stored(soaked):
    return min(soaked.archive.rglob("*.dcm"))


def lose_a_file(soaked):
    stored(soaked).unlink()


def change_a_byte(soaked):
    content = stored(soaked).read_bytes()
    stored(soaked).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def store_twice(soaked):
    stored(soaked).with_name("again.dcm").write_bytes(stored(soaked).read_bytes())


def leave_a_half(soaked):
    folder = soaked.archive / "incoming" / "1-abc"
    folder.mkdir(parents=True)
    (folder / "half").write_bytes(b"x")


def lose_a_row(soaked):
    with soaked.database.transaction() as tx:
        tx.session.delete(tx.session.exec(select(Instance)).first())


def miscount_a_study(soaked):
    with soaked.database.transaction() as tx:
        tx.session.exec(select(Study)).first().instances += 1


def lose_an_announcement(soaked):
    with soaked.database.transaction() as tx:
        tx.session.exec(delete(Outbox).where(Outbox.id == 1))


def announce_twice(soaked):
    with soaked.database.transaction() as tx:
        row = tx.session.exec(select(Outbox)).first()
        values = row.model_dump(exclude={"id"}) | {"event_id": "once more"}
        tx.session.add(Outbox(**values))


def lose_an_acknowledgement(soaked):
    soaked.ledger.acknowledged.popitem()


def lose_on_the_bus(soaked):
    soaked.world.reader.seen.popitem()


def keep_no_conflict(soaked):
    soaked.ledger.conflicts["0" * 64] = True


DAMAGES = (
    lose_a_file,
    change_a_byte,
    store_twice,
    leave_a_half,
    lose_a_row,
    miscount_a_study,
    lose_an_announcement,
    announce_twice,
    lose_an_acknowledgement,
    lose_on_the_bus,
    keep_no_conflict,
)


def test_a_faultless_soak_differs_in_nothing(soaked):
    assert soaked.differences() == []


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_the_comparison_sees(soaked, damage):
    damage(soaked)
    assert soaked.differences()

"""No acknowledged instance is lost: SIGKILL at random moments under DCMTK, crashes between file and row, limits of the disk."""

import contextlib
import errno
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from sqlmodel import select

from listeners.dicom import send
from listeners.dicom.send import send_folder
from listeners.dicom.synthesize import StudyFacts, study_instance_uid, write_image
from schemas.announcements import SetAside
from schemas.tables import Instance, Outbox, Study
from services.assembly.completion import complete_studies
from services.assembly.files import ArchiveFiles
from services.assembly.index import ArchiveIndex
from services.assembly.reindex import enter_missing, read_stored, reindex
from services.assembly.repository import Recorded
from services.assembly.rules import Rules
from services.assembly.writer import IndexWriter
from services.runtime.clock import SystemClock
from services.runtime.database import Database
from services.runtime.identity import Pseudonyms
from tests.dicom_process import Process, acknowledged, dataset_of, everything_is_there_once, images, storescu

ACQUIRED = datetime(2026, 3, 2, 8, 0, tzinfo=UTC)


@pytest.mark.dcmtk
@pytest.mark.slow
def test_sigkill_at_random_moments_loses_nothing_acknowledged(tmp_path):
    sender, paths, state = storescu(), images(tmp_path / "images", 120), tmp_path / "state"
    chance, acked = random.Random(7), []
    fast = os.environ | {"TCP_NODELAY": "1"}  # DCMTK leaves Nagle on, which would make it send 23 instances a second
    for _ in range(4):
        listener = Process(state)
        rest = [path for path in paths if str(path) not in set(acked)]
        command = [sender, "-v", "-nh", "127.0.0.1", str(listener.port), *rest]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=fast) as client:
            timer = threading.Timer(chance.uniform(0.1, 0.9), listener.kill)
            timer.start()
            output, _ = client.communicate(timeout=60)
            timer.join()
        acked += acknowledged(output)
        listener.kill()
    assert 10 < len(acked) == len(set(acked))
    last = Process(state)
    assert send_folder(tmp_path / "images", "127.0.0.1", last.port).outcomes == {"0000": len(paths)}
    assert last.terminate() == 0
    everything_is_there_once(state, paths)


@pytest.mark.slow
def test_acknowledged_is_on_disk_at_the_moment_of_the_kill_and_indexed_after_the_next_start(tmp_path):
    """The file is the promise. Its row may still be on the way; nobody has to send anything again."""
    paths, state = images(tmp_path / "images", 6), tmp_path / "state"
    listener = Process(state)
    assert send_folder(tmp_path / "images", "127.0.0.1", listener.port).complete
    listener.kill()
    assert sorted(map(dataset_of, (state / "archive").rglob("*.dcm"))) == sorted(map(dataset_of, paths))
    again = Process(state)
    database = Database(f"sqlite:///{state / 'reclaim.sqlite'}", SystemClock())
    for _ in range(100):
        with database.read() as session:
            found = len(session.exec(select(Instance)).all())
        if found == len(paths):
            break
        time.sleep(0.05)
    assert found == len(paths)
    assert again.terminate() == 0
    everything_is_there_once(state, paths)
    database.close()


@pytest.mark.slow
def test_no_more_space_in_the_file_answers_a700_and_leaves_nothing(tmp_path, monkeypatch):
    """A real EFBIG from the kernel: files of the process may not pass 2 MB."""
    folder, state = tmp_path / "images", tmp_path / "state"
    folder.mkdir()
    write_image(folder / "large.dcm", np.zeros((1500, 1500), dtype=np.uint16), StudyFacts("CR", "P1", "large", ACQUIRED))

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))

    listener = Process(state, preexec_fn=limit)
    try:
        monkeypatch.setattr(send, "RETRY_DELAYS_S", (0.01, 0.01))
        summary = send_folder(folder, "127.0.0.1", listener.port)
        assert (summary.outcomes, summary.complete) == ({"A700": 1}, False)
        assert "disk space" in summary.text()
        assert not list((state / "archive").rglob("*.dcm"))
        assert [path.suffix for path in (state / "archive" / "incoming").iterdir() if path.is_file()] == [".lock"]
        assert not [path for path in (state / "archive" / "incoming").rglob("*/*") if path.is_file()]
    finally:
        listener.kill()


# Between file and row


@pytest.fixture
def published(sqlite_context, tmp_path):
    """A file under its final name without a row, as after a crash right before the commit."""
    path = tmp_path / "image.dcm"
    write_image(path, np.zeros((8, 8), dtype=np.uint8), StudyFacts("CT", "P1", "between", ACQUIRED))
    files = ArchiveFiles(sqlite_context.settings.archive_dir)
    index = ArchiveIndex(sqlite_context.database, sqlite_context.pseudonyms)
    relative = index.path_of(read_stored(path).facts)
    assert files.publish(files.write([path.read_bytes()]), relative)
    yield sqlite_context, files, files.root / relative
    files.close()


def test_a_whole_file_without_row_is_entered(published):
    context, files, path = published
    summary = enter_missing(context, files, lambda: False)
    assert (summary.files, summary.indexed) == (1, 1)
    assert enter_missing(context, files, lambda: False).indexed == 0
    with context.database.read() as session:
        study = session.get(Study, study_instance_uid("between"))
    assert (study.instances, study.last_instance_at.timestamp()) == (1, pytest.approx(path.stat().st_mtime, abs=1e-3))


def test_the_whole_index_is_rebuilt_from_the_files(published):
    context, _, _ = published
    assert reindex(context).indexed == 1
    again = reindex(context)
    assert (again.files, again.indexed, again.lost) == (1, 0, 0)


def test_lost_and_damaged_files_are_reported(published):
    context, _, path = published
    reindex(context)
    path.unlink()
    (path.parent / "damaged.dcm").write_bytes(b"no DICOM")
    summary = reindex(context)
    assert summary.lost == 1
    assert len(summary.unreadable) == 1
    assert "restore" in summary.text()


def test_a_file_in_a_foreign_place_is_not_entered(published):
    context, files, path = published
    other = path.with_name("0" * 32 + ".dcm")
    shutil.copy(path, other)
    summary = enter_missing(context, files, lambda: False)
    assert (summary.indexed, len(summary.misplaced)) == (1, 1)


def test_a_uid_of_another_study_goes_aside_at_the_next_start(published, tmp_path):
    """As after a crash between the answer and the row: the index alone knows that the UID is taken."""
    context, files, first = published
    enter_missing(context, files, lambda: False)
    other = tmp_path / "other.dcm"
    write_image(other, np.zeros((8, 8), dtype=np.uint8), StudyFacts("CT", "P1", "between", ACQUIRED))
    dataset = dcmread(other)
    dataset.StudyInstanceUID = f"{dataset.StudyInstanceUID[:50]}.1"
    dataset.save_as(other)
    index = ArchiveIndex(context.database, context.pseudonyms)
    relative = index.path_of(read_stored(other).facts)
    assert files.publish(files.write([other.read_bytes()]), relative)
    for aside in (1, 0):
        summary = enter_missing(context, files, lambda: False)
        assert (summary.indexed, summary.aside, summary.misplaced) == (0, aside, [])
    assert not (files.root / relative).exists()
    (kept,) = (files.root / "conflicts").rglob("*.dcm")
    assert first.exists()
    with context.database.transaction() as tx:  # as in an empty database, or one restored from before
        (noted,) = tx.session.exec(select(SetAside)).all()
        tx.session.delete(noted)
    assert [enter_missing(context, files, lambda: False).noted for _ in range(2)] == [1, 0]
    with context.database.read() as session:
        (again,) = session.exec(select(SetAside)).all()
    assert (again.kept_as, again.name, again.acknowledged) == (noted.kept_as, noted.name, True)
    assert again.kept_as == kept.relative_to(files.root).as_posix()


def test_who_waits_for_the_index_knows_what_was_submitted(published):
    context, files, first = published
    index = ArchiveIndex(context.database, context.pseudonyms)
    writer = IndexWriter(files, index)
    assert writer.has_caught_up(0)
    writer.submit(read_stored(first))
    assert not writer.has_caught_up(0.01)
    writer.start()
    try:
        assert writer.has_caught_up(10)
        assert index.known_as(read_stored(first).facts.sop_instance_uid) is not None
    finally:
        writer.stop()


def test_dead_processes_leave_nothing_and_living_ones_keep_theirs(tmp_path):
    code = "import sys, os; from pathlib import Path; from services.assembly.files import ArchiveFiles; "
    code += "f = ArchiveFiles(Path(sys.argv[1])); f.write([b'half']); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code, tmp_path], check=False, cwd=Path(__file__).parents[2], timeout=30)
    living, sweeper = ArchiveFiles(tmp_path), ArchiveFiles(tmp_path)
    kept = living.write([b"in hand"])
    assert sweeper.sweep() == 1
    assert kept.read_bytes() == b"in hand"
    for files in (living, sweeper):
        files.close()
    assert not list((tmp_path / "incoming").iterdir())


def test_a_taken_name_is_never_overwritten(tmp_path):
    files = ArchiveFiles(tmp_path)
    assert files.publish(files.write([b"first"]), "ab/study/series/x.dcm")
    second = files.write([b"second"])
    assert not files.publish(second, "ab/study/series/x.dcm")
    assert (tmp_path / "ab/study/series/x.dcm").read_bytes() == b"first"
    assert second.exists()
    files.close()


def test_a_file_that_comes_again_says_so_by_its_time(tmp_path):
    files = ArchiveFiles(tmp_path)
    path, data = "ab/study/series/x.dcm", files.write([b"data"])
    assert files.publish(data, path)
    os.utime(tmp_path / path, (1_000_000_000, 1_000_000_000))
    assert not files.publish(data, path)
    assert time.time() - (tmp_path / path).stat().st_mtime < 60
    files.close()


def test_nobody_waits_for_the_folders_of_another_study(tmp_path, monkeypatch):
    """To make folders takes several turns of the disk; who has an open one goes on."""
    files, making, made = ArchiveFiles(tmp_path), threading.Event(), threading.Event()
    assert files.publish(files.write([b"first"]), "ab/study/series/1.dcm")
    second, third = files.write([b"second"]), files.write([b"third"])
    mkdir = Path.mkdir

    def slowly(*arguments, **options):
        making.set()
        made.wait(20)
        mkdir(*arguments, **options)

    monkeypatch.setattr(Path, "mkdir", slowly)
    other = threading.Thread(target=files.publish, args=(second, "cd/study/series/2.dcm"))
    other.start()
    assert making.wait(20)
    assert files.publish(third, "ab/study/series/3.dcm")
    assert not (tmp_path / "cd").exists()
    made.set()
    other.join()
    assert (tmp_path / "cd/study/series/2.dcm").read_bytes() == b"second"
    files.close()


def test_a_taken_name_is_never_overwritten_where_there_are_no_links(tmp_path, monkeypatch):
    """Two senders at once, in two processes' worth of archives, on a file system without link(2)."""
    rename, both = os.rename, threading.Barrier(2)

    def no_links(*_, **__):
        raise OSError(errno.EPERM, "no links")

    def late(*args, **options):
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(0.5)
        rename(*args, **options)

    monkeypatch.setattr(os, "link", no_links)
    monkeypatch.setattr(os, "rename", late)
    path, published = "ab/study/series/x.dcm", {}

    def put(files, data):
        published[data] = files.publish(files.write([data]), path)

    archives = [ArchiveFiles(tmp_path), ArchiveFiles(tmp_path)]
    threads = [threading.Thread(target=put, args=each) for each in zip(archives, (b"one", b"two"), strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert sorted(published.values()) == [False, True]
    assert published[(tmp_path / path).read_bytes()]
    archives[0].sweep()
    for files in archives:
        files.close()


# Many senders of one study, on both databases


def _file(path, number):
    image = np.full((4, 4), number, dtype=np.uint8)
    write_image(path, image, StudyFacts("MR", "P1", "many", ACQUIRED, instance=number % 10 + 1))
    return read_stored(path)


def test_concurrent_transactions_lose_no_update_and_do_not_deadlock(context, tmp_path):
    """Four threads enter the same ten instances while a ticker closes: each counts once, each revision is announced once."""
    index = ArchiveIndex(context.database, context.pseudonyms)
    files = [_file(tmp_path / f"{number}.dcm", number) for number in range(10)]
    outcomes, errors, done = [], [], threading.Event()

    def enter(order):
        try:
            outcomes.extend([index.enter(files[number]) for number in order])
        except BaseException as error:  # noqa: BLE001 - shown by the assertion below
            errors.append(error)

    def tick():
        while not done.is_set():
            with context.database.transaction() as tx:
                complete_studies(tx, context.pseudonyms, Rules(-1e9))
            time.sleep(0.01)

    chance = random.Random(3)
    threads = [threading.Thread(target=enter, args=(chance.sample(range(10), 10),)) for _ in range(4)]
    ticker = threading.Thread(target=tick)
    for thread in (*threads, ticker):
        thread.start()
    for thread in threads:
        thread.join(60)
    done.set()
    ticker.join(60)
    assert errors == []
    assert Counter(outcomes) == {Recorded.NEW: 10, Recorded.KNOWN: 30}
    with context.database.transaction() as tx:
        complete_studies(tx, context.pseudonyms, Rules(-1e9))
    with context.database.read() as session:
        study = session.get(Study, study_instance_uid("many"))
        bodies = [json.loads(row.body) for row in session.exec(select(Outbox).order_by(Outbox.id))]
    assert study.instances == 10
    assert [body["revision"] for body in bodies] == list(range(1, study.revision + 1))
    assert sum(series["instances"] for series in bodies[-1]["series"]) == 10


def test_compiling_the_statements_early_leaves_nothing(database):
    index = ArchiveIndex(database, Pseudonyms(b"k" * 32))
    index.prepare()
    with database.read() as session:
        assert session.exec(select(Instance)).all() == []
        assert session.exec(select(Study)).all() == []

"""Rubbish on every input of the running service: it is refused with its reason, and the next good study is scored as ever."""

import json
import os
import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.dimse_primitives import C_STORE

from listeners.cli.main import main
from listeners.dicom.synthesize import SOP_CLASSES
from schemas.topics import TOPICS
from schemas.vocabulary import CaseRole, Modality
from tests.dicom_listener import pause
from tests.loop_checks import read_topics
from tests.loop_samples import TASK, Sample, samples
from tests.loop_world import Loop, wait_for

MR = SOP_CLASSES[Modality.MR]
ENVELOPE = {"ce_specversion": "1.0", "ce_source": "/reclaim/test", "ce_time": "2026-03-02T08:00:00+00:00"}


@pytest.fixture
def loop(make_loop: Any) -> Iterator[Loop]:
    return make_loop().start()  # type: ignore[no-any-return]


async def test_rubbish_on_every_input_of_a_running_service(loop: Loop, tmp_path: Path) -> None:
    children = dict(loop.run_state().children)
    on_the_dicom_port(loop)
    on_http(loop)
    await on_every_topic(loop)
    good = samples(tmp_path / "good", {CaseRole.TRIGGER: 2}, truthful=True)
    works_as_ever(loop, good)
    assert loop.run_state().children == children, f"a process ended:\n{loop.tail()}"
    assert "Traceback" not in loop.log.read_text(), loop.tail(20_000)
    assert loop.stop() == 0


def works_as_ever(loop: Loop, good: list[Sample]) -> None:
    sent = loop.cli("send", str(good[0].file.parent))
    assert sent.returncode == 0, sent.stdout + sent.stderr
    assert loop.post_labels(good)[0] == 202
    joined = 'SELECT count(*) FROM "case" WHERE truth IS NOT NULL'
    wait_for("the good studies' cases", 60, lambda: loop.scalar(joined) == len(good))


def on_the_dicom_port(loop: Loop) -> None:
    for rubbish in (
        b"",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        os.urandom(4096),
        b"\x01\x00\xff\xff\xff\xff" + b"A" * 1000,  # A-ASSOCIATE-RQ of four gigabytes
        b"\x04\x00\x00\x00\x00\x10" + b"\x00" * 16,  # P-DATA before any association
        b"\x01\x00\x00\x00\x00\x44\x00\x01",  # A-ASSOCIATE-RQ cut short
    ):
        with socket.create_connection(("127.0.0.1", loop.dicom_port), timeout=10) as peer:
            peer.sendall(rubbish)
    for data in (b"", os.urandom(700), b"\x08\x00\x18\x00UI\x40\x001.2.3"):
        assert store_raw(loop, data) & 0xF000 in {0xA000, 0xC000}, "a broken data set was not refused"
    assert loop.scalar("SELECT count(*) FROM instance") == 0
    assert loop.echoes()


def store_raw(loop: Loop, data: bytes) -> int:
    """Status of a C-STORE with these bytes as its data set."""
    ae = AE()
    ae.add_requested_context(MR, ExplicitVRLittleEndian)
    association = ae.associate("127.0.0.1", loop.dicom_port, ae_title="RECLAIM")
    assert association.is_established
    request = C_STORE()
    request.MessageID, request.Priority = 1, 2
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = MR, "1.2.826.0.1.3680043.8.498.7"
    request.DataSet = BytesIO(data or b"\x00")
    pause(association)
    association.dimse.send_msg(request, association.accepted_contexts[0].context_id)
    _, response = association.dimse.get_msg(block=True)
    association._reactor_checkpoint.set()
    association.abort()
    return int(response.Status)


LABEL_FIELDS = {"study": "1.2.3", "task": TASK, "label": "disc"}
HTTP_CASES: list[tuple[str, str, Any, int]] = [
    ("GET", "/nothing", None, 404),
    ("GET", "/api/labels", None, 405),
    ("GET", "/api/chat/nonsense", None, 404),
    ("POST", "/api/labels", b"", 400),
    ("POST", "/api/labels", b"{", 400),
    ("POST", "/api/labels", b"\xff\xfe\x00", 400),
    ("POST", "/api/labels", b"[" * 100_000, 400),
    ("POST", "/api/labels", b" " * 6_000_000, 413),
    ("POST", "/api/labels", [], 422),
    ("POST", "/api/labels", 7, 422),
    ("POST", "/api/labels", [None, [], "x"], 422),
    ("POST", "/api/labels", {}, 422),
    ("POST", "/api/labels", LABEL_FIELDS | {"label": 7}, 422),
    ("POST", "/api/labels", LABEL_FIELDS | {"label": "no such class"}, 422),
    ("POST", "/api/labels", LABEL_FIELDS | {"label": "disc\x00"}, 422),
    ("POST", "/api/labels", LABEL_FIELDS | {"study": "../../etc"}, 422),
    ("POST", "/api/labels", LABEL_FIELDS | {"labelled_at": "yesterday"}, 422),
    ("POST", "/api/labels", LABEL_FIELDS | {"labelled_at": "9999-01-01T00:00:00Z"}, 422),
    ("POST", "/api/labels", LABEL_FIELDS | {"source": "s" * 500}, 422),
    ("POST", "/api/chat", b"{", 400),
    ("POST", "/api/chat", [], 400),
    ("POST", "/api/chat", {"text": ""}, 400),
    ("POST", "/api/chat", {"text": 7}, 400),
    ("POST", "/api/chat", {"text": "x" * 5000}, 400),
    ("POST", "/api/chat", {"text": "status", "thread": "../.."}, 400),
    ("POST", "/api/chat", {"text": "status", "user": "a\nb"}, 400),
]


def on_http(loop: Loop) -> None:
    of_the_training = loop.scalar("SELECT count(*) FROM outbox")
    for method, path, body, expected in HTTP_CASES:
        status, answer = loop.http(method, path, body)
        assert status == expected, f"{method} {path} {str(body)[:60]}: {status} {answer[:300]}"
        assert json.loads(answer).keys() & {"error", "detail"}, answer
        assert "Traceback" not in answer
    assert loop.http("POST", "/api/labels", b"{}", **{"Content-Type": "text/plain"})[0] == 415
    assert loop.scalar("SELECT count(*) FROM outbox") == of_the_training


async def on_every_topic(loop: Loop) -> None:
    """Five kinds of rubbish a topic; each reader puts each aside with its reason, in the table and on the topic's .dlq."""
    bootstrap = loop.run_state().bootstrap
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap)
    await producer.start()
    try:
        for topic in TOPICS:
            for number, (headers, body) in enumerate(rubbish(topic.ce_type)):
                packed = [(name, value if isinstance(value, bytes) else value.encode()) for name, value in headers.items()]
                await producer.send_and_wait(topic.name, body, key=b"k%d" % number, headers=packed)
    finally:
        await producer.stop()
    expected = Counter({(topic.name, reader): 5 for topic in TOPICS for reader in topic.readers})
    query = "SELECT topic, consumer, count(*) FROM dead_letter GROUP BY topic, consumer"
    wait_for("the dead letters", 60, lambda: Counter({(row[0], row[1]): row[2] for row in loop.query(query)}) == expected)
    reasons = [row[0] for row in loop.query("SELECT reason FROM dead_letter")]
    assert all("ce_id" in reason or "breaks its contract" in reason for reason in reasons), reasons
    wanted = {topic.dead_letter: 5 * len(topic.readers) for topic in TOPICS if topic.readers}
    wait_for("the relay", 30, lambda: loop.scalar("SELECT count(*) FROM outbox WHERE sent_at IS NULL") == 0)
    letters = await read_topics(bootstrap, [topic.dead_letter for topic in TOPICS])
    assert Counter(record.topic for record in letters) == wanted
    assert all(dict(record.headers).get("dlq_reason") for record in letters)
    listed = loop.cli("dead-letters", "list")
    assert listed.returncode == 0
    assert "breaks its contract" in listed.stdout


def rubbish(ce_type: str) -> list[tuple[dict[str, str | bytes], bytes | None]]:
    envelope = ENVELOPE | {"ce_type": ce_type}
    return [
        ({}, os.urandom(300)),
        ({**envelope, "ce_id": f"{ce_type}-1"}, b"not JSON"),
        ({**envelope, "ce_id": f"{ce_type}-2"}, b'{"study_key": 7, "model": null, "thread": []}'),
        ({**envelope, "ce_id": f"{ce_type}-3"}, None),
        ({"ce_id": b"\xff" * 100, "content-type": b"\xfe"}, b"{}"),
    ]


Command = Callable[..., tuple[int, str]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """A `reclaim` command in this process, with settings; returns exit code and all that it says."""

    def run(*arguments: str, **environment: str) -> tuple[int, str]:
        monkeypatch.chdir(tmp_path)
        for name in [name for name in os.environ if name.startswith("RECLAIM_")]:
            monkeypatch.delenv(name)
        for name, value in ({"RECLAIM_STATE_DIR": str(tmp_path / "state"), "COLUMNS": "200"} | environment).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["reclaim", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), " ".join((said.out + said.err).split())

    return run


COMMANDS: list[tuple[list[str], dict[str, str], int, str]] = [
    (["send", "no-such-folder"], {}, 2, "no-such-folder"),
    (["labels", "import", "no-such-file.csv"], {}, 2, "no-such-file.csv"),
    (["models", "rollback", "nobody"], {}, 2, "nobody"),
    (["models", "stop", "nobody"], {}, 2, "nobody"),
    (["models", "register", "no-such-bundle", "--dataset", "none.csv"], {}, 2, "none.csv"),
    (["models", "train", "none.csv", "--name", "m", "--task", "t", "--modality", "MR"], {}, 2, "none.csv"),
    (["evaluations", "show", "nothing"], {}, 2, "nothing"),
    (["reports", "show", "nothing"], {}, 2, "nothing"),
    (["dead-letters", "replay", "4711"], {}, 2, "4711"),
    (["dead-letters", "replay"], {}, 2, "--all"),
    (["nonsense"], {}, 2, "No such command"),
    (["demo", "--data", "no-such-folder"], {}, 1, "no-such-folder"),
    (["settings"], {"RECLAIM_DICOM_PORT": "eighty"}, 78, "dicom.port"),
    (["settings"], {"RECLAIM_JOIN_TUNE_SHARE": "0.9"}, 78, "below 1"),
    (["doctor"], {"RECLAIM_DICOM_PROT": "104"}, 78, "prot"),
    (["settings"], {"RECLAIM_CONFIG": "no-such.toml"}, 2, "no-such.toml"),
    (["models", "list"], {"RECLAIM_DATABASE_URL": "nonsense"}, 2, "database.url is no"),
    (["models", "list"], {"RECLAIM_DATABASE_URL": "nonsense://secret@host"}, 2, "database.url is no"),
    (["models", "list"], {"RECLAIM_DATABASE_URL": "postgresql+psycopg://nobody@127.0.0.1:1/none"}, 75, "reclaim doctor"),
]


@pytest.mark.parametrize(("arguments", "environment", "code", "words"), COMMANDS, ids=lambda value: str(value)[:40])
def test_a_wrong_command_is_told_what_is_wrong(
    command: Command, arguments: list[str], environment: dict[str, str], code: int, words: str
) -> None:
    ended, said = command(*arguments, **environment)
    assert words in said
    assert ended == code


@pytest.mark.parametrize(
    ("arguments", "environment", "code", "words"),
    [
        (["serve", "nothing"], {}, 2, "known: relay"),
        (["serve", "http"], {"RECLAIM_HTTP_HOST": "0.0.0.0"}, 78, "RECLAIM_HTTP_TOKEN"),
        (["up"], {"RECLAIM_DATABASE_URL": "postgresql+psycopg://nobody@127.0.0.1:1/none"}, 75, "the database is away"),
    ],
)
def test_a_service_that_cannot_start_says_why(
    tmp_path: Path, arguments: list[str], environment: dict[str, str], code: int, words: str
) -> None:
    loop = Loop(tmp_path / "state", tmp_path / "log")
    done = loop.cli(*arguments, **environment)
    loop.close()
    said = done.stdout + done.stderr
    assert "Traceback" not in said, said
    assert words in said
    assert done.returncode == code


FILES: list[tuple[bytes, str]] = [
    (b"", "empty"),
    (bytes(range(256)) * 20, "the header lacks"),
    (b"a,b,c\n1,2,3\n", "the header lacks"),
    (b"study,task,label\n1.2.3,texture-kind\n", "row 2"),
    (b"study,task,label,labelled_at\n1.2.3,texture-kind,disc,31.02.2026\n", "row 2: labelled_at is not"),
    (b"study,task,label\nnot a uid,texture-kind,disc\n", "row 2: study is not a DICOM UID"),
    (b"study,task,label\n1.2.3,texture-kind,\xff\xfe\n", "row 2"),
]


@pytest.mark.parametrize(("content", "words"), FILES, ids=lambda value: str(value)[:30])
def test_a_wrong_label_file_is_told_what_is_wrong(command: Command, tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "labels.csv"
    file.write_bytes(content)
    code, said = command("labels", "import", str(file))
    assert words in said
    assert code in {1, 2}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"this is = not [ TOML", "site.toml is not TOML"),
        (b"\x00\x01", "site.toml is not TOML"),
        (b"\xff\xfe", "site.toml is not TOML"),
        (b'[dicom]\nport = "eighty"\n', "dicom.port"),
        (b"[dicom]\nprot = 104\n", "dicom.prot"),
        (b"dicom = 3\n", "dicom"),
    ],
)
def test_a_wrong_settings_file_is_told_what_is_wrong(command: Command, tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "site.toml"
    file.write_bytes(content)
    code, said = command("settings", RECLAIM_CONFIG=str(file))
    assert words in said
    assert code == 78

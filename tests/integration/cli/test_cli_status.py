"""`reclaim status`: how everything stands, without anything that runs, and without changing anything."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import typer
from sqlalchemy import text

from agents.overview.reading import LOOKED_AT
from listeners.cli import checks
from listeners.cli.commands import COMMANDS, GROUPS, add_to
from listeners.cli.ports import forget_ports
from schemas.drift import DriftWindow
from schemas.settings import load_settings
from schemas.tables import Case, DeadLetter, Evaluation, Inbox, Job, ModelVersion, Order, Outbox, RegisteredModel, Study
from services.runtime.run_state import RunState, lock, read_state, write_state
from services.runtime.service import Context

Reclaim = Callable[..., Any]


def study(site: Context, number: int, hours: float, **facts: Any) -> Study:
    at = site.clock.now() - timedelta(hours=hours)
    times = {"acquired_at": at, "first_instance_at": at, "last_instance_at": at}
    return Study(study_uid=f"1.2.{number}", study_key=f"s{number}", patient_key=f"p{number}", **times, **facts)


def case(site: Context, number: int, **facts: Any) -> Case:
    at = site.clock.now() - timedelta(hours=1)
    whose = {"study_key": f"s{number}", "patient_key": f"p{number}", "model": "lung", "version": 2, "task": "nodule"}
    answer: dict[str, Any] = {"predicted": "a", "probabilities": {"a": 1.0}, "role": "trigger"}
    return Case(**(whose | answer | {"acquired_at": at, "scored_at": at} | facts))


def evaluation(site: Context, number: int, status: str, days: float) -> Evaluation:
    return Evaluation(
        evaluation_id=f"e{number}",
        batch_id=f"b{number}",
        model="lung",
        version=2,
        status=status,
        diagnosis="covariate" if status == "degraded" else "none",
        cases=100,
        stream_cases=100 * number,
        metrics=[],
        evidence={},
        reclaim_rule=False,
        summary="",
        evaluated_at=site.clock.now() - timedelta(days=days),
    )


def order(site: Context, name: str, kind: str, state: str, remedy: str | None = None) -> Order:
    at = site.clock.now() - timedelta(minutes=5)
    facts = {"model": "lung", "version": 2, "reason": "r", "actor": "user:ada", "created_at": at, "updated_at": at}
    return Order(order_id=name, idempotency_key=name, kind=kind, state=state, remedy=remedy, **facts)


def event(site: Context, name: str, topic: str, **facts: Any) -> Outbox:
    at = site.clock.now() - timedelta(minutes=10)
    return Outbox(event_id=name, topic=topic, key="k", headers={"ce_id": name}, body=b"{}", created_at=at, **facts)


def letter(site: Context, name: str, **facts: Any) -> DeadLetter:
    at = site.clock.now() - timedelta(minutes=3)
    where = {"topic": "imaging.study.received.v1", "partition": 0, "offset": 1, "body": b"", "error": "E", "reason": "r"}
    return DeadLetter(consumer="inference", event_id=name, created_at=at, **where, **facts)


@pytest.fixture
def hospital(site: Context) -> Context:
    """A model that has declined, with its studies, orders, events and letters."""
    now = site.clock.now()
    rows = [
        study(site, 1, 0.5, state="open"),
        study(site, 2, 2, state="complete"),
        study(site, 3, 72, state="complete"),
        case(site, 1, truth="a", state="joined", joined_at=now - timedelta(days=1)),
        case(site, 2),
        case(site, 3, truth="a", state="batched", batch_id="b1", joined_at=now - timedelta(days=3)),
        case(site, 4, truth="a", state="joined", role="tune", joined_at=now),
        evaluation(site, 1, "healthy", 20),
        evaluation(site, 2, "degraded", 9),
        evaluation(site, 3, "degraded", 2),
        order(site, "ord-1", "remedy", "running", "partial"),
        Job(
            job_id="j1",
            order_id="ord-1",
            model="lung",
            remedy="partial",
            state="running",
            progress={"epoch": 3, "epochs": 8, "message": "trained"},
            created_at=now,
            updated_at=now,
        ),
        order(site, "ord-2", "rollback", "awaiting_approval"),
        order(site, "ord-3", "report", "done"),
        event(site, "v1", "imaging.study.received.v1", sent_at=now, sent_to="b"),
        Inbox(consumer="inference", event_id="v1", handled_at=now - timedelta(minutes=9)),
        event(site, "v2", "imaging.study.received.v1", sent_at=now, sent_to="b"),
        event(site, "v3", "inference.prediction.v1"),
        event(site, "v4", "imaging.study.received.v1", sent_at=now, sent_to="b"),
        letter(site, "v4"),
        letter(site, "v5", discarded_at=now),
        DriftWindow(
            drift_id="d1",
            model="lung",
            version=2,
            kind="cases",
            number=1,
            cases=50,
            first_at=now,
            last_at=now,
            warning=True,
            suspected="covariate",
            signals=[],
            summary="The images look different.",
            measured_at=now - timedelta(days=1),
        ),
    ]
    with site.database.transaction() as tx:
        tx.session.add(RegisteredModel(name="lung", task="nodule", classes=["a", "b"], champion=2, created_at=now))
        tx.session.add(RegisteredModel(name="old", task="bones", classes=["a", "b"], champion=None, created_at=now))
        tx.session.flush()
        tx.session.add(ModelVersion(model="lung", version=2, state="champion", bundle="x", sha256="0", created_at=now))
        waiting = {"state": "challenger", "parent": 2, "metrics": {"gate_cases_needed": 90}}
        tx.session.add(ModelVersion(model="lung", version=3, bundle="x", sha256="0", created_at=now, **waiting))
        tx.session.add_all(rows)
    return site


def everything(folder: Path) -> dict[str, tuple[int, float]]:
    found = [path for path in folder.rglob("*") if not path.name.endswith(("-wal", "-shm"))]
    return {str(path): (path.stat().st_size, path.stat().st_mtime) for path in found if path.is_file()}


def test_one_screen_says_how_everything_stands(reclaim: Reclaim, hospital: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECLAIM_DICOM_PORT", str(_free_port()))
    said = reclaim("status")
    assert said.code == 0
    told = " ".join(said.text.split())
    days = [f"{hospital.clock.now() - timedelta(days=number):%F}" for number in (9, 2)]
    for words in (
        "not running: start it with `reclaim up`",
        "nobody listens on this machine",
        "3 received, the last 30 minutes ago; 2 in the last 24 hours, 1 not complete yet",
        f"version 2 serves, degraded (covariate) since {days[0]}, evaluated {days[1]} on 300 cases",
        "1 of 100 labelled cases for the next evaluation, 99 missing",
        "1 scored study waits for a label",
        "last study scored 60 minutes ago",
        "version 3 waits for the gate with 0 of 90 cases",
        "The images look different.",
        "no version serves",
        "ord-1: remedy partial of lung, by user:ada 5 minutes ago; running, epoch 3 of 8 (trained)",
        'ord-2: rollback of lung, by user:ada 5 minutes ago; waits for approval: reclaim chat "approve ord-2"',
        "inference is 1 event behind, by 10 minutes; active 9 minutes ago",
        "1 events wait for the bus, the oldest for 10 minutes",
        "1: 1 of inference, the newest 3 minutes ago",
    ):
        assert words in told, words
    assert "ord-3" not in said.text
    assert len(said.text.splitlines()) < 30, "one screen"


def test_a_program_gets_the_same_as_json(reclaim: Reclaim, hospital: Context) -> None:
    found = json.loads(reclaim("status", "--json").text)
    (lung, old), seen = found["overview"]["models"], found["overview"]
    assert (lung["champion"], lung["status"], lung["outlook"]["ready"], lung["outlook"]["needed"]) == (2, "degraded", 1, 100)
    assert old["champion"] is None
    assert {each["order_id"] for each in seen["work"]} == {"ord-1", "ord-2"}
    waiting = {each["name"]: each["waiting"] for each in seen["consumers"]}
    assert waiting["inference"] == 1, "one is dealt with, one is a dead letter"
    assert waiting["ground_truth"] == waiting["drift"] == 1
    assert waiting["agents"] == 0
    assert seen["letters"]["by_consumer"] == {"inference": 1}
    assert found["service"] == {"at_work": False, "starting": False, "since": None, "down": [], "misconfigured": []}
    assert "s1" not in json.dumps(found), "no study, no patient"


@pytest.mark.usefixtures("hospital")
def test_looking_changes_nothing(reclaim: Reclaim, state: Path) -> None:
    before = everything(state)
    reclaim("status")
    assert everything(state) == before


def test_where_nothing_has_been_there_is_nothing_made(reclaim: Reclaim, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECLAIM_STATE_DIR", str(state / "none"))
    said = reclaim("status")
    assert (said.code, "nothing has been written here yet" in said.text) == (0, True)
    assert not (state / "none").exists()
    assert json.loads(reclaim("status", "--json").text)["overview"] is None


def test_tables_of_another_version_are_told_and_left(reclaim: Reclaim, site: Context) -> None:
    with site.database.engine.begin() as connection:
        connection.execute(text("ALTER TABLE job DROP COLUMN progress"))
        connection.execute(text("ALTER TABLE model RENAME TO model_of_old"))
    said = reclaim("status")
    assert said.code == 0
    assert "the database cannot be read" in said.text
    assert "reclaim doctor" in said.text


@pytest.mark.usefixtures("running")
def test_what_runs_is_seen(reclaim: Reclaim, state: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        (state / "run").mkdir(exist_ok=True)
        (state / "run" / "dicom.json").write_text(json.dumps({"port": server.getsockname()[1]}))
        said = reclaim("status")
        number = server.getsockname()[1]
    assert "service       runs" in said.text
    assert f"port {number}: answers" in said.text


@pytest.mark.parametrize(("host", "up"), [("127.0.0.2", True), ("0.0.0.0", False)])
def test_a_listener_is_asked_at_its_own_address(
    reclaim: Reclaim, state: Path, monkeypatch: pytest.MonkeyPatch, host: str, up: bool
) -> None:
    monkeypatch.setenv("RECLAIM_DICOM_HOST", host)
    with socket.create_server(("127.0.0.2", 0)) as server:
        monkeypatch.setenv("RECLAIM_DICOM_PORT", str(server.getsockname()[1]))
        assert json.loads(reclaim("status", "--json").text)["listener"]["up"] is up
    assert state.is_dir()


@pytest.mark.usefixtures("state")
def test_the_watermark_is_the_setting(reclaim: Reclaim, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECLAIM_DICOM_MIN_FREE_BYTES", str(10**18))
    assert json.loads(reclaim("status", "--json").text)["disk"]["watermark_bytes"] == 10**18
    assert "below 1.0 EB C-STORE is refused" in reclaim("status").text


def test_only_the_newest_events_are_counted(reclaim: Reclaim, site: Context) -> None:
    with site.database.transaction() as tx:
        tx.session.add_all(event(site, f"v{number}", "evaluation.batch.ready.v1") for number in range(LOOKED_AT + 5))
    found = json.loads(reclaim("status", "--json").text)["overview"]["consumers"]
    (behind,) = [each for each in found if each["name"] == "evaluation"]
    assert (behind["waiting"], behind["at_least"]) == (LOOKED_AT, True)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.mark.parametrize("name", [*COMMANDS, *GROUPS])
def test_a_command_that_is_wanted_alone_is_the_same_command(name: str) -> None:
    alone, every = typer.Typer(), typer.Typer()
    add_to(alone, name)
    add_to(every)
    assert [each.name for each in (*alone.registered_commands, *alone.registered_groups)] == [name]
    names = [each.name for each in (*every.registered_commands, *every.registered_groups)]
    assert sorted(names) == sorted([*COMMANDS, *GROUPS])


def test_the_status_loads_no_statistics() -> None:
    start = "import sys; sys.argv = ['reclaim', 'status']; import listeners.cli.main, listeners.cli.overview"
    code = f"{start}; sys.exit('scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.fixture
def supervised(site: Context) -> Iterator[None]:
    """`reclaim up` runs in the state folder; none of its services has said anything yet."""
    at = datetime(2026, 3, 1, 9, 30, tzinfo=UTC)
    rest: dict[str, Any] = {"incarnation": "one", "broker_pid": 1, "ports": {}, "children": {}}
    with lock(site.settings.state_dir):
        write_state(
            site.settings.state_dir, RunState(pid=os.getpid(), bootstrap="127.0.0.1:1", embedded=True, started_at=at, **rest)
        )
        yield


@pytest.mark.usefixtures("supervised")
def test_a_port_that_another_program_holds_is_not_taken_for_ours(
    reclaim: Reclaim, site: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two services on one machine with the same port: the second must not say that all is well."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        number = server.getsockname()[1]
        for name in ("DICOM", "HTTP"):
            monkeypatch.setenv(f"RECLAIM_{name}_PORT", str(number))
        assert f"port {number}: another program answers there" in reclaim("status").text
        for check in (checks._dicom, checks._http):
            (finding,) = check(load_settings())
            assert (finding.found, finding.bad) == (f"another program holds port {number}", True)
        ours = site.settings.state_dir / "run" / "dicom.json"
        ours.write_text(json.dumps({"port": number}))
        assert f"port {number}: answers" in reclaim("status").text
        forget_ports(site.settings, ["dicom", "assembly"])  # as a listener does that starts after one was killed
        assert f"port {number}: another program answers there" in reclaim("status").text


@pytest.mark.usefixtures("supervised")
def test_a_service_that_is_starting_is_not_told_to_be_started(reclaim: Reclaim) -> None:
    said = reclaim("status").text
    assert "`reclaim up` runs since 2026-03-01 09:30 UTC, and its services are starting" in said
    assert "not running" not in said


@pytest.mark.usefixtures("supervised")
def test_a_process_that_its_settings_keep_from_working_is_told_with_what_to_do(reclaim: Reclaim, site: Context) -> None:
    folder = site.settings.state_dir
    state = read_state(folder)
    assert state is not None
    write_state(folder, state.model_copy(update={"children": {"bus": 0, "dicom": 7}, "misconfigured": ("bus",)}))
    said = " ".join(reclaim("status").text.split())
    assert "down: bus; bus: does not start with its settings, which its last lines name: then start `reclaim up` again" in said

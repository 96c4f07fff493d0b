"""The weekly report: exactly one per model and week, under restarts, several processes, downtime and SIGKILL."""

import json
import re
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import select

from schemas.report_settings import ReportSettings
from schemas.settings import Settings
from schemas.tables import Order, Outbox, Report
from schemas.topics import ORDER
from schemas.vocabulary import OrderState
from services.reporting.app import build
from services.reporting.schedule import order_due
from services.runtime import lease, registry
from services.runtime.consumer import process
from services.runtime.messages import Record
from services.runtime.process import _tick_once
from tests.reporting_world import CLASSES, MODEL, baseline_rows, contents, evaluated_batch, reported, texts, version_row

MONDAY = datetime(2026, 3, 9, 6, 0, tzinfo=UTC)
"""The first slot after the clock's start, Monday 2 March 2026, 08:00."""
ROOT = Path(__file__).parents[3]


@pytest.fixture
def serving(context, clock):
    """A model that serves and has one evaluated batch."""
    return with_model(context, clock)


@pytest.fixture
def serving_sqlite(sqlite_context, clock):
    return with_model(sqlite_context, clock)


def with_model(context, clock):
    with context.database.transaction() as tx:
        registry.register_model(tx, MODEL, "brain-tumour", CLASSES, {})
        registry.add_version(tx, version_row(1, clock, origin="registered"), baseline_rows(1), actor="test")
    clock.advance(3600)
    with context.database.transaction() as tx:
        evaluated_batch(tx, 1, fallen=False, status="healthy")
    return context


def tick(context, settings=None):
    with context.database.transaction() as tx:
        order_due(settings or ReportSettings())(tx)


def ordered(context):
    """The records of the orders that were sent, in order."""
    with context.database.read() as session:
        rows = session.execute(select(Outbox).where(Outbox.topic == ORDER.name).order_by(Outbox.id)).scalars().all()
    return [Record(row.topic, 0, place, row.key, row.headers, row.body) for place, row in enumerate(rows)]


def write_all(context):
    process(context.database, build(context).consumers[0], ordered(context))


def weeks(context):
    with context.database.read() as session:
        keys = session.execute(select(Order.idempotency_key).order_by(Order.created_at)).scalars().all()
    return [key.rpartition("|")[2] for key in keys]


def test_four_weeks_bring_four_reports_that_join(serving, clock):
    while clock.now() < MONDAY + timedelta(days=22):
        clock.advance(86_400 + 7)
        tick(serving)
        tick(serving)
    write_all(serving)
    found = reported(serving)
    assert [each.until for each in found] == [MONDAY + timedelta(days=7 * week) for week in range(4)]
    assert [each.since for each in found] == [each.until - timedelta(days=7) for each in found]
    assert {each.kind for each in found} == {"routine"}
    assert weeks(serving) == ["2026-W11", "2026-W12", "2026-W13", "2026-W14"]
    with serving.database.read() as session:
        assert {order.state for order in session.execute(select(Order)).scalars()} == {OrderState.DONE}


def test_a_routine_report_says_what_came_in(serving_sqlite, clock):
    clock.set(MONDAY)
    tick(serving_sqlite)
    write_all(serving_sqlite)
    [report] = reported(serving_sqlite)
    files = contents(serving_sqlite, report)
    data = json.loads(files["report.json"])["data"]
    assert data["period"] == {"since": "2026-03-02T06:00:00+00:00", "until": "2026-03-09T06:00:00+00:00"}
    assert {name: data["activity"][name] for name in ("predictions", "labels", "batches", "evaluations", "waiting")} == {
        "predictions": 100,
        "labels": 100,
        "batches": 1,
        "evaluations": 1,
        "waiting": 0,
    }
    assert report.summary == "No decline is seen. 100 studies were scored by brain-mri since 2 March 2026, and 100 labels came in."
    assert "to 9 March 2026: healthy" in report.title


def test_a_week_without_anything_is_no_health(serving_sqlite, clock):
    clock.set(MONDAY)
    tick(serving_sqlite)
    clock.set(MONDAY + timedelta(days=7))
    tick(serving_sqlite)
    write_all(serving_sqlite)
    text = contents(serving_sqlite, reported(serving_sqlite)[-1])["report.md"].decode()
    assert "Nothing was scored in this period: that is a fault of the feed or a stop of the model, and no sign of health." in text


def test_a_downtime_is_made_up_for_once(serving_sqlite, clock):
    clock.set(MONDAY)
    tick(serving_sqlite)
    clock.set(MONDAY + timedelta(days=23, hours=5))
    for _ in range(3):
        tick(serving_sqlite)
    write_all(serving_sqlite)
    first, second = reported(serving_sqlite)
    assert (second.since, second.until) == (first.until, MONDAY + timedelta(days=21))


def test_processes_at_the_same_time_order_one_report(serving, clock):
    clock.set(MONDAY)
    faults = []

    def work():
        try:
            tick(serving)
        except Exception as fault:  # noqa: BLE001 - whatever a thread raises is the test's to show
            faults.append(fault)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert len(ordered(serving)) == 1


def test_the_timer_of_a_service_orders_under_its_lease(serving, clock):
    clock.set(MONDAY)
    [ticker] = build(serving).tickers
    for owner in (lease.new_owner(), lease.new_owner()):
        _tick_once(ticker, serving, owner)
    assert len(ordered(serving)) == 1


def test_another_hour_in_the_same_week_brings_no_second_report(serving_sqlite, clock):
    clock.set(MONDAY)
    tick(serving_sqlite)
    clock.set(MONDAY + timedelta(hours=3))
    tick(serving_sqlite, ReportSettings(hour=8))
    tick(serving_sqlite, ReportSettings(weekday="monday", hour=9))
    assert weeks(serving_sqlite) == ["2026-W11"]
    clock.set(MONDAY + timedelta(days=8))
    tick(serving_sqlite, ReportSettings(hour=8))
    write_all(serving_sqlite)
    assert reported(serving_sqlite)[-1].since == MONDAY, "and the hours between are in the next one"


def test_models_that_do_not_serve_yet_are_left_out(context, clock):
    with context.database.transaction() as tx:
        registry.register_model(tx, "new", "t", CLASSES, {})
    clock.set(MONDAY)
    tick(context)
    assert ordered(context) == []


def test_it_can_be_turned_off(serving_sqlite):
    settings = serving_sqlite.settings.model_copy(update={"reports": ReportSettings(weekly=False)})
    assert build(replace(serving_sqlite, settings=settings)).tickers == ()


KILLED = """
import os, signal, sys, pickle
from schemas.settings import DatabaseSettings, Settings
from services.reporting.app import build
from services.reporting.writer import Writer
from services.runtime.consumer import process
from services.runtime.database import Database
from services.runtime.clock import SystemClock
from services.runtime.identity import Pseudonyms
from services.runtime.service import Context

state, url, records, where = sys.argv[1], sys.argv[2], pickle.load(open(sys.argv[3], "rb")), sys.argv[4]
settings = Settings(state_dir=state, database=DatabaseSettings(url=url))
database = Database(url)
entered = Writer.enter

def killed(self, tx, written, event=None):
    if where == "after":
        entered(self, tx, written, event)
        tx.session.flush()
    os.kill(os.getpid(), signal.SIGKILL)

Writer.enter = killed
process(database, build(Context(settings, database, SystemClock(), Pseudonyms(b"x" * 32))).consumers[0], records)
"""


def timeless(files):
    """Figures as they are, words without hashes: that of the source changes with an edit while the test runs."""
    figures = {name: content for name, content in files.items() if name.endswith((".png", ".svg"))}
    words = {name: re.sub(r"[0-9a-f]{32}", "", text) for name, text in texts(files).items() if not name.endswith(".svg")}
    return figures | words


@pytest.mark.parametrize("where", ["before", "after"])
def test_a_kill_between_the_files_and_the_event_loses_and_doubles_nothing(serving_sqlite, clock, tmp_path, where):
    import pickle

    clock.set(MONDAY)
    tick(serving_sqlite)
    (tmp_path / "killed.py").write_text(KILLED)
    (tmp_path / "records").write_bytes(pickle.dumps(ordered(serving_sqlite)))
    url = serving_sqlite.database.engine.url.render_as_string(hide_password=False)
    arguments = [str(serving_sqlite.settings.state_dir), url, str(tmp_path / "records"), where]
    command = [sys.executable, str(tmp_path / "killed.py"), *arguments]
    ended = subprocess.run(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}, check=False, timeout=120)
    assert ended.returncode == -signal.SIGKILL
    [folder] = serving_sqlite.settings.reports_dir.iterdir()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert "report.pdf" in before
    assert reported(serving_sqlite) == []
    write_all(serving_sqlite)
    write_all(serving_sqlite)
    [report] = reported(serving_sqlite)
    assert report.report_id == folder.name
    assert timeless(contents(serving_sqlite, report)) == timeless(before), "the same report from another process"
    with serving_sqlite.database.read() as session:
        assert len(session.execute(select(Report)).scalars().all()) == 1


def test_settings_name_a_day(tmp_path):
    assert Settings(state_dir=tmp_path).reports == ReportSettings(weekly=True, weekday="monday", hour=6)
    with pytest.raises(ValueError, match="weekday"):
        ReportSettings(weekday="someday")


def test_a_clock_that_ran_ahead_and_was_put_right_stops_no_weekly_report(serving, clock):
    """One look with a wrong clock orders a report of 2029; the weeks until then are due all the same."""
    clock.at += timedelta(days=1000)
    tick(serving)
    assert len(weeks(serving)) == 1
    clock.at -= timedelta(days=1000)
    tick(serving)
    assert len(weeks(serving)) == 1
    clock.set(MONDAY)
    tick(serving)
    clock.set(MONDAY + timedelta(days=7))
    tick(serving)
    assert sorted(weeks(serving))[:2] == ["2026-W11", "2026-W12"]

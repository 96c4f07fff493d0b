"""SIGKILL between the post and its answer: the next process finds the post and does not repeat it."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from schemas.settings import Settings
from schemas.tables import ModelVersion, RegisteredModel
from services.runtime.clock import SystemClock
from services.runtime.database import Database
from tests.bus_world import until
from tests.chat_world import Site
from tests.integration.chat.conftest import chat, slack_settings
from tests.integration.chat.test_chat_threads import say
from tests.slack_server import Fault

ROOT = Path(__file__).parents[3]
DELIVER = """
import asyncio
from listeners.chat.app import fronts
from listeners.chat.delivery import Delivery
from listeners.cli.context import open_context
from services.runtime.service import StopSignal

async def main():
    context = open_context()
    await Delivery(context, fronts(context.settings)[0]).run(StopSignal())

asyncio.run(main())
"""


def deliver(site, slack) -> "subprocess.Popen[bytes]":
    """A process that brings messages to Slack."""
    settings = {
        "RECLAIM_STATE_DIR": str(site.settings.state_dir),
        "RECLAIM_DATABASE_URL": site.database.engine.url.render_as_string(hide_password=False),
        "RECLAIM_SLACK_BOT_TOKEN": site.settings.slack.bot_token.get_secret_value(),
        "RECLAIM_SLACK_SIGNING_SECRET": site.settings.slack.signing_secret.get_secret_value(),
        "RECLAIM_SLACK_API_URL": slack.url,
        "RECLAIM_CHAT_LEASE_S": "10",
        "PYTHONPATH": str(ROOT),
    }
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RECLAIM_")}
    return subprocess.Popen([sys.executable, "-c", DELIVER], env=clean | settings, cwd=site.settings.state_dir)


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_a_killed_process_leaves_one_post(sqlite_url, tmp_path, slack):
    database = Database(sqlite_url, SystemClock())
    site = Site(database, database.clock, Settings(state_dir=tmp_path / "state", chat=chat(), slack=slack_settings(slack)))
    site.settings.state_dir.mkdir()
    now = database.clock.now()
    with database.transaction() as tx:
        tx.session.add(RegisteredModel(name="brain_mri", task="t", classes=["a"], champion=1, created_at=now))
        tx.session.flush()
        tx.session.add(ModelVersion(model="brain_mri", version=1, state="champion", bundle="x", sha256="0", created_at=now))
    await asyncio.to_thread(say, site, "status of all models")
    await asyncio.to_thread(site.pump)
    slack.fail("chat.postMessage", Fault(done=True, hang_s=60.0))
    first = await asyncio.to_thread(deliver, site, slack)
    await until(lambda: slack.messages["C1"], 60, "the post has arrived")
    first.send_signal(signal.SIGKILL)
    first.wait(10)
    assert site.messages()[0].state == "sending"
    second = await asyncio.to_thread(deliver, site, slack)
    try:
        await until(lambda: site.messages()[0].state == "sent", 90, "the next process knows of it")
    finally:
        second.kill()
        second.wait(10)
    assert len(slack.messages["C1"]) == 1
    assert site.messages()[0].external_id == slack.messages["C1"][0]["ts"]
    database.close()

"""Canary identifiers, planted wherever a site has them, reach neither Slack nor Teams, nor what is kept or logged of a message."""

import json
import logging

from schemas.settings import Settings
from schemas.tables import Instance, Study
from tests.chat_world import Site
from tests.integration.chat.conftest import chat, slack_settings, teams_settings
from tests.integration.chat.test_chat_slack import post
from tests.integration.chat.test_chat_threads import told, written
from tests.slack_server import direct, event

UID = "1.2.826.0.1.3680043.8.498.777001"
PATIENT = "CANARYPATIENT"
CANARIES = [UID, f"{UID}.1", "CANARY-AE", "archive/CANARY", "canary-accession", PATIENT, "Canaryson", "1931-02-03", "7700551"]
QUESTIONS = [
    "status of all models",
    f"what do you know about study {UID}?",
    f"what do you know about {PATIENT}, Mrs Canaryson, born 1931-02-03, MRN 7700551?",
    "how has brain_mri changed?",
    "why did brain_mri get worse?",
    "which orders are waiting?",
    "fine-tune brain_mri",
    "ask for 5 more labels for brain_mri",
]


def plant(site):
    now = site.clock.now()
    times = {"acquired_at": now, "first_instance_at": now, "last_instance_at": now}
    keys = {
        "study_key": "e" * 32,
        "patient_key": site.context.pseudonyms.patient(PATIENT),
        "accession_key": "canary-accession",
        "calling_ae": "CANARY-AE",
    }
    with site.database.transaction() as tx:
        tx.session.add(Study(study_uid=UID, **keys, **times))
        tx.session.flush()
        uids = {"sop_instance_uid": f"{UID}.1.1", "study_uid": UID, "series_uid": f"{UID}.1", "sop_class_uid": "1.2"}
        tx.session.add(Instance(**uids, transfer_syntax_uid="1.2", path="archive/CANARY", size=1, received_at=now))


async def test_no_identifier_leaves_by_the_chat(sqlite_database, clock, tmp_path, slack, teams, caplog):
    from aiohttp.test_utils import TestClient, TestServer

    from listeners import http

    caplog.set_level(logging.DEBUG)
    both = {"slack": slack_settings(slack), "teams": teams_settings(teams, conversation="19:home@thread.tacv2")}
    site = Site.of(sqlite_database, clock, tmp_path / "state", chat=chat(), **both)
    plant(site)
    async with TestClient(TestServer(http.create_app(site.context))) as client:
        for number, text in enumerate(QUESTIONS):
            if number % 2:
                await post(client, direct(text, ts=f"17000001{number:02d}.000100"))
            else:
                await post(client, event(f"<@UBOT00001> {text}", ts=f"17000000{number:02d}.000100"))
        said = teams.activity(QUESTIONS[1])
        await client.post("/chat/teams/messages", json=said, headers=teams.headers(said))
        await site.answer()
        order = next(row for row in site.orders() if row.kind == "remedy" and row.state == "accepted")
        told(site, site.start_job(order.order_id), "learning from 3 studies")
        written(site, None)
        written_before = len(slack.bodies) + len(teams.bodies)
        await site.answer()
    assert len(slack.bodies) + len(teams.bodies) > written_before > 8
    left = "".join([*slack.bodies, *teams.bodies])
    kept = json.dumps([row.content for row in site.messages()]) + json.dumps(site.commands())
    for canary in CANARIES:
        assert canary not in left
        assert canary not in kept
        assert canary not in caplog.text
    for key in (site.context.pseudonyms.patient(PATIENT), "e" * 32, f"{1:032x}"):
        assert key not in left


async def test_tokens_and_words_do_not_reach_the_log(slack_site, slack_client, slack, caplog):
    from tests.slack_server import APP_TOKEN, BOT_TOKEN, SECRET, Fault

    caplog.set_level(logging.DEBUG)
    slack.fail("chat.postMessage", Fault(503, "<html>busy</html>"), Fault(breaks=True))
    await post(slack_client, event("<@UBOT00001> WORD-CANARY status"))
    await post(slack_client, event("<@UBOT00001> WORD-CANARY status"), secret="wrong")
    for _ in range(3):
        await slack_site.answer()
        slack_site.later(100)
    ours = "\n".join(
        record.getMessage() for record in caplog.records if not record.name.startswith(("asyncio", "aiohttp", "httpx"))
    )
    for secret in (BOT_TOKEN, APP_TOKEN, SECRET, "WORD-CANARY"):
        assert secret not in ours


def test_settings_print_no_secret():
    secrets = {"bot_token": "xoxb-secret", "signing_secret": "sign-secret", "app_token": "xapp-secret"}
    printed = Settings(slack=secrets, teams={"app_secret": "teams-secret"}).model_dump_json()
    assert "secret" not in printed.replace("signing_secret", "").replace("app_secret", "")

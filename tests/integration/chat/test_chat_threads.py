"""What a thread is told of an order: progress in one message, the report with its figure, the verdict, the approval."""

import asyncio
import io
import json

import pytest
from aiohttp.test_utils import TestClient, TestServer
from PIL import Image
from pydantic import SecretStr

from listeners import http
from listeners.chat.conversation import Said, receive
from listeners.chat.slack.socket import listen
from schemas.chat_settings import SlackSettings
from schemas.events import MaintenancePromotion, MaintenanceReport
from schemas.settings import PolicySettings
from schemas.topics import PROMOTION, REPORT
from schemas.vocabulary import Status, Verdict
from services.remediation import jobs
from services.runtime.service import StopSignal
from tests.chat_world import Site
from tests.integration.chat.conftest import chat, slack_settings, socket_settings, teams_settings
from tests.slack_server import button, event, texts
from tests.teams_server import CHANNEL, TeamsServer
from tests.teams_server import card as teams_card

THREAD = "1700000001.000100"


@pytest.fixture
def site(sqlite_database, clock, tmp_path, slack):
    return Site.of(sqlite_database, clock, tmp_path / "state", chat=chat(), slack=slack_settings(slack))


def say(site, text, number=0):
    reference = {"channel": "C1", "thread_ts": THREAD}
    return receive(site.context, Said("slack", "UADA", f"slack:T1:C1:{THREAD}", reference, text, (f"m{number}",)))


async def repaired(site):
    """A remedy that Ada has ordered in a thread, with its job under way; the answer is posted."""
    say(site, "fine-tune brain_mri")
    await site.answer()
    (order,) = site.orders()
    assert order.state == "accepted"
    return order, site.start_job(order.order_id)


def told(site, claim, message, **progress):
    with site.database.transaction() as tx:
        jobs.report(tx, claim, message, **progress)


async def test_progress_is_one_message_that_is_edited_now_and_then(site, slack):
    order, claim = await repaired(site)
    told(site, claim, "learning from 3 studies", epochs=20)
    await site.answer()
    for epoch in range(1, 21):
        told(site, claim, f"epoch {epoch} of 20", epoch=epoch, epochs=20)
        site.later(1)
        await site.answer()
    with site.database.transaction() as tx:
        jobs.succeed(tx, claim, {"verdict": "reject"}, "The gate turned it down.")
    await site.answer()
    _, progress = slack.messages["C1"]
    assert order.order_id in texts(progress)
    assert texts(progress).endswith("learning from 3 studies\nThe gate turned it down.")
    assert "finished" in texts(progress)
    assert progress["edits"] <= 3


async def test_an_edit_waits_for_its_time_and_is_not_lost_by_a_restart(site, slack):
    _, claim = await repaired(site)
    told(site, claim, "reading studies", epochs=2)
    await site.answer()
    told(site, claim, "epoch 1 of 2", epoch=1, epochs=2)
    await site.answer()
    assert "epoch 1" not in texts(slack.messages["C1"][1])
    site.restart()
    site.later(16)
    await site.deliver()
    assert "epoch 1 of 2" in texts(slack.messages["C1"][1])
    assert len(slack.messages["C1"]) == 2


def written(site, order_id, *, width=1400):
    """A report on disk and its event."""
    folder = site.settings.reports_dir / "r1"
    folder.mkdir(parents=True, exist_ok=True)
    picture = io.BytesIO()
    Image.linear_gradient("L").resize((width, 500)).save(picture, "PNG")
    (folder / "control_chart.png").write_bytes(picture.getvalue())
    (folder / "report.json").write_text(json.dumps({"figures": [{"file": "control_chart.png"}]}))
    report = MaintenanceReport(
        report_id="r1",
        model="brain_mri",
        version=1,
        kind="monitoring",
        status=Status.DEGRADED,
        title="brain_mri finds fewer <!channel>",
        summary="It finds 60 of 100. The scanner changed.",
        location="r1/report.html",
        markdown="r1/report.md",
        data="r1/report.json",
        order_id=order_id,
        written_at=site.clock.now(),
    )
    site.emit(REPORT, report, "report-1")


async def test_a_report_is_a_card_and_its_figure(sqlite_database, clock, tmp_path, slack):
    settings = chat(reports_url="https://reclaim.example/reports/")
    site = Site.of(sqlite_database, clock, tmp_path / "state", chat=settings, slack=slack_settings(slack))
    order, _ = await repaired(site)
    written(site, order.order_id)
    await site.answer()
    _, card, figure = slack.messages["C1"]
    seen = texts(card)
    for words in ("brain_mri finds fewer <!channel>", "degraded", "It finds 60 of 100. The scanner changed."):
        assert words in seen
    assert "<https://reclaim.example/reports/r1/report.html|Open the report>" in seen
    assert "<!channel>" not in card["text"]
    (file,) = figure["files"]
    assert slack.files[file["id"]]["content"].startswith(b"\x89PNG")
    assert figure["thread_ts"] == THREAD


async def test_a_figure_whose_answer_was_lost_is_not_uploaded_again(site, slack):
    from tests.slack_server import Fault

    order, _ = await repaired(site)
    written(site, order.order_id)
    slack.fail("files.completeUploadExternal", Fault(breaks=True, done=True))
    await site.answer()
    site.later(60)
    await site.deliver()
    assert sum(bool(each.get("files")) for each in slack.messages["C1"]) == 1


async def test_without_the_right_to_upload_the_card_stands_without_its_figure(site, slack):
    from tests.slack_server import Fault

    order, _ = await repaired(site)
    slack.fail("files.getUploadURLExternal", Fault(200, {"ok": False, "error": "missing_scope"}))
    written(site, order.order_id)
    await site.answer()
    say(site, "status", 7)
    await site.answer()
    assert [each.kind for each in site.messages() if each.state == "given_up"] == ["picture"]
    assert len(slack.messages["C1"]) == 3


async def test_what_no_thread_has_ordered_goes_to_the_site_s_channel(site, slack):
    written(site, None)
    await site.answer()
    assert slack.messages["C1"] == []
    assert len(slack.messages["CHOME"]) == 2


def drift(site, number, *, warning, new):
    from schemas.events import DriftSignal, MonitoringDrift
    from schemas.topics import DRIFT
    from schemas.vocabulary import Diagnosis

    signals = (
        DriftSignal(name="images", statistic=9.0, warning=warning, sentence="The images look <!here> different."),
        DriftSignal(name="mix", statistic=0.1, warning=False, sentence="The mix is as it was."),
    )
    at = site.clock.now()
    about = {"drift_id": f"d{number}", "model": "brain_mri", "version": 1, "kind": "cases", "number": number, "cases": 200}
    shown = {"suspected": Diagnosis.COVARIATE, "signals": signals, "summary": "New images.", "measured_at": at}
    site.emit(DRIFT, MonitoringDrift(**about, first_at=at, last_at=at, warning=warning, new=new, **shown), f"drift-{number}")


async def test_an_early_warning_is_told_once_where_all_read(site, slack):
    drift(site, 1, warning=False, new=False)
    drift(site, 2, warning=True, new=True)
    drift(site, 3, warning=True, new=False)
    await site.answer()
    (warning,) = slack.messages["CHOME"]
    assert "The images look <!here> different." in texts(warning)
    assert "The mix" not in texts(warning)
    assert "<!here>" not in warning["text"]


async def test_a_verdict_is_told_in_the_thread(site, slack):
    order, _ = await repaired(site)
    promotion = MaintenancePromotion(
        model="brain_mri",
        challenger=2,
        champion_before=1,
        champion_after=1,
        verdict=Verdict.REJECT,
        reasons=("It forgets class <@U123>.",),
        order_id=order.order_id,
        actor="service:remediation",
    )
    site.emit(PROMOTION, promotion, "promotion-1")
    await site.answer()
    verdict = slack.messages["C1"][-1]
    assert "turned version 2 of brain_mri down" in texts(verdict)
    assert "<@U123>" not in verdict["text"]


async def test_an_event_that_comes_twice_is_told_once(site, slack):
    order, _ = await repaired(site)
    written(site, order.order_id)
    for _ in range(2):
        site.pump()
        site.emit(REPORT, _again(site), None)
    await site.answer()
    reports = [each for each in slack.messages["C1"] if "r1" in texts(each)]
    assert len(reports) <= 3


def _again(site):
    from sqlmodel import select

    from schemas.tables import Outbox

    with site.database.read() as session:
        row = session.exec(select(Outbox).where(Outbox.event_id == "report-1")).one()
    return MaintenanceReport.model_validate_json(row.body)


async def test_the_agents_own_order_waits_in_the_site_s_channel(sqlite_database, clock, tmp_path, slack):
    policy = PolicySettings(approve_remedies=True)
    site = Site.of(sqlite_database, clock, tmp_path / "state", chat=chat(), slack=slack_settings(slack), policy=policy)
    propose(site)
    await site.answer()
    (waiting,) = [each for each in slack.messages["CHOME"] if any(block["type"] == "actions" for block in each["blocks"])]
    order = next(row for row in site.orders() if row.state == "awaiting_approval")
    async with TestClient(TestServer(http.create_app(site.context))) as client:
        from tests.integration.chat.test_chat_slack import press, respond

        await press(client, button(waiting, order.order_id, approve=True, user="UBOB", channel="CHOME", respond=respond(slack)))
    await site.answer()
    assert next(row for row in site.orders() if row.order_id == order.order_id).state == "accepted"
    assert "slack:UBOB" in texts(waiting)


def propose(site):
    """A degraded evaluation, on which the agents order a remedy."""
    from schemas.events import EvaluationCompleted, MetricValue
    from schemas.tables import Evaluation
    from schemas.topics import EVALUATION_COMPLETED
    from schemas.vocabulary import Diagnosis

    metric = {"name": "accuracy", "value": 0.7, "low": 0.6, "high": 0.8, "cases": 100, "baseline": 0.9}
    shared = {"evaluation_id": "e1", "batch_id": "b1", "model": "brain_mri", "version": 1, "status": Status.DEGRADED}
    shared |= {"diagnosis": Diagnosis.COVARIATE, "cases": 100, "stream_cases": 100, "reclaim_rule": True, "summary": "Worse."}
    shared |= {"evaluated_at": site.clock.now(), "evidence": {"e_value": 55.0}}
    with site.database.transaction() as tx:
        tx.session.add(Evaluation(**shared, metrics=[metric]))
        data = EvaluationCompleted(**shared, task="tumour", metrics=(MetricValue(**metric),))
        tx.emit(EVALUATION_COMPLETED, data, event_id="e1")


async def test_socket_mode_takes_each_message_once_and_acknowledges_it(sqlite_database, clock, tmp_path, slack):
    site = Site.of(sqlite_database, clock, tmp_path / "state", chat=chat(), slack=socket_settings(slack))
    stop = StopSignal()
    task = asyncio.create_task(listen(site.context, stop))
    sent = event("<@UBOT00001> status of all models", ts=THREAD)
    await until(lambda: slack.sockets)
    envelopes = {await slack.push(sent), await slack.push(sent)}
    await until(lambda: len(slack.acknowledged) >= 2)
    stop.set()
    await asyncio.wait_for(task, 20)
    assert {each["envelope_id"] for each in slack.acknowledged} == envelopes
    await site.answer()
    (message,) = slack.messages["C1"]
    assert "brain_mri" in texts(message)


async def test_socket_mode_does_not_acknowledge_what_it_could_not_keep(sqlite_database, clock, tmp_path, slack, monkeypatch):
    from services.runtime.errors import Transient

    site = Site.of(sqlite_database, clock, tmp_path / "state", chat=chat(), slack=socket_settings(slack))

    tried = []

    def away(*_args, **_options):
        tried.append(1)
        raise Transient("the database is away")

    monkeypatch.setattr("listeners.chat.slack.app.receive", away)
    stop = StopSignal()
    task = asyncio.create_task(listen(site.context, stop))
    await until(lambda: slack.sockets)
    await slack.push(event("status"))
    await until(lambda: tried)
    monkeypatch.undo()
    kept = await slack.push(event("status"))
    await until(lambda: slack.acknowledged)
    stop.set()
    await asyncio.wait_for(task, 20)
    assert [each["envelope_id"] for each in slack.acknowledged] == [kept]


async def until(condition, seconds=15.0):
    for _ in range(int(seconds / 0.05)):
        if condition():
            return
        await asyncio.sleep(0.05)
    pytest.fail("it did not happen in time")


async def test_without_a_signing_secret_there_is_no_http_endpoint(sqlite_database, clock, tmp_path, slack):
    site = Site.of(sqlite_database, clock, tmp_path / "state", slack=socket_settings(slack))
    async with TestClient(TestServer(http.create_app(site.context))) as client:
        assert (await client.post("/chat/slack/events", data="{}")).status == 404


async def test_in_teams_the_figure_stands_in_the_message_and_is_small_enough(sqlite_database, clock, tmp_path):
    server = TeamsServer()
    await server.start()
    settings = teams_settings(server, conversation=CHANNEL)
    site = Site.of(sqlite_database, clock, tmp_path / "state", teams=settings, chat=chat())
    written(site, None)
    await site.answer()
    (message,) = server.activities[CHANNEL]
    assert len(server.bodies[-1]) < 100_000
    assert message["attachments"][1]["contentUrl"].startswith("data:image/png;base64,")
    assert "summary" in message
    assert teams_card(message)["version"] == "1.5"
    await server.stop()


async def test_unknown_people_are_refused_where_the_site_says_so(sqlite_database, clock, tmp_path, slack):
    site = Site.of(sqlite_database, clock, tmp_path / "state", chat=chat(refuse_unknown=True), slack=slack_settings(slack))
    async with TestClient(TestServer(http.create_app(site.context))) as client:
        from tests.integration.chat.test_chat_slack import post

        await post(client, event("<@UBOT00001> status", user="USTRANGER"))
    assert site.commands() == []
    (audit,) = site.audit("chat.refused")
    assert audit.actor == "user:slack:USTRANGER"
    (whisper,) = slack.whispers
    assert (whisper["user"], "not listed" in whisper["text"]) == ("USTRANGER", True)


@pytest.mark.parametrize("team", [{"user_team": "TOTHER"}, {"team": "TOTHER"}])
async def test_people_of_another_workspace_are_refused(sqlite_database, clock, tmp_path, slack, team):
    own = slack_settings(slack, team="T00000001")
    site = Site.of(sqlite_database, clock, tmp_path / "state", chat=chat(), slack=own)
    async with TestClient(TestServer(http.create_app(site.context))) as client:
        from tests.integration.chat.test_chat_slack import post

        await post(client, event("<@UBOT00001> status", **team))
        await post(client, event("<@UBOT00001> trend", ts="1700000009.000100"))
    assert [each["text"] for each in site.commands()] == ["trend"]


def test_half_a_setup_is_refused_with_what_is_missing(sqlite_database, clock, tmp_path):
    from listeners.chat.app import build
    from services.runtime.errors import InvalidInput

    half = SlackSettings(bot_token=SecretStr("xoxb-1"))
    site = Site.of(sqlite_database, clock, tmp_path / "state", slack=half)
    with pytest.raises(InvalidInput, match="RECLAIM_SLACK_SIGNING_SECRET"):
        build(site.context)

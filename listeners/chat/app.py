"""Builds the chat service: the courier from the bus, one delivery for each channel that is set up, Slack's Socket Mode."""

from datetime import timedelta
from functools import partial

from listeners.chat import repository
from listeners.chat.courier import Courier
from listeners.chat.delivery import Delivery, Front
from listeners.chat.extras import need
from schemas.settings import Settings
from services.runtime.errors import InvalidInput
from services.runtime.service import Context, Service, Ticker, Worker
from services.runtime.transaction import Transaction

HOUSEKEEPING_S = 3_600.0


def build(context: Context) -> Service:
    """The service `chat`; InvalidInput when a channel is half set up. Without channels everything passes in silence."""
    settings = context.settings
    check(settings)
    workers = [Worker(f"chat.{front.channel}", Delivery(context, front).run) for front in fronts(settings)]
    if settings.slack.bot_token.get_secret_value() and settings.slack.app_token.get_secret_value():
        from listeners.chat.slack.socket import listen  # noqa: PLC0415 - Bolt only where Slack is set up

        workers.append(Worker("chat.slack.socket", partial(listen, context)))
    tidy = Ticker("chat.tidy", HOUSEKEEPING_S, partial(_tidy, settings))
    return Service(name=Courier.name, consumers=(Courier(settings),), tickers=(tidy,), workers=tuple(workers))


def fronts(settings: Settings) -> list[Front]:
    """The channels that are set up; their libraries are imported only then."""
    found: list[Front] = []
    if settings.slack.bot_token.get_secret_value():
        need("slack")
        from listeners.chat.slack.front import SlackFront  # noqa: PLC0415 - as above

        found.append(SlackFront(settings))
    if settings.teams.app_id:
        need("teams")
        from listeners.chat.teams.front import TeamsFront  # noqa: PLC0415 - as above

        found.append(TeamsFront(settings))
    return found


def check(settings: Settings) -> None:
    """InvalidInput names what is missing of a channel that is half set up."""
    faults = list(missing(settings))
    if faults:
        raise InvalidInput("; ".join(faults))


def missing(settings: Settings) -> list[str]:
    """What a channel that is half set up lacks."""
    slack, teams = settings.slack, settings.teams
    found: list[str] = []
    listens = slack.app_token.get_secret_value() or slack.signing_secret.get_secret_value()
    if slack.bot_token.get_secret_value() and not listens:
        found.append("Slack needs RECLAIM_SLACK_SIGNING_SECRET (HTTP) or RECLAIM_SLACK_APP_TOKEN (Socket Mode)")
    if listens and not slack.bot_token.get_secret_value():
        found.append("Slack needs RECLAIM_SLACK_BOT_TOKEN")
    if teams.app_id and not teams.app_secret.get_secret_value():
        found.append("Teams needs RECLAIM_TEAMS_APP_SECRET")
    if teams.app_id and not teams.tenant:
        found.append("Teams needs RECLAIM_TEAMS_TENANT: the directory whose people may speak")
    return found


def _tidy(settings: Settings, tx: Transaction) -> None:
    repository.forget(tx, tx.clock.now() - timedelta(days=settings.chat.keep_days))

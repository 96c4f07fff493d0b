"""`POST /chat/teams/messages`: the messaging endpoint of the bot's registration."""

import logging
from collections.abc import Iterable

from aiohttp import web
from pydantic import ValidationError

from listeners.chat.extras import need
from services.runtime.service import Context

logger = logging.getLogger(__name__)
PATH = "/chat/teams/messages"


def routes(context: Context) -> Iterable[web.RouteDef]:
    """The route, where Teams is set up."""
    if not context.settings.teams.app_id or not context.settings.teams.tenant:
        return []
    need("teams")
    from listeners.chat.teams.app import Activity, Bot  # noqa: PLC0415 - Microsoft's SDK only where Teams is set up
    from listeners.chat.teams.tokens import BotConnector, KeysAway, Unproven  # noqa: PLC0415

    connector, bot = BotConnector(context.settings.teams), Bot(context)

    async def post(request: web.Request) -> web.Response:
        try:
            activity = Activity.model_validate_json(await request.read())
        except ValidationError:
            raise web.HTTPBadRequest(text="the body is no activity") from None
        try:
            await connector.prove(request.headers.get("Authorization", ""), activity.service_url)
        except Unproven as error:
            logger.warning("CHT-122 a request to the Teams endpoint is refused: %s", error)
            raise web.HTTPUnauthorized(text="a token of the Bot Connector is required") from None
        except KeysAway as error:
            logger.warning("CHT-123 the Bot Connector's keys cannot be had: %s", error)
            raise web.HTTPServiceUnavailable(text="the token cannot be checked now") from None
        if not bot.speaks_for_us(activity):
            logger.warning("CHT-124 an activity of another tenant or channel is refused")
            raise web.HTTPForbidden(text="this bot answers its own tenant only")
        answer = await bot.take(activity)
        return web.json_response(answer) if answer is not None else web.Response(status=200)

    return [web.post(PATH, post)]

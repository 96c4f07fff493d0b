"""`POST /chat/slack/events`: events, slash commands and buttons of Slack over HTTP, all at one address."""

from collections.abc import Iterable

from aiohttp import web

from listeners.chat.extras import need
from services.runtime.service import Context

PATH = "/chat/slack/events"


def routes(context: Context) -> Iterable[web.RouteDef]:
    """The route, where Slack is set up for HTTP. Without a signing secret there is none: nobody could be believed."""
    slack = context.settings.slack
    if not slack.bot_token.get_secret_value() or not slack.signing_secret.get_secret_value():
        return []
    need("slack")
    from slack_bolt.adapter.aiohttp import to_aiohttp_response  # noqa: PLC0415 - Bolt only where Slack is set up
    from slack_bolt.request.async_request import AsyncBoltRequest  # noqa: PLC0415

    from listeners.chat.slack.app import bolt_app  # noqa: PLC0415

    app = bolt_app(context)

    async def post(request: web.Request) -> web.Response:
        stamp, signature = (request.headers.get(f"X-Slack-{name}", "") for name in ("Request-Timestamp", "Signature"))
        if not (stamp.isascii() and stamp.isdigit() and len(stamp) < 16 and signature.isascii()):
            raise web.HTTPUnauthorized(text="the request is not signed")
        try:
            body = (await request.read()).decode()
        except UnicodeDecodeError:
            raise web.HTTPBadRequest(text="the body is not UTF-8") from None
        answer = await app.async_dispatch(AsyncBoltRequest(body=body, query=request.query_string, headers=dict(request.headers)))
        return await to_aiohttp_response(answer)

    return [web.post(PATH, post)]

"""Socket Mode: Slack over a WebSocket that we open, for a site that lets nobody in from outside."""

import asyncio
import logging

import aiohttp
from slack_bolt.adapter.socket_mode.aiohttp import AsyncSocketModeHandler
from slack_sdk.errors import SlackClientError

from listeners.chat.slack.app import bolt_app
from services.runtime.errors import Transient
from services.runtime.service import Context, StopSignal

logger = logging.getLogger(__name__)


async def listen(context: Context, stop: StopSignal) -> None:
    """Take what Slack sends until `stop`; the library connects anew after a break. Transient when it cannot connect."""
    handler = AsyncSocketModeHandler(bolt_app(context), context.settings.slack.app_token.get_secret_value())
    try:
        try:
            await handler.connect_async()  # type: ignore[no-untyped-call]
        except (SlackClientError, aiohttp.ClientError, OSError, TimeoutError) as error:
            raise Transient(f"Slack's Socket Mode cannot be reached ({type(error).__name__})") from None
        logger.info("chat: connected to Slack by Socket Mode")
        await stop.wait()
    finally:
        await asyncio.shield(handler.close_async())  # type: ignore[no-untyped-call]

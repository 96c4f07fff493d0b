"""`POST /api/chat` and `GET /api/chat/{command_id}`.

Access control and the shape of errors are the application's (`listeners.http`).

The token is the trust: whoever holds it is a front end that says which user speaks. Roles come from `settings.chat`;
without a token nobody's word counts and every user has the default role.
"""

import asyncio
import re
from typing import Final

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from listeners.chat.conversation import ask, await_reply_async, reply_to
from listeners.chat.people import role_of
from schemas.events import AgentReply
from services.runtime.errors import InvalidInput
from services.runtime.service import Context

MAX_WAIT_S: Final = 120.0
_COMMAND_ID: Final = re.compile(r"[0-9a-f-]{36}")


class ChatRequest(BaseModel):
    """Body of `POST /api/chat`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: str = Field(min_length=1, max_length=4000)
    thread: str = Field(default="main", pattern=r"^[\w.@-]{1,56}$")
    user: str = Field(default="anonymous", pattern=r"^[\w.@-]{1,64}$")
    wait_s: float = Field(default=30.0, ge=0, le=MAX_WAIT_S, description="How long to hold the request open for the answer")


def routes(context: Context) -> list[web.RouteDef]:
    """The chat's routes, bound to the process's resources."""

    async def post(request: web.Request) -> web.Response:
        return await _post(context, request)

    async def get(request: web.Request) -> web.Response:
        return await _get(context, request)

    return [web.post("/api/chat", post), web.get("/api/chat/{command_id}", get)]


async def _post(context: Context, request: web.Request) -> web.Response:
    try:
        body = ChatRequest.model_validate_json(await request.read())
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, item['loc'])) or 'body'}: {item['msg']}" for item in error.errors()[:5])
        raise web.HTTPBadRequest(text=faults) from None
    role = role_of(context.settings, body.user)
    try:
        command_id = await asyncio.to_thread(
            ask, context, body.text, body.user, role, f"http:{body.user}:{body.thread}"[:128], "http"
        )
    except InvalidInput as error:
        raise web.HTTPBadRequest(text=error.reason) from None
    return _answer(command_id, body.thread, await await_reply_async(context, command_id, body.wait_s))


async def _get(context: Context, request: web.Request) -> web.Response:
    command_id = request.match_info["command_id"]
    if not _COMMAND_ID.fullmatch(command_id):
        raise web.HTTPNotFound(text="there is no such command")
    reply = await asyncio.to_thread(reply_to, context, command_id)
    return _answer(command_id, reply.thread.rpartition(":")[2] if reply else "", reply)


def _answer(command_id: str, thread: str, reply: AgentReply | None) -> web.Response:
    """200 with the reply, 202 while there is none."""
    if reply is None:
        return web.json_response({"command_id": command_id, "thread": thread}, status=202)
    return web.json_response({"command_id": command_id, "thread": thread, "reply": reply.text, "order_ids": list(reply.order_ids)})

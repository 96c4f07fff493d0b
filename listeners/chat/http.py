"""`POST /api/chat` and `GET /api/chat/{command_id}`. The application that takes these routes checks the bearer token.

The token is the trust: whoever holds it is a front end that says which user speaks. Roles come from `settings.chat`.
"""

import asyncio
import re
from typing import Final

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from listeners.chat.conversation import ask, await_reply_async, reply_to, role_of
from schemas.events import AgentReply
from services.runtime.errors import InvalidInput, Transient
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
        return _problem(
            400, "; ".join(f"{'.'.join(map(str, item['loc'])) or 'body'}: {item['msg']}" for item in error.errors()[:5])
        )
    role = role_of(context.settings, body.user)
    try:
        command_id = await asyncio.to_thread(
            ask, context, body.text, body.user, role, f"http:{body.user}:{body.thread}"[:128], "http"
        )
        reply = await await_reply_async(context, command_id, body.wait_s)
    except InvalidInput as error:
        return _problem(400, error.reason)
    except Transient:
        return _problem(503, "the database is away; try again")
    return _answer(command_id, body.thread, reply)


async def _get(context: Context, request: web.Request) -> web.Response:
    command_id = request.match_info["command_id"]
    if not _COMMAND_ID.fullmatch(command_id):
        return _problem(404, "there is no such command")
    try:
        reply = await asyncio.to_thread(reply_to, context, command_id)
    except Transient:
        return _problem(503, "the database is away; try again")
    return _answer(command_id, reply.thread.rpartition(":")[2] if reply else "", reply)


def _answer(command_id: str, thread: str, reply: AgentReply | None) -> web.Response:
    """200 with the reply, 202 while there is none."""
    if reply is None:
        return web.json_response({"command_id": command_id, "thread": thread}, status=202)
    return web.json_response({"command_id": command_id, "thread": thread, "reply": reply.text, "order_ids": list(reply.order_ids)})


def _problem(status: int, detail: str) -> web.Response:
    return web.json_response({"status": status, "detail": detail}, status=status, content_type="application/problem+json")

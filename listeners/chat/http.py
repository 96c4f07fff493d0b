"""`POST /api/chat`, `GET /api/chat/{command_id}` and `GET /api/chat/threads/{thread}`.

The last one holds all that was told in a thread: replies, progress, reports, verdicts, what waits for approval.

Access control and the shape of errors are the application's (`listeners.http`).

The token is the trust: whoever holds it is a front end that says which user speaks. Roles come from `settings.chat`;
without a token nobody's word counts: all are one nameless person with the default role, and a name only sets threads apart.
"""

import asyncio
import re
from typing import Any, Final

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from listeners.chat import repository
from listeners.chat.conversation import TooMany, ask, await_reply_async, reply_to
from listeners.chat.people import speaker
from schemas.events import AgentReply
from services.runtime.errors import InvalidInput
from services.runtime.service import Context

MAX_WAIT_S: Final = 120.0
_COMMAND_ID: Final = re.compile(r"[0-9a-f-]{36}")
_THREAD: Final = re.compile(r"[\w.@-]{1,56}")
_USER: Final = re.compile(r"[\w.@-]{1,64}")


class ChatRequest(BaseModel):
    """Body of `POST /api/chat`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: str = Field(min_length=1, max_length=4000)
    thread: str = Field(default="main", pattern=rf"^{_THREAD.pattern}$")
    user: str = Field(default="anonymous", pattern=rf"^{_USER.pattern}$")
    wait_s: float = Field(default=30.0, ge=0, le=MAX_WAIT_S, description="How long to hold the request open for the answer")


def routes(context: Context) -> list[web.RouteDef]:
    """The chat's routes, bound to the process's resources."""

    async def post(request: web.Request) -> web.Response:
        return await _post(context, request)

    async def get(request: web.Request) -> web.Response:
        return await _get(context, request)

    async def messages(request: web.Request) -> web.Response:
        return await _messages(context, request)

    return [
        web.post("/api/chat", post),
        web.get("/api/chat/threads/{thread}", messages),
        web.get("/api/chat/{command_id}", get),
    ]


async def _post(context: Context, request: web.Request) -> web.Response:
    try:
        body = ChatRequest.model_validate_json(await request.read())
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, item['loc'])) or 'body'}: {item['msg']}" for item in error.errors()[:5])
        raise web.HTTPBadRequest(text=faults) from None
    who = speaker(context.settings, body.user)
    try:
        command_id = await asyncio.to_thread(ask, context, body.text, who.user, who.role, _thread(body.user, body.thread), "http")
    except TooMany as error:
        raise web.HTTPTooManyRequests(text=error.reason, headers={"Retry-After": str(error.wait_s)}) from None
    except InvalidInput as error:
        raise web.HTTPBadRequest(text=error.reason) from None
    return _answer(command_id, body.thread, await await_reply_async(context, command_id, body.wait_s))


async def _get(context: Context, request: web.Request) -> web.Response:
    command_id = request.match_info["command_id"]
    if not _COMMAND_ID.fullmatch(command_id):
        raise web.HTTPNotFound(text="there is no such command")
    reply = await asyncio.to_thread(reply_to, context, command_id)
    return _answer(command_id, reply.thread.rpartition(":")[2] if reply else "", reply)


async def _messages(context: Context, request: web.Request) -> web.Response:
    thread, user, after = request.match_info["thread"], request.query.get("user", "anonymous"), request.query.get("after", "0")
    if not _THREAD.fullmatch(thread) or not _USER.fullmatch(user) or not (after.isascii() and after.isdigit() and len(after) < 16):
        raise web.HTTPBadRequest(text="thread and user are letters, digits and _ . @ -, and after is a number")

    def look() -> list[dict[str, Any]]:
        with context.database.read() as session:
            rows = repository.messages_of(session, _thread(user, thread), int(after))
            return [{"number": row.id, "kind": row.kind, "revision": row.revision, **row.content} for row in rows]

    return web.json_response({"thread": thread, "messages": await asyncio.to_thread(look)})


def _thread(user: str, thread: str) -> str:
    return f"http:{user}:{thread}"[:128]


def _answer(command_id: str, thread: str, reply: AgentReply | None) -> web.Response:
    """200 with the reply, 202 while there is none."""
    if reply is None:
        return web.json_response({"command_id": command_id, "thread": thread}, status=202)
    return web.json_response({"command_id": command_id, "thread": thread, "reply": reply.text, "order_ids": list(reply.order_ids)})

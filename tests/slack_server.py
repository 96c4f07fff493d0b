"""A server that behaves like Slack: its Web API, its signatures, its Socket Mode. Nothing of it is ours."""

import asyncio
import hashlib
import hmac
import json
import time
import uuid
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import WSMsgType, web

from tests.local_server import LocalServer

SECRET = "8f742231b10e8888abcd99yyyzzz85a5"
BOT_TOKEN = "xoxb-1-secret"
APP_TOKEN = "xapp-1-secret"
BOT, BOT_ID, TEAM = "UBOT00001", "BBOT00001", "T00000001"


@dataclass
class Fault:
    """What the next call of a method meets: an answer, or a connection that breaks after (`done`) or before the work."""

    status: int = 200
    body: dict[str, Any] | str = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    breaks: bool = False
    done: bool = False
    hang_s: float = 0.0


@dataclass
class SlackServer(LocalServer):
    """Channels with their messages, and every request that came."""

    members: set[str] = field(default_factory=lambda: {"C1", "CHOME", "D1"})
    messages: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    whispers: list[dict[str, Any]] = field(default_factory=list)
    responses: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    bodies: list[str] = field(default_factory=list)
    faults: dict[str, list[Fault]] = field(default_factory=lambda: defaultdict(list))
    sockets: list[web.WebSocketResponse] = field(default_factory=list)
    acknowledged: list[dict[str, Any]] = field(default_factory=list)
    number: int = 0
    scopes: str = "chat:write,app_mentions:read,commands,files:write,im:history,im:write,channels:history"

    def routes(self) -> web.Application:
        app = web.Application(client_max_size=20_000_000)
        app.router.add_post("/api/{method}", self._api)
        app.router.add_get("/api/{method}", self._api)
        app.router.add_post("/upload/{file}", self._upload)
        app.router.add_post("/respond", self._respond)
        app.router.add_get("/link", self._link)
        return app

    @property
    def url(self) -> str:
        return self.at("/api/")

    def fail(self, method: str, *faults: Fault) -> None:
        self.faults[method].extend(faults)

    def all_messages(self) -> list[dict[str, Any]]:
        return [each for channel in self.messages.values() for each in channel]

    def _next(self) -> str:
        self.number += 1
        return f"{int(time.time())}.{self.number:06d}"

    async def _api(self, request: web.Request) -> web.StreamResponse:
        method = request.match_info["method"]
        raw = await request.text()
        self.calls.append(method)
        self.bodies.append(raw)
        expected = APP_TOKEN if method == "apps.connections.open" else BOT_TOKEN
        if request.headers.get("Authorization") != f"Bearer {expected}":
            return web.json_response({"ok": False, "error": "invalid_auth"})
        fault = self.faults[method].pop(0) if self.faults[method] else None
        if fault is not None and not fault.done and not fault.breaks:
            if isinstance(fault.body, str):
                return web.Response(status=fault.status, text=fault.body, headers=fault.headers, content_type="text/html")
            return web.json_response(fault.body, status=fault.status, headers=fault.headers)
        fields = await self._fields(request, raw)
        answer = {"ok": True} if fault is not None and not fault.done else self._work(method, fields)
        if fault is not None and fault.hang_s:
            await asyncio.sleep(fault.hang_s)
        if fault is not None and fault.breaks:
            assert request.transport is not None
            request.transport.close()
        return web.json_response(answer, headers={"X-OAuth-Scopes": self.scopes})

    async def _fields(self, request: web.Request, raw: str) -> dict[str, Any]:
        if request.content_type == "application/json":
            return dict(json.loads(raw))
        found: dict[str, Any] = dict(request.query) | dict((await request.post()).items())
        for name in ("blocks", "metadata", "files"):
            if isinstance(found.get(name), str):
                found[name] = json.loads(found[name])
        return found

    def _work(self, method: str, fields: dict[str, Any]) -> dict[str, Any]:
        name = method.replace(".", "_")
        return dict(getattr(self, f"_do_{name}")(fields))

    def _do_auth_test(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"ok": True, "user_id": BOT, "bot_id": BOT_ID, "team_id": TEAM, "url": "https://x.slack.com/"}

    def _do_chat_postMessage(self, fields: dict[str, Any]) -> dict[str, Any]:  # noqa: N802 - Slack's name
        channel = str(fields["channel"])
        if channel not in self.members:
            return {"ok": False, "error": "not_in_channel"}
        ts = self._next()
        self.messages[channel].append({**fields, "ts": ts, "user": BOT, "bot_id": BOT_ID})
        return {"ok": True, "channel": channel, "ts": ts}

    def _do_chat_update(self, fields: dict[str, Any]) -> dict[str, Any]:
        for message in self.messages[str(fields["channel"])]:
            if message["ts"] == fields["ts"]:
                message.update(fields, edits=message.get("edits", 0) + 1)
                return {"ok": True, "channel": fields["channel"], "ts": fields["ts"]}
        return {"ok": False, "error": "message_not_found"}

    def _do_chat_postEphemeral(self, fields: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        self.whispers.append(fields)
        return {"ok": True, "message_ts": self._next()}

    def _do_conversations_open(self, fields: dict[str, Any]) -> dict[str, Any]:
        channel = f"D{fields['users']}"
        self.members.add(channel)
        return {"ok": True, "channel": {"id": channel}}

    def _do_conversations_replies(self, fields: dict[str, Any]) -> dict[str, Any]:
        own = [each for each in self.messages[str(fields["channel"])] if fields["ts"] in (each["ts"], each.get("thread_ts"))]
        return {"ok": True, "messages": own}

    def _do_conversations_history(self, fields: dict[str, Any]) -> dict[str, Any]:
        return {"ok": True, "messages": self.messages[str(fields["channel"])]}

    def _do_files_getUploadURLExternal(self, fields: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        identity = f"F{uuid.uuid4().hex[:8].upper()}"
        self.files[identity] = {"id": identity, "name": fields["filename"], "length": int(fields["length"])}
        return {"ok": True, "file_id": identity, "upload_url": self.at(f"/upload/{identity}")}

    def _do_files_completeUploadExternal(self, fields: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        done = [self.files[each["id"]] | {"title": each["title"]} for each in fields["files"]]
        shared = {"ts": self._next(), "user": BOT, "bot_id": BOT_ID, "files": done, "text": ""}
        self.messages[str(fields["channel_id"])].append(shared | {"thread_ts": fields.get("thread_ts")})
        return {"ok": True, "files": done}

    def _do_apps_connections_open(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"ok": True, "url": self.at("/link").replace("http", "ws", 1)}

    async def _upload(self, request: web.Request) -> web.Response:
        self.files[request.match_info["file"]]["content"] = await request.read()
        return web.Response(text="OK")

    async def _respond(self, request: web.Request) -> web.Response:
        self.responses.append(await request.json())
        return web.Response(text="ok")

    async def _link(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self.sockets.append(socket)
        await socket.send_json({"type": "hello", "num_connections": 1})
        async for message in socket:
            if message.type == WSMsgType.TEXT:
                self.acknowledged.append(json.loads(message.data))
        return socket

    async def push(self, payload: dict[str, Any], kind: str = "events_api", envelope: str = "") -> str:
        """What Socket Mode sends."""
        envelope = envelope or str(uuid.uuid4())
        await self.sockets[-1].send_json(
            {"envelope_id": envelope, "type": kind, "payload": payload, "accepts_response_payload": kind != "events_api"}
        )
        return envelope


def signed(body: str, *, secret: str = SECRET, at: float | None = None, kind: str = "application/json") -> dict[str, str]:
    """Headers of a request of Slack (v0 signature)."""
    stamp = str(int(time.time() if at is None else at))
    digest = hmac.new(secret.encode(), f"v0:{stamp}:{body}".encode(), hashlib.sha256).hexdigest()
    return {"X-Slack-Request-Timestamp": stamp, "X-Slack-Signature": f"v0={digest}", "Content-Type": kind}


def event(text: str, *, user: str = "UADA", channel: str = "C1", ts: str = "", identity: str = "", **more: Any) -> dict[str, Any]:
    """An `app_mention`, or what `more` makes of it."""
    inner = {"type": "app_mention", "user": user, "text": text, "ts": ts or f"{time.time():.6f}", "channel": channel, "team": TEAM}
    return {
        "type": "event_callback",
        "team_id": TEAM,
        "event_id": identity or f"Ev{uuid.uuid4().hex[:10].upper()}",
        "event": inner | more,
    }


def direct(text: str, **more: Any) -> dict[str, Any]:
    return event(text, **({"type": "message", "channel": "D1", "channel_type": "im"} | more))


def button(
    message: dict[str, Any], order_id: str, *, approve: bool, user: str, channel: str, respond: str, at: str = "1.1"
) -> dict[str, Any]:
    """`block_actions` of a button below a message."""
    return {
        "type": "block_actions",
        "team": {"id": TEAM},
        "user": {"id": user, "team_id": TEAM},
        "channel": {"id": channel},
        "message": {name: message[name] for name in ("ts", "thread_ts") if message.get(name)},
        "response_url": respond,
        "actions": [
            {
                "type": "button",
                "block_id": "b",
                "action_id": "reclaim_approve" if approve else "reclaim_reject",
                "value": order_id,
                "action_ts": at,
            }
        ],
    }


def texts(message: dict[str, Any]) -> str:
    """All that a reader sees of a message's blocks."""
    return "\n".join(_texts(message.get("blocks") or []))


def _texts(value: Any) -> Iterable[str]:
    if isinstance(value, dict):
        if isinstance(value.get("text"), str):
            yield value["text"]
        for name, inner in value.items():
            if name != "confirm":
                yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)

"""A server that behaves like Microsoft's: the issuer's keys, Entra's token endpoint, the Bot Connector. Nothing of it is ours."""

import base64
import json
import time
import uuid
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import jwt
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.local_server import LocalServer

APP_ID = "11111111-2222-3333-4444-555555555555"
APP_SECRET = "teams-secret"
TENANT = "99999999-8888-7777-6666-555555555555"
ISSUER = "https://api.botframework.com"
ADA, BOB, EVE = (f"00000000-0000-0000-0000-00000000000{letter}" for letter in "abe")
CHANNEL = "19:abc@thread.tacv2;messageid=1700000000000"


@cache
def key(name: str) -> rsa.RSAPrivateKey:
    """An RSA key, made once a run."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def _number(value: int) -> str:
    return base64.urlsafe_b64encode(value.to_bytes((value.bit_length() + 7) // 8, "big")).rstrip(b"=").decode()


@dataclass
class TeamsServer(LocalServer):
    """Conversations with their activities, and every request that came."""

    activities: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    bodies: list[str] = field(default_factory=list)
    faults: list[web.Response | str] = field(default_factory=list)
    tokens: int = 0
    keys_asked: int = 0
    keys_away: bool = False

    def routes(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/v1/.well-known/keys", self._keys)
        app.router.add_post("/{tenant}/oauth2/v2.0/token", self._token)
        app.router.add_post("/teams/v3/conversations/{conversation}/activities", self._post)
        app.router.add_put("/teams/v3/conversations/{conversation}/activities/{activity}", self._put)
        return app

    @property
    def url(self) -> str:
        return self.at("").rstrip("/")

    async def _keys(self, _: web.Request) -> web.Response:
        self.keys_asked += 1
        if self.keys_away:
            return web.Response(status=503)
        numbers = key("own").public_key().public_numbers()
        own = {"kty": "RSA", "use": "sig", "kid": "k1", "alg": "RS256", "n": _number(numbers.n), "e": _number(numbers.e)}
        return web.json_response({"keys": [own | {"endorsements": ["msteams"]}]})

    async def _token(self, request: web.Request) -> web.Response:
        form = await request.post()
        self.tokens += 1
        given = (request.match_info["tenant"], form.get("client_id"), form.get("client_secret"), form.get("scope"))
        if given != (TENANT, APP_ID, APP_SECRET, f"{ISSUER}/.default") or form.get("grant_type") != "client_credentials":
            return web.json_response({"error": "invalid_client"}, status=401)
        return web.json_response({"access_token": f"bot-{self.tokens}", "expires_in": 3600, "token_type": "Bearer"})

    async def _post(self, request: web.Request) -> web.StreamResponse:
        body = await self._body(request)
        if isinstance(body, web.Response):
            return body
        body["id"] = uuid.uuid4().hex
        fault = self.faults.pop(0) if self.faults else None
        if isinstance(fault, web.Response):
            return fault
        self.activities[request.match_info["conversation"]].append(body)
        if fault == "lost":
            assert request.transport is not None
            request.transport.close()
        return web.json_response({"id": body["id"]}, status=201)

    async def _put(self, request: web.Request) -> web.Response:
        body = await self._body(request)
        if isinstance(body, web.Response):
            return body
        for activity in self.activities[request.match_info["conversation"]]:
            if activity["id"] == request.match_info["activity"]:
                activity.update(body, id=activity["id"], edits=activity.get("edits", 0) + 1)
                return web.json_response({"id": activity["id"]})
        return web.json_response({"error": {"code": "ActivityNotFoundInConversation"}}, status=404)

    async def _body(self, request: web.Request) -> dict[str, Any] | web.Response:
        raw = await request.text()
        self.bodies.append(raw)
        if not request.headers.get("Authorization", "").startswith("Bearer bot-"):
            return web.json_response({"error": {"code": "Unauthorized"}}, status=401)
        return dict(json.loads(raw))

    def activity(self, text: str = "", *, sender: str = ADA, **more: Any) -> dict[str, Any]:
        """A message as the Bot Connector sends it."""
        return {
            "type": "message",
            "id": uuid.uuid4().hex,
            "channelId": "msteams",
            "serviceUrl": f"{self.url}/teams/",
            "from": {"id": f"29:{sender}", "name": "A Person", "aadObjectId": sender},
            "recipient": {"id": f"28:{APP_ID}", "name": "reclaim"},
            "conversation": {"id": CHANNEL, "tenantId": TENANT, "conversationType": "channel", "isGroup": True},
            "channelData": {"tenant": {"id": TENANT}},
            "text": text,
            **more,
        }

    def headers(
        self, activity: dict[str, Any] | None = None, *, signer: str = "own", kid: str = "k1", **changes: Any
    ) -> dict[str, str]:
        """The Bot Connector's token; `changes` replace claims, None takes one out."""
        now = int(time.time())
        claims = {"iss": ISSUER, "aud": APP_ID, "nbf": now - 60, "iat": now - 60, "exp": now + 3600}
        claims |= {"serviceurl": (activity or {}).get("serviceUrl", f"{self.url}/teams/")} | changes
        kept = {name: value for name, value in claims.items() if value is not None}
        token = jwt.encode(kept, key(signer), algorithm="RS256", headers={"kid": kid})
        return {"Authorization": f"Bearer {token}"}


def pressed(order_id: str, *, approve: bool) -> dict[str, Any]:
    """Fields of an Action.Execute invoke."""
    data = {"reclaim": "decision", "order_id": order_id, "approve": approve}
    verb = "reclaim.approve" if approve else "reclaim.reject"
    return {
        "type": "invoke",
        "name": "adaptiveCard/action",
        "value": {"action": {"type": "Action.Execute", "verb": verb, "data": data}},
    }


def card(activity: dict[str, Any]) -> dict[str, Any]:
    return dict(activity["attachments"][0]["content"])


def texts(activity: dict[str, Any]) -> str:
    """All that a reader sees of a card."""
    return "\n".join(run["text"] for block in card(activity)["body"] for run in block["inlines"])

"""The HTTP endpoint: one aiohttp application for labels, chat and DICOMweb, behind one bearer token.

A page that a local user's browser shows must not speak for that user: bodies are JSON or multipart/related (a foreign page
would need leave for either), an Origin must be the endpoint's own, and without a token the Host must name this machine
(DNS rebinding).

Add an API by appending its route factory to `ROUTE_FACTORIES`.
"""

import asyncio
import contextlib
import hmac
import ipaddress
import json
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from listeners.chat.http import routes as chat_routes
from listeners.chat.slack.routes import routes as slack_routes
from listeners.chat.teams.routes import routes as teams_routes
from listeners.dicomweb.http import install as install_dicomweb
from listeners.idle import IdleConnections
from listeners.labels.http import create_routes as label_routes
from listeners.readiness import Readiness
from schemas.http_settings import HttpSettings
from services.runtime.errors import InvalidInput, Transient
from services.runtime.service import Context, Service, StopSignal, Worker

logger = logging.getLogger(__name__)
RouteFactory = Callable[[Context], Iterable[web.AbstractRouteDef]]

API: Final = "/api/"
DICOMWEB: Final = "/dicomweb/"
GUARDED: Final = (API, DICOMWEB)
"""What nobody reaches without the token."""
ROUTE_FACTORIES: Final[tuple[RouteFactory, ...]] = (label_routes, chat_routes, slack_routes, teams_routes)
"""All APIs. A factory returns routes below `/api/`, which requests reach only with the right token, or below `/chat/`, where each
request proves by itself whom it is from. Errors it raises as `web.HTTPException`, `InvalidInput` (422) or `Transient` (503)
become JSON."""
IDLE: Final = web.AppKey("idle", IdleConnections)


def build(context: Context) -> Service:
    """The service `http`; InvalidInput when it would listen beyond this machine without a token."""
    settings = context.settings.http
    if not settings.token.get_secret_value() and not _is_loopback(settings.host):
        raise InvalidInput(f"http.host is {settings.host}, not a loopback address: set RECLAIM_HTTP_TOKEN")

    async def serve(stop: StopSignal) -> None:
        await _serve(create_app(context), settings, context.settings.state_dir / "run" / "http.json", stop)

    return Service("http", workers=(Worker("http", serve),))


def create_app(context: Context) -> web.Application:
    """The application with all routes. DICOMweb checks its content type itself, with the words of its standard."""
    settings = context.settings.http
    app = web.Application(client_max_size=settings.max_body_bytes, middlewares=[_errors_as_json, _guard(settings)])
    app[IDLE] = IdleConnections(settings.max_idle_connections)
    app.add_routes([web.get("/", _overview), web.get("/health", _health(context)), web.get("/ready", Readiness(context).get)])
    for factory in ROUTE_FACTORIES:
        app.add_routes(factory(context))
    install_dicomweb(app, context)
    return app


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def _overview(request: web.Request) -> web.Response:
    """What this port serves, for a person who opens it in a browser; nothing of patients or models stands in it."""
    paths = {route.resource.canonical for route in request.app.router.routes() if route.resource is not None}
    return web.json_response({"service": "reclaim", "paths": sorted(paths - {"/"}), "state": "reclaim doctor, reclaim chat"})


def _health(context: Context) -> Handler:
    def look() -> None:
        with context.database.read() as session:
            session.connection().exec_driver_sql("SELECT 1")

    async def health(_: web.Request) -> web.Response:
        await asyncio.to_thread(look)
        return web.json_response({"status": "ok"})

    return health


def _guard(settings: HttpSettings) -> Middleware:
    token = settings.token.get_secret_value()
    expected = f"Bearer {token}".encode()

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path.startswith(GUARDED):
            given = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
            if token and not hmac.compare_digest(given, expected):
                raise web.HTTPUnauthorized(text="a valid bearer token is required", headers={"WWW-Authenticate": "Bearer"})
            _refuse_foreign(request, settings)
        if not request.path.startswith(DICOMWEB):
            await _whole_body(request, settings.request_timeout_s)
        with request.app[IDLE].serving(request):
            return await handler(request)

    return guard


async def _whole_body(request: web.Request, seconds: float) -> None:
    """Read the body, which the request keeps for its handler; a sender that falls silent or drips is not waited for."""
    try:
        async with asyncio.timeout(seconds):
            await request.read()
    except TimeoutError:
        raise web.HTTPRequestTimeout(text="the body did not end in time") from None
    except (ConnectionError, web.RequestPayloadError):
        raise web.HTTPBadRequest(text="the body broke off") from None


def _refuse_foreign(request: web.Request, settings: HttpSettings) -> None:
    host = request.headers.get("Host", "")
    name = _host_name(f"//{host}")
    if not settings.token.get_secret_value() and not (_is_loopback(name) or name == settings.host.lower()):
        raise web.HTTPForbidden(text="the Host header does not name this machine")
    origin = request.headers.get("Origin")
    if origin is not None and origin.partition("://")[2].lower() != host.lower():
        raise web.HTTPForbidden(text="requests of another origin's pages are refused")
    if request.method == "POST" and request.path.startswith(API) and request.content_type != "application/json":
        raise web.HTTPUnsupportedMediaType(text="the body must be application/json")


def _host_name(address: str) -> str:
    try:
        return (urlsplit(address).hostname or "").lower()
    except ValueError:
        return ""


def _route_of(request: web.Request) -> str:
    """The route as it is defined: what stands in its place in an address may be a StudyInstanceUID."""
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else "a request"


@web.middleware
async def _errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every error is `{"error": reason}`; what we did not foresee is logged here and not told outside."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        headers = {name: error.headers[name] for name in ("WWW-Authenticate", "Retry-After") if name in error.headers}
        return web.json_response({"error": error.text}, status=error.status, headers=headers)
    except InvalidInput as error:
        return web.json_response({"error": error.reason}, status=422)
    except Transient as error:
        return web.json_response({"error": f"try again later: {error}"}, status=503, headers={"Retry-After": "5"})
    except Exception:
        logger.exception("%s failed", _route_of(request))
        return web.json_response({"error": "internal error"}, status=500)


async def _listen(runner: web.AppRunner, settings: HttpSettings) -> None:
    try:
        await web.TCPSite(runner, settings.host, settings.port).start()
    except OSError as error:
        reason = f"cannot listen on {settings.host} port {settings.port} ({os.strerror(error.errno or 0)})"
        raise Transient(f"{reason}: end what holds it, or set RECLAIM_HTTP_PORT") from None


async def _serve(app: web.Application, settings: HttpSettings, note: Path, stop: StopSignal) -> None:
    runner = web.AppRunner(app, access_log=None, handle_signals=False, keepalive_timeout=settings.request_timeout_s)
    await runner.setup()
    assert runner.server is not None
    watching = asyncio.create_task(app[IDLE].watch(runner.server))
    try:
        await _listen(runner, settings)
        port = int(runner.addresses[0][1])
        _write_address(note, settings.host, port)
        logger.info("http: listening on %s:%d", settings.host, port)
        await stop.wait()
    finally:
        watching.cancel()
        _forget_address(note)
        await runner.cleanup()


def _write_address(note: Path, host: str, port: int) -> None:
    """Say where we listen: with port 0 nobody else knows. On a full disk it stays unsaid, and we serve."""
    shown = f"[{host}]" if ":" in host else host
    draft = note.with_suffix(f".{os.getpid()}.tmp")
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(json.dumps({"host": host, "port": port, "url": f"http://{shown}:{port}"}), encoding="utf-8")
        draft.replace(note)
    except OSError as error:
        logger.warning("http: %s cannot be written (%s)", note, error.strerror)


def _forget_address(note: Path) -> None:
    with contextlib.suppress(OSError):
        note.unlink()

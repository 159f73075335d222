"""The HTTP server of the api room: `python -m api.app`.

Stateless: everything it knows is in PostgreSQL and, for a minute, in Redis, so any number of these
processes serve side by side. It starts only when both answer, ends within ten seconds of SIGTERM
with requests in flight finished, and `GET /healthz` says whether both still answer.
"""

import asyncio
import gc
import logging
import resource
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, cast

import uvicorn
from fastapi import Depends, FastAPI, Request, Response
from pydantic import BaseModel
from redis.asyncio import Redis
from redis.exceptions import RedisError

from api import cache, openapi
from api.chain.composer import Composer
from api.checkout import demo, escrow_routes, pay_requests
from api.checkout import routes as checkout
from api.database import Database
from api.errors import DatabaseUnavailable
from api.gate import Gate
from api.ledger import routes as ledger
from api.merchants import routes as merchants
from api.payments import routes as payments
from api.payouts import routes as payouts
from api.people import routes as people
from api.people import team_routes as team
from api.people.known_keys import KnownKeys
from api.people.sessions import Sessions
from api.ratelimit import RateLimiter
from api.rates import routes as rates
from api.rates.service import rates_of
from api.realtime import routes as realtime
from api.realtime.protocol import LiveProtocol
from api.realtime.service import Live
from api.security import Sealer, SessionSigner
from api.settings import ApiSettings
from api.web import install_error_handlers, only_known_queries
from infra.telemetry import configure_logging, get_logger, notify_alive, notify_ready

_BEAT_S = 2.0
_FINISH_REQUESTS_S = 7
_PEER_TIMEOUT_MS = 40_000
_COLLECT_EVERY_S = 3600.0
# Of the youngest objects, in allocations, and how many such looks bring one at the older ones; the
# oldest are left to _collect_seldom.
_GC_THRESHOLDS = (10_000, 20, 1_000_000)
# Sockets tell and do not listen.
_LONGEST_WS_MESSAGE = 1024
_log = get_logger(__name__)

DESCRIPTION = """
Charge in Vietnamese dong, get paid in USDC or USDT on Solana.

Amounts are decimal strings, never numbers. Every request that moves money takes an
`Idempotency-Key`: sent again with the same content it has no second effect and gets the first
answer, marked `Idempotent-Replayed: true`. Errors are `application/problem+json` (RFC 9457).
"""


class Health(BaseModel):
    """Whether the parts this process needs answer."""

    status: str
    postgresql: bool
    redis: bool


def build_app(settings: ApiSettings) -> FastAPI:
    """Return the application; it connects when it starts and disconnects when it ends."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        redis = cache.connect(settings.redis_url.get_secret_value())
        database = Database(
            settings.database_url.get_secret_value(),
            application_name="giovang-api",
            pool_size=settings.pool_size,
        )
        operator = Database(
            settings.operator_url.get_secret_value(),
            application_name="giovang-api-operator",
            pool_size=settings.operator_pool_size,
        )
        async with database, operator:
            _furnish(app, settings, redis, database=database, operator=operator)
            found = await _health(app)
            if found.status != "ok":
                raise RuntimeError(
                    f"not started: postgresql {found.postgresql}, redis {found.redis}"
                )
            live = asyncio.create_task(app.state.live.run())
            beat = asyncio.create_task(_beat(app, live))
            tidy = asyncio.create_task(_collect_seldom())
            yield
            for task in (beat, live, tidy):
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
        await app.state.composer.close()
        if app.state.demo_wallet is not None:
            await app.state.demo_wallet.close()
        await redis.aclose()

    app = FastAPI(
        title="Giovang",
        version="1",
        description=DESCRIPTION,
        lifespan=lifespan,
        separate_input_output_schemas=False,
        dependencies=[Depends(only_known_queries)],
    )
    install_error_handlers(app)
    for routes in (
        payments,
        payouts,
        ledger,
        rates,
        merchants,
        team,
        people,
        checkout,
        escrow_routes,
        pay_requests,
        realtime,
    ):
        app.include_router(routes.router)
    app.router.routes.append(realtime.WEBSOCKET_ROUTE)
    if settings.demo:
        app.include_router(demo.router)
    app.add_api_route("/healthz", health, response_model=Health, tags=["operations"])
    app.add_middleware(Gate, max_body_bytes=settings.max_body_bytes)
    app.openapi = lambda: openapi.document(app)  # type: ignore[method-assign]
    return app


def _furnish(
    app: FastAPI, settings: ApiSettings, redis: Redis, *, database: Database, operator: Database
) -> None:
    """Put in the state what requests reach through api.web; fails on malformed keys."""
    signer = SessionSigner(settings.session_private_key.get_secret_value())
    kept = cache.Cache(redis)
    app.state.settings = settings
    app.state.database = database
    app.state.operator = operator
    app.state.redis = redis
    app.state.signer = signer
    app.state.known_keys = KnownKeys()
    app.state.limiter = RateLimiter(kept)
    app.state.sealer = Sealer(settings.sealing_key.get_secret_value())
    app.state.sessions = Sessions(signer, kept, database=database, operator=operator)
    app.state.rates = rates_of(settings, redis)
    app.state.live = Live(app, settings, database)
    app.state.composer = Composer(settings.solana_rpc_url, timeout_s=settings.rpc_timeout_s)
    app.state.demo_wallet = demo.wallet_of(settings)


async def health(request: Request) -> Response:
    """Ask PostgreSQL and Redis, each with a deadline: 200 where both answer, else 503."""
    found = await _health(request.app)
    return Response(
        found.model_dump_json(),
        status_code=200 if found.status == "ok" else 503,
        media_type="application/json",
    )


async def _health(app: FastAPI) -> Health:
    postgresql, redis = await asyncio.gather(_database_answers(app), _redis_answers(app))
    status = "ok" if postgresql and redis else "unavailable"
    return Health(status=status, postgresql=postgresql, redis=redis)


async def _database_answers(app: FastAPI) -> bool:
    try:
        async with asyncio.timeout(3):
            return await cast("Database", app.state.database).answers()
    except (DatabaseUnavailable, TimeoutError):
        return False


async def _redis_answers(app: FastAPI) -> bool:
    try:
        return bool(await app.state.redis.ping())
    except RedisError:
        return False


async def _beat(app: FastAPI, live: asyncio.Task[None]) -> None:
    """Tell the supervisor every few seconds that the event loop turns and what it can reach.

    Where live status has failed nothing is told, and we are started anew.
    """
    while not live.done():
        found = await _health(app)
        notify_alive(f"postgresql {found.postgresql}, redis {found.redis}")
        await asyncio.sleep(_BEAT_S)
    _log.error("live status failed", error=repr(live.exception()))


async def _collect_seldom() -> None:
    """Look for cycles of old objects once an hour instead of whenever many objects were made.

    That look stops the process for as long as thousands of sockets have objects: a second for ten
    thousand. What requests leave behind is young and found in milliseconds, as ever.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)
    while True:
        await asyncio.sleep(_COLLECT_EVERY_S)
        gc.collect()


class _Server(uvicorn.Server):
    """Uvicorn that tells the supervisor once it listens, and live connections when it stops."""

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self._app = app

    async def startup(self, sockets: Any = None) -> None:  # noqa: ANN401
        await super().startup(sockets)
        if self.started:
            notify_ready()

    async def shutdown(self, sockets: Any = None) -> None:  # noqa: ANN401
        cast("Live", self._app.state.live).hub.close()
        await super().shutdown(sockets)


def _listen(config: uvicorn.Config) -> socket.socket:
    """Return the socket to serve on; its connections end when a peer is gone, not hours later."""
    listening = config.bind_socket()
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _PEER_TIMEOUT_MS)
    return listening


def _allow_many_connections() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _is_no_handshake(record: logging.LogRecord) -> bool:
    """Tell uvicorn's lines about WebSocket handshakes: they quote addresses with their tokens."""
    return '"WebSocket %s"' not in str(record.msg)


def main() -> None:
    """Serve until SIGTERM."""
    configure_logging("api")
    logging.getLogger("uvicorn.error").addFilter(_is_no_handshake)
    _allow_many_connections()
    settings = ApiSettings()
    app = build_app(settings)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_FINISH_REQUESTS_S,
        timeout_keep_alive=30,
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=settings.trusted_proxies or None,
        ws=LiveProtocol,
        ws_max_size=_LONGEST_WS_MESSAGE,
        # Messages are a few hundred bytes; compression would cost each socket its buffers.
        ws_per_message_deflate=False,
        ws_ping_interval=settings.live_ping_ms / 1000,
        ws_ping_timeout=settings.live_ping_ms / 1000,
    )
    server = _Server(config, app)
    # Uvicorn stops cleanly on SIGTERM and then raises the signal once more for whoever listened
    # before: nobody, so that the process ends with status 0.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    server.run(sockets=[_listen(config)])
    if not server.started:
        sys.exit(1)


if __name__ == "__main__":
    main()

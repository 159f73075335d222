"""The HTTP server of the api room: `python -m api.app`.

Stateless: everything it knows is in PostgreSQL and, for a minute, in Redis, so any number of these
processes serve side by side. It starts only when both answer, ends within ten seconds of SIGTERM
with requests in flight finished, and `GET /healthz` says whether both still answer.
"""

import asyncio
import signal
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
from api.checkout import demo
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
from api.security import Sealer, SessionSigner
from api.settings import ApiSettings
from api.web import install_error_handlers, only_known_queries
from infra.telemetry import configure_logging, get_logger, notify_alive, notify_ready

_BEAT_S = 2.0
_FINISH_REQUESTS_S = 7
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
            beat = asyncio.create_task(_beat(app))
            yield
            beat.cancel()
            with suppress(asyncio.CancelledError):
                await beat
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
    for routes in (payments, payouts, ledger, rates, merchants, team, people, checkout):
        app.include_router(routes.router)
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


async def _beat(app: FastAPI) -> None:
    """Tell the supervisor every few seconds that the event loop turns and what it can reach."""
    while True:
        found = await _health(app)
        notify_alive(f"postgresql {found.postgresql}, redis {found.redis}")
        await asyncio.sleep(_BEAT_S)


class _Server(uvicorn.Server):
    """Uvicorn that tells the supervisor once it listens."""

    async def startup(self, sockets: Any = None) -> None:  # noqa: ANN401
        await super().startup(sockets)
        if self.started:
            notify_ready()


def main() -> None:
    """Serve until SIGTERM."""
    configure_logging("api")
    settings = ApiSettings()
    server = _Server(
        uvicorn.Config(
            build_app(settings),
            host=settings.host,
            port=settings.port,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=_FINISH_REQUESTS_S,
            timeout_keep_alive=30,
            proxy_headers=bool(settings.trusted_proxies),
            forwarded_allow_ips=settings.trusted_proxies or None,
        )
    )
    # Uvicorn stops cleanly on SIGTERM and then raises the signal once more for whoever listened
    # before: nobody, so that the process ends with status 0.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    server.run()
    if not server.started:
        sys.exit(1)


if __name__ == "__main__":
    main()

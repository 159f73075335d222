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
from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from redis.asyncio import Redis
from redis.exceptions import RedisError

from api.checkout import demo
from api.checkout import routes as checkout
from api.database import Database
from api.errors import DatabaseUnavailable, FieldError, Problem
from api.merchants import routes as merchants
from api.payments import routes as payments
from api.payouts import routes as payouts
from api.rates.service import FileRates, Rates
from api.security import SessionSigner
from api.settings import ApiSettings
from api.web import RequestContext, install_error_handlers
from infra.telemetry import configure_logging, get_logger, notify_alive, notify_ready

_REDIS_TIMEOUT_S = 1.0
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
        redis = Redis.from_url(
            settings.redis_url.get_secret_value(),
            socket_timeout=_REDIS_TIMEOUT_S,
            socket_connect_timeout=_REDIS_TIMEOUT_S,
        )
        database = Database(
            settings.database_url.get_secret_value(),
            application_name="giovang-api",
            pool_size=settings.pool_size,
        )
        async with database:
            app.state.settings = settings
            app.state.database = database
            app.state.redis = redis
            app.state.signer = SessionSigner(settings.session_private_key.get_secret_value())
            app.state.rates = Rates(
                FileRates(settings.rates_file), redis, max_age_s=settings.rates_max_age_s
            )
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
    )
    install_error_handlers(app)
    for routes in (payments, payouts, merchants, checkout):
        app.include_router(routes.router)
    if settings.demo:
        app.include_router(demo.router)
    app.add_api_route("/healthz", health, response_model=Health, tags=["operations"])
    app.add_middleware(RequestContext, max_body_bytes=settings.max_body_bytes)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


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


def _openapi(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document with the one error body all problems share."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes
        )
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        for model in (Problem, FieldError):
            schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
            schema.pop("$defs", None)
            schemas[model.__name__] = schema
        app.openapi_schema = document
    return app.openapi_schema


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

"""PostgreSQL for the api room: a pool, the unit of work, row-level security's tenant, and ids.

A unit of work is one database transaction that knows its merchant. It commits when its block ends,
or leaves nothing behind. It runs in pipeline mode: statements travel to the server as they are
issued and the client waits only where it reads, so the last writes and COMMIT are one round trip.
The price: the error of a statement whose result nobody reads appears at the next read, or at the
end of the block. Who has all values beforehand sends the whole unit as one statement (`at_once`).

SQL is written by hand in each slice's store and sent by psycopg: through SQLAlchemy the same
statements took several times the processor time. SQLAlchemy serves Alembic.
"""

import asyncio
import secrets
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString, NamedTuple, TypeVar

import psycopg
from psycopg import AsyncConnection, AsyncCursor
from psycopg.rows import class_row, scalar_row
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout

from api.errors import DatabaseUnavailable, GiovangError, NotAuthenticated

T = TypeVar("T")
Parameters = Mapping[str, Any]

_CROCKFORD = "0123456789abcdefghjkmnpqrstvwxyz"
ID_BODY = "[0-9a-hjkmnp-tv-z]{26}"

_WAIT_FOR_CONNECTION_S = 5.0
_SESSION_SETTINGS = {
    "statement_timeout": "10s",
    "lock_timeout": "5s",
    "idle_in_transaction_session_timeout": "15s",
    "timezone": "UTC",
    # A connection keeps the plan it made while a table was new. Of an empty table that is to read
    # all of it: functions and foreign keys would do so at every payment until it is analysed. The
    # price of what cannot be avoided then looks high enough for compiling, which it is not.
    "enable_seqscan": "off",
    "jit": "off",
}
# now() stands alone in the row: what set_config returns is not asked for.
_BEGIN_FOR = """
    SELECT now()
    FROM (SELECT set_config('giovang.merchant_id', %(merchant_id)s, true),
                 set_config('giovang.actor', %(actor)s, true),
                 set_config('giovang.request_id', %(request_id)s, true)) AS identity
"""
# A key revoked since it was looked up ends the unit of work; begin_claiming sees to it too.
_BEGIN_FOR_KEY = """
    SELECT now()
    FROM (SELECT set_config('giovang.merchant_id', %(merchant_id)s, true),
                 set_config('giovang.actor', %(actor)s, true),
                 set_config('giovang.request_id', %(request_id)s, true),
                 prove_key(%(actor)s, %(merchant_id)s)) AS identity
"""
BEGIN_CLAIMING: LiteralString = """
    SELECT * FROM begin_claiming(
        %(merchant_id)s, %(actor)s, %(request_id)s, %(key)s, %(namespace)s)
"""


class _Clock:
    """Moments and random bits for ids, each pair after the one before (RFC 9562, 6.2 method 2)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = (0, 0)

    def tick(self) -> tuple[int, int]:
        """Return Unix milliseconds and 74 bits; within a millisecond the bits grow at random."""
        now = (time.time_ns() // 1_000_000, secrets.randbits(74))
        with self._lock:
            if now[0] <= self._last[0]:
                count = (self._last[0] << 74 | self._last[1]) + 1 + (now[1] >> 42)
                now = (count >> 74, count & ((1 << 74) - 1))
            self._last = now
        return now


_clock = _Clock()


def new_id(prefix: str) -> str:
    """Return a new id: `prefix_` and a UUIDv7 in 26 Crockford characters.

    Ids sort by time, and those of one process in the order they were made.
    """
    return encode_id(prefix, *_clock.tick())


def encode_id(prefix: str, unix_ms: int, noise: int) -> str:
    """Return the id of a moment and 74 random bits, laid out by RFC 9562."""
    value = unix_ms << 80 | 0x7 << 76 | (noise >> 62) << 64 | 0b10 << 62 | noise & ((1 << 62) - 1)
    return f"{prefix}_" + "".join(_CROCKFORD[value >> shift & 31] for shift in range(125, -1, -5))


@dataclass(frozen=True, slots=True)
class Identity:
    """On whose behalf a unit of work runs: the tenant that policies see, and the audit's who."""

    actor: str
    merchant_id: str | None = None
    request_id: str | None = None

    @property
    def tenant(self) -> str:
        """The merchant; where there is none, nobody may ask."""
        if self.merchant_id is None:
            raise RuntimeError("this unit of work has no merchant")
        return self.merchant_id


class Claiming(NamedTuple):
    """An idempotency key to hold from the unit's first statement on, told apart by a namespace."""

    key: str
    namespace: str


class Begun(NamedTuple):
    """How a unit of work began; beyond the moment it is of the key it claimed, if it did."""

    at: datetime
    held: bool = True
    request_hash: bytes | None = None
    status: int | None = None
    body: str | None = None


class Unit:
    """The open unit of work: typed reads and queued writes inside one database transaction."""

    def __init__(
        self, connection: AsyncConnection[Any], identity: Identity, begun: AsyncCursor[Any]
    ) -> None:
        self._connection = connection
        self._cursor = begun
        self._begun: Begun | None = None
        self._refusals: dict[str, GiovangError] = {}
        self.identity = identity

    @property
    def merchant_id(self) -> str:
        """The tenant in force; a unit of work without one may not ask."""
        return self.identity.tenant

    async def run(self, query: LiteralString, parameters: Parameters) -> None:
        """Queue a write; its error appears at the next read, or when the block ends."""
        await self._connection.execute(query, parameters)

    async def all(self, row_type: type[T], query: LiteralString, parameters: Parameters) -> list[T]:
        """Return every row as a `row_type`, whose fields are named as the columns."""
        async with self._connection.cursor(row_factory=class_row(row_type)) as cursor:
            await cursor.execute(query, parameters)
            return await cursor.fetchall()

    async def one(self, row_type: type[T], query: LiteralString, parameters: Parameters) -> T:
        """Return the row as a `row_type`; a query that gives none is a defect."""
        return _certain(await self.maybe(row_type, query, parameters))

    async def maybe(
        self, row_type: type[T], query: LiteralString, parameters: Parameters
    ) -> T | None:
        """Return the first row as a `row_type`, or None where there is none."""
        async with self._connection.cursor(row_factory=class_row(row_type)) as cursor:
            await cursor.execute(query, parameters)
            return await cursor.fetchone()

    async def value(self, query: LiteralString, parameters: Parameters) -> Any:  # noqa: ANN401
        """Return the first column of the first row, or None where there is no row."""
        async with self._connection.cursor(row_factory=scalar_row) as cursor:
            await cursor.execute(query, parameters)
            return await cursor.fetchone()

    async def now(self) -> datetime:
        """Return the moment this unit of work began, by the database's clock."""
        return (await self.begun()).at

    async def begun(self) -> Begun:
        """Return how this unit of work began."""
        if self._begun is None:
            self._begun = Begun(*_certain(await self._cursor.fetchone()))
        return self._begun

    def expect_refusal(self, constraint: str, error: GiovangError) -> None:
        """Have the unit of work end in `error` where PostgreSQL refuses by that constraint.

        For queued writes, whose refusal may appear anywhere after them, the COMMIT included.
        """
        self._refusals[constraint] = error

    def meaning_of(self, refusal: psycopg.errors.IntegrityError) -> Exception:
        """Return what a refusal means: of the key itself, of a queued write, or as it is."""
        return self._refusals.get(refusal.diag.constraint_name or "") or _meaning_of(refusal)


class Database:
    """A pool of connections as one role; `async with` opens and closes it."""

    def __init__(self, url: str, *, application_name: str, pool_size: int = 8) -> None:
        options = " ".join(f"-c {name}={value}" for name, value in _SESSION_SETTINGS.items())
        self._pool: AsyncConnectionPool[AsyncConnection[Any]] = AsyncConnectionPool(
            url,
            kwargs={
                "autocommit": True,
                "application_name": application_name,
                "connect_timeout": 5,
                "options": options,
            },
            min_size=min(2, pool_size),
            max_size=pool_size,
            timeout=_WAIT_FOR_CONNECTION_S,
            max_waiting=1000,
            open=False,
        )

    async def __aenter__(self) -> "Database":
        await self._pool.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._pool.close(timeout=5)

    @asynccontextmanager
    async def unit_of_work(
        self, identity: Identity, *, claiming: Claiming | None = None
    ) -> AsyncIterator[Unit]:
        """Open a database transaction for `identity`; commit at the end, or roll back on an error.

        Raises DatabaseUnavailable where PostgreSQL cannot be reached, a limit of time was hit or a
        deadlock broken: nothing was kept, and the same work may be tried again. A connection lost
        during COMMIT looks the same though the commit may have happened, so a retry must be
        idempotent.
        """
        with _unavailable():
            async with self._pool.connection() as connection:
                unit: Unit | None = None
                try:
                    async with connection.pipeline():
                        await connection.execute("BEGIN")
                        unit = Unit(
                            connection, identity, await _begin(connection, identity, claiming)
                        )
                        yield unit
                        await connection.execute("COMMIT")
                except psycopg.errors.IntegrityError as refusal:
                    await _roll_back(connection)
                    raise (refusal if unit is None else unit.meaning_of(refusal)) from None
                except BaseException:
                    await _roll_back(connection)
                    raise

    async def at_once(
        self, identity: Identity, claiming: Claiming, query: LiteralString, parameters: Parameters
    ) -> Begun:
        """Run one statement that is a whole unit of work, and return its row as a Begun.

        It begins by BEGIN_CLAIMING, whose parameters are added; what holds of a unit holds of it.
        """
        everything = {**_who(identity), **claiming._asdict(), **parameters}
        with _unavailable():
            async with self._pool.connection() as connection:
                try:
                    row = await (await connection.execute(query, everything)).fetchone()
                except psycopg.errors.IntegrityError as refusal:
                    raise _meaning_of(refusal) from None
        return Begun(*_certain(row))

    async def look_up(
        self, row_type: type[T], query: LiteralString, parameters: Parameters
    ) -> T | None:
        """Return one row, outside of any unit of work: for what comes before a tenant is known."""
        with _unavailable():
            async with (
                self._pool.connection() as connection,
                connection.cursor(row_factory=class_row(row_type)) as cursor,
            ):
                await cursor.execute(query, parameters)
                return await cursor.fetchone()

    async def answers(self) -> bool:
        """Say that PostgreSQL answers; raises DatabaseUnavailable where it does not."""
        with _unavailable():
            async with self._pool.connection() as connection:
                await connection.execute("SELECT 1")
        return True


class Leadership:
    """A seat that one process at a time holds: an advisory lock of a connection of its own.

    PostgreSQL frees the seat when the process or its connection dies. A holder asks `held` before
    each round of work; who lost the connection must stop, since another may be leading by now.
    """

    def __init__(self, url: str, *, seat: int, application_name: str) -> None:
        self._url = url
        self._seat = seat
        self._application_name = application_name
        self._connection: AsyncConnection[Any] | None = None

    async def take(self) -> bool:
        """Try to take the seat; raises DatabaseUnavailable."""
        with _unavailable():
            if self._connection is None:
                self._connection = await AsyncConnection.connect(
                    self._url,
                    autocommit=True,
                    connect_timeout=5,
                    application_name=self._application_name,
                )
            cursor = await self._connection.execute(
                "SELECT pg_try_advisory_lock(%s)", (self._seat,)
            )
            return bool(_certain(await cursor.fetchone())[0])

    async def held(self) -> bool:
        """Say whether the session that took the seat still lives."""
        if self._connection is None:
            return False
        try:
            async with asyncio.timeout(5):
                await self._connection.execute("SELECT 1")
        except (psycopg.OperationalError, TimeoutError):
            return False
        return True

    async def leave(self) -> None:
        """Free the seat."""
        if self._connection is not None:
            await self._connection.close()
            self._connection = None


@contextmanager
def refused_by(constraint: str, error: GiovangError) -> Iterator[None]:
    """Raise `error` where PostgreSQL refuses a statement by the constraint of that name.

    Only statements whose result is read inside the block are covered (see Unit.run).
    """
    try:
        yield
    except psycopg.errors.IntegrityError as refusal:
        if refusal.diag.constraint_name == constraint:
            raise error from refusal
        raise


def _meaning_of(refusal: psycopg.errors.IntegrityError) -> Exception:
    """Return NotAuthenticated where the key that acts was revoked meanwhile, else the refusal."""
    if refusal.diag.constraint_name == "api_keys_live":
        return NotAuthenticated("this API key is unknown or revoked")
    return refusal


def _certain(row: T | None) -> T:
    if row is None:
        raise RuntimeError("a row was certain and is missing")
    return row


@contextmanager
def _unavailable() -> Iterator[None]:
    try:
        yield
    except (psycopg.OperationalError, PoolTimeout, PoolClosed) as failure:
        raise DatabaseUnavailable("try again in a moment") from failure


async def _begin(
    connection: AsyncConnection[Any], identity: Identity, claiming: Claiming | None
) -> AsyncCursor[Any]:
    """Queue the statement that says whose the unit of work is; its row becomes a Begun."""
    parameters = _who(identity)
    if claiming is None:
        begin = _BEGIN_FOR_KEY if identity.actor.startswith("key_") else _BEGIN_FOR
        return await connection.execute(begin, parameters)
    return await connection.execute(BEGIN_CLAIMING, {**parameters, **claiming._asdict()})


def _who(identity: Identity) -> dict[str, str]:
    merchant_id, request_id = identity.merchant_id or "", identity.request_id or ""
    return {"merchant_id": merchant_id, "actor": identity.actor, "request_id": request_id}


async def _roll_back(connection: AsyncConnection[Any]) -> None:
    """End the database transaction; a connection that cannot is closed, and the pool drops it."""
    try:
        # Not by execute(): psycopg would go on believing in statements whose preparation was among
        # what PostgreSQL skipped after the error, and fail by them for as long as it is connected.
        await connection.rollback()
    except psycopg.Error:
        await connection.close()

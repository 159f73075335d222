"""Who may watch a payment, for how long, and how many may do so at once.

A live token is good for its payment until its end; a key or session for payments of its merchant
and mode that it may read, and is looked up again while it holds a connection open, so that one
revoked is closed within a minute. Connections are counted per client address and for the process.
What is refused raises the error that the rest of the API would give.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple, cast

from fastapi import FastAPI, Request

from api.database import Database
from api.errors import (
    DatabaseUnavailable,
    GiovangError,
    LiveFull,
    NotAuthenticated,
    TooManyRequests,
)
from api.payments import service as payments
from api.people.auth import caller_with, identity_of
from api.realtime import store
from api.realtime.feed import Feed
from api.realtime.hub import Hub, Watcher
from api.realtime.model import REVOKED
from api.settings import ApiSettings
from api.web import (
    charge_address,
    client_bucket,
    database_of,
    limiter_of,
    links_of,
    settings_of,
    spend,
)
from infra.telemetry import get_logger

POLICY: Final = "live"
SCOPE: Final = "payments:read"
# Looked up again and again while a connection is open, with no unit of work behind it.
_READS: Final = caller_with(SCOPE, at_once=True)
_log = get_logger(__name__)


class Credential(NamedTuple):
    """What a connection without a token was opened with."""

    authorization: str
    mode: str
    address: str


@dataclass(frozen=True, slots=True)
class Permit:
    """Leave to watch a payment: until a moment, or as long as a credential counts."""

    payment_id: str
    bucket: str
    ends_at_s: float | None = None
    credential: Credential | None = None


async def permit(request: Request, payment_id: str, token: str | None) -> Permit:
    """Return the caller's leave to watch a payment, by the token or else by the header.

    Raises NotAuthenticated for a token that is none, ended, or another payment's, and what reading
    the payment raises for everybody else: NotFound for another merchant's or the other mode's.
    """
    if token is not None:
        ends_at_s = links_of(request).end_s(token, payment_id, "watch", now_s=int(time.time()))
        if ends_at_s is None:
            await charge_address(request)
            raise NotAuthenticated("this live token is not valid for this payment, or has ended")
        return Permit(payment_id, client_bucket(request), ends_at_s=ends_at_s)
    caller = await _READS(request)
    async with database_of(request).unit_of_work(identity_of(request, caller)) as unit:
        await payments.get(unit, payment_id, mode=caller.mode)
    credential = Credential(
        request.headers["authorization"],
        request.headers.get("giovang-mode", ""),
        "" if request.client is None else request.client.host,
    )
    return Permit(payment_id, client_bucket(request), credential=credential)


class Live:
    """Live status in this process; `run` serves until it is cancelled."""

    def __init__(self, app: FastAPI, settings: ApiSettings, database: Database) -> None:
        self._app = app
        self._settings = settings
        self._open: Counter[str] = Counter()
        self._all_open = 0
        self._held: dict[Credential, set[Watcher]] = {}
        self.hub = Hub(
            lambda asks, most: store.steps(database, asks, most=most),
            settings,
            subscribe=partial(Feed, settings.redis_url.get_secret_value()),
        )

    @contextmanager
    def watching(self, leave: Permit, *, wake: Callable[[], None]) -> Iterator[Watcher]:
        """Give a watcher for the length of a connection; raises TooManyRequests, LiveFull."""
        settings = self._settings
        if self._all_open >= settings.live_most_sockets:
            raise LiveFull("connect again in a moment")
        if self._open[leave.bucket] >= settings.live_sockets_per_address:
            raise TooManyRequests(
                f"your address has {settings.live_sockets_per_address} live connections open;"
                " close one",
                retry_after_s=5,
            )
        watcher = Watcher(
            leave.payment_id,
            wake=wake,
            most_waiting=settings.live_queue,
            ends_at_s=leave.ends_at_s,
        )
        self._open[leave.bucket] += 1
        self._all_open += 1
        held = None if leave.credential is None else self._held.setdefault(leave.credential, set())
        if held is not None:
            held.add(watcher)
        try:
            yield watcher
        finally:
            self.hub.leave(watcher)
            self._all_open -= 1
            self._open[leave.bucket] -= 1
            if not self._open[leave.bucket]:
                del self._open[leave.bucket]
            if leave.credential is not None and held is not None:
                held.discard(watcher)
                if not held:
                    self._held.pop(leave.credential, None)

    async def run(self) -> None:
        """Serve watchers and look credentials up again, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.hub.run())
            tasks.create_task(self._recheck())

    async def _recheck(self) -> None:
        while True:
            await asyncio.sleep(self._settings.live_recheck_ms / 1000)
            for credential, watchers in list(self._held.items()):
                if not await self._counts(credential):
                    for watcher in list(watchers):
                        watcher.end(REVOKED)

    async def _counts(self, credential: Credential) -> bool:
        """Say whether a credential still reads payments; where nobody can say, it does."""
        headers = [(b"authorization", credential.authorization.encode("latin-1"))]
        if credential.mode:
            headers.append((b"giovang-mode", credential.mode.encode("latin-1")))
        asked = Request(
            {
                "type": "http",
                "method": "GET",
                "path": "/",
                "headers": headers,
                "client": (credential.address, 0),
                "app": self._app,
                "state": {},
            }
        )
        try:
            await _READS(asked)
        except DatabaseUnavailable:
            return True
        except GiovangError as refusal:
            _log.info("live credential refused", code=refusal.code)
            return False
        return True


def live_of(request: Request) -> Live:
    """Return live status of this process."""
    return cast("Live", request.app.state.live)


async def charge_opening(request: Request) -> None:
    """Spend one of the connections that a client address may open in a minute."""
    take = partial(
        limiter_of(request).take,
        per_minute=settings_of(request).live_opened_per_minute,
        policy=POLICY,
    )
    spend(request, await take(f"live:{client_bucket(request)}"))

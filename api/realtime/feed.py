"""Steps as the stream pushes them: one subscription of this process to Redis.

It listens to the channels of the payments that are watched here, and to no others. Pub/sub promises
nothing: what is missed while Redis is away, or a message lost, is for the hub to read from
PostgreSQL, so every channel that was listened to anew is reported. A connection that says nothing
for a few seconds is asked, and given up where it does not answer.
"""

import asyncio
import random
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Final

from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from api.contract import live_channel
from api.realtime.model import Step, pushed_step
from infra.telemetry import get_logger

# Nothing is published there: it keeps a connection listening while no payment is watched.
_IDLE: Final = live_channel("")
_CONNECT_TIMEOUT_S: Final = 1.0
_CONFIRM_TIMEOUT_S: Final = 1.0
_ASK_EVERY_S: Final = 3.0
_SILENT_FOR_S: Final = 8.0
_FIRST_WAIT_S: Final = 0.1
_LONGEST_WAIT_S: Final = 2.0
_MOST_AT_ONCE: Final = 1000
_log = get_logger(__name__)


class Feed:
    """The process's subscription; `run` keeps it until it is cancelled.

    `on_step` gets each step pushed. `on_missed` gets payments of which something may have been
    missed: those listened to again after the connection was lost.
    """

    def __init__(
        self,
        url: str,
        *,
        on_step: Callable[[Step], None],
        on_missed: Callable[[Iterable[str]], None],
    ) -> None:
        self._url = url
        self._on_step = on_step
        self._on_missed = on_missed
        self._wanted: set[str] = set()
        self._waiting: dict[str, asyncio.Future[None]] = {}
        self._joining: set[str] = set()
        self._leaving: set[str] = set()
        self._changed = asyncio.Event()
        self._heard_at = 0.0
        self.live = False

    async def listen(self, payment_id: str) -> None:
        """Listen to a payment; returns once Redis has confirmed it, or does not in time."""
        channel = live_channel(payment_id)
        if channel not in self._wanted:
            self._wanted.add(channel)
            self._leaving.discard(channel)
            self._joining.add(channel)
            self._waiting[channel] = asyncio.get_running_loop().create_future()
            self._changed.set()
        confirmed = self._waiting.get(channel)
        if confirmed is not None and self.live:
            # Without Redis's word the hub's polling makes up for what is not pushed.
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(confirmed), _CONFIRM_TIMEOUT_S)

    def forget(self, payment_id: str) -> None:
        """Stop listening to a payment."""
        channel = live_channel(payment_id)
        self._wanted.discard(channel)
        self._confirm(channel)
        self._joining.discard(channel)
        self._leaving.add(channel)
        self._changed.set()

    async def run(self) -> None:
        """Stay subscribed, connecting again after every loss, until cancelled."""
        wait_s = _FIRST_WAIT_S
        while True:
            redis = Redis.from_url(
                self._url,
                socket_connect_timeout=_CONNECT_TIMEOUT_S,
                retry=Retry(NoBackoff(), 0),
            )
            try:
                async with redis.pubsub() as pubsub:
                    await self._follow(pubsub)
            except (RedisError, OSError, TimeoutError) as problem:
                if self.live:
                    wait_s = _FIRST_WAIT_S
                    _log.warning("live feed lost", problem=type(problem).__name__)
            finally:
                self._lose()
                await redis.aclose()
            await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)

    async def _follow(self, pubsub: PubSub) -> None:
        """Subscribe to what is wanted and hand on what comes; raises when the connection ends."""
        async with asyncio.timeout(2 * _CONNECT_TIMEOUT_S):
            await pubsub.subscribe(_IDLE)
        self._heard_at = time.monotonic()
        # A new connection knows none of the channels.
        self._joining = set(self._wanted)
        self._leaving.clear()
        helpers = [
            asyncio.create_task(self._tell(pubsub)),
            asyncio.create_task(self._ask(pubsub)),
        ]
        reading = asyncio.create_task(self._read(pubsub))
        try:
            done, _ = await asyncio.wait([*helpers, reading], return_when="FIRST_COMPLETED")
            for task in done:
                task.result()
        finally:
            for task in (*helpers, reading):
                task.cancel()
            await asyncio.gather(*helpers, reading, return_exceptions=True)

    async def _read(self, pubsub: PubSub) -> None:
        async for message in pubsub.listen():
            self._heard_at = time.monotonic()
            if message["type"] == "message":
                self._hand_on(message)
            elif message["type"] == "subscribe":
                self._subscribed(message["channel"].decode())
        raise ConnectionError("the subscription ended")

    def _hand_on(self, message: dict[str, Any]) -> None:
        try:
            step = pushed_step(message["data"])
        except ValueError as problem:
            # Not its words: they quote the row. The hub's patrol finds what this hides.
            _log.error("a pushed step cannot be read", problem=type(problem).__name__)
            return
        self._on_step(step)

    def _subscribed(self, channel: str) -> None:
        if channel == _IDLE:
            self.live = True
            _log.info("live feed listening", channels=len(self._wanted))
        elif not self._confirm(channel) and channel in self._wanted:
            self._on_missed([channel.removeprefix(_IDLE)])

    def _confirm(self, channel: str) -> bool:
        """Let whoever waits for the channel go on; say whether anybody did."""
        waiting = self._waiting.pop(channel, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(None)
        return waiting is not None

    async def _tell(self, pubsub: PubSub) -> None:
        """Tell Redis of every channel to listen to or to leave, as many at once as there are."""
        while True:
            joining, self._joining = list(self._joining), set()
            for start in range(0, len(joining), _MOST_AT_ONCE):
                await pubsub.subscribe(*joining[start : start + _MOST_AT_ONCE])
            leaving, self._leaving = list(self._leaving), set()
            for start in range(0, len(leaving), _MOST_AT_ONCE):
                await pubsub.unsubscribe(*leaving[start : start + _MOST_AT_ONCE])
            if not self._joining and not self._leaving:
                self._changed.clear()
                await self._changed.wait()

    async def _ask(self, pubsub: PubSub) -> None:
        """Ask a connection that says nothing whether it lives."""
        while True:
            await asyncio.sleep(_ASK_EVERY_S)
            if time.monotonic() - self._heard_at > _SILENT_FOR_S:
                raise ConnectionError("Redis says nothing")
            async with asyncio.timeout(_SILENT_FOR_S):
                await pubsub.ping()

    def _lose(self) -> None:
        self.live = False
        for channel in list(self._waiting):
            self._confirm(channel)

"""The chain watcher: `python -m api.watcher` finds payers' transfers and settles payments by them.

It reads the history of the collection wallet's token accounts, line by line (`payments.lines`), and
beside it those of payments' references (`payments.references`). Subscriptions only say when to look
(`chain.hints`). It may be killed anywhere: what was booked stays, what was not comes again, and
nothing is booked twice. Several may run; one works, the others wait for its seat.

Where the network or PostgreSQL does not answer it backs off, says so, and no payment expires: only
a sweep that saw everything up to now, at every provider, may say that no money came.
"""

import asyncio
import logging
import random
import signal
import sys
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from itertools import takewhile
from typing import Final, LiteralString
from urllib.parse import urlsplit

from api.audit.sealing import Sealer
from api.chain import store as chain_store
from api.chain import watch_store
from api.chain.hints import Hints
from api.chain.interface import Chain
from api.chain.model import TokenAccount
from api.chain.providers import Providers
from api.chain.rpc import ChainReader
from api.chain.solana_pay import token_account
from api.contract import Asset
from api.database import Database, Leadership
from api.errors import ChainUnavailable, Conflict, DatabaseUnavailable
from api.payments import escrow
from api.payments import store as payments
from api.payments.lines import WATCHER, Lines
from api.payments.references import References
from api.payouts import service as payouts
from api.settings import ChainSettings, WatcherSettings
from infra.telemetry import configure_logging, get_logger, notify_alive, notify_ready

_log = get_logger(__name__)
_SEAT: Final = 4_702_112

_LINES_A_SWEEP: Final = 5_000
_SWEEP_DEADLINE_S: Final = 120.0
_EXPIRE_AT_ONCE: Final = 200
_RELEASE_AT_ONCE: Final = 100
_ALIVE_EVERY_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 10.0
# However many hints come, sweeps are at least so far apart; that bounds the calls.
_SHORTEST_PAUSE_S: Final = 0.1
_HOUSEKEEPING_S: Final = 3600.0
_TELL_STANDINGS_S: Final = 5.0

_MAKE_PARTITIONS: Final[LiteralString] = "SELECT audit_make_partitions()"
_FORGET_KEYS: Final[LiteralString] = """
    DELETE FROM idempotency_keys
    WHERE created_at < now() - make_interval(days => %(days)s)
"""


@dataclass(slots=True)
class Sweep:
    """What one look at the chain did; `complete` where it saw everything it looked at, up to now.

    `finalized_slot` is what all providers have finalized, None where one did not say.
    """

    released: int = 0
    settled: int = 0
    shown: int = 0
    expired: int = 0
    complete: bool = True
    finalized_slot: int | None = None


def token_accounts(settings: ChainSettings) -> list[TokenAccount]:
    """Return our token account of each asset."""
    wallet = settings.collection_wallet
    return [
        TokenAccount(
            address=token_account(wallet, settings.mint(asset)),
            owner=wallet,
            mint=settings.mint(asset),
            asset=asset,
        )
        for asset in Asset
    ]


def providers_of(settings: WatcherSettings) -> Providers:
    """Return the configured providers, named by their place and host."""
    sockets = settings.solana_ws_urls or (None,) * len(settings.rpc_urls)
    return Providers(
        [
            (
                f"{number} ({urlsplit(url).hostname})",
                ChainReader(url, timeout_s=settings.rpc_timeout_s, ws_url=ws_url),
            )
            for number, (url, ws_url) in enumerate(
                zip(settings.rpc_urls, sockets, strict=True), start=1
            )
        ]
    )


class Watcher:
    """Sweeps the chain; one sweep after the other, each from the cursors on."""

    def __init__(
        self,
        database: Database,
        chain: Chain | Providers,
        settings: WatcherSettings,
        progress: Callable[[str], None],
    ) -> None:
        self.providers = chain if isinstance(chain, Providers) else Providers([("1", chain)])
        self.accounts = token_accounts(settings)
        self.references = References(database, self.providers, settings, self.accounts)
        self._database = database
        self._settings = settings
        self._progress = progress
        self._lines = Lines(database, self.providers, settings, progress)
        self._looked_again_at = time.monotonic()
        self._told_at = float("-inf")
        self._told = ""

    async def sweep(self, only: Collection[str] = ()) -> Sweep:
        """Look at everything since the cursors; raises ChainUnavailable, DatabaseUnavailable.

        With `only`, at these token accounts and nothing else: that is quick.
        """
        done = Sweep()
        if not only:
            # First, so that what falls due does so also while the chain does not answer.
            await self._release_due(done)
            async with self._database.unit_of_work(WATCHER) as unit:
                done.expired += await payouts.expire_payouts(unit, _EXPIRE_AT_ONCE)
        try:
            done.finalized_slot = await self.providers.finalized_slot()
            for account in self.accounts:
                if not only or account.address in only:
                    await self._scan(account, done)
            if done.finalized_slot is None:
                done.complete = False
            elif not only:
                await self._look_again(done.finalized_slot, done)
            if done.complete and not only and done.finalized_slot is not None:
                await self._lines.take_back(done.finalized_slot)
                await self._expire(done)
        finally:
            await self._tell_standings()
        return done

    async def _scan(self, account: TokenAccount, done: Sweep) -> None:
        async with self._database.unit_of_work(WATCHER) as unit:
            cursor = await chain_store.cursor(unit, account.address)
        backlog = await self.providers.backlog(
            account.address, cursor, page_limit=self._settings.page_limit, keep=_LINES_A_SWEEP
        )
        done.complete = done.complete and backlog.complete
        finalized_slot = -1 if done.finalized_slot is None else done.finalized_slot
        final = list(
            takewhile(lambda line: line.finalized or line.slot <= finalized_slot, backlog.lines)
        )
        settled, is_through = await self._lines.settle(account, self._lines.new(account, final))
        done.settled += settled
        if not is_through:
            done.complete = False
            return
        done.shown += await self._lines.show(account, backlog.lines[len(final) :])

    async def _look_again(self, finalized_slot: int, done: Sweep) -> None:
        """Read again what was set aside, and now and then what may have been passed over."""
        done.settled += await self._lines.retry_aside(
            {account.address: account for account in self.accounts}
        )
        if time.monotonic() - self._looked_again_at >= self._settings.second_look_s:
            for account in self.accounts:
                await self._lines.second_look(account, finalized_slot)
            self._looked_again_at = time.monotonic()

    async def _tell_standings(self) -> None:
        """Write down how the providers do: every few seconds, and at once where one changes."""
        standings = self.providers.standings
        states = " ".join(standing.state for standing in standings)
        if states == self._told and time.monotonic() - self._told_at < _TELL_STANDINGS_S:
            return
        async with self._database.unit_of_work(WATCHER) as unit:
            await watch_store.tell_standings(unit, standings)
        if self._told not in {"", states}:
            _log.warning(
                "providers changed",
                **{f"provider_{standing.number}": standing.state for standing in standings},
            )
        self._told, self._told_at = states, time.monotonic()

    async def _release_due(self, done: Sweep) -> None:
        """Release escrow payments whose day has come, each in a unit of work of its own.

        As many as fit in a sweep; the rest follows in the next. One that a dispute stopped in the
        meantime is left alone.
        """
        async with self._database.unit_of_work(WATCHER) as unit:
            due = await payments.due_for_release(unit, limit=_RELEASE_AT_ONCE)
        for payment_id in due:
            try:
                async with self._database.unit_of_work(WATCHER) as unit:
                    await escrow.release(unit, payment_id, released_by=escrow.TIMER)
            except Conflict as refusal:
                _log.info("escrow not released", payment_id=payment_id, reason=refusal.detail)
                continue
            done.released += 1
            self._progress("releasing")

    async def _expire(self, done: Sweep) -> None:
        while True:
            async with self._database.unit_of_work(WATCHER) as unit:
                expired = await payments.expire(
                    unit, grace_s=self._settings.expiry_grace_s, limit=_EXPIRE_AT_ONCE
                )
            done.expired += expired
            self._progress("expiring")
            if expired < _EXPIRE_AT_ONCE:
                return

    async def keep_house(self) -> None:
        """Make the audit's next partitions and forget answers to old idempotency keys."""
        async with self._database.unit_of_work(WATCHER) as unit:
            await unit.value(_MAKE_PARTITIONS, {})
            await unit.run(_FORGET_KEYS, {"days": self._settings.idempotency_days})


class _Voice:
    """Tells the supervisor that work goes on, at most once a second."""

    def __init__(self) -> None:
        self._spoken_at = 0.0

    def __call__(self, status: str) -> None:
        if time.monotonic() - self._spoken_at >= _ALIVE_EVERY_S:
            self._spoken_at = time.monotonic()
            notify_alive(status)


async def run(settings: WatcherSettings) -> None:
    """Wait for the seat, then watch until cancelled."""
    url = settings.watcher_database_url.get_secret_value()
    leadership = Leadership(url, seat=_SEAT, application_name="giovang-watcher-seat")
    providers = providers_of(settings)
    try:
        async with Database(url, application_name="giovang-watcher", pool_size=4) as database:
            notify_ready("waiting for the seat")
            await _wait_for_seat(leadership)
            watcher = Watcher(database, providers, settings, _Voice())
            hints = Hints()
            async with asyncio.TaskGroup() as beside:
                addresses = [account.address for account in watcher.accounts]
                for number, chain in enumerate(providers.chains, start=1):
                    beside.create_task(hints.listen(number, chain, addresses))
                beside.create_task(watcher.references.run())
                await _sweep_forever(watcher, hints, Sealer(database), leadership, settings)
    finally:
        await leadership.leave()
        await providers.close()


async def _wait_for_seat(leadership: Leadership) -> None:
    while True:
        try:
            if await leadership.take():
                return
            notify_alive("standing by: another watcher works")
        except DatabaseUnavailable:
            notify_alive("standing by: the database does not answer")
        await asyncio.sleep(_ALIVE_EVERY_S)


async def _sweep_forever(
    watcher: Watcher,
    hints: Hints,
    sealer: Sealer,
    leadership: Leadership,
    settings: WatcherSettings,
) -> None:
    often_s, seldom_s = settings.poll_interval_ms / 1000, settings.quiet_poll_interval_ms / 1000
    failures = 0
    house_kept_at = whole_at = float("-inf")
    done = Sweep(complete=False)
    while True:
        if not await leadership.held():
            raise SystemExit("the seat was lost with its connection")
        try:
            async with asyncio.timeout(_SWEEP_DEADLINE_S):
                # First, so that the trail is sealed also while the chain does not answer.
                await sealer.seal_when_due()
                heard = hints.take()
                if not done.complete or time.monotonic() - whole_at >= seldom_s:
                    heard = set()
                now = await watcher.sweep(heard)
                if not heard:
                    whole_at = time.monotonic()
                done = now
                if time.monotonic() - house_kept_at > _HOUSEKEEPING_S:
                    await watcher.keep_house()
                    house_kept_at = time.monotonic()
        except (ChainUnavailable, DatabaseUnavailable, TimeoutError) as problem:
            failures += 1
            reason = str(problem) or "the sweep took too long"
            _log.warning("sweep failed", reason=reason, failures=failures)
            done = Sweep(complete=False)
            await _pause(
                min(often_s * 2**failures, _LONGEST_PAUSE_S) * random.uniform(0.5, 1.0),
                f"backing off after {failures} failed sweeps: {reason}",
            )
            continue
        failures = 0
        _log_work(now)
        # A node that told of something final may not be the one that was asked.
        behind = (now.finalized_slot or 0) < hints.final_slot
        trusting = hints.is_healthy and done.complete and not behind
        await _pause(seldom_s if trusting else often_s, _status(watcher, done), hints)


def _log_work(done: Sweep) -> None:
    if done.settled or done.expired or done.released:
        _log.info(
            "sweep",
            settled=done.settled,
            shown=done.shown,
            expired=done.expired,
            released=done.released,
        )


def _status(watcher: Watcher, done: Sweep) -> str:
    doing = "watching" if done.complete else "catching up"
    trouble = watcher.providers.trouble()
    return f"{doing}; {trouble}" if trouble else doing


async def _pause(seconds: float, status: str, hints: Hints | None = None) -> None:
    """Wait, at least a moment; a hint ends it."""
    end = time.monotonic() + seconds
    notify_alive(status)
    await asyncio.sleep(min(seconds, _SHORTEST_PAUSE_S))
    while (left := end - time.monotonic()) > 0 and not (hints and hints.has_news):
        step_s = min(left, _ALIVE_EVERY_S)
        await (asyncio.sleep(step_s) if hints is None else hints.wait(step_s))
        notify_alive(status)


async def _main(settings: WatcherSettings) -> None:
    work = asyncio.create_task(run(settings))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, work.cancel)
    try:
        await work
    except asyncio.CancelledError:
        _log.info("stopped")


def main() -> None:
    """Watch until SIGTERM."""
    configure_logging("watcher")
    for client in ("httpx", "httpx2"):  # one line a request otherwise
        logging.getLogger(client).setLevel(logging.WARNING)
    asyncio.run(_main(WatcherSettings()))
    sys.exit(0)


if __name__ == "__main__":
    main()

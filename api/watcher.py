"""The chain watcher: `python -m api.watcher` finds payers' transfers and settles payments by them.

It reads the history of the collection wallet's token accounts, line by line. A line at confirmed is
shown on its payment; a line at finalized is read again and booked, and the cursor moves in the same
database transaction. So it may be killed anywhere: what was booked stays, what was not comes again,
and nothing is booked twice. Several may run; one works, the others wait for its seat.

Where the network or PostgreSQL does not answer it backs off, says so, and no payment expires: only
a sweep that saw everything up to now may say that no money came.
"""

import asyncio
import logging
import random
import signal
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Final, LiteralString

import psycopg

from api.audit import service as audit
from api.audit.sealing import Sealer
from api.chain import store as chain_store
from api.chain.backlog import read_backlog
from api.chain.model import (
    Commitment,
    Cursor,
    Receipt,
    SignatureInfo,
    TokenAccount,
    UnreadableTransaction,
)
from api.chain.receipts import receipt_of
from api.chain.rpc import ChainReader
from api.chain.solana_pay import token_account
from api.contract import Asset
from api.database import Database, Identity, Leadership
from api.errors import ChainUnavailable, Conflict, DatabaseUnavailable, GiovangError
from api.payments import escrow, settlement
from api.payments import store as payments
from api.payouts import service as payouts
from api.settings import ChainSettings, WatcherSettings
from infra.telemetry import configure_logging, get_logger, notify_alive, notify_ready

_log = get_logger(__name__)
_WATCHER: Final = Identity("watcher")
_SEAT: Final = 4_702_112

_LINES_A_SWEEP: Final = 5_000
_SWEEP_DEADLINE_S: Final = 120.0
_EXPIRE_AT_ONCE: Final = 200
_RELEASE_AT_ONCE: Final = 100
_REMEMBERED_LINES: Final = 20_000
_ATTEMPTS_TO_READ: Final = 10
_ALIVE_EVERY_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 10.0
_HOUSEKEEPING_S: Final = 3600.0

_MAKE_PARTITIONS: Final[LiteralString] = "SELECT audit_make_partitions()"
_FORGET_KEYS: Final[LiteralString] = """
    DELETE FROM idempotency_keys
    WHERE created_at < now() - make_interval(days => %(days)s)
"""


@dataclass(slots=True)
class Sweep:
    """What one look at the chain did; `complete` where it saw everything up to now."""

    released: int = 0
    settled: int = 0
    shown: int = 0
    expired: int = 0
    complete: bool = True


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


class Watcher:
    """Sweeps the chain; one sweep after the other, each from the cursors on."""

    def __init__(
        self,
        database: Database,
        chain: ChainReader,
        settings: WatcherSettings,
        progress: Callable[[str], None],
    ) -> None:
        self._database = database
        self._chain = chain
        self._settings = settings
        self._progress = progress
        self._accounts = token_accounts(settings)
        # Lines already shown at confirmed. It only saves asking again; losing it is harmless.
        self._shown: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._attempts: dict[str, int] = {}

    async def sweep(self) -> Sweep:
        """Look at everything since the cursors; raises ChainUnavailable, DatabaseUnavailable."""
        done = Sweep()
        # First, so that what falls due does so also while the chain does not answer.
        await self._release_due(done)
        async with self._database.unit_of_work(_WATCHER) as unit:
            done.expired += await payouts.expire_payouts(unit, _EXPIRE_AT_ONCE)
        finalized_slot = await self._chain.finalized_slot()
        for account in self._accounts:
            await self._scan(account, finalized_slot, done)
        if done.complete:
            await self._take_back(finalized_slot)
            await self._expire(done)
        return done

    async def _scan(self, account: TokenAccount, finalized_slot: int, done: Sweep) -> None:
        async with self._database.unit_of_work(_WATCHER) as unit:
            cursor = await chain_store.cursor(unit, account.address)
        backlog = await read_backlog(
            self._chain,
            account.address,
            cursor,
            page_limit=self._settings.page_limit,
            keep=_LINES_A_SWEEP,
        )
        done.complete = done.complete and backlog.complete
        final = list(
            takewhile(lambda line: line.finalized or line.slot <= finalized_slot, backlog.lines)
        )
        for chunk in self._chunks(final):
            if not await self._settle(account, chunk, done):
                done.complete = False
                return
        for chunk in self._chunks(backlog.lines[len(final) :]):
            await self._show(account, chunk, done)

    def _chunks(self, lines: Sequence[SignatureInfo]) -> list[Sequence[SignatureInfo]]:
        size = self._settings.rpc_concurrency
        return [lines[first : first + size] for first in range(0, len(lines), size)]

    async def _settle(
        self, account: TokenAccount, lines: Sequence[SignatureInfo], done: Sweep
    ) -> bool:
        """Book finalized lines in order, the cursor with each; False where one must wait."""
        answers = await asyncio.gather(
            *(self._read(account, line, Commitment.FINALIZED) for line in lines),
        )
        for line, answer in zip(lines, answers, strict=True):
            if isinstance(answer, UnreadableTransaction) and not self._give_up(line, answer):
                return False
            if isinstance(answer, _NotYet):
                # Listed, but the node that was asked does not have it: it lags, and so do we.
                return False
            cursor = Cursor(line.signature, line.slot)
            try:
                await self._deal_with(account, answer, cursor)
            except (DatabaseUnavailable, ChainUnavailable):
                raise
            except (GiovangError, psycopg.IntegrityError) as refusal:
                if not isinstance(answer, Receipt) or not self._give_up(line, refusal):
                    return False
                async with self._database.unit_of_work(_WATCHER) as unit:
                    await settlement.set_aside(unit, answer, reason=type(refusal).__name__)
                    await chain_store.move_cursor(unit, account.address, cursor)
            done.settled += isinstance(answer, Receipt)
            self._attempts.pop(line.signature, None)
            self._shown.pop((line.signature, account.address), None)
            self._progress("settling")
        return True

    async def _deal_with(
        self, account: TokenAccount, answer: Receipt | UnreadableTransaction | None, cursor: Cursor
    ) -> None:
        """Book what a finalized line brought, if anything, and move the cursor past it."""
        async with self._database.unit_of_work(_WATCHER) as unit:
            if isinstance(answer, Receipt):
                await settlement.settle(unit, answer, grace_s=self._settings.expiry_grace_s)
            elif answer is not None:
                await audit.record(
                    unit,
                    action="transfer.set_aside",
                    subject_type="transfer",
                    subject_id=cursor.signature,
                    after={"token_account": account.address, "reason": str(answer)},
                )
            await chain_store.move_cursor(unit, account.address, cursor)

    async def _show(
        self, account: TokenAccount, lines: Sequence[SignatureInfo], done: Sweep
    ) -> None:
        """Show confirmed lines on their payments; the cursor stays until they are final."""
        new = [line for line in lines if (line.signature, account.address) not in self._shown]
        answers = await asyncio.gather(
            *(self._read(account, line, Commitment.CONFIRMED) for line in new),
        )
        for line, answer in zip(new, answers, strict=True):
            if isinstance(answer, Receipt):
                async with self._database.unit_of_work(_WATCHER) as unit:
                    grace_s = self._settings.expiry_grace_s
                    await settlement.see(unit, answer, grace_s=grace_s)
                done.shown += 1
            if answer is not _NOT_YET:
                self._shown[line.signature, account.address] = None
                if len(self._shown) > _REMEMBERED_LINES:
                    self._shown.popitem(last=False)
            self._progress("showing")

    async def _read(
        self, account: TokenAccount, line: SignatureInfo, commitment: Commitment
    ) -> "Receipt | UnreadableTransaction | _NotYet | None":
        """Read one line: a receipt, None where nothing came, or why it could not be read."""
        if line.failed:
            return None
        try:
            answer = await self._chain.transaction(line.signature, commitment)
            return _NOT_YET if answer is None else receipt_of(answer, account)
        except UnreadableTransaction as problem:
            return problem

    def _give_up(self, line: SignatureInfo, problem: Exception) -> bool:
        """Say whether a line was tried often enough to set it aside for a person.

        Otherwise anyone could stop every payment with one chain transaction that cannot be read,
        and one payment whose books were put right by hand could stop all others.
        """
        attempts = self._attempts.get(line.signature, 0) + 1
        self._attempts[line.signature] = attempts
        _log.error(
            "chain transaction cannot be dealt with",
            signature=line.signature,
            attempt=attempts,
            problem=type(problem).__name__,
            reason=str(problem) if isinstance(problem, UnreadableTransaction) else None,
        )
        return attempts >= _ATTEMPTS_TO_READ

    async def _take_back(self, finalized_slot: int) -> None:
        """Take back receipts that the chain finalized past without keeping them."""
        async with self._database.unit_of_work(_WATCHER) as unit:
            unsettled = await chain_store.unsettled(unit, finalized_slot=finalized_slot)
        if not unsettled:
            return
        known = await self._chain.still_known([transfer.signature for transfer in unsettled])
        for transfer in unsettled:
            if transfer.signature in known:
                continue
            async with self._database.unit_of_work(_WATCHER) as unit:
                await settlement.vanish(unit, transfer)
            self._shown.pop((transfer.signature, transfer.token_account), None)
            _log.warning("confirmed transfer vanished", signature=transfer.signature)

    async def _release_due(self, done: Sweep) -> None:
        """Release escrow payments whose day has come, each in a unit of work of its own.

        As many as fit in a sweep; the rest follows in the next. One that a dispute stopped in the
        meantime is left alone.
        """
        async with self._database.unit_of_work(_WATCHER) as unit:
            due = await payments.due_for_release(unit, limit=_RELEASE_AT_ONCE)
        for payment_id in due:
            try:
                async with self._database.unit_of_work(_WATCHER) as unit:
                    await escrow.release(unit, payment_id, released_by=escrow.TIMER)
            except Conflict as refusal:
                _log.info("escrow not released", payment_id=payment_id, reason=refusal.detail)
                continue
            done.released += 1
            self._progress("releasing")

    async def _expire(self, done: Sweep) -> None:
        while True:
            async with self._database.unit_of_work(_WATCHER) as unit:
                expired = await payments.expire(
                    unit, grace_s=self._settings.expiry_grace_s, limit=_EXPIRE_AT_ONCE
                )
            done.expired += expired
            self._progress("expiring")
            if expired < _EXPIRE_AT_ONCE:
                return

    async def keep_house(self) -> None:
        """Make the audit's next partitions and forget answers to old idempotency keys."""
        async with self._database.unit_of_work(_WATCHER) as unit:
            await unit.value(_MAKE_PARTITIONS, {})
            await unit.run(_FORGET_KEYS, {"days": self._settings.idempotency_days})


class _NotYet:
    """The node lists a line and does not have its chain transaction at that commitment yet."""


_NOT_YET: Final = _NotYet()


class _Voice:
    """Tells the supervisor that work goes on, at most once a second."""

    def __init__(self) -> None:
        self._spoken_at = 0.0

    def __call__(self, status: str) -> None:
        if time.monotonic() - self._spoken_at >= _ALIVE_EVERY_S:
            self._spoken_at = time.monotonic()
            notify_alive(status)


async def run(settings: WatcherSettings) -> None:
    """Wait for the seat, then sweep until cancelled."""
    url = settings.watcher_database_url.get_secret_value()
    leadership = Leadership(url, seat=_SEAT, application_name="giovang-watcher-seat")
    chain = ChainReader(settings.solana_rpc_url, timeout_s=settings.rpc_timeout_s)
    try:
        async with Database(url, application_name="giovang-watcher", pool_size=2) as database:
            notify_ready("waiting for the seat")
            await _wait_for_seat(leadership)
            watcher = Watcher(database, chain, settings, _Voice())
            sealer = Sealer(database)
            await _sweep_forever(watcher, sealer, leadership, settings.poll_interval_ms / 1000)
    finally:
        await leadership.leave()
        await chain.close()


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
    watcher: Watcher, sealer: Sealer, leadership: Leadership, interval_s: float
) -> None:
    failures = 0
    house_kept_at = float("-inf")
    while True:
        if not await leadership.held():
            raise SystemExit("the seat was lost with its connection")
        try:
            async with asyncio.timeout(_SWEEP_DEADLINE_S):
                # First, so that the trail is sealed also while the chain does not answer.
                await sealer.seal_when_due()
                done = await watcher.sweep()
                if time.monotonic() - house_kept_at > _HOUSEKEEPING_S:
                    await watcher.keep_house()
                    house_kept_at = time.monotonic()
        except (ChainUnavailable, DatabaseUnavailable, TimeoutError) as problem:
            failures += 1
            reason = str(problem) or "the sweep took too long"
            _log.warning("sweep failed", reason=reason, failures=failures)
            await _pause(
                min(interval_s * 2**failures, _LONGEST_PAUSE_S) * random.uniform(0.5, 1.0),
                f"backing off after {failures} failed sweeps: {reason}",
            )
            continue
        failures = 0
        if done.settled or done.expired or done.released:
            _log.info(
                "sweep",
                settled=done.settled,
                shown=done.shown,
                expired=done.expired,
                released=done.released,
            )
        await _pause(interval_s, "watching" if done.complete else "catching up")


async def _pause(seconds: float, status: str) -> None:
    end = time.monotonic() + seconds
    notify_alive(status)
    while (left := end - time.monotonic()) > 0:
        await asyncio.sleep(min(left, _ALIVE_EVERY_S))
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

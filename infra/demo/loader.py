"""Loads the invented history into the ledger database, batch by batch.

Each batch is one database transaction that also records the batch as loaded; so a loader that is
killed leaves whole batches only, and the next one goes on behind them with the period that the
first one wrote down. Merchants must exist. A ledger that already holds another history, or another
loader at work, raises HistoryRefusedError; a database that goes away raises psycopg.Error.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import psycopg
from psycopg import Connection, Cursor
from psycopg.rows import TupleRow

from infra.demo import ledger_sql
from infra.demo.entries import Entry, Hold, entries_of, holds_of
from infra.demo.history import Batch, PaymentStep, PayoutStep, Period, RefundStep, batches
from infra.demo.ids import person_id, signature
from infra.demo.settings import DemoError

CONNECT_TIMEOUT_S = 10
BATCH_TIMEOUT_MS = 120_000
LOCK_TIMEOUT_S = 30.0
MAX_BATCH_PAYMENTS = 500
_PAUSE_SLICE_S = 1.0
# Payouts take two people, in the past too.
_ASKS = "manager"
_APPROVES = "owner"


class HistoryRefusedError(DemoError):
    """The ledger cannot take this history as it stands."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the load is: batches done of all, rows written by this run, the day reached."""

    done: int
    total: int
    rows: int
    day: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a load did; `already` when the whole history was there before."""

    period: Period
    rows: int
    batches: int
    already: bool


class Ledger:
    """The ledger database as the history loader sees it."""

    def __init__(self, url: str) -> None:
        self._connection: Connection[TupleRow] = psycopg.connect(
            url,
            autocommit=True,
            connect_timeout=CONNECT_TIMEOUT_S,
            application_name="giovang demo history",
            options=f"-c statement_timeout={BATCH_TIMEOUT_MS} -c timezone=UTC",
        )

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def prepare(self, wanted: Period) -> Period:
        """Take the loader's lock and return the period to load: the stored one, else `wanted`."""
        self._lock()
        self._connection.execute(ledger_sql.PREPARE)
        self._connection.execute(
            ledger_sql.BEGIN_HISTORY,
            (wanted.seed, wanted.until, wanted.days, wanted.payments_per_day),
        )
        stored = self.stored_period()
        if stored is None:
            raise HistoryRefusedError("the history's own record vanished while it was read")
        return stored

    def stored_period(self) -> Period | None:
        """Return the period of the history that was begun here, if one was."""
        row = self._history_row()
        return None if row is None else Period(row[0], row[1], row[2], row[3])

    def finished(self) -> bool:
        """Say whether a whole history is in this ledger."""
        row = self._history_row()
        return row is not None and row[4] is not None

    def load(
        self,
        period: Period,
        *,
        pace_rows_per_s: int,
        report: Callable[[Progress], None],
        max_payments: int = MAX_BATCH_PAYMENTS,
    ) -> Outcome:
        """Load what is missing of `period`; `pace_rows_per_s` 0 means as fast as it goes."""
        if self.finished():
            return Outcome(period, rows=0, batches=0, already=True)
        invented = list(batches(period, max_payments=max_payments))
        self._require_merchants({batch.merchant_id for batch in invented})
        loaded = set(self._connection.execute(ledger_sql.READ_BATCHES).fetchall())
        missing = [b for b in invented if (b.slug, b.first_day, b.part) not in loaded]
        self._connection.execute(ledger_sql.SIGN)
        if missing:
            self._connection.execute(ledger_sql.STAGE)
        pacer = _Pacer(pace_rows_per_s)
        rows = 0
        for number, batch in enumerate(missing, start=len(invented) - len(missing) + 1):
            written = self._load_batch(period.seed, batch)
            rows += written
            progress = Progress(number, len(invented), rows, batch.first_day.isoformat())
            report(progress)
            pacer.wait(written, partial(report, progress))
        self._connection.execute(ledger_sql.FINISH_HISTORY)
        return Outcome(period, rows, len(missing), already=False)

    def _load_batch(self, seed: int, batch: Batch) -> int:
        """Write one batch in one database transaction; returns the rows of captured tables."""
        booked = [entry for step in batch.steps for entry in entries_of(seed, step)]
        held = [hold for step in batch.steps for hold in holds_of(seed, step)]
        with self._connection.transaction(), self._connection.cursor() as cursor:
            _copy(cursor, ledger_sql.COPY_PAYMENTS, _payment_rows(batch))
            _copy(cursor, ledger_sql.COPY_REFUNDS, _refund_rows(seed, batch))
            _copy(cursor, ledger_sql.COPY_PAYOUTS, _payout_rows(seed, batch))
            _copy(cursor, ledger_sql.COPY_STEPS, _step_rows(seed, batch))
            _copy(cursor, ledger_sql.COPY_ENTRIES, map(_entry_row, booked))
            _copy(cursor, ledger_sql.COPY_POSTINGS, _posting_rows(booked))
            _copy(cursor, ledger_sql.COPY_HOLDS, map(_hold_row, held))
            cursor.execute(ledger_sql.WALK_STEPS)
            if booked:
                cursor.execute(ledger_sql.NAME_ACCOUNTS)
                cursor.execute(ledger_sql.OPEN_ACCOUNTS)
                cursor.execute(ledger_sql.LOCK_ACCOUNTS)
                cursor.execute(ledger_sql.BOOK_ENTRIES)
                cursor.execute(ledger_sql.BOOK_POSTINGS, (False,))
            if held:
                cursor.execute(ledger_sql.PLACE_HOLDS)
            if any(entry.posts_hold for entry in booked):
                cursor.execute(ledger_sql.POST_HOLDS)
                cursor.execute(ledger_sql.BOOK_POSTINGS, (True,))
            cursor.execute(ledger_sql.MARK_BATCH, (batch.slug, batch.first_day, batch.part))
        return len(batch.steps) + len(booked) + sum(len(entry.legs) for entry in booked)

    def _lock(self) -> None:
        deadline = time.monotonic() + LOCK_TIMEOUT_S
        # The backend of a loader that was killed a moment ago may still be ending.
        while self._connection.execute(ledger_sql.LOCK).fetchone() != (True,):
            if time.monotonic() > deadline:
                raise HistoryRefusedError("another history load is at work in this ledger")
            time.sleep(0.2)

    def _history_row(self) -> tuple[Any, ...] | None:
        exists = self._connection.execute("SELECT to_regclass('demo.history')").fetchone()
        if exists is None or exists[0] is None:
            return None
        return self._connection.execute(ledger_sql.READ_HISTORY).fetchone()

    def _require_merchants(self, wanted: set[str]) -> None:
        found = self._connection.execute(ledger_sql.KNOWN_MERCHANTS, (sorted(wanted),)).fetchall()
        if len(found) != len(wanted):
            raise HistoryRefusedError("the demo merchants are not registered in this ledger")


class _Pacer:
    """Holds the load to so many rows a second on average, and keeps reporting while it waits."""

    def __init__(self, rows_per_s: int) -> None:
        self._rows_per_s = rows_per_s
        self._due = time.monotonic()

    def wait(self, rows: int, alive: Callable[[], None]) -> None:
        if not self._rows_per_s:
            return
        now = time.monotonic()
        # Time lost to a slow batch is not made up for by a burst.
        self._due = max(self._due + rows / self._rows_per_s, now)
        while (left := self._due - time.monotonic()) > 0:
            time.sleep(min(left, _PAUSE_SLICE_S))
            alive()


def _copy(cursor: Cursor[TupleRow], statement: str, rows: Iterable[tuple[Any, ...]]) -> None:
    with cursor.copy(statement) as copy:
        for row in rows:
            copy.write_row(row)


def _payment_rows(batch: Batch) -> Iterable[tuple[Any, ...]]:
    for step in batch.steps:
        if isinstance(step, PaymentStep) and step.state.status == "created":
            p = step.payment
            yield (
                *(p.id, p.merchant_id, "test", "created", p.amount_vnd, "VND", p.asset),
                *(p.asset_amount_minor, p.rate, p.rate, "demo", "solana", p.recipient, p.mint),
                *(p.reference, p.payer_country, p.description, p.order_id),
                *('{"channel": "demo"}', p.created_at, p.expires_at, p.created_at, p.created_at),
            )


def _refund_rows(seed: int, batch: Batch) -> Iterable[tuple[Any, ...]]:
    for step in batch.steps:
        if isinstance(step, RefundStep) and step.status == "requested":
            refund, payment, at = step.refund, step.refund.payment, step.at
            yield (
                *(refund.id, payment.merchant_id, payment.id, "requested"),
                *(refund.amount_vnd, "VND", refund.reason, "payment", payment.asset),
                *(refund.token_amount_minor, payment.payer_address),
                *(person_id(seed, payment.merchant_id, _ASKS), at, at, at),
            )


def _payout_rows(seed: int, batch: Batch) -> Iterable[tuple[Any, ...]]:
    for step in batch.steps:
        if isinstance(step, PayoutStep) and step.status == "requested":
            yield (
                *(step.id, step.merchant_id, "test", "requested", step.amount_vnd, "VND"),
                *(step.destination, 1, person_id(seed, step.merchant_id, _ASKS)),
                *(step.at, step.at, step.at),
            )


def _step_rows(seed: int, batch: Batch) -> Iterable[tuple[Any, ...]]:
    for number, step in enumerate(batch.steps, start=1):
        if isinstance(step, PaymentStep):
            state, payment = step.state, step.payment
            paid, completed = state.received_minor > 0, state.status == "completed"
            yield (
                *(number, "payment", payment.id, state.status, state.status == "created", step.at),
                *(state.exception, state.received_minor, payment.payer_address if paid else None),
                payment.fee_vnd if completed else 0,
                payment.amount_vnd if completed else 0,
                *(None, None),
            )
        else:
            approved_by, reference = None, None
            if isinstance(step, RefundStep):
                kind, own_id = "refund", step.refund.id
                if step.status == "completed":
                    reference = signature(seed, own_id)
            else:
                kind, own_id = "payout", step.id
                if step.status == "approved":
                    approved_by = person_id(seed, step.merchant_id, _APPROVES)
                if step.status == "sent":
                    reference = f"FT{step.at:%y%j}{own_id[-10:].upper()}"
            first = step.status == "requested"
            yield (
                *(number, kind, own_id, step.status, first, step.at, None, None, None, None, None),
                *(approved_by, reference),
            )


def _hold_row(hold: Hold) -> tuple[Any, ...]:
    return (
        *(hold.id, hold.merchant_id, hold.amount_minor, hold.idempotency_key),
        *(hold.refund_id, hold.payout_id, hold.created_at, hold.expires_at),
    )


def _entry_row(entry: Entry) -> tuple[Any, ...]:
    return (
        *(entry.id, entry.merchant_id, entry.kind, entry.payment_id),
        *(entry.payout_id, entry.refund_id),
        *(entry.idempotency_key, "demo history", entry.created_at, entry.posts_hold),
    )


def _posting_rows(booked: Iterable[Entry]) -> Iterable[tuple[Any, ...]]:
    for entry in booked:
        for seq, leg in enumerate(entry.legs, start=1):
            yield (
                *(entry.id, seq, leg.merchant_id, leg.kind, leg.asset, leg.amount_minor),
                entry.created_at,
            )

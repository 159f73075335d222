"""Rows of the warehouse, mapped from captured change events.

Pure: the same event always gives the same row, and amounts stay exact: decimals of a payment, as
the mission has them, integers of minor units elsewhere. An event that does not fit raises
PoisonEventError with the reason.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any, Final

from api.contract import DECIMALS, VND, PaymentStatus
from ingest.contract import (
    HEADER_COMMITTED_AT,
    HEADER_EVENT_ID,
    SUBJECT_ROOT,
    ChangeEvent,
    EventId,
    Operation,
)
from ingest.contract import Table as Source
from streams.contract import Table

CENT: Final = Decimal("0.01")

_BY_NOUN: Final[Mapping[str, Table]] = {
    "payment": Table.PAYMENT_ANALYTICS,
    "refund": Table.REFUNDS,
    "entry": Table.LEDGER_ENTRIES,
    "posting": Table.LEDGER_POSTINGS,
    "payout": Table.PAYOUTS,
    "merchant": Table.MERCHANTS,
}
_UPDATED: Final = "updated"
_DELETED: Final = "deleted"
# From here on a payment has its money, which may be less than was asked for.
_SETTLED: Final = frozenset(
    {"completed", "escrow_held", "awaiting_release", "disputed", "resolved"}
)
# A refund of anything else is of tokens that never were the merchant's: nobody's volume shrinks.
_OF_THE_PAYMENT: Final = "payment"
_INTEGER: Final = re.compile(r"-?[0-9]{1,30}")


class PoisonEventError(ValueError):
    """The event cannot become a row; the sentence says why."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row on its way: the table and its values, in the column order of `streams.targets`.

    One that is `told_again` by a backfill says how things stand, and counts where that is news.
    """

    table: Table
    values: tuple[Any, ...]
    told_again: bool = False


@dataclass(frozen=True, slots=True)
class Watermark:
    """How far the ledger was read: the place and commit time of an event."""

    committed_through: str
    position: int
    ordinal: int
    stream_sequence: int


def table_for(subject: str) -> Table | None:
    """Return the table an event on `subject` goes to, None when to none.

    Asked before anything is parsed. A change of state is a row, and one of anything else is none,
    but for what has no states, or has terms beside them.
    """
    root, _, rest = subject.partition(".")
    noun, _, word = rest.partition(".")
    table = _BY_NOUN.get(noun) if root == SUBJECT_ROOT else None
    if table is None or table is Table.MERCHANTS:
        return table
    if word == _DELETED:
        return Table.DELETIONS
    if word == _UPDATED and table is not Table.PAYOUTS:
        return None
    return table


def row_for(table: Table, subject: str, payload: bytes | None) -> Row | None:
    """Map the event published on `subject` to its row, None when only its content says it has none.

    PoisonEventError when it does not fit.
    """
    try:
        event = ChangeEvent.from_bytes(payload or b"")
        _same_subject(event, subject)
        values = _VALUES[table](event)
        told_again = event.operation is Operation.SNAPSHOT
        return None if values is None else Row(table, values, told_again)
    except PoisonEventError:
        raise
    except KeyError as error:
        raise PoisonEventError(f"unknown or missing {error}") from error
    except (ValueError, TypeError) as error:
        raise PoisonEventError(str(error)) from error


def watermark_for(headers: Mapping[str, bytes], sequence: int) -> Watermark | None:
    """Read an event's place from its headers, without parsing it; None when they do not tell."""
    try:
        place = EventId.parse(headers[HEADER_EVENT_ID].decode())
        committed_at = headers[HEADER_COMMITTED_AT].decode()
        datetime.fromisoformat(committed_at)
    except (KeyError, ValueError):
        return None
    return Watermark(committed_at, place.position, place.ordinal, sequence)


def dollars(asset_amount: Decimal) -> Decimal:
    """Value a stablecoin amount in US dollars: one to one, rounded half even to cents."""
    return asset_amount.quantize(CENT, ROUND_HALF_EVEN)


def amount(minor: object, asset: str) -> Decimal:
    """Turn an integer of minor units, written as text, into an exact amount of `asset`."""
    return Decimal(minor_units(minor)).scaleb(-DECIMALS[asset])


def minor_units(minor: object) -> int:
    """Read an integer of minor units, written as text."""
    if not isinstance(minor, str) or _INTEGER.fullmatch(minor) is None:
        raise PoisonEventError(f"not an integer of minor units: {minor!r}")
    return int(minor)


def _same_subject(event: ChangeEvent, subject: str) -> None:
    if event.subject != subject:
        raise PoisonEventError(f"published on {subject}, but says {event.subject}")


def _payment(event: ChangeEvent) -> tuple[Any, ...]:
    row = event.row
    status = _status(event, row)
    if row["currency"] != VND:
        raise PoisonEventError(f"priced in {row['currency']!r}, not in {VND}")
    asset_amount = amount(row["asset_amount_minor"], row["asset"])
    return (
        _moment(row["status_at"]),
        _text(row["merchant_id"]),
        _settled(row, status),
        dollars(asset_amount),
        row["asset"],
        _text(row["chain"]),
        row["payer_country"],
        status,
        event.id,
        _text(row["id"]),
        row["exception"],
        asset_amount,
        amount(row["fee_minor"], VND),
        row["payer_address"],
        event.position,
        event.ordinal,
        event.committed_at,
    )


def _settled(row: dict[str, Any], status: str) -> Decimal:
    """Return the dong that were settled, or asked for while nothing is.

    Events from before a payment could be settled in part do not tell, and were settled in full.
    """
    settled = amount(row.get("settled_minor") or "0", VND)
    if status == PaymentStatus.RESOLVED:
        # Of a dispute the payer won, nothing is the merchant's.
        return settled
    return settled if settled and status in _SETTLED else amount(row["amount_minor"], VND)


def _refund(event: ChangeEvent) -> tuple[Any, ...] | None:
    row = event.row
    status = _status(event, row)
    if row.get("source", _OF_THE_PAYMENT) != _OF_THE_PAYMENT:
        return None
    if row["asset"] != VND:
        raise PoisonEventError(f"refunded in {row['asset']!r}, not in {VND}")
    return (
        _moment(row["status_at"]),
        event.id,
        _text(row["id"]),
        _text(row["payment_id"]),
        _text(row["merchant_id"]),
        amount(row["amount_minor"], VND),
        status,
        event.position,
        event.ordinal,
        event.committed_at,
    )


def _entry(event: ChangeEvent) -> tuple[Any, ...]:
    row = event.row
    return (
        _moment(row["created_at"]),
        event.id,
        _text(row["id"]),
        _name(row["merchant_id"]),
        _text(row["kind"]),
        _name(row["payment_id"]),
        _name(row["payout_id"]),
        _name(row["refund_id"]),
        _name(row["reverses_id"]),
        event.position,
        event.ordinal,
        event.committed_at,
    )


def _posting(event: ChangeEvent) -> tuple[Any, ...]:
    row = event.row
    return (
        _moment(row["created_at"]),
        event.id,
        _text(row["entry_id"]),
        _number(row["seq"]),
        _name(row["merchant_id"]),
        _text(row["account_id"]),
        _asset(row["asset"]),
        minor_units(row["amount_minor"]),
        event.position,
        event.ordinal,
        event.committed_at,
    )


def _payout(event: ChangeEvent) -> tuple[Any, ...]:
    """Map a payout's state, or the revision of its terms that came within a state.

    Other updates map to the state that is known already, and so add nothing. Payouts from before
    there were books of two modes do not tell theirs, and had terms that never changed.
    """
    row = event.row
    return (
        _moment(row["status_at"]),
        event.id,
        _text(row["id"]),
        _text(row["merchant_id"]),
        _name(row.get("mode")),
        _status(event, row),
        _number(row.get("revision", 1)),
        _asset(row["asset"]),
        minor_units(row["amount_minor"]),
        event.position,
        event.ordinal,
        event.committed_at,
    )


def _deletion(event: ChangeEvent) -> tuple[Any, ...]:
    """Map the loss of a row; of those that never change the log has no more than the key."""
    row = event.row
    if event.table == Source.LEDGER_POSTINGS:
        row_id = f"{_text(row['entry_id'])}/{_number(row['seq'])}"
    else:
        row_id = _text(row["id"])
    return (
        event.id,
        event.table,
        row_id,
        _name(row.get("merchant_id")),
        event.position,
        event.ordinal,
        event.committed_at,
    )


def _merchant(event: ChangeEvent) -> tuple[Any, ...]:
    row = event.row
    deleted = event.operation is Operation.DELETE
    return (
        _text(row["id"]),
        _text(row["name"]),
        _text(row["trade"]),
        _text(row["timezone"]),
        row["country"],
        event.committed_at if deleted else None,
        event.id,
        event.position,
        event.ordinal,
        event.committed_at,
    )


_VALUES: Final[Mapping[Table, Callable[[ChangeEvent], tuple[Any, ...] | None]]] = {
    Table.PAYMENT_ANALYTICS: _payment,
    Table.REFUNDS: _refund,
    Table.LEDGER_ENTRIES: _entry,
    Table.LEDGER_POSTINGS: _posting,
    Table.PAYOUTS: _payout,
    Table.DELETIONS: _deletion,
    Table.MERCHANTS: _merchant,
}


def _status(event: ChangeEvent, row: dict[str, Any]) -> str:
    status = _text(row["status"])
    word = event.subject.rpartition(".")[2]
    if event.operation is Operation.SNAPSHOT or word == _UPDATED:
        return status
    if status != word:
        raise PoisonEventError(f"subject {event.subject}, but the row's status is {status!r}")
    return status


def _moment(text: object) -> datetime:
    moment = datetime.fromisoformat(_text(text))
    if moment.tzinfo is None:
        raise PoisonEventError(f"a moment without time zone: {text!r}")
    return moment


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise PoisonEventError(f"text expected, not {value!r}")
    return value


def _name(value: object) -> str | None:
    return None if value is None else _text(value)


def _number(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise PoisonEventError(f"an integer expected, not {value!r}")
    return value


def _asset(value: object) -> str:
    asset = _text(value)
    if asset not in DECIMALS:
        raise PoisonEventError(f"unknown asset {asset!r}")
    return asset

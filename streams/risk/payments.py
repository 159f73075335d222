"""The payments that are judged: those whose money has just arrived, read from their events.

A payment is judged once its money came to stay: on reaching `completed`, or `escrow_held` before.
Nothing else is: no release from escrow, no other change of a row, no deletion, and nothing that a
backfill tells again. Money that vanished from the chain and came again arrives twice.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from api.contract import VND, PaymentStatus, payment_event
from ingest.contract import SUBJECT_ROOT, ChangeEvent
from streams.rows import PoisonEventError, minor_units

ARRIVALS: Final = frozenset(
    f"{SUBJECT_ROOT}.{payment_event(status)}"
    for status in (PaymentStatus.COMPLETED, PaymentStatus.ESCROW_HELD)
)
"""Subjects of events that may say that a payment's money arrived."""
_IN_ESCROW: Final = frozenset(
    {PaymentStatus.ESCROW_HELD, PaymentStatus.AWAITING_RELEASE, PaymentStatus.DISPUTED}
)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_NAME: Final = re.compile(r"[!-.0-~]{1,128}")  # printable, without the slash that parts a key
_COUNTRY: Final = re.compile(r"[A-Z]{2}")


@dataclass(frozen=True, slots=True)
class Payment:
    """What the rules know of a payment; `sequence` is its event's place in the stream.

    The amount is what was settled, in đồng. `at_us` is when the payment reached its status, in
    microseconds since 1970: PostgreSQL stamps it in the database transaction that moves the row, so
    for what happens now it is the commit's time, and for history that is loaded later its own.
    """

    sequence: int
    event_id: str
    payment_id: str
    merchant_id: str
    wallet: str | None
    country: str | None
    amount_vnd: int
    at_us: int

    @property
    def at(self) -> datetime:
        """The moment as such."""
        return _EPOCH + timedelta(microseconds=self.at_us)


def payment_of(subject: str, payload: bytes | None, sequence: int) -> Payment | None:
    """Return the payment whose arrival an event on one of `ARRIVALS` tells; None where it does not.

    Raises PoisonEventError where the event is not what its subject says.
    """
    try:
        event = ChangeEvent.from_bytes(payload or b"")
        if event.before is not None and event.before["status"] in _IN_ESCROW:
            return None
        return _payment(event, subject, sequence)
    except PoisonEventError:
        raise
    except KeyError as error:
        raise PoisonEventError(f"missing {error}") from error
    except ValueError as error:
        raise PoisonEventError(str(error)) from error


def _payment(event: ChangeEvent, subject: str, sequence: int) -> Payment:
    row = event.row
    if event.subject != subject:
        raise PoisonEventError(f"published on {subject}, but says {event.subject}")
    if row["currency"] != VND:
        raise PoisonEventError(f"priced in {row['currency']!r}, not in {VND}")
    moment = datetime.fromisoformat(str(row["status_at"]))
    if moment.tzinfo is None:
        raise PoisonEventError(f"a moment without time zone: {row['status_at']!r}")
    country = row["payer_country"]
    if country is not None and _COUNTRY.fullmatch(str(country)) is None:
        raise PoisonEventError("the payer's country is not two letters")
    return Payment(
        sequence=sequence,
        event_id=event.id,
        payment_id=_name(row, "id"),
        merchant_id=_name(row, "merchant_id"),
        wallet=None if row["payer_address"] is None else _name(row, "payer_address"),
        country=country,
        # Events from before a payment could be settled in part were settled in full.
        amount_vnd=minor_units(row.get("settled_minor") or "0") or minor_units(row["amount_minor"]),
        at_us=(moment - _EPOCH) // timedelta(microseconds=1),
    )


def _name(row: dict[str, Any], column: str) -> str:
    value = row[column]
    if not isinstance(value, str) or _NAME.fullmatch(value) is None:
        raise PoisonEventError(f"{column} is not a name")
    return value

"""What a watcher is told: a payment as its payer may see it, in messages that are numbered.

A step comes as a row from PostgreSQL or from the stream; both give the same message, letter for
letter, so it does not matter by which way a watcher learns of it. ValueError where a row is none.
"""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Final, Literal, NamedTuple

from pydantic import BaseModel, Field, TypeAdapter
from websockets.frames import Frame, Opcode

from api.payments.model import due_minor
from api.rates.model import decimal_string

_UPDATED: Final = "payment.updated"


class Farewell(NamedTuple):
    """Why a socket is closed: a close code of RFC 6455 or, from 4000 on, of ours."""

    code: int
    reason: str


CHATTY: Final = Farewell(1008, "this socket takes no messages")
RESTARTING: Final = Farewell(1012, "the server restarts; connect again")
TRY_AGAIN: Final = Farewell(1013, "not now; connect again after the last number you have")
TOKEN_ENDED: Final = Farewell(4401, "the token has ended; connect again with a new one")
REVOKED: Final = Farewell(4403, "the key or session does not count any more")
TOO_SLOW: Final = Farewell(4408, "too slow; connect again after the last number you have")


class PayerView(BaseModel):
    """A payment as its payer may see it; amounts are decimal strings."""

    id: str = Field(examples=["pay_01jz8w5k6h7m9n0p2q3r4s5t6v"])
    status: str = Field(examples=["confirming"])
    exception: str | None
    exception_outcome: str | None
    asset: str = Field(examples=["USDC"])
    asset_amount: str = Field(examples=["9.560230"])
    received_amount: str = Field(examples=["0.000000"])
    due_amount: str = Field(
        examples=["9.560230"], description="Tokens still due; negative where too many came"
    )
    amount: str = Field(examples=["250000"])
    currency: str = Field(examples=["VND"])
    expires_at: datetime
    is_escrow: bool
    updated_at: datetime


class LiveState(BaseModel):
    """The payment as it stands, after its first `seq` events."""

    type: Literal["state"] = "state"
    seq: int
    payment: PayerView


class LiveEvent(BaseModel):
    """The payment's event of this number."""

    type: Literal["event"] = "event"
    seq: int
    event: str = Field(examples=["payment.confirming"])
    created_at: datetime
    payment: PayerView


class LivePing(BaseModel):
    """A sign of life."""

    type: Literal["ping"] = "ping"
    at: datetime


class LiveTokenView(BaseModel):
    """What lets a page watch one payment for a quarter of an hour."""

    object: Literal["live_token"] = "live_token"
    token: str
    expires_at: datetime
    ws_url: str
    sse_url: str


@dataclass(frozen=True, slots=True)
class PayerRow:
    """The columns of a payment's row that its payer may see something of."""

    id: str
    status: str
    exception: str | None
    exception_outcome: str | None
    asset: str
    asset_amount_minor: int
    received_minor: int
    amount_minor: int
    currency: str
    expires_at: datetime
    is_escrow: bool
    updated_at: datetime
    settled_minor: int = 0
    status_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class _Pushed:
    """What the stream's processor publishes."""

    seq: int
    payment_id: str
    event: str
    row: PayerRow


class Message:
    """One message in its forms, each made once; watchers of one payment share it."""

    def __init__(self, kind: Literal["state", "event", "ping"], text: str, seq: int | None) -> None:
        self.text = text
        self._kind = kind
        self._seq = seq

    @cached_property
    def frame(self) -> bytes:
        """The message as a whole frame of a WebSocket without extensions."""
        return Frame(Opcode.TEXT, self.text.encode()).serialize(mask=False)

    @cached_property
    def sse(self) -> bytes:
        """The message as a server-sent event."""
        number = "" if self._seq is None else f"id: {self._seq}\n"
        return f"event: {self._kind}\n{number}data: {self.text}\n\n".encode()


@dataclass(frozen=True)
class Step:
    """One numbered step of a payment, wherever it was learnt of."""

    payment_id: str
    seq: int
    type: str
    created_at: datetime
    row: PayerRow

    def as_state(self) -> Message:
        """Return the message that the payment stands so."""
        state = LiveState(seq=self.seq, payment=_present(self.row))
        return Message("state", state.model_dump_json(), self.seq)

    @cached_property
    def message(self) -> Message:
        """The message that this happened."""
        event = LiveEvent(
            seq=self.seq,
            event=self.type,
            created_at=self.created_at,
            payment=_present(self.row),
        )
        return Message("event", event.model_dump_json(), self.seq)


_pushed = TypeAdapter(_Pushed)
_row = TypeAdapter(PayerRow)


def pushed_step(data: bytes) -> Step:
    """Return the step that the stream's processor published; ValueError where it is none."""
    found = _pushed.validate_json(data)
    row = found.row
    moved_at = row.updated_at if found.event == _UPDATED else row.status_at
    if moved_at is None:
        raise ValueError("a payment's row without the moment of its status")
    return Step(found.payment_id, found.seq, found.event, moved_at, row)


def recorded_step(
    payment_id: str, seq: int, type_: str, created_at: datetime, payment: dict[str, object]
) -> Step:
    """Return the step that PostgreSQL recorded; ValueError where it is none."""
    return Step(payment_id, seq, type_, created_at, _row.validate_python(payment))


def ping(now: datetime) -> Message:
    """Return a sign of life."""
    at = now.astimezone(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00")
    return Message("ping", json.dumps({"type": "ping", "at": f"{at}Z"}), None)


def _present(row: PayerRow) -> PayerView:
    return PayerView(
        id=row.id,
        status=row.status,
        exception=row.exception,
        exception_outcome=row.exception_outcome,
        asset=row.asset,
        asset_amount=decimal_string(row.asset_amount_minor, row.asset),
        received_amount=decimal_string(row.received_minor, row.asset),
        due_amount=decimal_string(due_minor(row), row.asset),
        amount=decimal_string(row.amount_minor, row.currency),
        currency=row.currency,
        expires_at=row.expires_at.astimezone(UTC),
        is_escrow=row.is_escrow,
        updated_at=row.updated_at.astimezone(UTC),
    )

"""The gap-free sequence of what happened to a merchant's payments, refunds and payouts.

PostgreSQL writes an event with every step, in the unit of work of the step, numbered without gaps
for each merchant and mode. Here they are read and shown as the API shows their subject: what a list
gives, a webhook carries, and a reconnecting client resumes from, is one and the same.
"""

import json
from decimal import Decimal
from typing import Final, Literal

from pydantic import TypeAdapter

from api.database import ID_BODY, Unit
from api.errors import FieldError, InvalidRequest, NotFound
from api.paging import Paging
from api.payments import event_store
from api.payments.event_store import Event
from api.payments.model import Payment, Refund
from api.payments.views import (
    EventData,
    EventView,
    PaymentView,
    RefundView,
    present,
    present_refund,
)
from api.payouts.model import Payout, PayoutView
from api.payouts.model import present as present_payout
from api.wording import worded

Order = Literal["newest_first", "oldest_first"]
EventType = Literal[
    "payment.created",
    "payment.pending",
    "payment.confirming",
    "payment.completed",
    "payment.expired",
    "payment.failed",
    "payment.escrow_held",
    "payment.awaiting_release",
    "payment.disputed",
    "payment.resolved",
    "payment.updated",
    "refund.requested",
    "refund.completed",
    "refund.failed",
    "payout.requested",
    "payout.approved",
    "payout.sent",
    "payout.settled",
    "payout.failed",
    "payout.cancelled",
    "payout.updated",
]
MOST_OF_A_PAYMENT: Final = 200
# An event's id, or its number in the sequence.
CURSOR_PATTERN: Final = worded(
    rf"^(evt_{ID_BODY}|[0-9]{{1,18}})$", "the id of an event, or its seq in the sequence"
)

_payment_of = TypeAdapter(Payment)
_refund_of = TypeAdapter(Refund)
_payout_of = TypeAdapter(Payout)


async def get(unit: Unit, event_id: str, *, mode: str) -> Event:
    """Return an event; raises NotFound, also for another merchant's or the other mode's."""
    event = await event_store.get(unit, event_id, mode=mode)
    if event is None:
        raise NotFound("no event has this id")
    return event


async def page(
    unit: Unit,
    paging: Paging,
    *,
    mode: str,
    order: Order,
    type_: EventType | None,
    payment_id: str | None,
) -> tuple[list[Event], bool]:
    """Return a page of events in the order asked for, and whether more follow in its direction.

    Raises InvalidRequest where the cursor is no event of the merchant.
    """
    cursor = None if paging.cursor is None else await _place(unit, paging, mode=mode)
    found = await event_store.page(
        unit,
        mode=mode,
        type_=type_,
        payment_id=payment_id,
        cursor=cursor,
        upward=(order == "oldest_first") != paging.is_backward,
        limit=paging.limit + 1,
    )
    return paging.cut(found)


async def _place(unit: Unit, paging: Paging, *, mode: str) -> int:
    cursor = paging.cursor or ""
    if cursor.isdigit():
        return int(cursor)
    seq = await event_store.seq_of(unit, cursor, mode=mode)
    if seq is None:
        name = "ending_before" if paging.is_backward else "starting_after"
        error = FieldError(detail="no event of yours", pointer=f"/query/{name}")
        raise InvalidRequest("1 field is not valid", errors=[error])
    return seq


def present_event(event: Event, *, merchant_name: str, public_url: str) -> EventView:
    """Return an event as the API and webhooks show it."""
    row = json.loads(event.data, parse_float=Decimal)
    subject: PaymentView | RefundView | PayoutView
    if event.payout_id is not None:
        subject = present_payout(_payout_of.validate_python(row))
    elif event.refund_id is not None:
        subject = present_refund(_refund_of.validate_python(row))
    else:
        payment = _payment_of.validate_python(row)
        subject = present(payment, merchant_name=merchant_name, public_url=public_url)
    return EventView(
        id=event.id,
        seq=event.seq,
        type=event.type,
        mode=event.mode,
        created_at=event.created_at,
        data=EventData(object=subject),
    )

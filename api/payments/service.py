"""Create, show, list and read payments, each in the caller's unit of work."""

from datetime import timedelta

from api.chain.solana_pay import new_reference
from api.contract import SOLANA, VND, Asset, PaymentStatus
from api.database import Unit, new_id
from api.errors import FieldError, InvalidRequest, NotFound
from api.payments import store
from api.payments.model import CreatePayment, Payment
from api.rates.model import Rate, token_amount_minor
from api.settings import ChainSettings

MOST_PER_PAGE = 100
_AFTER_EVERY_ID = "pay_" + "z" * 27


async def create(
    unit: Unit, body: CreatePayment, *, mode: str, rate: Rate, chain: ChainSettings
) -> Payment:
    """Create a payment at the rate given, which is locked until the payment expires.

    The row, its event and its audit row commit together with the unit of work.
    """
    asset = Asset(body.asset)
    amount_minor = int(body.amount)
    created_at = await unit.now()
    payment = Payment(
        id=new_id("pay"),
        merchant_id=unit.merchant_id,
        mode=mode,
        status=PaymentStatus.CREATED,
        exception=None,
        amount_minor=amount_minor,
        currency=VND,
        asset=asset,
        asset_amount_minor=token_amount_minor(amount_minor, VND, asset, rate.value),
        received_minor=0,
        rate=rate.value,
        rate_source=rate.source,
        chain=SOLANA,
        recipient=chain.collection_wallet,
        mint=chain.mint(asset),
        reference=new_reference(),
        payer_address=None,
        payer_country=body.payer_country,
        description=body.description,
        order_id=body.order_id,
        metadata=body.metadata,
        fee_minor=0,
        created_at=created_at,
        expires_at=created_at + timedelta(seconds=body.expires_in_s),
        status_at=created_at,
        completed_at=None,
    )
    await store.add(unit, payment)
    return payment


async def get(unit: Unit, payment_id: str, *, mode: str | None = None) -> Payment:
    """Return a payment; raises NotFound, also for another merchant's or the other mode's."""
    payment = await store.get(unit, payment_id)
    if payment is None or (mode is not None and payment.mode != mode):
        raise NotFound("no payment has this id")
    return payment


async def page(
    unit: Unit,
    *,
    mode: str,
    status: PaymentStatus | None,
    limit: int,
    starting_after: str | None,
    ending_before: str | None,
) -> tuple[list[Payment], bool]:
    """Return a page of payments, newest first, and whether more follow in the direction asked.

    `starting_after` goes to older payments, `ending_before` to newer ones.
    """
    if starting_after is not None and ending_before is not None:
        raise InvalidRequest(
            "a page has one direction",
            errors=[FieldError(detail="not with starting_after", pointer="/query/ending_before")],
        )
    found = await store.page(
        unit,
        mode=mode,
        status=status,
        cursor=ending_before or starting_after or _AFTER_EVERY_ID,
        newer=ending_before is not None,
        limit=limit + 1,
    )
    payments, has_more = found[:limit], len(found) > limit
    return (payments[::-1] if ending_before is not None else payments), has_more


async def show(unit: Unit, payment: Payment) -> Payment:
    """Note that the payer has seen the payment: it becomes pending, once."""
    if payment.status != PaymentStatus.CREATED:
        return payment
    await store.move(unit, payment.id, was=PaymentStatus.CREATED, status=PaymentStatus.PENDING)
    return await get(unit, payment.id)

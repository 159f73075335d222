"""Create, show, list, read and change payments, each in the caller's unit of work."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final

from api.chain.solana_pay import new_reference
from api.contract import SOLANA, VND, Asset, PaymentStatus
from api.database import Database, Identity, Unit, new_id
from api.errors import FieldError, InvalidRequest, NotFound, RateUnavailable
from api.idempotency import Answer, Request, claim
from api.paging import Paging
from api.payments import store
from api.payments.model import MOST_METADATA, ChangePayment, CreatePayment, Payment
from api.payments.store import Filters
from api.payments.views import PaymentView, json_with_marks
from api.rates.model import Quote, token_amount_minor
from api.rates.service import Rates
from api.security import Mode
from api.settings import ChainSettings

# Stands where PostgreSQL's clock will say when.
_UNDECIDED: Final = datetime.min.replace(tzinfo=UTC)


async def create(
    unit: Unit, body: CreatePayment, *, mode: Mode, quote: Quote, chain: ChainSettings
) -> Payment:
    """Create a payment at the quote given, which is locked until the payment expires.

    The row, its event and its audit row commit together with the unit of work.
    """
    payment = _drawn_up(unit.merchant_id, body, mode, quote, chain, created_at=await unit.now())
    await store.add(unit, payment)
    return payment


async def create_once(
    database: Database,
    identity: Identity,
    request: Request,
    body: CreatePayment,
    *,
    mode: Mode,
    rates: Rates,
    chain: ChainSettings,
    shown: Callable[[Payment], PaymentView],
) -> Answer:
    """Create a payment as `create` does, in one statement that is the whole unit of work.

    The answer is kept in it under the request's key. Returns it, or the one the key had already,
    for which no rate is needed; raises RateUnavailable.
    """
    try:
        quote = await rates.quote(Asset(body.asset), VND)
    except RateUnavailable:
        async with database.unit_of_work(identity, claiming=request.claiming) as unit:
            kept = await claim(unit, request)
        if kept is None:
            raise
        return kept
    payment = _drawn_up(identity.tenant, body, mode, quote, chain, created_at=_UNDECIDED)
    answer = json_with_marks(shown(payment))
    return await store.add_once(database, identity, request, payment, answer)


def _drawn_up(
    merchant_id: str,
    body: CreatePayment,
    mode: Mode,
    quote: Quote,
    chain: ChainSettings,
    *,
    created_at: datetime,
) -> Payment:
    asset = Asset(body.asset)
    amount_minor = int(body.amount)
    return Payment(
        id=new_id("pay"),
        merchant_id=merchant_id,
        mode=mode,
        status=PaymentStatus.CREATED,
        exception=None,
        amount_minor=amount_minor,
        currency=VND,
        asset=asset,
        asset_amount_minor=token_amount_minor(amount_minor, VND, asset, quote.value),
        received_minor=0,
        rate=quote.value,
        rate_mid=quote.mid,
        rate_source=quote.source,
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
        is_escrow=body.escrow,
    )


async def get(unit: Unit, payment_id: str, *, mode: str | None = None) -> Payment:
    """Return a payment; raises NotFound, also for another merchant's or the other mode's."""
    return _of_mode(await store.get(unit, payment_id), mode)


async def lock(unit: Unit, payment_id: str, *, mode: str | None = None) -> Payment:
    """Return a payment that nobody else changes until the unit of work ends; raises NotFound."""
    return _of_mode(await store.lock(unit, payment_id), mode)


def _of_mode(payment: Payment | None, mode: str | None) -> Payment:
    if payment is None or (mode is not None and payment.mode != mode):
        raise NotFound("no payment has this id")
    return payment


async def page(
    unit: Unit, paging: Paging, filters: Filters, *, mode: str
) -> tuple[list[Payment], bool]:
    """Return a page of payments, newest first, and whether more follow in the direction asked."""
    found = await store.page(
        unit,
        mode=mode,
        filters=filters,
        cursor=paging.cursor,
        newer=paging.is_backward,
        limit=paging.limit + 1,
    )
    return paging.cut(found)


async def show(unit: Unit, payment: Payment) -> Payment:
    """Note that the payer has seen the payment: it becomes pending, once."""
    if payment.status != PaymentStatus.CREATED:
        return payment
    await store.move(unit, payment.id, was=PaymentStatus.CREATED, status=PaymentStatus.PENDING)
    return await get(unit, payment.id)


async def change(unit: Unit, payment_id: str, body: ChangePayment, *, mode: str) -> Payment:
    """Change the merchant's own words about a payment: what is absent stays, null removes.

    Raises NotFound, InvalidRequest where the metadata would have too many names.
    """
    payment = await lock(unit, payment_id, mode=mode)
    named = body.model_fields_set
    metadata = dict(payment.metadata)
    if "metadata" in named:
        metadata = {} if body.metadata is None else {**metadata, **body.metadata}
        metadata = {name: value for name, value in metadata.items() if value is not None}
    if len(metadata) > MOST_METADATA:
        error = FieldError(detail=f"at most {MOST_METADATA} names", pointer="/metadata")
        raise InvalidRequest("1 field is not valid", errors=[error])
    description = body.description if "description" in named else payment.description
    order_id = body.order_id if "order_id" in named else payment.order_id
    if (description, order_id, metadata) != (
        payment.description,
        payment.order_id,
        payment.metadata,
    ):
        await store.change(
            unit, payment.id, description=description, order_id=order_id, metadata=metadata
        )
    return await get(unit, payment_id)

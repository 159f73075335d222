"""A shop counter for the local network only: make a payment, and pay it with one button.

These routes exist where GIOVANG_API_DEMO is true and nowhere else. The button signs a real SPL
transfer with the demo payer's key and sends it through the RPC; the payment then completes the way
any payment does, by the watcher finding it.
"""

from typing import Annotated, cast

from fastapi import APIRouter, Path, Request, Response
from fastapi.responses import RedirectResponse

from api.checkout.service import open_order
from api.checkout.wallet import DemoWallet
from api.contract import VND, Asset, PaymentStatus
from api.database import Identity
from api.errors import ChainUnavailable, Conflict, NotFound, RateUnavailable
from api.payments import service as payments
from api.payments.model import CreatePayment, PaymentId
from api.rates.service import Rates
from api.settings import ApiSettings
from api.web import database_of, problems, request_id_of

router = APIRouter(tags=["demo"])
_ORDER = CreatePayment(amount="65000", asset="USDC", description="Cà phê sữa đá")


def _settings(request: Request) -> ApiSettings:
    return cast("ApiSettings", request.app.state.settings)


@router.get(
    "/demo/checkout",
    status_code=303,
    responses=problems(NotFound, RateUnavailable),
    summary="A new payment of the demo shop",
)
async def new_order(request: Request) -> Response:
    """Create a payment for the demo merchant and go to its page."""
    settings = _settings(request)
    if settings.demo_merchant_id is None:
        raise NotFound("GIOVANG_API_DEMO_MERCHANT_ID names no demo shop")
    rates = cast("Rates", request.app.state.rates)
    quote = await rates.quote(Asset(_ORDER.asset), VND)
    identity = Identity("demo", settings.demo_merchant_id, request_id_of(request))
    async with database_of(request).unit_of_work(identity) as unit:
        payment = await payments.create(unit, _ORDER, mode="test", quote=quote, chain=settings)
    return RedirectResponse(f"/order/{payment.id}", status_code=303)


@router.post(
    "/order/{payment_id}/demo-pay",
    status_code=303,
    responses=problems(NotFound, Conflict, ChainUnavailable),
    summary="Pay from the demo wallet",
)
async def demo_pay(request: Request, payment_id: Annotated[PaymentId, Path()]) -> Response:
    """Pay an open payment from the demo wallet and go back to its page."""
    settings = _settings(request)
    payment, _ = await open_order(
        database_of(request), payment_id, request_id=request_id_of(request)
    )
    if payment.status != PaymentStatus.PENDING:
        raise Conflict(f"this payment is {payment.status}")
    if settings.demo_payer_key is None:
        raise Conflict("GIOVANG_API_DEMO_PAYER_KEY names no demo wallet")
    wallet = DemoWallet(settings.solana_rpc_url, settings.demo_payer_key.get_secret_value())
    await wallet.pay(
        recipient=payment.recipient,
        mint=payment.mint,
        amount_minor=payment.asset_amount_minor - payment.received_minor,
        reference=payment.reference,
    )
    return RedirectResponse(f"/order/{payment_id}", status_code=303)

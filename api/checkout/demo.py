"""A shop counter for the local network only: make a payment, and be its payer by buttons.

These routes exist where GIOVANG_API_DEMO is true and nowhere else. One button signs a real SPL
transfer with the demo payer's key and sends it through the RPC; the payment then completes the way
any payment does, by the watcher finding it. Two more sign the text by which a payer releases or
disputes, with the same key; what the signature is worth is judged as any wallet's is.
"""

import time
from typing import Annotated, cast

from fastapi import Query, Request, Response
from fastapi.responses import RedirectResponse

from api.checkout.escrow_routes import CODE, REASON, act, fields_of, form
from api.checkout.pages import Language, PaymentPath, order_of, pages
from api.checkout.proof import Proof, text_to_sign
from api.checkout.wallet import DemoWallet
from api.checkout.words import Lang
from api.contract import VND, Asset
from api.database import Identity
from api.errors import (
    ChainUnavailable,
    Conflict,
    NotFound,
    NotPermitted,
    RateUnavailable,
    TooManyRequests,
)
from api.payments import service as payments
from api.payments.model import CreatePayment, transfer_of
from api.rates.service import Rates
from api.security import Purpose
from api.settings import ApiSettings
from api.web import database_of, links_of, problems, request_id_of, settings_of

router = pages("demo")
_ORDER = CreatePayment(amount="65000", asset="USDC", description="Cà phê sữa đá")
_ESCROW_ORDER = CreatePayment(
    amount="2300000", asset="USDC", description="Đèn lồng Hội An", escrow=True
)


def wallet_of(settings: ApiSettings) -> DemoWallet | None:
    """Return the demo's wallet where the settings give it a key."""
    if not settings.demo or settings.demo_payer_key is None:
        return None
    return DemoWallet(settings.solana_rpc_url, settings.demo_payer_key.get_secret_value())


@router.get(
    "/demo/checkout",
    status_code=303,
    responses=problems(NotFound, RateUnavailable, TooManyRequests),
    summary="A new payment of the demo shop",
)
async def new_order(
    request: Request,
    escrow: Annotated[bool, Query(description="Hold the money until it is released")] = False,  # noqa: FBT002 - a query
) -> Response:
    """Create a payment for the demo merchant and go to its page."""
    settings = settings_of(request)
    body = _ESCROW_ORDER if escrow else _ORDER
    if settings.demo_merchant_id is None:
        raise NotFound("GIOVANG_API_DEMO_MERCHANT_ID names no demo shop")
    rates = cast("Rates", request.app.state.rates)
    quote = await rates.quote(Asset(body.asset), VND)
    identity = Identity("demo", settings.demo_merchant_id, request_id_of(request))
    async with database_of(request).unit_of_work(identity) as unit:
        payment = await payments.create(unit, body, mode="test", quote=quote, chain=settings)
    return RedirectResponse(f"/order/{payment.id}", status_code=303)


@router.post(
    "/order/{payment_id}/demo-pay",
    status_code=303,
    responses=problems(NotFound, Conflict, ChainUnavailable, TooManyRequests),
    summary="Pay from the demo wallet",
)
async def demo_pay(request: Request, payment_id: PaymentPath, lang: Language) -> Response:
    """Pay what is still due of an open payment from the demo wallet and go back to its page."""
    order = await order_of(request, payment_id)
    if not order.is_payable:
        raise Conflict(f"this payment is {order.status}")
    await _wallet(request).pay(transfer_of(order.payment))
    return RedirectResponse(f"/order/{payment_id}?lang={lang}", status_code=303)


@router.post(
    "/order/{payment_id}/demo-release",
    status_code=303,
    responses=problems(NotFound, NotPermitted, Conflict, TooManyRequests),
    openapi_extra=form(code=CODE),
    summary="Release by a signature of the demo wallet",
)
async def demo_release(request: Request, payment_id: PaymentPath, lang: Language) -> Response:
    """Sign with the demo wallet that the money may go to the shop, and act by that signature."""
    return await _sign_and_act(request, payment_id, "release", lang)


@router.post(
    "/order/{payment_id}/demo-dispute",
    status_code=303,
    responses=problems(NotFound, NotPermitted, Conflict, TooManyRequests),
    openapi_extra=form(code=CODE, reason=REASON),
    summary="Dispute by a signature of the demo wallet",
)
async def demo_dispute(request: Request, payment_id: PaymentPath, lang: Language) -> Response:
    """Sign with the demo wallet that something is wrong, and act by that signature."""
    return await _sign_and_act(request, payment_id, "dispute", lang)


async def _sign_and_act(
    request: Request, payment_id: str, purpose: Purpose, lang: Lang
) -> Response:
    fields = await fields_of(request)
    code, settings = fields.get("code", ""), settings_of(request)
    if not links_of(request).is_valid(code, payment_id, purpose, now_s=int(time.time())):
        raise NotPermitted("this text is not valid any more; open the payment's page again")
    order = await order_of(request, payment_id)
    text = text_to_sign(order, purpose, code=code, site=settings.public_url, lang=lang)
    proof = Proof(code, _wallet(request).sign(text), lang)
    return await act(request, payment_id, purpose, proof, reason=fields.get("reason", ""))


def _wallet(request: Request) -> DemoWallet:
    wallet = cast("DemoWallet | None", request.app.state.demo_wallet)
    if wallet is None:
        raise Conflict("GIOVANG_API_DEMO_PAYER_KEY names no demo wallet")
    return wallet

"""Solana Pay for wallets: transaction requests, and both links as QR codes.

A wallet asks who wants money (GET), says which account pays (POST) and gets a chain transaction to
sign: exactly what is still due, marked with the payment's reference. We sign nothing and send
nothing; the payment completes as any does, by what the chain finalises. The two addresses may be
asked from any web page, since wallets run in browsers; nothing they answer depends on who asks.
An error is the problem+json of the API with the `message` that wallets show.
"""

import base64
import hashlib
import json
from collections.abc import Callable, Coroutine
from pathlib import Path as FilePath
from typing import Annotated, Any, Final, cast

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, Field
from solders.pubkey import Pubkey
from starlette.exceptions import HTTPException

from api.chain.composer import Composer
from api.checkout.codes import CodeKind, code_link, qr_svg
from api.checkout.pages import Language, PaymentPath, order_of
from api.checkout.view import Order
from api.checkout.words import WORDS, language, say
from api.contract import PaymentStatus
from api.errors import (
    PROBLEM_JSON,
    BodyTooLarge,
    ChainUnavailable,
    FieldError,
    GiovangError,
    InvalidRequest,
    MalformedRequest,
    NotFound,
    NotPayable,
    TooManyRequests,
)
from api.payments.model import SolanaAddress, due_minor, transfer_of
from api.rates.model import decimal_string
from api.web import (
    charge_address,
    problems,
    refusal_answer,
    settings_of,
)

_CORS: Final = {"Access-Control-Allow-Origin": "*"}
_PREFLIGHT: Final = {
    "Access-Control-Allow-Methods": "GET, POST, OPTIONS",
    "Access-Control-Allow-Headers": "Content-Type, Content-Encoding, Accept-Encoding",
    "Access-Control-Max-Age": "86400",
}
_FRESH: Final = {"Cache-Control": "no-store"}
_PICTURE: Final = {"Content-Security-Policy": "default-src 'none'; sandbox; frame-ancestors 'none'"}
_ICON: Final = (FilePath(__file__).parent / "icon.svg").read_bytes()
_ICON_PATH: Final = "/checkout/icon.svg"
_SVG: Final = "image/svg+xml"


class WalletRoute(APIRoute):
    """A route that wallets call from anywhere: any origin may read it, errors carry a message."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the route's handler with every answer made readable for wallets."""
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                response = await handle(request)
            except (GiovangError, RequestValidationError, HTTPException) as refusal:
                response = await _told(request, refusal)
            response.headers.update(_CORS)
            return response

        return answer


async def _told(request: Request, refusal: Exception) -> Response:
    """Return the problem+json of a refusal with what the wallet is to tell its user."""
    answer = await refusal_answer(request, refusal)
    problem = json.loads(bytes(answer.body))
    lang = language(request.headers.get("accept-language", ""))
    key = f"wallet.{refusal.reason if isinstance(refusal, NotPayable) else problem['code']}"
    problem["message"] = say(lang, key if key in WORDS[lang] else "wallet.other")
    kept = {"Retry-After": answer.headers["Retry-After"]} if "Retry-After" in answer.headers else {}
    return Response(
        json.dumps(problem, ensure_ascii=False),
        status_code=answer.status_code,
        headers={**kept, **_FRESH},
        media_type=PROBLEM_JSON,
    )


router = APIRouter(tags=["checkout"], dependencies=[Depends(charge_address)])
wallets = APIRouter(route_class=WalletRoute)


class PayLabel(BaseModel):
    """Who asks for money, as a wallet shows it."""

    label: str = Field(examples=["Phở Thìn"])
    icon: str = Field(examples=[f"https://pay.example.com{_ICON_PATH}"])


class PayAccount(BaseModel):
    """Which account will sign and pay; what else a wallet says is left for later versions."""

    model_config = ConfigDict(
        strict=True,
        extra="ignore",
        frozen=True,
        json_schema_extra={
            "examples": [{"account": "mvines9iiHiQTysrwkJjGf2gb9Ex9jXJX8ns3qwf2kN"}]
        },
    )

    account: SolanaAddress


class PayTransaction(BaseModel):
    """A chain transaction to sign, base64 of its serialised form, and what it is for."""

    transaction: str
    message: str = Field(examples=["9.560230 USDC to Phở Thìn"])


@wallets.get(
    "/order/{payment_id}/pay",
    response_model=PayLabel,
    responses=problems(NotFound, TooManyRequests),
    summary="Who asks a wallet for money",
)
async def pay_label(request: Request, payment_id: PaymentPath, response: Response) -> PayLabel:
    """Answer the first step of a Solana Pay transaction request."""
    order = await order_of(request, payment_id)
    response.headers.update(_FRESH)
    return PayLabel(
        label=order.merchant.name, icon=f"{settings_of(request).public_url}{_ICON_PATH}"
    )


@wallets.post(
    "/order/{payment_id}/pay",
    response_model=PayTransaction,
    responses=problems(
        NotFound, NotPayable, MalformedRequest, BodyTooLarge, TooManyRequests, ChainUnavailable
    ),
    summary="The chain transaction that pays",
)
async def pay_transaction(
    request: Request,
    payment_id: PaymentPath,
    body: PayAccount,
    response: Response,
    lang: Language,
) -> PayTransaction:
    """Build the chain transaction by which an account pays what is due; nobody has signed it."""
    order = await order_of(request, payment_id)
    _demand_payable(order)
    composer = cast("Composer", request.app.state.composer)
    made = await composer.compose(_account(body.account), transfer_of(order.payment))
    response.headers.update(_FRESH)
    return PayTransaction(
        transaction=base64.b64encode(made).decode(),
        message=order.payment.description or _said("wallet.pay", order, lang),
    )


@wallets.options("/order/{payment_id}/pay", status_code=204, include_in_schema=False)
async def pay_preflight(payment_id: PaymentPath) -> Response:  # noqa: ARG001 - the address's
    """Let web pages of any origin ask."""
    return Response(status_code=204, headers=_PREFLIGHT)


@router.get(
    "/order/{payment_id}/qr.svg",
    response_class=Response,
    responses={
        200: {"content": {_SVG: {"schema": {"type": "string"}}}},
        304: {"description": "As it was"},
        **problems(NotFound, NotPayable, TooManyRequests),
    },
    summary="A Solana Pay link as a QR code",
)
async def qr_code(
    request: Request,
    payment_id: PaymentPath,
    lang: Language,
    kind: Annotated[CodeKind, Query(description="Which of the two Solana Pay links")] = "transfer",
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """Draw the transfer request of what is due, or the transaction request."""
    order = await order_of(request, payment_id)
    _demand_payable(order)
    link = code_link(
        order.payment,
        kind,
        label=order.merchant.name,
        public_url=settings_of(request).public_url,
    )
    if link is None:
        raise NotFound("transaction requests need an https address, and this server has none")
    title = _said("wallet.code", order, lang)
    picture = qr_svg(link, title=title, standalone=True).encode()
    tag = f'"{hashlib.sha256(picture).hexdigest()[:32]}"'
    # What is due may change, so a kept picture is asked about every time.
    headers = {
        "Cache-Control": "private, no-cache",
        "ETag": tag,
        "Vary": "Accept-Language",
        **_PICTURE,
    }
    if if_none_match == tag:
        return Response(status_code=304, headers=headers)
    return Response(picture, headers=headers, media_type=_SVG)


@router.get(
    _ICON_PATH,
    response_class=Response,
    responses={
        200: {"content": {_SVG: {"schema": {"type": "string"}}}},
        **problems(TooManyRequests),
    },
    summary="The picture that wallets show",
)
async def icon() -> Response:
    """Serve the icon that transaction requests name."""
    headers = {"Cache-Control": "public, max-age=86400", **_PICTURE}
    return Response(_ICON, headers=headers, media_type=_SVG)


def _demand_payable(order: Order) -> None:
    """Raise NotPayable where money sent now would not pay the payment."""
    if order.status == PaymentStatus.CONFIRMING:
        raise NotPayable("money for it was seen and waits to be final", reason="confirming")
    if order.status in {PaymentStatus.EXPIRED, PaymentStatus.FAILED}:
        raise NotPayable("its time is over; create another", reason="expired")
    if not order.is_payable or due_minor(order.payment) <= 0:
        raise NotPayable("it is paid", reason="paid")


def _said(key: str, order: Order, lang: str) -> str:
    """Return a sentence about what is due and to whom, in a language."""
    payment = order.payment
    amount = decimal_string(transfer_of(payment).amount_minor, payment.asset)
    return say(lang, key, amount=amount, asset=payment.asset, name=order.merchant.name)


def _account(text: str) -> Pubkey:
    """Return the account that will sign; raises InvalidRequest for what no wallet can be."""
    try:
        account = Pubkey.from_string(text)
    except ValueError:
        account = None
    if account is None or not account.is_on_curve():
        error = FieldError(detail="not the address of a wallet", pointer="/account")
        raise InvalidRequest("1 field is not valid", errors=[error])
    return account


router.include_router(wallets)

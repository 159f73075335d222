"""The pages on which a payer releases or disputes, by a signature of the wallet that paid.

A GET shows the text to sign and never acts. A POST acts where the signature is the paying wallet's
under that very text, so neither a link's preview, another site's form nor the shop, which knows the
payment's id, can move the money. Payers without a wallet of their own (exchanges) cannot sign; the
page tells them whom to ask.
"""

import time
from typing import Any, Final
from urllib.parse import parse_qs

from fastapi import Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from pydantic import ValidationError

from api.checkout import page
from api.checkout.pages import Language, PaymentPath, html, order_of, pages
from api.checkout.proof import Proof, demand, paying_wallet
from api.checkout.service import payer_of
from api.checkout.words import Lang
from api.errors import (
    Conflict,
    FieldError,
    InvalidRequest,
    NotFound,
    NotPermitted,
    TooManyRequests,
)
from api.payments import escrow
from api.payments.model import OpenDispute
from api.security import Purpose
from api.web import database_of, links_of, operator_of, problems, request_id_of, settings_of
from infra.telemetry import get_logger

router = pages("escrow")
_log = get_logger(__name__)


def form(**fields: dict[str, Any]) -> dict[str, Any]:
    """Return the OpenAPI description of a form's body."""
    schema = {"type": "object", "required": list(fields), "properties": fields}
    content = {"application/x-www-form-urlencoded": {"schema": schema}}
    return {"requestBody": {"required": True, "content": content}}


CODE: Final = {"type": "string", "minLength": 1, "maxLength": 100}
REASON: Final = {"type": "string", "minLength": 1, "maxLength": 1000}
_SIGNATURE: Final = {"type": "string", "minLength": 64, "maxLength": 90}


@router.get(
    "/order/{payment_id}/release",
    response_class=HTMLResponse,
    responses=problems(NotFound, Conflict, TooManyRequests),
    summary="The page on which a payer releases the money",
)
async def release_page(request: Request, payment_id: PaymentPath, lang: Language) -> Response:
    """Show what to sign so that the money goes to the shop; nothing happens by looking."""
    return await _ask(request, payment_id, "release", lang)


@router.get(
    "/order/{payment_id}/dispute",
    response_class=HTMLResponse,
    responses=problems(NotFound, Conflict, TooManyRequests),
    summary="The page on which a payer disputes",
)
async def dispute_page(request: Request, payment_id: PaymentPath, lang: Language) -> Response:
    """Ask what is wrong and show what to sign; nothing happens by looking."""
    return await _ask(request, payment_id, "dispute", lang)


async def _ask(request: Request, payment_id: str, purpose: Purpose, lang: Lang) -> Response:
    order = await order_of(request, payment_id)
    if purpose not in order.actions:
        raise Conflict(f"there is nothing to decide, this payment is {order.payment.status}")
    if paying_wallet(order) is None:
        raise Conflict("no wallet paid more than half; the shop can dispute for you")
    settings = settings_of(request)
    text = page.render_act(
        order,
        purpose,
        lang=lang,
        code=links_of(request).token(payment_id, purpose, now_s=int(time.time())),
        public_url=settings.public_url,
        demo=settings.demo and settings.demo_payer_key is not None,
    )
    return html(text)


@router.post(
    "/order/{payment_id}/release",
    status_code=303,
    responses=problems(NotFound, NotPermitted, Conflict, TooManyRequests),
    openapi_extra=form(code=CODE, signature=_SIGNATURE),
    summary="Release the money to the shop",
)
async def release(request: Request, payment_id: PaymentPath, lang: Language) -> Response:
    """Give the shop its money, once, however often it is asked."""
    fields = await fields_of(request)
    proof = Proof(fields.get("code", ""), fields.get("signature", ""), lang)
    return await act(request, payment_id, "release", proof)


@router.post(
    "/order/{payment_id}/dispute",
    status_code=303,
    responses=problems(NotFound, NotPermitted, Conflict, TooManyRequests),
    openapi_extra=form(code=CODE, signature=_SIGNATURE, reason=REASON),
    summary="Dispute the payment",
)
async def dispute(request: Request, payment_id: PaymentPath, lang: Language) -> Response:
    """Stop the release until an admin decides."""
    fields = await fields_of(request)
    proof = Proof(fields.get("code", ""), fields.get("signature", ""), lang)
    return await act(request, payment_id, "dispute", proof, reason=fields.get("reason", ""))


async def act(
    request: Request, payment_id: str, purpose: Purpose, proof: Proof, *, reason: str = ""
) -> Response:
    """Act by a proof and go back to the payment's page.

    What the proof is judged by (who paid, how much is held) is fixed once the money is there; the
    act itself locks the payment. Raises NotFound, NotPermitted, Conflict, InvalidRequest.
    """
    order, now_s = await order_of(request, payment_id), int(time.time())
    site = settings_of(request).public_url
    demand(order, purpose, proof, links=links_of(request), site=site, now_s=now_s)
    identity = payer_of(order.payment.merchant_id, request_id_of(request))
    if purpose == "release":
        async with operator_of(request).unit_of_work(identity) as unit:
            await escrow.release(unit, payment_id, released_by=escrow.PAYER)
    else:
        said = _reason(reason)
        async with database_of(request).unit_of_work(identity) as unit:
            await escrow.dispute(unit, payment_id, opened_by=escrow.PAYER, reason=said)
    # The evidence; the audit row of the act has the same request id. The payment's id is left out,
    # since who knows it sees the page.
    _log.info("payer acted", purpose=purpose, signature=proof.signature.strip(), code=proof.code)
    return RedirectResponse(f"/order/{payment_id}?lang={proof.lang}", status_code=303)


async def fields_of(request: Request) -> dict[str, str]:
    """Return the fields of a small form; one that cannot be read has none."""
    try:
        found = parse_qs((await request.body()).decode(), keep_blank_values=True, max_num_fields=8)
    except ValueError:
        return {}
    return {name: values[0] for name, values in found.items()}


def _reason(text: str) -> str:
    try:
        # Browsers send line breaks of a text area as CR LF; our texts are one line.
        return OpenDispute(reason=" ".join(text.split())).reason
    except ValidationError as problem:
        error = FieldError(detail="1 to 1000 characters", pointer="/reason")
        raise InvalidRequest("1 field is not valid", errors=[error]) from problem

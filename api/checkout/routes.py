"""The public pages of one payment; its id is the payer's capability to see it.

To act on escrow takes more: a token that only the payer's page shows, once the money is there. A
GET never acts, and a POST without a token does nothing, so neither a preview of a link nor another
site's form can release money.
"""

import time
from typing import Annotated, Any, Final
from urllib.parse import parse_qs

from fastapi import APIRouter, Header, Path, Query, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from pydantic import ValidationError

from api.checkout import page
from api.checkout.links import PayerLinks, Purpose
from api.checkout.service import act_on_order, open_order
from api.errors import Conflict, FieldError, InvalidRequest, NotFound, NotPermitted
from api.payments import escrow
from api.payments.model import OpenDispute, PaymentId
from api.web import database_of, operator_of, problems, request_id_of, settings_of

router = APIRouter(tags=["checkout"])
PaymentPath = Annotated[PaymentId, Path(examples=["pay_01jz8w5k6h7m9n0p2q3r4s5t6v"])]
Token = Annotated[str, Query(min_length=1, max_length=100)]
Language = Annotated[str, Header()]


def _form(**fields: dict[str, Any]) -> dict[str, Any]:
    """Return the OpenAPI description of a form's body."""
    schema = {"type": "object", "required": list(fields), "properties": fields}
    content = {"application/x-www-form-urlencoded": {"schema": schema}}
    return {"requestBody": {"required": True, "content": content}}


_TOKEN: Final = {"type": "string", "minLength": 1, "maxLength": 100}
_REASON: Final = {"type": "string", "minLength": 1, "maxLength": 1000}


@router.get(
    "/order/{payment_id}",
    response_class=HTMLResponse,
    responses=problems(NotFound),
    summary="The payer's page",
)
async def order(
    request: Request, payment_id: PaymentPath, accept_language: Language = "vi"
) -> Response:
    """Show a payment to its payer; a created payment becomes pending by being shown."""
    payment, merchant = await open_order(
        database_of(request), payment_id, request_id=request_id_of(request)
    )
    html = page.render(
        payment,
        merchant_name=merchant.name,
        timezone=merchant.timezone,
        lang=page.language(accept_language),
        demo=settings_of(request).demo,
        tokens={
            purpose: _links(request).token(payment_id, purpose, now_s=int(time.time()))
            for purpose in page.actions(payment)
        },
    )
    return HTMLResponse(html, headers=page.HEADERS)


@router.get(
    "/order/{payment_id}/release",
    response_class=HTMLResponse,
    responses=problems(NotFound, NotPermitted),
    tags=["escrow"],
    summary="The page on which a payer releases the money",
)
async def release_page(
    request: Request, payment_id: PaymentPath, token: Token, accept_language: Language = "vi"
) -> Response:
    """Ask the payer whether the money may go to the shop; nothing happens by asking."""
    return await _ask(request, payment_id, "release", token, accept_language)


@router.get(
    "/order/{payment_id}/dispute",
    response_class=HTMLResponse,
    responses=problems(NotFound, NotPermitted),
    tags=["escrow"],
    summary="The page on which a payer disputes",
)
async def dispute_page(
    request: Request, payment_id: PaymentPath, token: Token, accept_language: Language = "vi"
) -> Response:
    """Ask the payer what is wrong; nothing happens by asking."""
    return await _ask(request, payment_id, "dispute", token, accept_language)


async def _ask(
    request: Request, payment_id: str, purpose: Purpose, token: str, accept_language: str
) -> Response:
    _demand(request, payment_id, purpose, token)
    payment, merchant = await open_order(
        database_of(request), payment_id, request_id=request_id_of(request)
    )
    html = page.render_question(
        payment,
        purpose,
        token,
        merchant_name=merchant.name,
        lang=page.language(accept_language),
    )
    return HTMLResponse(html, headers=page.HEADERS)


@router.post(
    "/order/{payment_id}/release",
    status_code=303,
    responses=problems(NotFound, NotPermitted, Conflict),
    openapi_extra=_form(token=_TOKEN),
    tags=["escrow"],
    summary="Release the money to the shop",
)
async def release(request: Request, payment_id: PaymentPath) -> Response:
    """Give the shop its money, once, however often it is asked."""
    fields = await _fields(request)
    _demand(request, payment_id, "release", fields.get("token", ""))
    await act_on_order(
        operator_of(request),
        database_of(request),
        payment_id,
        lambda unit: escrow.release(unit, payment_id, released_by=escrow.PAYER),
        request_id=request_id_of(request),
    )
    return RedirectResponse(f"/order/{payment_id}", status_code=303)


@router.post(
    "/order/{payment_id}/dispute",
    status_code=303,
    responses=problems(NotFound, NotPermitted, Conflict),
    openapi_extra=_form(token=_TOKEN, reason=_REASON),
    tags=["escrow"],
    summary="Dispute the payment",
)
async def dispute(request: Request, payment_id: PaymentPath) -> Response:
    """Stop the release until an admin decides."""
    fields = await _fields(request)
    _demand(request, payment_id, "dispute", fields.get("token", ""))
    reason = _reason(fields.get("reason", ""))
    await act_on_order(
        database_of(request),
        database_of(request),
        payment_id,
        lambda unit: escrow.dispute(unit, payment_id, opened_by=escrow.PAYER, reason=reason),
        request_id=request_id_of(request),
    )
    return RedirectResponse(f"/order/{payment_id}", status_code=303)


def _reason(text: str) -> str:
    try:
        # Browsers send line breaks of a text area as CR LF; our texts are one line.
        return OpenDispute(reason=" ".join(text.split())).reason
    except ValidationError as problem:
        error = FieldError(detail="1 to 1000 characters", pointer="/reason")
        raise InvalidRequest("1 field is not valid", errors=[error]) from problem


async def _fields(request: Request) -> dict[str, str]:
    """Return the fields of a small form; one that cannot be read has none."""
    try:
        found = parse_qs((await request.body()).decode(), keep_blank_values=True, max_num_fields=8)
    except ValueError:
        return {}
    return {name: values[0] for name, values in found.items()}


def _links(request: Request) -> PayerLinks:
    return PayerLinks(settings_of(request).sealing_key.get_secret_value())


def _demand(request: Request, payment_id: str, purpose: Purpose, token: str) -> None:
    if not _links(request).is_valid(token, payment_id, purpose, now_s=int(time.time())):
        raise NotPermitted("this link is not valid any more; open the payment's page again")

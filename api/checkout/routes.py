"""The public pages of one payment; its id is the payer's capability to see it, and no more.

To act on escrow takes a proof of the wallet that paid (api.checkout.escrow_routes).
"""

import time

from fastapi import Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from api.checkout import page
from api.checkout.pages import Language, PaymentPath, html, order_of, pages
from api.errors import NotFound, TooManyRequests
from api.web import links_of, problems, settings_of

router = pages("checkout")


@router.get(
    "/order/{payment_id}",
    response_class=HTMLResponse,
    responses=problems(NotFound, TooManyRequests),
    summary="The payer's page",
)
async def order(request: Request, payment_id: PaymentPath, lang: Language) -> Response:
    """Show a payment to its payer; a created payment becomes pending by being shown."""
    found = await order_of(request, payment_id)
    settings, token = settings_of(request), None
    if found.refresh_s is not None:
        token = links_of(request).token(payment_id, "watch", now_s=int(time.time()))
    text = page.render_order(
        found,
        lang=lang,
        public_url=settings.public_url,
        demo=settings.demo,
        live_token=token,
    )
    return html(text)


@router.get(
    "/order/{payment_id}/success",
    response_class=HTMLResponse,
    responses={
        303: {"description": "Not paid yet: to the payer's page"},
        **problems(NotFound, TooManyRequests),
    },
    summary="The receipt",
)
async def success(request: Request, payment_id: PaymentPath, lang: Language) -> Response:
    """Show the receipt of a payment that is paid; of any other, its page."""
    found = await order_of(request, payment_id)
    if not found.is_paid:
        return RedirectResponse(f"/order/{payment_id}?lang={lang}", status_code=303)
    return html(page.render_receipt(found, lang=lang))

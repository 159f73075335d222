"""The public page of one payment; its id is the payer's capability."""

from typing import Annotated, cast

from fastapi import APIRouter, Header, Path, Request, Response
from fastapi.responses import HTMLResponse

from api.checkout import page
from api.checkout.service import open_order
from api.errors import NotFound
from api.payments.model import PaymentId
from api.settings import ApiSettings
from api.web import database_of, problems, request_id_of

router = APIRouter(tags=["checkout"])


@router.get(
    "/order/{payment_id}",
    response_class=HTMLResponse,
    responses=problems(NotFound),
    summary="The payer's page",
)
async def order(
    request: Request,
    payment_id: Annotated[PaymentId, Path()],
    accept_language: Annotated[str, Header()] = "vi",
) -> Response:
    """Show a payment to its payer; a created payment becomes pending by being shown."""
    payment, merchant = await open_order(
        database_of(request), payment_id, request_id=request_id_of(request)
    )
    settings = cast("ApiSettings", request.app.state.settings)
    html = page.render(
        payment,
        merchant_name=merchant.name,
        timezone=merchant.timezone,
        lang=page.language(accept_language),
        demo=settings.demo,
    )
    return HTMLResponse(html, headers=page.HEADERS)

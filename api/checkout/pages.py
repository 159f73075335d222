"""How the payer's pages are routed: limited for each client address, in the reader's language.

A browser that is refused gets a page that says so; any other client gets the problem+json that the
API gives.
"""

from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from api.checkout import assets, page
from api.checkout.service import open_order
from api.checkout.view import Order
from api.checkout.words import Lang, language
from api.errors import GiovangError, InvalidRequest, NotFound
from api.payments.model import PaymentId
from api.web import (
    charge_address,
    database_of,
    operator_of,
    refusal_answer,
    request_id_of,
)

PaymentPath = Annotated[PaymentId, Path(examples=["pay_01jz8w5k6h7m9n0p2q3r4s5t6v"])]


async def reader_language(
    lang: Annotated[Lang | None, Query(description="Instead of Accept-Language")] = None,
    accept_language: Annotated[str, Header()] = "vi",
) -> Lang:
    """Return the language of the page: the one chosen, else the browser's."""
    return language(accept_language, lang)


Language = Annotated[Lang, Depends(reader_language)]


class PageRoute(APIRoute):
    """A route whose refusals are pages for whoever reads pages."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the route's handler, with its refusals shown to browsers as pages."""
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handle(request)
            except (GiovangError, RequestValidationError, HTTPException) as refusal:
                if "text/html" not in request.headers.get("accept", ""):
                    raise
                return await _shown(request, refusal)

        return answer


def pages(tag: str) -> APIRouter:
    """Return a router for pages, each request charged to its client's address."""
    return APIRouter(tags=[tag], route_class=PageRoute, dependencies=[Depends(charge_address)])


def html(text: str, *, status: int = 200) -> Response:
    """Answer with a page under the policy of all pages."""
    return HTMLResponse(text, status_code=status, headers=assets.HEADERS)


async def order_of(request: Request, payment_id: str) -> Order:
    """Return the payment that a page is about; raises NotFound."""
    return await open_order(
        database_of(request),
        operator_of(request),
        payment_id,
        request_id=request_id_of(request),
    )


async def _shown(request: Request, refusal: Exception) -> Response:
    problem = await refusal_answer(request, refusal)
    code = refusal.code if isinstance(refusal, GiovangError) else _codes(problem.status_code)
    chosen = request.query_params.get("lang")
    text = page.render_refusal(
        code,
        lang=language(request.headers.get("accept-language", "vi"), chosen),
        payment_id=None if code == NotFound.code else request.path_params.get("payment_id"),
    )
    answer = html(text, status=problem.status_code)
    if "retry-after" in problem.headers:
        answer.headers["Retry-After"] = problem.headers["retry-after"]
    return answer


def _codes(status: int) -> str:
    """Return the problem's code of what the framework refused."""
    return {404: NotFound.code, 422: InvalidRequest.code}.get(status, "other")

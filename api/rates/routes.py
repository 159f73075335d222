"""HTTP for rates."""

from typing import Annotated, cast

from fastapi import APIRouter, Depends, Request, Response

from api.contract import VND, Asset
from api.errors import NotAuthenticated, NotPermitted, RateUnavailable
from api.people.auth import caller_with
from api.people.model import Caller
from api.rates.model import QuoteList, present
from api.rates.service import Rates
from api.web import json_answer, problems

router = APIRouter(prefix="/api/v1", tags=["rates"])


@router.get(
    "/rates",
    response_model=QuoteList,
    responses=problems(NotAuthenticated, NotPermitted, RateUnavailable),
    summary="List current quotes",
)
async def list_rates(
    request: Request, _: Annotated[Caller, Depends(caller_with("rates:read", at_once=True))]
) -> Response:
    """Return what a payment created now would count one token of each asset as."""
    rates = cast("Rates", request.app.state.rates)
    view = QuoteList(data=[present(await rates.quote(asset, VND)) for asset in Asset])
    return json_answer(view.model_dump_json())

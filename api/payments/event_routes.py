"""HTTP for events."""

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request, Response

from api.errors import NotFound
from api.paging import Paging, paging
from api.payments import events
from api.payments.events import CURSOR_PATTERN, EventType, Order, present_event
from api.payments.model import PaymentId
from api.payments.params import AUTH, EventReader
from api.payments.views import EventList, EventView
from api.people.auth import identity_of
from api.web import database_of, json_answer, problems, settings_of
from api.wording import id_pattern

router = APIRouter(tags=["events"])


@router.get(
    "/events",
    response_model=EventList,
    responses=problems(*AUTH),
    summary="List events",
)
async def list_events(
    *,
    request: Request,
    caller: EventReader,
    page: Annotated[Paging, Depends(paging(CURSOR_PATTERN, example="1042"))],
    order: Annotated[Order, Query()] = "newest_first",
    type: Annotated[  # noqa: A002 - the field's name
        EventType | None, Query(examples=["payment.completed"])
    ] = None,
    payment_id: Annotated[PaymentId | None, Query()] = None,
) -> Response:
    """List what happened, numbered without gaps; page on with the id or `seq` of an event.

    To follow from where you were, ask `order=oldest_first` with `starting_after`.
    """
    async with database_of(request).unit_of_work(identity_of(request, caller)) as unit:
        found, has_more = await events.page(
            unit, page, mode=caller.mode, order=order, type_=type, payment_id=payment_id
        )
    public_url = settings_of(request).public_url
    view = EventList(
        data=[
            present_event(event, merchant_name=caller.merchant_name, public_url=public_url)
            for event in found
        ],
        has_more=has_more,
    )
    return json_answer(view.model_dump_json())


@router.get(
    "/events/{event_id}",
    response_model=EventView,
    responses=problems(*AUTH, NotFound),
    summary="Read an event",
)
async def get_event(
    request: Request,
    event_id: Annotated[
        str, Path(pattern=id_pattern("evt"), examples=["evt_01jz8w5k6h7m9n0p2q3r4s5t6v"])
    ],
    caller: EventReader,
) -> Response:
    """Return an event of yours, with its subject as it was then."""
    async with database_of(request).unit_of_work(identity_of(request, caller)) as unit:
        event = await events.get(unit, event_id, mode=caller.mode)
    public_url = settings_of(request).public_url
    view = present_event(event, merchant_name=caller.merchant_name, public_url=public_url)
    return json_answer(view.model_dump_json())

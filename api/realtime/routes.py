"""HTTP for live status: a token for a page, and the two addresses that it watches."""

import time
from datetime import UTC, datetime
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from starlette.routing import WebSocketRoute

from api.errors import LiveFull, NotFound
from api.payments import service as payments
from api.payments.params import AUTH, PaymentPath, Reader
from api.people.auth import KEY_SCHEME, LIVE_TOKEN_SCHEME, SESSION_SCHEME, identity_of
from api.realtime.model import LiveTokenView
from api.realtime.service import SCOPE, Permit, charge_opening, permit
from api.realtime.sockets import HIGHEST_SEQ, EventStream, LiveSocket
from api.security import LINK_LIFETIME_S
from api.web import database_of, json_answer, links_of, problems, settings_of

router = APIRouter(prefix="/api/v1/payments/{payment_id}", tags=["live status"])
# Beside the router, since it is served as plain ASGI; docs/live.md describes it.
WEBSOCKET_ROUTE: Final = WebSocketRoute(
    "/api/v1/payments/{payment_id}/ws", LiveSocket(), name="live_socket"
)
_MEDIA_TYPE: Final = EventStream.media_type
_EXAMPLE: Final = (
    "event: state\n"
    "id: 1\n"
    'data: {"type":"state","seq":1,"payment":{"id":"pay_01jz8w5k6h7m9n0p2q3r4s5t6v",…}}\n\n'
)
Number = Annotated[int | None, Query(ge=0, le=HIGHEST_SEQ, examples=[1])]


async def _watching(
    request: Request,
    payment_id: PaymentPath,
    token: Annotated[
        str | None,
        Query(min_length=1, max_length=100, description="A live token, instead of the header"),
    ] = None,
) -> Permit:
    """Return the caller's leave to watch the payment."""
    await charge_opening(request)
    return await permit(request, payment_id, token)


_watching.security = (KEY_SCHEME, SESSION_SCHEME, LIVE_TOKEN_SCHEME)  # type: ignore[attr-defined]
_watching.scope = SCOPE  # type: ignore[attr-defined]


@router.post(
    "/live-token",
    response_model=LiveTokenView,
    responses=problems(NotFound, *AUTH),
    summary="Let a page watch a payment",
)
async def make_live_token(request: Request, caller: Reader, payment_id: PaymentPath) -> Response:
    """Return a token by which a page of yours watches this payment for fifteen minutes.

    It permits nothing else, so it may be shown to the payer. Ask for another when it has ended.
    """
    async with database_of(request).unit_of_work(identity_of(request, caller)) as unit:
        await payments.get(unit, payment_id, mode=caller.mode)
    settings, now_s = settings_of(request), int(time.time())
    token = links_of(request).token(payment_id, "watch", now_s=now_s)
    here = f"{settings.public_url}/api/v1/payments/{payment_id}"
    view = LiveTokenView(
        token=token,
        expires_at=datetime.fromtimestamp(now_s + LINK_LIFETIME_S, UTC),
        ws_url=f"ws{here.removeprefix('http')}/ws?token={token}",
        sse_url=f"{here}/sse?token={token}",
    )
    return json_answer(view.model_dump_json())


@router.get(
    "/sse",
    status_code=200,
    response_class=EventStream,
    responses={
        200: {
            "description": "Server-sent events `state`, `event`, `ping` and `end`; the `id` is the "
            "payment's own number of the event. See docs/live.md.",
            "content": {
                _MEDIA_TYPE: {
                    "schema": {"type": "string"},
                    "examples": {"state": {"value": _EXAMPLE}},
                }
            },
        },
        **problems(NotFound, LiveFull, *AUTH),
    },
    summary="Watch a payment",
)
async def watch(
    request: Request,
    leave: Annotated[Permit, Depends(_watching)],
    after: Number = None,
    last_event_id: Annotated[
        int | None,
        Header(ge=0, le=HIGHEST_SEQ, description="What a browser sends when it connects again"),
    ] = None,
) -> Response:
    """Stream the payment's state and then each of its events, in order and once.

    With `after`, or the header Last-Event-ID, every event after that number instead of the state.
    The stream ends with the token, the key or the session; the same messages come by WebSocket from
    `/ws` beside this address.
    """
    return EventStream(request, leave, after if last_event_id is None else last_event_id)

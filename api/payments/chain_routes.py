"""HTTP for admins: how the chain's providers do, and which lines of its history wait."""

from datetime import datetime
from typing import Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from api.chain import watch_store
from api.payments.params import AUTH, PaymentAdmin
from api.people.auth import identity_of
from api.web import json_answer, operator_of, problems

router = APIRouter(prefix="/admin", tags=["admin"])
_MOST_LINES = 100


class ProviderView(BaseModel):
    """A configured provider, as the watcher last told."""

    object: Literal["chain_provider"] = "chain_provider"
    number: int = Field(description="Its place in the watcher's settings")
    name: str = Field(examples=["1 (rpc.example.net)"])
    state: str = Field(examples=["well"], description="well, lagging, disagreeing or failing")
    finalized_slot: int
    lag_slots: int = Field(description="Behind the provider that is furthest")
    calls: int = Field(description="Since the watcher started")
    failures: int = Field(description="In a row, up to now")
    last_error: str | None
    answered_at: datetime | None
    disagreements: int = Field(description="Chain transactions told differently since the start")
    disagreed_at: datetime | None
    disagreed_about: str | None = Field(description="A signature")
    updated_at: datetime


class AsideView(BaseModel):
    """A line of a token account's history that is not booked yet, and why."""

    object: Literal["chain_line"] = "chain_line"
    signature: str
    token_account: str
    slot: int
    reason: str = Field(examples=["contradicted"])
    attempts: int
    found_at: datetime
    next_at: datetime


class ChainView(BaseModel):
    """How watching the chain goes."""

    object: Literal["chain"] = "chain"
    providers: list[ProviderView]
    waiting: list[AsideView] = Field(description="The hundred that wait longest")


@router.get(
    "/chain",
    response_model=ChainView,
    responses=problems(*AUTH),
    summary="See how the chain is watched",
)
async def get_chain(request: Request, admin: PaymentAdmin) -> Response:
    """Show the providers' standing and what is not booked because they differ."""
    async with operator_of(request).unit_of_work(identity_of(request, admin)) as unit:
        providers = await watch_store.providers(unit)
        waiting = await watch_store.aside(unit, limit=_MOST_LINES)
    view = ChainView(
        providers=[ProviderView.model_validate(one, from_attributes=True) for one in providers],
        waiting=[AsideView.model_validate(one, from_attributes=True) for one in waiting],
    )
    return json_answer(view.model_dump_json())

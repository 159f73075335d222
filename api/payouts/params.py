"""What the routes of payouts take from a request: who calls, which payout, under which key."""

from typing import Annotated

from fastapi import Depends, Path

from api.errors import (
    IdempotencyKeyInProgress,
    IdempotencyKeyMissing,
    IdempotencyKeyReused,
    NotAuthenticated,
    NotPermitted,
)
from api.paging import Paging, by_id
from api.payouts.model import PayoutId
from api.people.auth import admin_with, caller_with, person_with
from api.people.model import Caller
from api.web import idempotency_key

Reader = Annotated[Caller, Depends(caller_with("payouts:read"))]
Writer = Annotated[Caller, Depends(caller_with("payouts:write"))]
Approver = Annotated[Caller, Depends(person_with("payouts:approve"))]
PayoutAdmin = Annotated[Caller, Depends(admin_with("payouts:approve"))]
Key = Annotated[str, Depends(idempotency_key)]
PayoutPath = Annotated[PayoutId, Path(examples=["pyo_01jz8w5k6h7m9n0p2q3r4s5t6v"])]
Page = Annotated[Paging, Depends(by_id("pyo"))]

AUTH = (NotAuthenticated, NotPermitted)
ONCE = (IdempotencyKeyMissing, IdempotencyKeyInProgress, IdempotencyKeyReused)

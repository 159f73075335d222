"""What the routes of payments take from a request: who calls, which payment, under which key."""

from typing import Annotated

from fastapi import Depends, Path

from api.errors import (
    IdempotencyKeyInProgress,
    IdempotencyKeyMissing,
    IdempotencyKeyReused,
    NotAuthenticated,
    NotPermitted,
)
from api.payments.model import PaymentId
from api.people.auth import admin_with, caller_with
from api.people.model import Caller
from api.web import idempotency_key

Reader = Annotated[Caller, Depends(caller_with("payments:read"))]
Writer = Annotated[Caller, Depends(caller_with("payments:write"))]
Disputer = Annotated[Caller, Depends(caller_with("disputes:write"))]
RefundReader = Annotated[Caller, Depends(caller_with("refunds:read"))]
Refunder = Annotated[Caller, Depends(caller_with("refunds:write"))]
EventReader = Annotated[Caller, Depends(caller_with("events:read"))]
PaymentAdmin = Annotated[Caller, Depends(admin_with("payments:write"))]
RefundAdmin = Annotated[Caller, Depends(admin_with("refunds:write"))]
DisputeAdmin = Annotated[Caller, Depends(admin_with("disputes:write"))]
Key = Annotated[str, Depends(idempotency_key)]
PaymentPath = Annotated[PaymentId, Path(examples=["pay_01jz8w5k6h7m9n0p2q3r4s5t6v"])]

AUTH = (NotAuthenticated, NotPermitted)
ONCE = (IdempotencyKeyMissing, IdempotencyKeyInProgress, IdempotencyKeyReused)

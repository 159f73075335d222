"""Every way the api room says no, and how that looks over HTTP (RFC 9457).

One root class. Each subclass carries its HTTP status and its code, a word that clients may branch
on; the sentence is for people. `app.py` turns any of them into `application/problem+json`, in one
place. An exception that is not a GiovangError is a defect and becomes a 500 without detail.
"""

# Refusals are named by what they tell a client, without a suffix that all of them would share.
# ruff: noqa: N818

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, Field

PROBLEM_JSON = "application/problem+json"


UnpayableReason = Literal["expired", "confirming", "paid"]


class FieldError(BaseModel):
    """One thing wrong with a request, and where (a JSON pointer, RFC 6901)."""

    detail: str
    pointer: str


class Problem(BaseModel):
    """The body of every error, RFC 9457 with our code, request id and field errors."""

    type: str = Field(examples=["urn:giovang:problem:invalid_request"])
    title: str = Field(examples=["The request is not valid"])
    status: int = Field(examples=[422])
    detail: str = Field(examples=["1 field is not valid"])
    instance: str = Field(examples=["/api/v1/payments"])
    code: str = Field(examples=["invalid_request"])
    request_id: str = Field(examples=["req_01jz8w5k6h7m9n0p2q3r4s5t6v"])
    errors: list[FieldError] = []


class GiovangError(Exception):
    """The root of all refusals; `detail` says what to do about this one."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    title: ClassVar[str] = "Something went wrong on our side"
    # Seconds after which the same request may do better; an error may know better than its class.
    retry_after_s: int | None = None

    def __init__(self, detail: str, *, errors: list[FieldError] | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = errors or []

    def problem(self, *, instance: str, request_id: str) -> dict[str, Any]:
        """Return the body of the answer to `request_id`."""
        return Problem(
            type=f"urn:giovang:problem:{self.code}",
            title=self.title,
            status=self.status,
            detail=self.detail,
            instance=instance,
            code=self.code,
            request_id=request_id,
            errors=self.errors,
        ).model_dump()


class InvalidRequest(GiovangError):
    """A field is missing, malformed or out of range; `errors` points at each."""

    status = 422
    code = "invalid_request"
    title = "The request is not valid"


class MalformedRequest(GiovangError):
    """The body is not the JSON that was announced."""

    status = 400
    code = "malformed_request"
    title = "The request cannot be read"


class BodyTooLarge(GiovangError):
    """The body is longer than any valid one."""

    status = 413
    code = "body_too_large"
    title = "The request body is too large"


class UnsupportedMedia(GiovangError):
    """The body is announced as something other than JSON."""

    status = 415
    code = "unsupported_media"
    title = "The request body is not application/json"


class TooManyRequests(GiovangError):
    """The caller's bucket is empty; `retry_after_s` says when it holds a token again."""

    status = 429
    code = "too_many_requests"
    title = "Too many requests"
    retry_after_s = 1

    def __init__(self, detail: str, *, retry_after_s: int = 1) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class NotAuthenticated(GiovangError):
    """No key or session, or not one of ours, or one that has ended."""

    status = 401
    code = "not_authenticated"
    title = "The key, session or password is not valid"


class NotPermitted(GiovangError):
    """The caller is known and their scopes do not reach this far."""

    status = 403
    code = "not_permitted"
    title = "This caller may not do that"


class NotFound(GiovangError):
    """There is no such thing, or it belongs to someone else: the answer is the same."""

    status = 404
    code = "not_found"
    title = "There is no such thing"


class MethodNotAllowed(GiovangError):
    """The address exists and does not take this method."""

    status = 405
    code = "method_not_allowed"
    title = "This address does not take that method"


class IdempotencyKeyMissing(GiovangError):
    """A request that moves money came without its key."""

    status = 400
    code = "idempotency_key_missing"
    title = "The Idempotency-Key header is missing"


class IdempotencyKeyInProgress(GiovangError):
    """The first request under this key has not been answered yet."""

    status = 409
    code = "idempotency_key_in_progress"
    title = "A request with this Idempotency-Key is in progress"
    retry_after_s = 1


class IdempotencyKeyReused(GiovangError):
    """The key was used for a request with another content."""

    status = 422
    code = "idempotency_key_reused"
    title = "This Idempotency-Key was used for another request"


class Conflict(GiovangError):
    """What exists does not allow it; `detail` says what."""

    status = 409
    code = "conflict"
    title = "The current state does not allow that"


class NotPayable(GiovangError):
    """Money sent for this payment now would not pay it; `reason` says why, in one word."""

    status = 409
    code = "not_payable"
    title = "This payment takes no money now"

    def __init__(self, detail: str, *, reason: UnpayableReason = "expired") -> None:
        super().__init__(detail)
        self.reason = reason


class InsufficientBalance(GiovangError):
    """More was asked for than is available."""

    status = 409
    code = "insufficient_balance"
    title = "The available balance does not cover that"


class RefundExceedsPayment(GiovangError):
    """The refund, with those before it, is more than was paid."""

    status = 409
    code = "refund_exceeds_payment"
    title = "A payment cannot return more than was paid"


class RateUnavailable(GiovangError):
    """No rate, or none fresh enough to promise."""

    status = 503
    code = "rate_unavailable"
    title = "There is no current exchange rate"
    retry_after_s = 5


class DatabaseUnavailable(GiovangError):
    """PostgreSQL cannot be reached, or gave up waiting; the same request may be sent again."""

    status = 503
    code = "database_unavailable"
    title = "The ledger is not available right now"
    retry_after_s = 2


class LiveFull(GiovangError):
    """This process holds as many live connections as it may; another has room, or soon this one."""

    status = 503
    code = "live_full"
    title = "There are too many live connections right now"
    retry_after_s = 5


class ChainUnavailable(GiovangError):
    """The Solana RPC did not answer in time, or not in a way that can be trusted."""

    status = 503
    code = "chain_unavailable"
    title = "The Solana network is not available right now"
    retry_after_s = 2

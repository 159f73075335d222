"""Merchants and who may act for them, as rows and as request and response bodies."""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Final, Literal
from zoneinfo import available_timezones

from pydantic import AfterValidator, BaseModel, Field, StringConstraints

from api.database import ID_BODY
from api.security import Mode
from api.web import Strict, Text

SCOPES: Final = (
    "payments:read",
    "payments:write",
    "refunds:write",
    "payouts:write",
    "balance:read",
)
ScopeName = Literal[
    "payments:read", "payments:write", "refunds:write", "payouts:write", "balance:read"
]
MerchantId = Annotated[str, StringConstraints(pattern=f"^mer_{ID_BODY}$")]


def _known_timezone(name: str) -> str:
    if name not in available_timezones():
        raise ValueError("not a time zone of the IANA database")
    return name


class MerchantBody(Strict):
    """What an admin says about a merchant."""

    name: Annotated[Text, StringConstraints(min_length=1, max_length=200)] = Field(
        examples=["Cà phê Sông Hàn"]
    )
    trade: Annotated[Text, StringConstraints(min_length=1, max_length=100)] = Field(
        examples=["cafe"]
    )
    timezone: Annotated[str, AfterValidator(_known_timezone)] = "Asia/Ho_Chi_Minh"
    country: Annotated[str, StringConstraints(pattern=r"^[A-Z]{2}$")] = "VN"
    fee_bps: int = Field(default=100, ge=0, le=10_000, description="1 % is 100")


class MerchantView(BaseModel):
    """A merchant as the API shows it."""

    object: Literal["merchant"] = "merchant"
    id: str
    name: str
    trade: str
    timezone: str
    country: str
    fee_bps: int
    created_at: datetime
    updated_at: datetime


class KeyBody(Strict):
    """What a new API key may do."""

    mode: Mode = "test"
    scopes: list[ScopeName] = Field(default=list(SCOPES), min_length=1, max_length=len(SCOPES))


class KeyView(BaseModel):
    """A new API key; `key` is shown this once."""

    object: Literal["api_key"] = "api_key"
    id: str
    mode: str
    scopes: list[str]
    key: str = Field(examples=["gv_test_4f0c…"])


class StaffBody(Strict):
    """A person who may sign in for a merchant."""

    email: Annotated[
        str, StringConstraints(pattern=r"^[^@\s\x00-\x1f]{1,64}@[^@\s\x00-\x1f]{1,189}$")
    ]
    password: Annotated[str, StringConstraints(min_length=8, max_length=200)]
    role: Literal["owner", "manager", "viewer"] = "owner"


class StaffView(BaseModel):
    """A member of staff as the API shows it."""

    object: Literal["staff"] = "staff"
    id: str
    email: str
    role: str


class LoginBody(Strict):
    """Email and password of a member of staff."""

    email: Annotated[str, StringConstraints(min_length=3, max_length=254)]
    password: Annotated[str, StringConstraints(min_length=1, max_length=200)]


class SessionMerchant(BaseModel):
    """Whose figures the session may see."""

    id: str
    name: str
    timezone: str


class SessionView(BaseModel):
    """A session: a JWT signed with Ed25519."""

    object: Literal["session"] = "session"
    token: str
    expires_at: datetime
    merchant: SessionMerchant


@dataclass(frozen=True, slots=True)
class KeyHolder:
    """Who an API key speaks for."""

    key_id: str
    mode: str
    scopes: list[str]
    merchant_id: str
    merchant_name: str


@dataclass(frozen=True, slots=True)
class StaffLogin:
    """What signing in needs to know about a person."""

    staff_id: str
    password_hash: str
    role: str
    merchant_id: str
    merchant_name: str
    timezone: str


@dataclass(frozen=True, slots=True)
class Merchant:
    """A merchant's row."""

    id: str
    name: str
    trade: str
    timezone: str
    country: str
    fee_bps: int
    created_at: datetime
    updated_at: datetime

"""Who calls and how far they reach: the caller, scopes and roles, and the rows behind them."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Final, Literal, get_args

from pydantic import BaseModel, Field, StringConstraints

from api.security import Mode, PersonKind
from api.web import Strict, Text
from api.wording import id_pattern, worded

Scope = Literal[
    "merchants:read",
    "merchants:write",
    "payments:read",
    "payments:write",
    "refunds:read",
    "refunds:write",
    "payouts:read",
    "payouts:write",
    "payouts:approve",
    "balance:read",
    "events:read",
    "disputes:write",
    "rates:read",
    "keys:write",
    "staff:write",
    "admins:write",
]
Kind = Literal["key", "staff", "admin"]
StaffRole = Literal["owner", "manager", "viewer"]

ALL_SCOPES: Final[frozenset[str]] = frozenset(get_args(Scope))

# What a program may be trusted with. The rest is for people: a key can be copied, and whoever holds
# one that makes keys or approves payouts holds the merchant.
KeyScope = Literal[
    "merchants:read",
    "payments:read",
    "payments:write",
    "refunds:read",
    "refunds:write",
    "payouts:read",
    "payouts:write",
    "balance:read",
    "events:read",
    "disputes:write",
    "rates:read",
]
KEY_SCOPES: Final[tuple[KeyScope, ...]] = get_args(KeyScope)

_VIEWER: Final[frozenset[str]] = frozenset(
    {
        "merchants:read",
        "payments:read",
        "refunds:read",
        "payouts:read",
        "balance:read",
        "events:read",
        "rates:read",
    }
)
_MANAGER: Final[frozenset[str]] = _VIEWER | {
    "payments:write",
    "refunds:write",
    "payouts:write",
    "disputes:write",
}
_OWNER: Final[frozenset[str]] = _MANAGER | {
    "merchants:write",
    "payouts:approve",
    "keys:write",
    "staff:write",
}
ROLE_SCOPES: Final[Mapping[str, frozenset[str]]] = {
    "viewer": _VIEWER,
    "manager": _MANAGER,
    "owner": _OWNER,
    "admin": ALL_SCOPES,
}
# What the admin key of the environment may do: bring the first merchants and people in, no more.
BOOTSTRAP_SCOPES: Final[frozenset[str]] = frozenset(
    {"merchants:read", "merchants:write", "keys:write", "staff:write", "admins:write"}
)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request, proved: an API key, a member of staff, or an admin.

    `actor` is the id that the audit shows. Of an admin, `merchant_id` is None.
    """

    actor: str
    kind: Kind
    merchant_id: str | None
    merchant_name: str
    mode: Mode
    scopes: frozenset[str]
    role: str


@dataclass(frozen=True, slots=True)
class KeyHolder:
    """Who an API key speaks for, as PostgreSQL knows it."""

    key_id: str
    mode: Mode
    scopes: list[str]
    merchant_id: str
    merchant_name: str


@dataclass(frozen=True, slots=True)
class StaffLogin:
    """What signing in needs to know about a member of staff."""

    staff_id: str
    password_hash: str
    role: str
    merchant_id: str
    merchant_name: str
    timezone: str


@dataclass(frozen=True, slots=True)
class AdminLogin:
    """What signing in needs to know about an admin; the second factor's secret is sealed."""

    admin_id: str
    email: str
    password_hash: str
    role: str
    totp_sealed: bytes | None
    totp_confirmed_at: datetime | None
    disabled_at: datetime | None


@dataclass(frozen=True, slots=True)
class Staff:
    """A member of staff's row, without the password."""

    id: str
    email: str
    role: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Admin:
    """An admin's row, without password and second factor."""

    id: str
    email: str
    role: str
    totp_confirmed_at: datetime | None
    created_at: datetime
    disabled_at: datetime | None


@dataclass(frozen=True, slots=True)
class ApiKey:
    """An API key's row, without its digest."""

    id: str
    mode: str
    key_prefix: str
    scopes: list[str]
    created_at: datetime
    revoked_at: datetime | None


@dataclass(frozen=True, slots=True)
class Person:
    """Who a session is for, as they stand now; an admin has no merchant."""

    person_id: str
    role: str
    merchant_id: str | None
    merchant_name: str
    timezone: str


@dataclass(frozen=True, slots=True)
class EndedSession:
    """A session that PostgreSQL has just ended, for the cache to learn of."""

    id: str
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class SessionStatus:
    """Whether a session counts: `open`, `rotated` or `revoked`."""

    status: str


Email = Annotated[
    str,
    StringConstraints(
        pattern=worded(
            r"^[^@\x00-\x20\x7f-\xa0]{1,64}@[^@\x00-\x20\x7f-\xa0]{1,189}$", "an email address"
        )
    ),
]
Password = Annotated[str, StringConstraints(min_length=8, max_length=200)]
AdminPassword = Annotated[str, StringConstraints(min_length=12, max_length=200)]
Code = Annotated[
    str,
    StringConstraints(pattern=worded(r"^[0-9]{6}$", "the six digits that the authenticator shows")),
]
KeyId = Annotated[str, StringConstraints(pattern=id_pattern("key"))]
StaffId = Annotated[str, StringConstraints(pattern=id_pattern("stf"))]
AdminId = Annotated[str, StringConstraints(pattern=id_pattern("adm"))]


class KeyBody(Strict):
    """What a new API key may do."""

    mode: Mode = "test"
    scopes: list[KeyScope] = Field(
        default=list(KEY_SCOPES), min_length=1, max_length=len(KEY_SCOPES)
    )


class KeyView(BaseModel):
    """An API key without its secret, of which only the beginning is kept."""

    object: Literal["api_key"] = "api_key"
    id: str = Field(examples=["key_01jz8w5k6h7m9n0p2q3r4s5t6v"])
    mode: str
    scopes: list[str]
    prefix: str = Field(examples=["gv_test_4f0c12ab"])
    created_at: datetime
    revoked_at: datetime | None


class NewKeyView(BaseModel):
    """A new API key; `key` is shown this once."""

    object: Literal["api_key"] = "api_key"
    id: str = Field(examples=["key_01jz8w5k6h7m9n0p2q3r4s5t6v"])
    mode: str
    scopes: list[str]
    key: str = Field(examples=["gv_test_4f0c…"])


class KeyList(BaseModel):
    """A page of API keys, newest first."""

    object: Literal["list"] = "list"
    data: list[KeyView]
    has_more: bool


class StaffBody(Strict):
    """A person who may sign in for a merchant."""

    email: Email
    password: Password
    role: StaffRole = "owner"


class StaffChange(Strict):
    """What to change about a member of staff; what is left out stays."""

    role: StaffRole | None = None
    password: Password | None = None


class StaffView(BaseModel):
    """A member of staff as the API shows it."""

    object: Literal["staff"] = "staff"
    id: str = Field(examples=["stf_01jz8w5k6h7m9n0p2q3r4s5t6v"])
    email: str
    role: str
    created_at: datetime


class StaffList(BaseModel):
    """A page of staff, newest first."""

    object: Literal["list"] = "list"
    data: list[StaffView]
    has_more: bool


class AdminBody(Strict):
    """An admin; the password may be left out where it is to stay."""

    email: Email
    password: AdminPassword | None = None
    disabled: bool = False


class AdminView(BaseModel):
    """An admin as the API shows it."""

    object: Literal["admin"] = "admin"
    id: str = Field(examples=["adm_01jz8w5k6h7m9n0p2q3r4s5t6v"])
    email: str
    second_factor_confirmed_at: datetime | None
    created_at: datetime
    disabled_at: datetime | None


class AdminList(BaseModel):
    """A page of admins, newest first."""

    object: Literal["list"] = "list"
    data: list[AdminView]
    has_more: bool


class LoginBody(Strict):
    """Email and password of a member of staff."""

    email: Annotated[Text, StringConstraints(min_length=3, max_length=254)]
    password: Annotated[str, StringConstraints(min_length=1, max_length=200)]


class AdminLoginBody(LoginBody):
    """Email, password and the current code; the code is left out until one is enrolled."""

    code: Code | None = None


class CodeBody(Strict):
    """The current code of an authenticator app."""

    code: Code


class TotpView(BaseModel):
    """A new second factor, shown this once: the address that authenticator apps scan."""

    object: Literal["second_factor"] = "second_factor"
    uri: str = Field(examples=["otpauth://totp/Giovang:an@giovang.vn?secret=…&issuer=Giovang"])


class SessionMerchant(BaseModel):
    """Whose figures the session may see."""

    id: str
    name: str
    timezone: str


class SessionView(BaseModel):
    """A session: a JWT signed with Ed25519, valid until `expires_at`.

    `rotate_until` is how long it can be exchanged for its successor. An admin whose
    `second_factor` is false may only enrol one.
    """

    object: Literal["session"] = "session"
    token: str
    kind: PersonKind
    role: str
    second_factor: bool
    expires_at: datetime
    rotate_until: datetime
    merchant: SessionMerchant | None = Field(description="null for an admin")

"""Who is logged in: a token signed by the API, kept in the browser session and nowhere else.

`current_merchant` proves the token anew at every rerun of a page and of a fragment; the merchant
comes from its claims and never from the URL or a widget. A token that is expired, forged, meant for
someone else or incomplete counts as none, and the reason is kept for the login page. A token that
nears its end is exchanged at the API for its successor, until twelve hours after logging in; where
the API is away, the token at hand counts until it ends.
"""

import re
import time
from dataclasses import dataclass
from enum import StrEnum
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import httpx
import jwt
import streamlit as st
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from dashboards.settings import DashboardSettings
from infra.telemetry import get_logger

AUDIENCE: Final = "giovang"
ISSUER: Final = "giovang-api"
LOGIN_DEADLINE_S: Final = 10.0
# A page waits for these, so their deadline is short; what they miss, the next rerun does.
ROTATION_DEADLINE_S: Final = 3.0
ROTATE_BEFORE_END_S: Final = 15 * 60
ROTATE_EVERY_S: Final = 60.0
# How long after logging in the API exchanges tokens, as its sessions have it.
FAMILY_LIFETIME_S: Final = 12 * 3600
# The API hashes passwords with argon2; anything longer is not a password but an attack.
MAX_CREDENTIAL_CHARS: Final = 256
_MERCHANT_ID: Final = re.compile(r"mer_[0-9a-z]{26}")
_TOKEN: Final = "session_token"  # noqa: S105 - the name of a slot, not a token
_PARTING: Final = "session_parting"
_ROTATION: Final = "session_rotation_tried"
_log = get_logger(__name__)


class Refusal(StrEnum):
    """Why someone is not logged in; the values are keys of the locales."""

    WRONG = "login.wrong"
    MISSING = "login.missing"
    TOO_MANY = "login.too_many"
    API_AWAY = "login.api_away"
    API_BROKEN = "login.api_broken"
    EXPIRED = "login.expired"
    INVALID = "login.invalid"


class SessionError(Exception):
    """No valid session; `refusal` says why."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.value)
        self.refusal = refusal


@dataclass(frozen=True, slots=True)
class Merchant:
    """The merchant whose token was proved."""

    id: str
    name: str
    timezone: ZoneInfo


def verify(token: str, key: Ed25519PublicKey) -> Merchant:
    """Return the merchant a token speaks for; SessionError where it proves nothing."""
    try:
        claims = jwt.decode(
            token,
            key,
            algorithms=["EdDSA"],
            audience=AUDIENCE,
            issuer=ISSUER,
            options={"require": ["exp", "sub", "aud", "iss"]},
        )
    except jwt.ExpiredSignatureError as error:
        raise SessionError(Refusal.EXPIRED) from error
    except jwt.InvalidTokenError as error:
        raise SessionError(Refusal.INVALID) from error
    merchant_id, name, zone = (claims.get(k) for k in ("merchant_id", "merchant_name", "timezone"))
    if not (isinstance(merchant_id, str) and isinstance(name, str) and isinstance(zone, str)):
        raise SessionError(Refusal.INVALID)
    if not _MERCHANT_ID.fullmatch(merchant_id):
        raise SessionError(Refusal.INVALID)
    try:
        return Merchant(id=merchant_id, name=name, timezone=ZoneInfo(zone))
    except (ZoneInfoNotFoundError, ValueError) as error:
        raise SessionError(Refusal.INVALID) from error


def exchange(
    email: str, password: str, api_url: str, transport: httpx.BaseTransport | None = None
) -> str:
    """Exchange credentials for a token at the API; SessionError says why there is none."""
    if not email.strip() or not password:
        raise SessionError(Refusal.MISSING)
    if max(len(email), len(password)) > MAX_CREDENTIAL_CHARS:
        raise SessionError(Refusal.WRONG)
    try:
        with httpx.Client(
            base_url=api_url, timeout=LOGIN_DEADLINE_S, transport=transport, trust_env=False
        ) as client:
            answer = client.post(
                "/api/v1/sessions", json={"email": email.strip(), "password": password}
            )
    except httpx.HTTPError as error:
        raise SessionError(Refusal.API_AWAY) from error
    if answer.status_code in {400, 401, 403, 404, 422}:
        raise SessionError(Refusal.WRONG)
    if answer.status_code == 429:
        raise SessionError(Refusal.TOO_MANY)
    if answer.status_code in {502, 503, 504}:
        raise SessionError(Refusal.API_AWAY)
    try:
        token = answer.raise_for_status().json()["token"]
    except (httpx.HTTPStatusError, ValueError, KeyError, TypeError) as error:
        raise SessionError(Refusal.API_BROKEN) from error
    if not isinstance(token, str):
        raise SessionError(Refusal.API_BROKEN)
    return token


def is_due(token: str, now: float) -> bool:
    """Say whether a proved token nears its end and a successor would outlive it; `now` in s."""
    claims = jwt.decode(token, options={"verify_signature": False})
    end, logged_in = claims["exp"], claims.get("auth_time")
    if not isinstance(logged_in, int):
        return False
    return bool(end - now < ROTATE_BEFORE_END_S and end < logged_in + FAMILY_LIFETIME_S)


def rotate(token: str, api_url: str, transport: httpx.BaseTransport | None = None) -> str | None:
    """Exchange a token for its successor; None where the API cannot say.

    Raises SessionError where the API does not know the session any more: it was ended elsewhere.
    """
    try:
        with httpx.Client(
            base_url=api_url, timeout=ROTATION_DEADLINE_S, transport=transport, trust_env=False
        ) as client:
            answer = client.post(
                "/api/v1/sessions/rotate", headers={"Authorization": f"Bearer {token}"}
            )
            if answer.status_code == 401:
                raise SessionError(Refusal.EXPIRED)
            successor = answer.raise_for_status().json()["token"]
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        _log.warning("session not rotated", problem=type(error).__name__)
        return None
    return successor if isinstance(successor, str) else None


def log_in(email: str, password: str, settings: DashboardSettings) -> Merchant:
    """Exchange credentials and keep the token; SessionError where the API or its token fails."""
    token = exchange(email, password, settings.api_url)
    merchant = verify(token, settings.verification_key)
    st.session_state[_TOKEN] = token
    st.session_state.pop(_PARTING, None)
    return merchant


def sign_out(settings: DashboardSettings) -> None:
    """End the session at the API and forget the token; what the API misses ends within the hour."""
    token = st.session_state.get(_TOKEN)
    log_out()
    if token is None:
        return
    try:
        with httpx.Client(
            base_url=settings.api_url, timeout=ROTATION_DEADLINE_S, trust_env=False
        ) as client:
            client.delete("/api/v1/sessions/current", headers={"Authorization": f"Bearer {token}"})
    except httpx.HTTPError as error:
        _log.warning("session not ended at the API", problem=type(error).__name__)


def log_out(parting: Refusal | None = None) -> None:
    """Forget the token; `parting` is what the login page says about it."""
    st.session_state.pop(_TOKEN, None)
    if parting is not None:
        st.session_state[_PARTING] = parting


def parting_words() -> Refusal | None:
    """Why the last session ended, once."""
    parting = st.session_state.pop(_PARTING, None)
    return Refusal(parting) if parting is not None else None


def current_merchant(settings: DashboardSettings) -> Merchant | None:
    """Return who is logged in, proved at this very rerun; None for nobody."""
    token = st.session_state.get(_TOKEN)
    if token is None:
        return None
    try:
        merchant = verify(token, settings.verification_key)
        successor = _successor(token, settings)
        if successor is not None:
            merchant = verify(successor, settings.verification_key)
            st.session_state[_TOKEN] = successor
    except SessionError as error:
        log_out(error.refusal)
        return None
    return merchant


def proved_merchant(settings: DashboardSettings) -> Merchant:
    """Return who is logged in, for a fragment; with nobody the app reruns, to the login page."""
    merchant = current_merchant(settings)
    if merchant is None:
        st.rerun(scope="app")
    return merchant


def _successor(token: str, settings: DashboardSettings) -> str | None:
    """Return the successor of a token that is due for one, asking at most once a minute."""
    now = time.time()
    if not is_due(token, now) or now - st.session_state.get(_ROTATION, 0.0) < ROTATE_EVERY_S:
        return None
    st.session_state[_ROTATION] = now
    return rotate(token, settings.api_url)

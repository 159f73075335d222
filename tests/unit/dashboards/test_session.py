"""A token opens a session only when the API signed it, for us, and it has not ended."""

import base64
import json
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dashboards import session
from dashboards.session import Refusal, SessionError, exchange, is_due, rotate, verify
from dashboards.settings import DashboardSettings

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
A_DAY_S = 86_400
MERCHANT_ID = "mer_01kaxq5z3t8v6m4n2p0rsw9yhd"
CLAIMS: dict[str, Any] = {
    "sub": "stf_01kaxq5z3t8v6m4n2p0rsw9yhe",
    "iss": "giovang-api",
    "aud": "giovang",
    "merchant_id": MERCHANT_ID,
    "merchant_name": "Phở Hà Nội",
    "timezone": "Asia/Ho_Chi_Minh",
}


def signed(key: Ed25519PrivateKey = KEY, **changes: object) -> str:
    # Parameters are made when tests are collected, which may be long before they run.
    claims = {**CLAIMS, "exp": int(time.time()) + A_DAY_S, **changes}
    return jwt.encode({k: v for k, v in claims.items() if v is not None}, key, algorithm="EdDSA")


def refusal_of(token: str) -> Refusal:
    with pytest.raises(SessionError) as caught:
        verify(token, KEY.public_key())
    return caught.value.refusal


def test_a_good_token_names_its_merchant() -> None:
    merchant = verify(signed(), KEY.public_key())
    assert merchant.id == MERCHANT_ID
    assert merchant.name == "Phở Hà Nội"
    assert merchant.timezone.key == "Asia/Ho_Chi_Minh"


def test_an_expired_token_is_told_apart() -> None:
    assert refusal_of(signed(exp=int(time.time()) - 1)) is Refusal.EXPIRED


@pytest.mark.parametrize(
    "token",
    [
        signed(Ed25519PrivateKey.from_private_bytes(bytes(32))),
        signed(aud="another"),
        signed(iss="another"),
        signed(exp=None),
        signed(sub=None),
        signed(merchant_id=None),
        signed(merchant_id="mer_' OR true --"),
        signed(merchant_id=["mer_01kaxq5z3t8v6m4n2p0rsw9yhd"]),
        signed(timezone="Nowhere/Land"),
        signed(timezone="../../etc/passwd"),
        jwt.encode({**CLAIMS, "exp": int(time.time()) + A_DAY_S}, "s" * 32, algorithm="HS256"),
        "not.a.token",
        "",
    ],
)
def test_anything_else_is_refused(token: str) -> None:
    assert refusal_of(token) is Refusal.INVALID


def test_an_unsigned_token_is_refused() -> None:
    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    claims = {**CLAIMS, "exp": int(time.time()) + 60}
    assert refusal_of(f"{part({'alg': 'none', 'typ': 'JWT'})}.{part(claims)}.") is Refusal.INVALID


def test_a_token_with_other_claims_under_the_old_signature_is_refused() -> None:
    head, _, signature = signed().split(".")
    _, body, _ = signed(merchant_id="mer_01kaxq5z3t8v6m4n2p0rsw9zzz").split(".")
    assert refusal_of(f"{head}.{body}.{signature}") is Refusal.INVALID


def answering(answer: Callable[[httpx.Request], httpx.Response]) -> httpx.MockTransport:
    return httpx.MockTransport(answer)


def test_credentials_are_sent_to_the_sessions_endpoint_and_a_token_comes_back() -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(201, json={"token": "t"})

    token = exchange(" a@b.vn ", "secret", "http://api", transport=answering(answer))
    assert token == "t"
    assert (seen[0].method, seen[0].url.path) == ("POST", "/api/v1/sessions")
    assert json.loads(seen[0].content) == {"email": "a@b.vn", "password": "secret"}


@pytest.mark.parametrize(
    ("response", "refusal"),
    [
        (httpx.Response(401), Refusal.WRONG),
        (httpx.Response(422), Refusal.WRONG),
        (httpx.Response(429), Refusal.TOO_MANY),
        (httpx.Response(503), Refusal.API_AWAY),
        (httpx.Response(500), Refusal.API_BROKEN),
        (httpx.Response(200, text="<html>"), Refusal.API_BROKEN),
        (httpx.Response(200, json={}), Refusal.API_BROKEN),
        (httpx.Response(200, json=[1]), Refusal.API_BROKEN),
        (httpx.Response(200, json={"token": 7}), Refusal.API_BROKEN),
    ],
)
def test_each_refusal_of_the_api_has_its_own_words(
    response: httpx.Response, refusal: Refusal
) -> None:
    with pytest.raises(SessionError) as caught:
        exchange("a@b.vn", "secret", "http://api", transport=answering(lambda _: response))
    assert caught.value.refusal is refusal


def test_an_api_that_is_away_is_not_a_wrong_password() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        message = "connection refused"
        raise httpx.ConnectError(message, request=request)

    with pytest.raises(SessionError) as caught:
        exchange("a@b.vn", "secret", "http://api", transport=answering(refuse))
    assert caught.value.refusal is Refusal.API_AWAY


@pytest.mark.parametrize(
    ("email", "password", "refusal"),
    [
        ("", "secret", Refusal.MISSING),
        ("a@b.vn", "", Refusal.MISSING),
        ("a@b.vn", "x" * 257, Refusal.WRONG),
    ],
)
def test_what_cannot_be_right_is_not_sent(email: str, password: str, refusal: Refusal) -> None:
    def unexpected(request: httpx.Request) -> httpx.Response:
        message = f"sent {request.url}"
        raise AssertionError(message)

    with pytest.raises(SessionError) as caught:
        exchange(email, password, "http://api", transport=answering(unexpected))
    assert caught.value.refusal is refusal


@pytest.mark.parametrize(
    ("ends_in_s", "logged_in_s_ago", "due"),
    [
        (3600, 0, False),
        (901, 2700, False),
        (899, 2700, True),
        (60, 3600, True),
        # Its successor would end no later: twelve hours after logging in.
        (600, 12 * 3600 - 600, False),
        (600, None, False),
    ],
)
def test_a_token_is_exchanged_when_it_nears_an_end_that_can_be_put_off(
    ends_in_s: int, logged_in_s_ago: int | None, due: bool
) -> None:
    now = int(time.time())
    logged_in = None if logged_in_s_ago is None else now - logged_in_s_ago
    assert is_due(signed(exp=now + ends_in_s, auth_time=logged_in), now) is due


def test_a_token_is_exchanged_at_the_api() -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(201, json={"token": "next"})

    assert rotate("t", "http://api", transport=answering(answer)) == "next"
    assert (seen[0].method, seen[0].url.path) == ("POST", "/api/v1/sessions/rotate")
    assert seen[0].headers["authorization"] == "Bearer t"


def test_a_session_ended_elsewhere_is_over() -> None:
    with pytest.raises(SessionError) as caught:
        rotate("t", "http://api", transport=answering(lambda _: httpx.Response(401)))
    assert caught.value.refusal is Refusal.EXPIRED


@pytest.mark.parametrize(
    "response",
    [
        httpx.Response(503),
        httpx.Response(429),
        httpx.Response(201, text="<html>"),
        httpx.Response(201, json={}),
        httpx.Response(201, json={"token": 7}),
    ],
)
def test_an_api_that_cannot_say_leaves_the_token_as_it_is(response: httpx.Response) -> None:
    assert rotate("t", "http://api", transport=answering(lambda _: response)) is None


def test_an_api_that_is_away_leaves_the_token_as_it_is() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        message = "connection refused"
        raise httpx.ConnectError(message, request=request)

    assert rotate("t", "http://api", transport=answering(refuse)) is None


def page(monkeypatch: pytest.MonkeyPatch, token: str, successor: object) -> tuple[Any, Any, Any]:
    """Rerun a page twice that holds `token`; return its merchants, what it keeps, what it asked."""
    state: dict[str, Any] = {"session_token": token}
    asked: list[str] = []

    def exchanged(old: str, _: str) -> object:
        asked.append(old)
        if isinstance(successor, SessionError):
            raise successor
        return successor

    monkeypatch.setattr(session, "st", SimpleNamespace(session_state=state))
    monkeypatch.setattr(session, "rotate", exchanged)
    public = base64.b64encode(KEY.public_key().public_bytes_raw()).decode()
    settings = DashboardSettings.model_validate(
        {"warehouse_url": "x", "api_url": "http://api", "session_public_key": public}
    )
    merchants = [session.current_merchant(settings) for _ in range(2)]
    return merchants, state, asked


def test_a_page_goes_on_with_the_successor(monkeypatch: pytest.MonkeyPatch) -> None:
    now = int(time.time())
    old, new = signed(exp=now + 60, auth_time=now - 60), signed(auth_time=now - 60)
    merchants, state, asked = page(monkeypatch, old, new)
    assert [merchant.id for merchant in merchants] == [MERCHANT_ID] * 2
    assert state["session_token"] == new
    assert asked == [old]


def test_a_page_asks_once_a_minute_while_the_api_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    now = int(time.time())
    old = signed(exp=now + 60, auth_time=now - 60)
    merchants, state, asked = page(monkeypatch, old, None)
    assert [merchant.id for merchant in merchants] == [MERCHANT_ID] * 2
    assert state["session_token"] == old
    assert asked == [old]


def test_a_page_of_a_session_ended_elsewhere_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    now = int(time.time())
    old = signed(exp=now + 60, auth_time=now - 60)
    merchants, state, _ = page(monkeypatch, old, SessionError(Refusal.EXPIRED))
    assert merchants == [None, None]
    assert "session_token" not in state
    assert state["session_parting"] is Refusal.EXPIRED

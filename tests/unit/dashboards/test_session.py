"""A token opens a session only when the API signed it, for us, and it has not ended."""

import base64
import json
import time
from collections.abc import Callable
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dashboards.session import Refusal, SessionError, exchange, verify

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

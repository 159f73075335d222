"""Limits over HTTP: how often one may call, what a body may be, what the document says of it."""

import asyncio
import base64
import itertools
import math
import secrets
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import httpx
import pytest

from api import cache
from api.ratelimit import RateLimiter
from api.wording import words_of
from tests.fixtures.api import ApiServer, Shop, make_api, problem, until, until_refused
from tests.fixtures.services import BrokerServer, DatabaseServer

NO_CHAIN = "http://127.0.0.1:9"
LIMIT = 40
SIGN_INS = 4
# What the header may be is told by who reads it.
IDEMPOTENCY_KEY = "^[!-~]+$"
JSON = {"Content-Type": "application/json"}


@pytest.fixture
def limited(
    ledger_database: DatabaseServer, redis_server: BrokerServer, tmp_path: Path
) -> Iterator[ApiServer]:
    """An API with small limits, which starts from full buckets."""
    server = make_api(
        tmp_path / "limited",
        ledger_database,
        redis_server.url,
        rpc_url=NO_CHAIN,
        rate_limit_per_minute=str(LIMIT),
        sign_in_limit_per_minute=str(SIGN_INS),
    )
    # Buckets of addresses outlive a server: every test here comes from 127.0.0.1.
    redis_server.stop()
    redis_server.start()
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def api(
    ledger_database: DatabaseServer, redis_server: BrokerServer, tmp_path_factory: Any
) -> Iterator[ApiServer]:
    folder: Path = tmp_path_factory.mktemp("api")
    server = make_api(
        folder,
        ledger_database,
        redis_server.url,
        rpc_url=NO_CHAIN,
        rate_limit_per_minute="100000",
        sign_in_limit_per_minute="100000",
    )
    server.start()
    yield server
    server.stop()


@pytest.fixture
def shop(api: ApiServer) -> Shop:
    return api.shop()


def left(answer: httpx.Response, policy: str = "default") -> int:
    """Return how many calls an answer says are left."""
    for item in answer.headers["ratelimit"].split(", "):
        name, _, parameters = item.partition(";")
        if name == f'"{policy}"':
            return int(parameters.removeprefix("r=").partition(";")[0])
    message = f"no {policy} in {answer.headers['ratelimit']}"
    raise AssertionError(message)


# How often.


def test_a_key_spends_its_own_bucket_until_it_is_empty(limited: ApiServer) -> None:
    shop, other = limited.shop(), limited.shop()
    first = shop.client.get("/api/v1/payments")
    assert first.headers["ratelimit-policy"] == f'"default";q={LIMIT};w=60'
    assert left(first) == LIMIT - 1
    answers = until_refused(lambda: shop.client.get("/api/v1/payments"))
    statuses = [answer.status_code for answer in answers]
    refused = len(answers) - 1
    # A token comes every second and a half, so a slow machine may be given a few more.
    assert statuses[:refused] == [200] * refused
    assert refused >= LIMIT - 1
    refusal = problem(answers[refused], 429, "too_many_requests")
    assert f"{LIMIT} a minute" in refusal["detail"]
    assert int(answers[refused].headers["retry-after"]) in {1, 2}
    assert left(answers[refused]) == 0
    assert left(other.client.get("/api/v1/payments")) == LIMIT - 1


def test_a_refusal_for_haste_is_not_saved_under_the_key(limited: ApiServer) -> None:
    shop = limited.shop()
    body = {"amount": "1000", "asset": "USDC"}

    def hasty() -> str | None:
        key = secrets.token_hex(8)
        until_refused(lambda: shop.client.get("/api/v1/payments"))
        answer = shop.post("/api/v1/payments", body, key=key)
        if answer.status_code == 201:
            return None  # a token came just now
        problem(answer, 429, "too_many_requests")
        return key

    key = until(hasty, what="a refusal for haste", pause_s=0)

    def created() -> httpx.Response | None:
        answer = shop.post("/api/v1/payments", body, key=key)
        return None if answer.status_code == 429 else answer

    answer = until(created, what="a token")
    assert answer.status_code == 201, answer.text
    assert "idempotent-replayed" not in answer.headers


def test_processes_share_the_buckets(
    limited: ApiServer, ledger_database: DatabaseServer, redis_server: BrokerServer, tmp_path: Path
) -> None:
    beside = make_api(
        tmp_path / "beside",
        ledger_database,
        redis_server.url,
        rpc_url=NO_CHAIN,
        rate_limit_per_minute=str(LIMIT),
    )
    beside.start()

    def is_shared() -> bool | None:
        shop = limited.shop()
        last = [shop.client.get("/api/v1/payments") for _ in range(10)][-1]
        headers = {"Authorization": f"Bearer {shop.key}"}
        seen = left(httpx.get(f"{beside.base_url}/api/v1/payments", headers=headers, timeout=60))
        # A token may have come meanwhile; a bucket of its own, as while Redis is slow, is full.
        return left(last) - 1 <= seen < LIMIT - 1 or None

    try:
        until(is_shared, what="a bucket that both take from")
    finally:
        beside.stop()


def test_who_guesses_keys_empties_the_bucket_of_their_address(limited: ApiServer) -> None:
    shop = limited.shop()
    with httpx.Client(base_url=limited.base_url) as client:

        def guess() -> httpx.Response:
            headers = {"Authorization": f"Bearer gv_test_{secrets.token_hex(32)}"}
            return client.get("/api/v1/payments", headers=headers)

        answers = until_refused(guess)
        assert len(answers) > LIMIT - 5
        assert {answer.status_code for answer in answers[:-1]} == {401}
        for token in ("x", "a.b.c"):
            answer = client.get("/api/v1/payments", headers={"Authorization": f"Bearer {token}"})
            assert answer.status_code in {401, 429}
    # Who has a key is served from the same address all the same.
    assert shop.client.get("/api/v1/payments").status_code == 200


def test_signing_in_is_limited_by_email_and_by_address(limited: ApiServer) -> None:
    numbers = itertools.count()
    with httpx.Client(base_url=limited.base_url) as client:

        def sign_in() -> httpx.Response:
            body = {"email": f"a{next(numbers)}@shop.vn", "password": "x"}
            return client.post("/api/v1/sessions", json=body)

        answers = until_refused(sign_in)
        assert len(answers) > SIGN_INS
        assert {answer.status_code for answer in answers[:-1]} == {401}
        problem(answers[-1], 429, "too_many_requests")
        # One comes every fifteen seconds.
        assert 1 <= int(answers[-1].headers["retry-after"]) <= 15
        assert left(answers[0], "sign_in") == SIGN_INS - 1
        body = {"email": "adm@shop.vn", "password": "x"}
        problem(client.post("/api/v1/admin/sessions", json=body), 429, "too_many_requests")


def test_signing_in_is_limited_by_email_from_anywhere(
    ledger_database: DatabaseServer, redis_server: BrokerServer, tmp_path: Path
) -> None:
    server = make_api(
        tmp_path,
        ledger_database,
        redis_server.url,
        rpc_url=NO_CHAIN,
        sign_in_limit_per_minute=str(SIGN_INS),
        trusted_proxies="127.0.0.1",
    )
    server.start()
    email, numbers = f"{secrets.token_hex(5)}@shop.vn", itertools.count()
    try:
        with httpx.Client(base_url=server.base_url) as client:

            def sign_in() -> httpx.Response:
                n = next(numbers)
                return client.post(
                    "/api/v1/sessions",
                    json={"email": email if n % 2 else email.upper(), "password": "x"},
                    headers={"X-Forwarded-For": f"203.0.113.{n}"},
                )

            answers = until_refused(sign_in)
    finally:
        server.stop()
    assert len(answers) > SIGN_INS
    assert {answer.status_code for answer in answers[:-1]} == {401}


def test_nobody_names_their_own_address(limited: ApiServer) -> None:
    numbers = itertools.count()
    with httpx.Client(base_url=limited.base_url) as client:

        def sign_in() -> httpx.Response:
            n = next(numbers)
            return client.post(
                "/api/v1/sessions",
                json={"email": f"b{n}@shop.vn", "password": "x"},
                headers={"X-Forwarded-For": f"203.0.113.{n}"},
            )

        until_refused(sign_in)


def test_without_redis_each_process_limits_on_its_own(
    limited: ApiServer, redis_server: BrokerServer
) -> None:
    shop = limited.shop()
    redis_server.stop()
    try:
        answers = until_refused(lambda: shop.client.get("/api/v1/payments"))
    finally:
        redis_server.start()
    assert len(answers) > LIMIT
    assert {answer.status_code for answer in answers[:-1]} == {200}
    log = limited.log.read_text()
    assert log.count("redis is away") == 1

    def shared_again() -> bool | None:
        answer = shop.client.get("/api/v1/payments")
        return True if left(answer) > LIMIT - 5 else None

    until(shared_again, what="buckets in Redis again")


async def test_who_asks_at_the_same_moment_shares_a_round_trip_and_no_tokens(
    redis_server: BrokerServer,
) -> None:
    names = [secrets.token_hex(8) for _ in range(2)]
    redis = cache.connect(redis_server.url)
    try:
        limiter = RateLimiter(cache.Cache(redis))
        # One first, so that Redis knows the script.
        await limiter.take(secrets.token_hex(8), per_minute=LIMIT)
        await redis.config_resetstat()
        began = time.monotonic()
        taken = await asyncio.gather(
            *(limiter.take(name, per_minute=LIMIT) for _ in range(LIMIT + 20) for name in names)
        )
        filled = math.ceil((time.monotonic() - began) * LIMIT / 60)
        calls = (await redis.info("commandstats"))["cmdstat_evalsha"]["calls"]
    finally:
        await redis.aclose()
    assert calls <= 3
    for number in range(2):
        given = [one for one in taken[number::2] if not one.retry_after_s]
        assert LIMIT <= len(given) <= LIMIT + filled
        assert [one.remaining for one in given[:3]] == [LIMIT - 1, LIMIT - 2, LIMIT - 3]


async def test_whoever_stops_waiting_for_a_token_keeps_nobody_else_waiting(
    redis_server: BrokerServer,
) -> None:
    redis = cache.connect(redis_server.url)
    try:
        limiter = RateLimiter(cache.Cache(redis))
        name = secrets.token_hex(8)
        first, second = (
            asyncio.create_task(limiter.take(name, per_minute=LIMIT)) for _ in range(2)
        )
        await asyncio.wait([first], timeout=0)
        first.cancel()
        async with asyncio.timeout(10):
            assert (await second).retry_after_s == 0
            assert (await limiter.take(name, per_minute=LIMIT)).retry_after_s == 0
        assert first.cancelled()
    finally:
        await redis.aclose()


def test_every_answer_says_what_is_left(api: ApiServer, shop: Shop) -> None:
    client = shop.client
    for answer in (
        client.get("/api/v1/payments"),
        client.get("/api/v1/nothing"),
        client.put("/api/v1/payments"),
        client.get("/api/v1/payments?limit=0"),
        client.post("/api/v1/payments", content=b"{", headers=JSON),
        httpx.get(f"{api.base_url}/api/v1/payments"),
        httpx.get(f"{api.base_url}/api/v1"),
    ):
        assert answer.headers["ratelimit-policy"] == '"default";q=100000;w=60', answer.text
        assert left(answer) > 0
        assert answer.headers["x-request-id"].startswith("req_")
    assert "ratelimit" not in httpx.get(f"{api.base_url}/healthz").headers


def test_an_address_that_is_almost_right_is_refused_like_any_other(shop: Shop) -> None:
    # Not sent elsewhere: many clients do not follow, and then read an answer without a body.
    slash = shop.client.post("/api/v1/payments/", json={})
    assert "slash" in problem(slash, 404, "not_found")["detail"]
    method = shop.client.put("/api/v1/payments", json={})
    problem(method, 405, "method_not_allowed")
    assert method.headers["allow"] == "GET, POST"


# What a body may be.


@pytest.mark.parametrize(
    ("content", "headers", "status", "code"),
    [
        (b'{"a": ' * 17 + b"1" + b"}" * 17, JSON, 400, "malformed_request"),
        (b'{"amount": "1", "amount": "2", "asset": "USDC"}', JSON, 400, "malformed_request"),
        (b'{"amount": NaN}', JSON, 400, "malformed_request"),
        (b'{"amount": Infinity}', JSON, 400, "malformed_request"),
        (b'{"amount": "1"', JSON, 400, "malformed_request"),
        (b'{"\\ud800": 1}', JSON, 400, "malformed_request"),
        (b"\x00", JSON, 400, "malformed_request"),
        (b'{"amount": "1"}', {"Content-Type": "text/plain"}, 415, "unsupported_media"),
        (b'{"amount": "1"}', {}, 415, "unsupported_media"),
        (b"amount=1", {"Content-Type": "application/x-www-form-urlencoded"}, 415, None),
        (b'{"amount": "1"}', {"Content-Type": "application/vnd.api+json"}, 415, None),
        (b"9" * 70_000, JSON, 413, "body_too_large"),
        (b"", JSON, 422, "invalid_request"),
        (b"[]", JSON, 422, "invalid_request"),
        (b"1e999", JSON, 422, "invalid_request"),
    ],
)
def test_a_body_is_judged_before_anything_is_done(
    shop: Shop, content: bytes, headers: dict[str, str], status: int, code: str | None
) -> None:
    answer = shop.client.post(
        "/api/v1/payments", content=content, headers={"Idempotency-Key": "k", **headers}
    )
    problem(answer, status, code or "unsupported_media")


def test_a_body_without_an_end_is_cut_off(shop: Shop) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(100):
            yield b'{"a":"' + b"x" * 4096

    answer = shop.client.post(
        "/api/v1/payments", content=endless(), headers={"Idempotency-Key": "k", **JSON}
    )
    problem(answer, 413, "body_too_large")


def test_json_says_its_character_set_or_not(shop: Shop) -> None:
    for media_type in ("application/json; charset=utf-8", "Application/JSON"):
        answer = shop.client.post(
            "/api/v1/payments",
            content=b'{"amount": "1000", "asset": "USDC"}',
            headers={"Idempotency-Key": secrets.token_hex(4), "Content-Type": media_type},
        )
        assert answer.status_code == 201, answer.text


@pytest.mark.parametrize("path", ["/api/v1/sessions", "/api/v1/admin/sessions"])
def test_an_email_that_postgresql_could_not_hold_is_refused(api: ApiServer, path: str) -> None:
    body = {"email": "a\u0000b@shop.vn", "password": "x\u0000"}
    refusal = problem(httpx.post(f"{api.base_url}{path}", json=body), 422, "invalid_request")
    assert [error["pointer"] for error in refusal["errors"]] == ["/email"]


# The document.


@pytest.fixture(scope="module")
def document(api: ApiServer) -> dict[str, Any]:
    answer = httpx.get(f"{api.base_url}/openapi.json")
    assert answer.status_code == 200
    described: dict[str, Any] = answer.json()
    return described


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            if path.startswith("/api/v1"):
                yield f"{method.upper()} {path}", operation


def test_every_operation_says_who_may_call(document: dict[str, Any]) -> None:
    schemes = set(document["components"]["securitySchemes"])
    assert schemes == {"API key", "Session", "Admin key", "Live token"}
    open_to_all = set()
    for name, operation in operations(document):
        asked = {scheme for item in operation.get("security", []) for scheme in item}
        assert asked <= schemes, name
        if not asked:
            open_to_all.add(name)
            assert not {"401", "403"} & set(operation["responses"]) - {"401"}, name
        else:
            assert {"401", "403"} <= set(operation["responses"]), name
    assert {"POST /api/v1/sessions", "POST /api/v1/admin/sessions"} <= open_to_all
    assert "GET /api/v1/payments" not in open_to_all


def test_every_operation_describes_its_problems_by_example(document: dict[str, Any]) -> None:
    for name, operation in operations(document):
        answers = operation["responses"]
        assert {"429", "500", "503"} <= set(answers), name
        if "requestBody" in operation:
            assert {"400", "413", "415", "422"} <= set(answers), name
        for status, answer in answers.items():
            assert {"X-Request-Id", "RateLimit", "RateLimit-Policy"} <= set(answer["headers"]), name
            if int(status) < 400:
                continue
            (media_type,) = answer["content"]
            assert media_type == "application/problem+json", (name, status)
            examples = answer["content"][media_type]["examples"]
            assert examples, (name, status)
            for code, example in examples.items():
                assert example["value"]["code"] == code
                assert example["value"]["status"] == int(status)
        if status_of_replay := operation["responses"].get("201"):
            takes_key = any(
                parameter["name"].lower() == "idempotency-key"
                for parameter in operation.get("parameters", [])
            )
            assert ("Idempotent-Replayed" in status_of_replay["headers"]) == takes_key, name


def test_every_pattern_has_words_for_whoever_does_not_match_it(document: dict[str, Any]) -> None:
    def patterns(node: Any) -> Iterator[str]:
        for value in node.values() if isinstance(node, dict) else node:
            if isinstance(value, dict | list):
                yield from patterns(value)
        if isinstance(node, dict) and isinstance(node.get("pattern"), str):
            yield node["pattern"]

    # Whoever defines a pattern gives its words at import.
    import_module("api.app")
    found = set(patterns(document)) - {IDEMPOTENCY_KEY}
    assert len(found) > 20
    assert {pattern for pattern in found if words_of(pattern) is None} == set()


def test_the_document_refers_to_nothing_that_is_missing(document: dict[str, Any]) -> None:
    def references(node: Any) -> Iterator[str]:
        if isinstance(node, dict):
            for key, value in node.items():
                if key == "$ref":
                    yield value
                else:
                    yield from references(value)
        elif isinstance(node, list):
            for value in node:
                yield from references(value)

    for reference in set(references(document)):
        node: Any = document
        for part in reference.removeprefix("#/").split("/"):
            node = node[part.replace("~1", "/").replace("~0", "~")]
        assert node, reference


def test_people_pick_a_mode_by_a_header_that_is_described(document: dict[str, Any]) -> None:
    operation = document["paths"]["/api/v1/merchant"]["get"]
    (mode,) = [one for one in operation["parameters"] if one["name"] == "Giovang-Mode"]
    assert mode["schema"]["enum"] == ["test", "live"]
    assert "merchants:read" in operation["description"]


def test_a_malformed_seal_stops_the_start(
    ledger_database: DatabaseServer, redis_server: BrokerServer, tmp_path: Path
) -> None:
    short = base64.b64encode(b"short").decode()
    server = make_api(
        tmp_path, ledger_database, redis_server.url, rpc_url=NO_CHAIN, sealing_key=short
    )
    with pytest.raises(Exception, match="32 bytes"):
        server.start()
    server.stop()

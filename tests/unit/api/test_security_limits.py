"""What JSON is read, and how often one may call, without a server."""

import json
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from api import strict_json
from api.cache import Cache, CacheAway
from api.errors import MalformedRequest, TooManyRequests
from api.ratelimit import RateLimiter, Taken, address_bucket, rate_headers


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def nested(levels: int, kind: str = "[]") -> bytes:
    return kind[0].encode() * levels + kind[1].encode() * levels


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b'{"a": [1, "x", null, true]}',
        nested(16),
        b"[" + b",".join([b"{}"] * 50) + b"]",
        json.dumps({"a": "[{" * 40, "b": '\\"[[[[[[[[[[[[[[[[[[[["'}).encode(),
        json.dumps({"a": ["]" * 9, "[" * 99, "\\"]}).encode(),
        '{"tên": "Phở \\ud83c\\udf5c"}'.encode(),
        b'{"a": {"a": 1}, "b": {"a": 1}}',
        b'{"a": "\\ud800"}',
    ],
)
def test_json_that_is_read(body: bytes) -> None:
    strict_json.check(body)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (nested(17), "16 levels"),
        (nested(30_000), "16 levels"),
        (b'{"a":' * 17 + b"1" + b"}" * 17, "16 levels"),
        # Brackets in a string neither deepen nor lift what is around it.
        (b'["]]]]]]]]]]]]]]]",' + nested(16) + b"]", "16 levels"),
        (b'["\\"]]]]]]]]]]]]]",' + nested(16) + b"]", "16 levels"),
        (b'{"a": 1, "a": 1}', "twice"),
        (b'{"b": [{"a": 1, "\\u0061": 2}]}', "twice"),
        (b'{"a": NaN}', "NaN"),
        (b"[Infinity]", "Infinity"),
        (b"-Infinity", "-Infinity"),
        (b"{", "not valid JSON"),
        (b'{"a": 1}x', "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[" * 20, "16 levels"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b'{"\\ud800": 1}', "half a character"),
        (b"'a'", "not valid JSON"),
        # Quotes that each could begin a string: looked at once, not once for each.
        (b"[" * 16 + b'"' + b'\\"' * 30_000 + b"[", "not valid JSON"),
        (b"[" * 16 + b'"' + b'\\"' * 30_000 + b"[\\", "not valid JSON"),
    ],
)
def test_json_that_is_refused(body: bytes, why: str) -> None:
    with pytest.raises(MalformedRequest, match=why) as refusal:
        strict_json.check(body)
    assert refusal.value.status == 400


class AwayRedis:
    """A Redis that refuses connections and counts who tries."""

    def __init__(self) -> None:
        self.asked = 0

    async def evalsha(self, *_: Any) -> Any:
        self.asked += 1
        raise RedisConnectionError


def limiter(clock: Clock) -> tuple[RateLimiter, AwayRedis]:
    redis = AwayRedis()
    return RateLimiter(Cache(redis, clock=clock), clock=clock), redis  # type: ignore[arg-type]


async def test_without_redis_a_bucket_of_this_process_holds_the_limit() -> None:
    clock = Clock()
    limits, _ = limiter(clock)
    taken = [await limits.take("a", per_minute=60) for _ in range(61)]
    assert [one.remaining for one in taken[:3]] == [59, 58, 57]
    assert [one.retry_after_s for one in taken] == [0] * 60 + [1]
    assert (await limits.take("b", per_minute=60)).remaining == 59
    clock.now += 2
    again = [await limits.take("a", per_minute=60) for _ in range(3)]
    assert [one.retry_after_s for one in again] == [0, 0, 1]
    clock.now += 3600
    assert (await limits.take("a", per_minute=60)).remaining == 59


async def test_the_wait_is_until_the_next_token() -> None:
    clock = Clock()
    limits, _ = limiter(clock)
    for _ in range(10):
        (await limits.take("a", per_minute=10)).raise_if_refused()
    refused = await limits.take("a", per_minute=10)
    assert (refused.retry_after_s, refused.remaining, refused.full_in_s) == (6, 0, 60)
    with pytest.raises(TooManyRequests) as refusal:
        refused.raise_if_refused()
    assert refusal.value.retry_after_s == 6
    clock.now += refused.retry_after_s
    assert (await limits.take("a", per_minute=10)).retry_after_s == 0


async def test_buckets_of_this_process_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.ratelimit._MOST_LOCAL_BUCKETS", 3)
    limits, _ = limiter(Clock())
    for name in "abcd":
        await limits.take(name, per_minute=60)
    assert (await limits.take("d", per_minute=60)).remaining == 58
    assert (await limits.take("a", per_minute=60)).remaining == 59


async def test_a_redis_that_is_away_is_left_alone_for_a_second() -> None:
    clock = Clock()
    limits, redis = limiter(clock)
    for _ in range(5):
        await limits.take("a", per_minute=60)
    assert redis.asked == 1
    clock.now += 1.5
    await limits.take("a", per_minute=60)
    assert redis.asked == 2


async def test_that_redis_is_away_is_said_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    class Log:
        def warning(self, event: str, **_: Any) -> None:
            said.append(event)

    monkeypatch.setattr("api.cache._log", Log())
    clock = Clock()
    cache = Cache(AwayRedis(), clock=clock)  # type: ignore[arg-type]
    for _ in range(65):
        with pytest.raises(CacheAway):
            await cache.ask(lambda redis: redis.evalsha("", 0))
        clock.now += 2
    assert len(said) == 3


def test_headers_name_each_policy() -> None:
    taken = [Taken("default", 6000, 5999, 1, 0), Taken("sign_in", 10, 0, 60, 6)]
    assert dict(rate_headers(taken)) == {
        b"ratelimit-policy": b'"default";q=6000;w=60, "sign_in";q=10;w=60',
        b"ratelimit": b'"default";r=5999;t=1, "sign_in";r=0;t=60',
    }
    assert rate_headers([]) == []


def test_one_client_has_one_bucket() -> None:
    assert address_bucket("203.0.113.9") == address_bucket("::ffff:203.0.113.9")
    assert address_bucket("2001:db8::1") == address_bucket("2001:db8:0:0:ffff::2")
    assert address_bucket("2001:db8::1") != address_bucket("2001:db8:0:1::1")
    assert address_bucket("fe80::1%eth0") == address_bucket("fe80::2")
    assert address_bucket("") == address_bucket("testclient") == "address:unknown"

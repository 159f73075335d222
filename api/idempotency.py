"""One request, one effect: the answer to an Idempotency-Key commits with the work it answers.

`claim` holds the key for the length of the unit of work and gives back the saved answer, if there
is one; `keep` saves the answer. Both are in the unit of work of the business write, so after any
crash either all of it exists or none. What is refused is not saved: the same key may try again.
"""

import hashlib
from dataclasses import dataclass
from typing import Any, Final, LiteralString

import orjson

from api.database import Unit
from api.errors import IdempotencyKeyInProgress, IdempotencyKeyReused

_CLAIM: Final[LiteralString] = "SELECT * FROM claim_idempotency_key(%(key)s, %(namespace)s)"
_KEEP_ANSWER: Final[LiteralString] = """
    INSERT INTO idempotency_keys
        (merchant_id, key, request_hash, response_status, response_body)
    VALUES (%(merchant_id)s, %(namespace)s || ':' || %(key)s, %(request_hash)s, %(status)s,
            %(body)s)
"""


@dataclass(frozen=True, slots=True)
class Request:
    """A key and the digest of what was asked under it.

    A merchant's keys are told apart by `namespace`: the mode, `test` or `live`, and who uses it
    where that is not the merchant. The same key in two namespaces is two keys.
    """

    key: str
    digest: bytes
    namespace: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What the first request under a key was answered."""

    status: int
    body: str


@dataclass(frozen=True, slots=True)
class _Claim:
    held: bool
    request_hash: bytes | None
    status: int | None
    body: str | None


def request_digest(operation: str, content: dict[str, Any]) -> bytes:
    """Return the SHA-256 by which two requests count as the same: operation and content.

    The content is what was understood, so the order and spacing of the JSON make no difference.
    """
    canonical = orjson.dumps([operation, content], option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(canonical).digest()


async def claim(unit: Unit, request: Request) -> Answer | None:
    """Hold the key until the unit of work ends; return the answer it already has, if any.

    Raises IdempotencyKeyInProgress where another request holds it now, IdempotencyKeyReused where
    it was answered for another content.
    """
    found = await unit.one(_Claim, _CLAIM, {"key": request.key, "namespace": request.namespace})
    if not found.held:
        raise IdempotencyKeyInProgress("wait for the first request, or send it again in a second")
    if found.request_hash is None or found.status is None or found.body is None:
        return None
    if found.request_hash != request.digest:
        raise IdempotencyKeyReused("use a new key for a new request")
    return Answer(found.status, found.body)


async def keep(unit: Unit, request: Request, *, status: int, body: str) -> None:
    """Save the answer in the unit of work that holds the key."""
    await unit.run(
        _KEEP_ANSWER,
        {
            "merchant_id": unit.merchant_id,
            "key": request.key,
            "namespace": request.namespace,
            "request_hash": request.digest,
            "status": status,
            "body": body,
        },
    )

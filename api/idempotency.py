"""One request, one effect: the answer to an Idempotency-Key commits with the work it answers.

`claim` holds the key for the length of the unit of work and gives back the saved answer, if there
is one; `keep` saves the answer. Both are in the unit of work of the business write, so after any
crash either all of it exists or none. What is refused is not saved: the same key may try again.
Where the write is one INSERT, `whole` and `answer_at_once` make the three of them one statement.
"""

import hashlib
from dataclasses import dataclass
from typing import Any, Final, LiteralString

import orjson

from api.database import BEGIN_CLAIMING, Begun, Claiming, Database, Identity, Unit
from api.errors import IdempotencyKeyInProgress, IdempotencyKeyReused

_KEEP_ANSWER: Final[LiteralString] = """
    INSERT INTO idempotency_keys
        (merchant_id, key, request_hash, response_status, response_body)
    VALUES (%(merchant_id)s, %(namespace)s || ':' || %(key)s, %(request_hash)s, %(status)s,
            %(body)s)
"""
_KEEP_WRITTEN: Final[LiteralString] = """
    INSERT INTO idempotency_keys
        (merchant_id, key, request_hash, response_status, response_body)
    SELECT %(merchant_id)s, %(namespace)s || ':' || %(key)s, %(request_hash)s, %(answer_status)s,
           body
    FROM written
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

    @property
    def claiming(self) -> Claiming:
        """What the unit of work of this request holds."""
        return Claiming(self.key, self.namespace)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request under a key is answered: what the first one was, unless this is the first."""

    status: int
    body: str
    replayed: bool = True


def request_digest(operation: str, content: dict[str, Any]) -> bytes:
    """Return the SHA-256 by which two requests count as the same: operation and content.

    The content is what was understood, so the order and spacing of the JSON make no difference.
    """
    canonical = orjson.dumps([operation, content], option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(canonical).digest()


def whole(write: LiteralString) -> LiteralString:
    """Return one statement that claims a key, writes where it has no answer, and keeps the answer.

    `write` is INSERT … SELECT … FROM begun WHERE is_new RETURNING …, the answer's text, AS body.
    """
    return (
        "WITH begun AS (SELECT *, held AND status IS NULL AS is_new FROM ("  # noqa: S608 - constants
        + BEGIN_CLAIMING
        + ") AS claimed), written AS ("
        + write
        + "), kept AS ("
        + _KEEP_WRITTEN
        + """)
    SELECT began_at, held, request_hash, status, coalesce(written.body, begun.body)
    FROM begun LEFT JOIN written ON true
    """
    )


async def answer_at_once(
    database: Database,
    identity: Identity,
    request: Request,
    statement: LiteralString,
    parameters: dict[str, Any],
    *,
    status: int,
) -> Answer:
    """Run a statement of `whole` and return the answer of its key; raises what `claim` does."""
    everything = {**parameters, "request_hash": request.digest, "answer_status": status}
    found = await database.at_once(identity, request.claiming, statement, everything)
    kept = _kept(request, found)
    if kept is not None:
        return kept
    if found.body is None:
        raise RuntimeError("a new answer was certain and is missing")
    return Answer(status, found.body, replayed=False)


async def claim(unit: Unit, request: Request) -> Answer | None:
    """Return the answer that the key has already, if any; the unit of work holds it to its end.

    The unit was opened with `claiming=request.claiming`. Raises IdempotencyKeyInProgress where
    another request holds the key now, IdempotencyKeyReused where it was answered for another
    content.
    """
    return _kept(request, await unit.begun())


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


def _kept(request: Request, found: Begun) -> Answer | None:
    """Return the answer that a claimed key has already; see `claim`."""
    if not found.held:
        raise IdempotencyKeyInProgress("wait for the first request, or send it again in a second")
    if found.request_hash is None or found.status is None or found.body is None:
        return None
    if found.request_hash != request.digest:
        raise IdempotencyKeyReused("use a new key for a new request")
    return Answer(found.status, found.body)

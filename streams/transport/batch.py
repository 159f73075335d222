"""Atomic batches: several messages for one stream, of which all are stored or none.

A message may name the sequence it expects to be its subject's last; one that does not hold refuses
the whole batch. The server takes at most MAX_BATCH_MESSAGES.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import uuid4

from nats.js.errors import APIError

from streams.transport.connection import (
    REQUEST_TIMEOUT_S,
    WRITE_IN_PROCESS,
    WRONG_LAST_SEQUENCE,
    Connection,
)

MAX_BATCH_MESSAGES = 1000
BATCH_INCOMPLETE = 10176


@dataclass(frozen=True, slots=True)
class Write:
    """One message of a batch; `expected` is its subject's last sequence, 0 for none."""

    subject: str
    payload: bytes
    expected: int | None = None
    headers: dict[str, str] | None = None


async def publish_batch(connection: Connection, writes: Sequence[Write]) -> int | None:
    """Store all writes in one step; return the sequence of the first, the others follow it.

    None when an expectation did not hold: then nothing was stored. One attempt: after a timeout
    the outcome is unknown, and the caller must read before it decides.
    """
    if not 0 < len(writes) <= MAX_BATCH_MESSAGES:
        raise ValueError(f"a batch holds 1 to {MAX_BATCH_MESSAGES} messages, not {len(writes)}")
    client, batch_id = connection.client, uuid4().hex
    for number, write in enumerate(writes, start=1):
        headers = dict(write.headers or {})
        if write.expected is not None:
            headers["Nats-Expected-Last-Subject-Sequence"] = str(write.expected)
        if len(writes) > 1:
            headers["Nats-Batch-Id"] = batch_id
            headers["Nats-Batch-Sequence"] = str(number)
        if number < len(writes):
            await client.publish(write.subject, write.payload, headers=headers)
            continue
        if len(writes) > 1:
            headers["Nats-Batch-Commit"] = "1"
        reply = await client.request(
            write.subject, write.payload, timeout=REQUEST_TIMEOUT_S, headers=headers
        )
    answer = json.loads(reply.data)
    error = answer.get("error")
    if error is None:
        return int(answer["seq"]) - len(writes) + 1
    if error.get("err_code") == WRONG_LAST_SEQUENCE:
        return None
    if error.get("err_code") in (BATCH_INCOMPLETE, WRITE_IN_PROCESS):
        # A connection that broke in the middle, a server with too many batches open, or an earlier
        # attempt that the replicas have not decided yet.
        raise ConnectionError(error.get("description"))
    raise APIError.from_error(error)

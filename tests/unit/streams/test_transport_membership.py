"""Who lives is judged by the server's clock, not by which records it still holds.

Seen of a real server under chaos: killed and started again, it had records back that had expired
minutes before, and kept them.
"""

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from nats.js.api import RawStreamMsg

from streams.transport import names
from streams.transport.connection import TTL_HEADER, Connection
from streams.transport.membership import Membership, member_record

APP = "app"
NOW = datetime(2026, 11, 23, 9, 13, 25, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Server:
    """What a server holds: of each member how old its record is, and answers as it gives them."""

    ages_s: Mapping[str, float]
    deleted: list[int] = field(default_factory=list)

    async def stream_document(self, stream: str, **request: Any) -> dict[str, Any]:
        assert stream == names.group_stream(APP)
        assert request == {"subjects_filter": names.member_subject(APP, "*")}
        subjects = {names.member_subject(APP, member): 1 for member in self.ages_s}
        return {"ts": "2026-11-23T09:13:25.000000001Z", "state": {"subjects": subjects}}

    async def get_last_msg(self, _: str, subject: str) -> RawStreamMsg:
        member = names.from_token(subject.rpartition(".")[2])
        record = {**member_record(["topic"], b"", 0), "joined": 7}
        return RawStreamMsg(
            subject=subject,
            seq=1 + list(self.ages_s).index(member),
            data=json.dumps(record).encode(),
            headers={TTL_HEADER: "4s"},
            time=NOW - timedelta(seconds=self.ages_s[member]),
        )

    async def delete(self, stream: str, sequence: int) -> None:
        assert stream == names.group_stream(APP)
        self.deleted.append(sequence)

    async def retrying(self, _: str, request: Callable[[], Awaitable[Any]]) -> Any:
        return await request()

    @property
    def jetstream(self) -> "Server":
        return self


async def test_a_record_that_outlived_its_lease_is_nobody() -> None:
    server = Server({"renewed": 0.4, "silent": 3.9, "expired": 4.0, "from-long-ago": 520.0})
    membership = Membership(cast("Connection", server), APP)
    assert set(await membership.members()) == {"renewed", "silent"}
    await membership.remove_dead()
    assert server.deleted == [3, 4]

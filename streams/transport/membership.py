"""Membership: who takes part in an app, and which generation says who owns what.

Every worker has a record that expires unless renewed. The oldest member leads: whenever members or
their subscriptions differ from the last generation it has Faust's own assignor share the partitions
out and writes the next generation, compare-and-set, so of two leaders one loses and looks again.
"""

import asyncio
import base64
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from nats.js.api import RawStreamMsg
from nats.js.errors import NotFoundError

from streams.transport import names
from streams.transport.connection import TTL_HEADER, Connection


@dataclass(frozen=True, slots=True)
class Member:
    """A worker that lives: since when, its subscription, and the generation it made room for."""

    name: str
    joined: int
    subscription: tuple[str, ...]
    user_data: bytes
    released: int


@dataclass(frozen=True, slots=True)
class Share:
    """What a generation gives to one member, in the words of Faust's assignor."""

    subscription: tuple[str, ...]
    assignment: tuple[tuple[str, list[int]], ...]
    user_data: bytes


@dataclass(frozen=True, slots=True)
class Generation:
    """Who owns what. `number` is the sequence of its record: a later one is greater."""

    number: int
    shares: Mapping[str, Share]

    def owners(self) -> tuple[str, ...]:
        """Return the members that own partitions."""
        return tuple(
            sorted(
                name
                for name, share in self.shares.items()
                if any(partitions for _, partitions in share.assignment)
            )
        )


def member_record(
    subscription: Iterable[str], user_data: bytes, released: int
) -> Mapping[str, Any]:
    """Return what a worker tells about itself."""
    return {
        "subscription": sorted(subscription),
        "user_data": base64.b64encode(user_data).decode(),
        "released": released,
    }


class Membership:
    """The members and the generation of one app; nothing is kept, the stream is the truth."""

    def __init__(self, connection: Connection, app_id: str) -> None:
        self._connection = connection
        self._stream = names.group_stream(app_id)
        self._members = names.member_subject(app_id, "*")
        self._generation = names.generation_subject(app_id)

    async def members(self) -> dict[str, Member]:
        """Return the members that live now.

        By the server's clock, and not by what it still holds: a server that is killed may bring
        back messages that had expired, and then never lets them expire.
        """
        records, now = await self._records()
        living = [stored for stored in records if _ends_at(stored) > now]
        return {member.name: member for member in map(_member, living) if member.name}

    async def remove_dead(self) -> None:
        """Delete the records of members that live no more, which the server may keep for ever.

        By their sequence, so that one renewed meanwhile stays.
        """
        records, now = await self._records()
        for stored in records:
            if _ends_at(stored) <= now:
                await self._connection.delete(self._stream, int(stored.seq or 0))

    async def generation(self) -> Generation | None:
        """Return the last generation, None before the first."""
        stored = await self._connection.last_message(self._stream, self._generation)
        if stored is None:
            return None
        shares = {
            name: Share(
                tuple(share["subscription"]),
                tuple((topic, partitions) for topic, partitions in share["assignment"]),
                base64.b64decode(share["user_data"]),
            )
            for name, share in json.loads(stored.data)["shares"].items()
        }
        return Generation(stored.sequence, shares)

    async def begin(self, shares: Mapping[str, Share], *, after: int) -> bool:
        """Write the generation that follows `after` (0: the first); False if another did."""
        document = {
            "shares": {
                name: {
                    "subscription": share.subscription,
                    "assignment": share.assignment,
                    "user_data": base64.b64encode(share.user_data).decode(),
                }
                for name, share in shares.items()
            }
        }
        payload = json.dumps(document).encode()
        return await self._connection.put_if(self._generation, payload, expected=after) is not None

    async def _records(self) -> tuple[list[RawStreamMsg], datetime]:
        """Return all records of members, and when the server answered, by its clock."""
        info = await self._connection.stream_document(self._stream, subjects_filter=self._members)

        async def read() -> list[RawStreamMsg | None]:
            return await asyncio.gather(*map(self._last, info["state"].get("subjects") or {}))

        found = await self._connection.retrying(f"members in {self._stream}", read)
        return [stored for stored in found if stored], datetime.fromisoformat(info["ts"])

    async def _last(self, subject: str) -> RawStreamMsg | None:
        try:
            return await self._connection.jetstream.get_last_msg(self._stream, subject)
        except NotFoundError:
            return None


def _ends_at(stored: RawStreamMsg) -> datetime:
    """Return when a record expires that is not renewed."""
    if stored.time is None:
        raise ValueError(f"the server does not say when it stored {stored.subject}")
    lifetime_s = int((stored.headers or {})[TTL_HEADER].removesuffix("s"))
    ends_at: datetime = stored.time + timedelta(seconds=lifetime_s)
    return ends_at


def _member(stored: RawStreamMsg) -> Member:
    record = json.loads(stored.data or b"{}")
    return Member(
        name=names.from_token(str(stored.subject).rpartition(".")[2]),
        joined=record["joined"] or int(stored.seq or 0),
        subscription=tuple(record["subscription"]),
        user_data=base64.b64decode(record["user_data"]),
        released=record["released"],
    )

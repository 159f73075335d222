"""The sessions of people: opened, proved, exchanged for their successors, and ended.

A token is signed, so forging one needs our key; whether it still counts is PostgreSQL's word. Redis
remembers that word for half a minute, so that a request usually costs no look-up; what ends a
session overwrites it at once. Where Redis is away PostgreSQL is asked each time. A session that was
exchanged and is shown again has two holders: its whole family is revoked.
"""

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final, cast

from redis.asyncio import Redis

from api.cache import Cache, CacheAway
from api.database import Database, Identity, Unit, new_id
from api.errors import NotAuthenticated
from api.people import store
from api.people.model import EndedSession, Person, SessionMerchant, SessionView
from api.security import (
    SESSION_FAMILY_LIFETIME,
    PersonKind,
    SessionClaims,
    SessionSigner,
    session_end,
)
from infra.telemetry import get_logger

# How long "it is open" is believed without asking. A session ended while Redis was away from one
# process, and reachable to another, is believed that long.
_BELIEVED_S: Final = 30
_log = get_logger(__name__)
_ENDED = "this session has ended; sign in"


def _name(session_id: str) -> str:
    return f"giovang:session:{session_id}"


class Sessions:
    """All that is known about sessions, for one process."""

    def __init__(
        self, signer: SessionSigner, cache: Cache, *, database: Database, operator: Database
    ) -> None:
        self._signer = signer
        self._cache = cache
        self._database = database
        self._operator = operator

    def prove(self, token: str) -> SessionClaims:
        """Return what a token says; raises NotAuthenticated for one we did not sign."""
        return self._signer.prove(token)

    def database_for(self, kind: PersonKind) -> Database:
        """Return the pool under whose role sessions of this kind are kept."""
        return self._database if kind == "staff" else self._operator

    async def check(self, claims: SessionClaims) -> None:
        """Return where the session counts; raises NotAuthenticated where it has ended.

        One that was exchanged for its successor has leaked: its family is revoked.
        """
        status = await self._remembered(claims.id)
        if status is None:
            found = await store.session_status(self._database, claims.id)
            status = "revoked" if found is None else found.status
            if status == "open":
                await self._remember(claims.id, status, _BELIEVED_S, only_if_new=True)
        if status == "rotated":
            await self.revoke_family(claims)
        if status != "open":
            raise NotAuthenticated(_ENDED)

    async def open(
        self, unit: Unit, person: Person, *, kind: PersonKind, second_factor: bool = False
    ) -> SessionView:
        """Open a session for a person who has just proved who they are."""
        now = datetime.now(UTC).replace(microsecond=0)
        session_id = new_id("ses")
        claims = SessionClaims(
            id=session_id,
            family_id=session_id,
            person_id=person.person_id,
            kind=kind,
            role=person.role,
            signed_in_at=now,
            expires_at=session_end(now, now),
            second_factor=second_factor,
            merchant_id=person.merchant_id,
            merchant_name=person.merchant_name,
            timezone=person.timezone,
        )
        await store.open_session(unit, claims)
        return self._view(claims)

    async def rotate(self, claims: SessionClaims, *, request_id: str) -> SessionView:
        """Exchange an open session for its successor, of the same family.

        The successor ends with the family at the latest, twelve hours after signing in. Raises
        NotAuthenticated where the session is not open any more or the person is gone.
        """
        now = datetime.now(UTC).replace(microsecond=0)
        identity = Identity(claims.person_id, claims.merchant_id, request_id)
        async with self.database_for(claims.kind).unit_of_work(identity) as unit:
            person = await store.hold_person(unit, claims.person_id, kind=claims.kind)
            ended = await store.end_session(unit, claims.id, status="rotated")
            if person is not None and ended is not None:
                successor = replace(
                    claims,
                    id=new_id("ses"),
                    role=person.role,
                    expires_at=session_end(claims.signed_in_at, now),
                    merchant_name=person.merchant_name,
                    timezone=person.timezone,
                )
                await store.open_session(unit, successor)
        if ended is None:
            await self.revoke_family(claims)
        if person is None or ended is None:
            raise NotAuthenticated(_ENDED)
        await self.announce([ended], status="rotated")
        return self._view(successor)

    async def sign_out(self, claims: SessionClaims, *, request_id: str) -> None:
        """End a session; nothing happens where it has ended."""
        identity = Identity(claims.person_id, claims.merchant_id, request_id)
        async with self.database_for(claims.kind).unit_of_work(identity) as unit:
            ended = await store.end_session(unit, claims.id, status="revoked")
        await self.announce([] if ended is None else [ended])

    async def revoke_family(self, claims: SessionClaims) -> None:
        """End every session that came out of the same signing in, since one was shown twice."""
        _log.warning("session shown again after its exchange", family_id=claims.family_id)
        identity = Identity(claims.person_id, claims.merchant_id)
        async with self.database_for(claims.kind).unit_of_work(identity) as unit:
            ended = await store.end_family(unit, claims.family_id)
        await self.announce([*ended, EndedSession(claims.id, claims.expires_at)])

    async def announce(self, ended: Iterable[EndedSession], *, status: str = "revoked") -> None:
        """Tell Redis, once PostgreSQL has committed it, that sessions do not count any more."""
        now = datetime.now(UTC)
        for session in ended:
            seconds = int((session.expires_at - now).total_seconds()) + 1
            if seconds > 0:
                await self._remember(session.id, status, seconds)

    def _view(self, claims: SessionClaims) -> SessionView:
        merchant = None
        if claims.merchant_id is not None:
            merchant = SessionMerchant(
                id=claims.merchant_id, name=claims.merchant_name, timezone=claims.timezone
            )
        return SessionView(
            token=self._signer.sign(claims),
            kind=claims.kind,
            role=claims.role,
            second_factor=claims.second_factor,
            expires_at=claims.expires_at,
            rotate_until=claims.signed_in_at + SESSION_FAMILY_LIFETIME,
            merchant=merchant,
        )

    async def _remembered(self, session_id: str) -> str | None:
        async def get(redis: Redis) -> bytes | None:
            return cast("bytes | None", await redis.get(_name(session_id)))

        try:
            kept = await self._cache.ask(get)
        except CacheAway:
            return None
        return None if kept is None else kept.decode()

    async def _remember(
        self, session_id: str, status: str, seconds: int, *, only_if_new: bool = False
    ) -> None:
        async def keep(redis: Redis) -> None:
            await redis.set(_name(session_id), status, ex=seconds, nx=only_if_new)

        try:
            await self._cache.ask(keep)
        except CacheAway:
            # PostgreSQL holds the truth; the cache has said once a minute that it is away.
            return

"""How people prove who they are: password, and for admins a code of their second factor.

A wrong password, an unknown email address, a missing, wrong or used code: all take the time of one
password check and get the same answer. What was proved is looked at again under a lock before the
session is written, so that a password changed meanwhile opens nothing.
"""

import asyncio
from datetime import UTC, datetime

from api.database import Database, Identity
from api.errors import Conflict, NotAuthenticated
from api.people import store
from api.people.model import (
    AdminLogin,
    AdminLoginBody,
    CodeBody,
    LoginBody,
    SessionView,
    TotpView,
)
from api.people.sessions import Sessions
from api.security import (
    Sealer,
    SessionClaims,
    new_totp_secret,
    totp_step,
    totp_uri,
    verify_password,
)

_NO_MATCH = "email and password do not match"
_NO_MATCH_WITH_CODE = "email, password and code do not match"


async def staff(
    sessions: Sessions, database: Database, body: LoginBody, *, request_id: str
) -> SessionView:
    """Check email and password of a member of staff and open a session."""
    email = body.email.lower()
    known = await store.staff_for_login(database, email)
    password_hash = None if known is None else known.password_hash
    matches = await asyncio.to_thread(verify_password, body.password, password_hash)
    if known is None or not matches:
        raise NotAuthenticated(_NO_MATCH)
    identity = Identity(known.staff_id, known.merchant_id, request_id)
    async with database.unit_of_work(identity) as unit:
        person = await store.hold_person(unit, known.staff_id, kind="staff")
        if person is None or await store.staff_login(unit, email) != known:
            raise NotAuthenticated(_NO_MATCH)
        return await sessions.open(unit, person, kind="staff")


async def admin(
    sessions: Sessions, sealer: Sealer, operator: Database, body: AdminLoginBody, *, request_id: str
) -> SessionView:
    """Check email, password and code of an admin and open a session.

    Where no second factor is confirmed yet, the session opens without a code and may do nothing but
    enrol one.
    """
    known = await store.admin_for_login(operator, body.email.lower())
    password_hash = None if known is None else known.password_hash
    matches = await asyncio.to_thread(verify_password, body.password, password_hash)
    if known is None or not matches or known.disabled_at is not None:
        raise NotAuthenticated(_NO_MATCH_WITH_CODE)
    step = _step(sealer, known, body.code or "")
    enrolled = known.totp_confirmed_at is not None
    if enrolled and step is None:
        raise NotAuthenticated(_NO_MATCH_WITH_CODE)
    async with operator.unit_of_work(Identity(known.admin_id, None, request_id)) as unit:
        # The code first: it takes the row's lock, which two signing in at once would else both
        # share and then both wait for.
        if enrolled and (step is None or not await store.use_totp(unit, known.admin_id, step)):
            raise NotAuthenticated(_NO_MATCH_WITH_CODE)
        person = await store.hold_person(unit, known.admin_id, kind="admin")
        if person is None or await store.admin_login(unit, known.admin_id) != known:
            raise NotAuthenticated(_NO_MATCH_WITH_CODE)
        return await sessions.open(unit, person, kind="admin", second_factor=enrolled)


async def enrol(
    sealer: Sealer, operator: Database, claims: SessionClaims, *, request_id: str
) -> TotpView:
    """Give an admin a new second factor to confirm; the one before it, unconfirmed, is void.

    Raises Conflict where one is confirmed: another admin takes it away first.
    """
    secret = new_totp_secret()
    sealed = sealer.seal(secret, owner=claims.person_id)
    async with operator.unit_of_work(Identity(claims.person_id, None, request_id)) as unit:
        if not await store.seal_totp(unit, claims.person_id, sealed):
            raise Conflict("a second factor is confirmed; another admin must take it away first")
        known = await store.admin_login(unit, claims.person_id)
    if known is None:
        raise NotAuthenticated("this admin is gone")
    return TotpView(uri=totp_uri(secret, email=known.email))


async def confirm(
    sessions: Sessions,
    sealer: Sealer,
    operator: Database,
    claims: SessionClaims,
    body: CodeBody,
    *,
    request_id: str,
) -> SessionView:
    """Confirm an admin's new second factor by its first code; their rights begin with the answer.

    Every session opened without the second factor ends. Raises Conflict where there is nothing to
    confirm, NotAuthenticated where the code is not the current one.
    """
    async with operator.unit_of_work(Identity(claims.person_id, None, request_id)) as unit:
        known = await store.admin_login(unit, claims.person_id)
        if known is None or known.totp_sealed is None or known.totp_confirmed_at is not None:
            raise Conflict("there is no second factor to confirm: enrol one")
        step = _step(sealer, known, body.code)
        if step is None or not await store.use_totp(unit, claims.person_id, step):
            raise NotAuthenticated("this code is not the current one")
        ended = await store.end_person(unit, claims.person_id)
        person = await store.hold_person(unit, claims.person_id, kind="admin")
        again = await store.admin_login(unit, claims.person_id)
        if person is None or again is None or again.totp_sealed != known.totp_sealed:
            raise Conflict("the second factor was renewed meanwhile: confirm the new one")
        view = await sessions.open(unit, person, kind="admin", second_factor=True)
    await sessions.announce(ended)
    return view


def _step(sealer: Sealer, known: AdminLogin, code: str) -> int | None:
    """Return the step whose code was presented, or None; the digits are as many as ours."""
    if known.totp_sealed is None:
        return None
    secret = sealer.open(known.totp_sealed, owner=known.admin_id)
    return totp_step(secret, code, datetime.now(UTC))

"""The SQL of API keys, staff, admins and sessions."""

from typing import Final, LiteralString

from api.database import Database, Unit
from api.paging import Paging
from api.people.model import (
    Admin,
    AdminLogin,
    ApiKey,
    EndedSession,
    KeyHolder,
    Person,
    SessionStatus,
    Staff,
    StaffLogin,
)
from api.security import NewKey, PersonKind, SessionClaims

_AUTHENTICATE: Final[LiteralString] = "SELECT * FROM authenticate_api_key(%(key_hash)s)"
_STAFF_FOR_LOGIN: Final[LiteralString] = "SELECT * FROM staff_for_login(%(email)s)"
_ADMIN_FOR_LOGIN: Final[LiteralString] = "SELECT * FROM admin_for_login(%(email)s)"
_ADMIN_BY_ID: Final[LiteralString] = "SELECT * FROM admin_by_id(%(id)s)"
_SESSION_STATUS: Final[LiteralString] = "SELECT * FROM session_status(%(id)s)"

_ADD_KEY: Final[LiteralString] = """
    INSERT INTO api_keys (id, merchant_id, mode, key_prefix, key_hash, scopes)
    VALUES (%(id)s, %(merchant_id)s, %(mode)s, %(key_prefix)s, %(key_hash)s, %(scopes)s)
"""
_KEYS: Final[LiteralString] = """
    SELECT id, mode, key_prefix, scopes, created_at, revoked_at
    FROM api_keys
    WHERE merchant_id = %(merchant_id)s
      AND (%(cursor)s::text IS NULL
           OR CASE WHEN %(newer)s THEN id > %(cursor)s ELSE id < %(cursor)s END)
    ORDER BY CASE WHEN %(newer)s THEN id END, id DESC
    LIMIT %(limit)s
"""
_KEY: Final[LiteralString] = """
    SELECT id, mode, key_prefix, scopes, created_at, revoked_at
    FROM api_keys
    WHERE merchant_id = %(merchant_id)s AND id = %(id)s
"""
_REVOKE_KEY: Final[LiteralString] = """
    UPDATE api_keys SET revoked_at = clock_timestamp()
    WHERE merchant_id = %(merchant_id)s AND id = %(id)s AND revoked_at IS NULL
"""

_PUT_STAFF: Final[LiteralString] = """
    INSERT INTO merchant_staff (id, merchant_id, email, password_hash, role)
    VALUES (%(id)s, %(merchant_id)s, %(email)s, %(password_hash)s, %(role)s)
    ON CONFLICT (email) DO UPDATE SET password_hash = %(password_hash)s, role = %(role)s
    RETURNING id, email, role, created_at
"""
_STAFF: Final[LiteralString] = """
    SELECT id, email, role, created_at
    FROM merchant_staff
    WHERE merchant_id = %(merchant_id)s
      AND (%(cursor)s::text IS NULL
           OR CASE WHEN %(newer)s THEN id > %(cursor)s ELSE id < %(cursor)s END)
    ORDER BY CASE WHEN %(newer)s THEN id END, id DESC
    LIMIT %(limit)s
"""
_ONE_OF_STAFF: Final[LiteralString] = """
    SELECT id, email, role, created_at
    FROM merchant_staff
    WHERE merchant_id = %(merchant_id)s AND id = %(id)s
"""
_SET_ROLE: Final[LiteralString] = """
    UPDATE merchant_staff SET role = %(role)s
    WHERE merchant_id = %(merchant_id)s AND id = %(id)s
"""
# The roles of requests may write a password's hash and not read it, so no statement keeps "the one
# it was".
_SET_HASH: Final[LiteralString] = """
    UPDATE merchant_staff SET password_hash = %(password_hash)s
    WHERE merchant_id = %(merchant_id)s AND id = %(id)s
"""
_REMOVE_STAFF: Final[LiteralString] = """
    DELETE FROM merchant_staff WHERE merchant_id = %(merchant_id)s AND id = %(id)s
"""

_ADMIN: Final[LiteralString] = """
    SELECT id, email, role, totp_confirmed_at, created_at, disabled_at
    FROM admins
    WHERE id = %(id)s
"""
_ADMINS: Final[LiteralString] = """
    SELECT id, email, role, totp_confirmed_at, created_at, disabled_at
    FROM admins
    WHERE (%(cursor)s::text IS NULL
           OR CASE WHEN %(newer)s THEN id > %(cursor)s ELSE id < %(cursor)s END)
    ORDER BY CASE WHEN %(newer)s THEN id END, id DESC
    LIMIT %(limit)s
"""
# Holding the person keeps a change of password or role waiting until their session is written, so
# that the change finds and revokes it.
_HOLD_STAFF: Final[LiteralString] = """
    SELECT s.id AS person_id, s.role, m.id AS merchant_id, m.name AS merchant_name, m.timezone
    FROM merchant_staff AS s JOIN merchants AS m ON m.id = s.merchant_id
    WHERE s.id = %(id)s
    FOR SHARE OF s
"""
_HOLD_ADMIN: Final[LiteralString] = """
    SELECT id AS person_id, role, NULL AS merchant_id, '' AS merchant_name, 'UTC' AS timezone
    FROM admins
    WHERE id = %(id)s AND disabled_at IS NULL
    FOR SHARE
"""
_ADD_ADMIN: Final[LiteralString] = """
    INSERT INTO admins (id, email, password_hash) VALUES (%(id)s, %(email)s, %(password_hash)s)
"""
_CHANGE_ADMIN: Final[LiteralString] = """
    UPDATE admins
    SET email = %(email)s,
        disabled_at = CASE WHEN %(disabled)s THEN coalesce(disabled_at, clock_timestamp()) END
    WHERE id = %(id)s
"""
_SET_ADMIN_HASH: Final[LiteralString] = """
    UPDATE admins SET password_hash = %(password_hash)s WHERE id = %(id)s
"""
_SEAL_TOTP: Final[LiteralString] = """
    UPDATE admins
    SET totp_sealed = %(sealed)s, totp_confirmed_at = NULL, totp_last_step = NULL
    WHERE id = %(id)s AND totp_confirmed_at IS NULL
    RETURNING true
"""
_FORGET_TOTP: Final[LiteralString] = """
    UPDATE admins SET totp_sealed = NULL, totp_confirmed_at = NULL, totp_last_step = NULL
    WHERE id = %(id)s
"""
# A code works once: of two requests with the same one, the second waits here and finds it used.
_USE_TOTP: Final[LiteralString] = """
    UPDATE admins
    SET totp_last_step = %(step)s,
        totp_confirmed_at = coalesce(totp_confirmed_at, clock_timestamp())
    WHERE id = %(id)s AND disabled_at IS NULL
      AND coalesce(totp_last_step < %(step)s, true)
    RETURNING true
"""

_OPEN_SESSION: Final[LiteralString] = """
    INSERT INTO sessions
        (id, family_id, kind, person_id, merchant_id, signed_in_at, expires_at)
    VALUES (%(id)s, %(family_id)s, %(kind)s, %(person_id)s, %(merchant_id)s, %(signed_in_at)s,
            %(expires_at)s)
"""
# Locks the row, so that of two exchanges of one session the second finds it rotated.
_END_SESSION: Final[LiteralString] = """
    UPDATE sessions SET status = %(status)s
    WHERE id = %(id)s AND status = 'open'
    RETURNING id, expires_at
"""
_END_FAMILY: Final[LiteralString] = """
    UPDATE sessions SET status = 'revoked'
    WHERE family_id = %(family_id)s AND status = 'open'
    RETURNING id, expires_at
"""
_END_PERSON: Final[LiteralString] = """
    UPDATE sessions SET status = 'revoked'
    WHERE person_id = %(person_id)s AND status = 'open' AND expires_at > now()
    RETURNING id, expires_at
"""
_FORGET_EXPIRED: Final[LiteralString] = """
    DELETE FROM sessions
    WHERE person_id = %(person_id)s AND expires_at < now() - interval '1 day'
"""


def _page(paging: Paging) -> dict[str, object]:
    return {
        "cursor": paging.cursor,
        "newer": paging.is_backward,
        "limit": paging.limit + 1,
    }


async def key_holder(database: Database, key_hash: bytes) -> KeyHolder | None:
    """Return who holds the key of this digest, unless it is unknown or revoked."""
    return await database.look_up(KeyHolder, _AUTHENTICATE, {"key_hash": key_hash})


async def add_key(unit: Unit, *, key_id: str, mode: str, key: NewKey, scopes: list[str]) -> None:
    """Keep the digest of a new key."""
    await unit.run(
        _ADD_KEY,
        {
            "id": key_id,
            "merchant_id": unit.merchant_id,
            "mode": mode,
            "key_prefix": key.prefix,
            "key_hash": key.digest,
            "scopes": scopes,
        },
    )


async def keys(unit: Unit, *, paging: Paging) -> list[ApiKey]:
    """Return the merchant's keys, nearest the cursor first, and one more than the page holds."""
    parameters = {"merchant_id": unit.merchant_id, **_page(paging)}
    return await unit.all(ApiKey, _KEYS, parameters)


async def key(unit: Unit, key_id: str) -> ApiKey | None:
    """Return one of the merchant's keys."""
    return await unit.maybe(ApiKey, _KEY, {"merchant_id": unit.merchant_id, "id": key_id})


async def revoke_key(unit: Unit, key_id: str) -> None:
    """Revoke one of the merchant's keys; one that is revoked keeps its moment."""
    await unit.run(_REVOKE_KEY, {"merchant_id": unit.merchant_id, "id": key_id})


async def staff_for_login(database: Database, email: str) -> StaffLogin | None:
    """Return the person of this email address."""
    return await database.look_up(StaffLogin, _STAFF_FOR_LOGIN, {"email": email})


async def staff_login(unit: Unit, email: str) -> StaffLogin | None:
    """Return the person of this email address, inside a unit of work."""
    return await unit.maybe(StaffLogin, _STAFF_FOR_LOGIN, {"email": email})


async def put_staff(
    unit: Unit, *, staff_id: str, email: str, password_hash: str, role: str
) -> Staff:
    """Create the person, or set the password and role of the one who has this address."""
    return await unit.one(
        Staff,
        _PUT_STAFF,
        {
            "id": staff_id,
            "merchant_id": unit.merchant_id,
            "email": email,
            "password_hash": password_hash,
            "role": role,
        },
    )


async def staff(unit: Unit, *, paging: Paging) -> list[Staff]:
    """Return the merchant's staff, nearest the cursor first, and one more than the page holds."""
    parameters = {"merchant_id": unit.merchant_id, **_page(paging)}
    return await unit.all(Staff, _STAFF, parameters)


async def one_of_staff(unit: Unit, staff_id: str) -> Staff | None:
    """Return one of the merchant's staff."""
    parameters = {"merchant_id": unit.merchant_id, "id": staff_id}
    return await unit.maybe(Staff, _ONE_OF_STAFF, parameters)


async def change_staff(
    unit: Unit, staff_id: str, *, role: str | None, password_hash: str | None
) -> None:
    """Set role or password; None leaves either as it is."""
    whom = {"merchant_id": unit.merchant_id, "id": staff_id}
    if role is not None:
        await unit.run(_SET_ROLE, {**whom, "role": role})
    if password_hash is not None:
        await unit.run(_SET_HASH, {**whom, "password_hash": password_hash})


async def remove_staff(unit: Unit, staff_id: str) -> None:
    """Delete one of the merchant's staff."""
    await unit.run(_REMOVE_STAFF, {"merchant_id": unit.merchant_id, "id": staff_id})


async def admin_for_login(operator: Database, email: str) -> AdminLogin | None:
    """Return the admin of this email address, with password and second factor."""
    return await operator.look_up(AdminLogin, _ADMIN_FOR_LOGIN, {"email": email})


async def admin_login(unit: Unit, admin_id: str) -> AdminLogin | None:
    """Return the admin of this id, with password and second factor."""
    return await unit.maybe(AdminLogin, _ADMIN_BY_ID, {"id": admin_id})


async def admin(unit: Unit, admin_id: str) -> Admin | None:
    """Return an admin."""
    return await unit.maybe(Admin, _ADMIN, {"id": admin_id})


async def admins(unit: Unit, *, paging: Paging) -> list[Admin]:
    """Return admins, nearest the cursor first, and one more than the page holds."""
    return await unit.all(Admin, _ADMINS, _page(paging))


async def add_admin(unit: Unit, *, admin_id: str, email: str, password_hash: str) -> None:
    """Create an admin, who has no second factor yet."""
    parameters = {"id": admin_id, "email": email, "password_hash": password_hash}
    await unit.run(_ADD_ADMIN, parameters)


async def change_admin(
    unit: Unit, admin_id: str, *, email: str, password_hash: str | None, disabled: bool
) -> None:
    """Set an admin's address, password (None leaves it) and whether they are disabled."""
    await unit.run(_CHANGE_ADMIN, {"id": admin_id, "email": email, "disabled": disabled})
    if password_hash is not None:
        await unit.run(_SET_ADMIN_HASH, {"id": admin_id, "password_hash": password_hash})


async def seal_totp(unit: Unit, admin_id: str, sealed: bytes) -> bool:
    """Keep a new second factor to be confirmed; False where a confirmed one is in force."""
    done: bool | None = await unit.value(_SEAL_TOTP, {"id": admin_id, "sealed": sealed})
    return done is True


async def use_totp(unit: Unit, admin_id: str, step: int) -> bool:
    """Use the code of a step, which also confirms a new second factor; False where it is used."""
    done: bool | None = await unit.value(_USE_TOTP, {"id": admin_id, "step": step})
    return done is True


async def forget_totp(unit: Unit, admin_id: str) -> None:
    """Take an admin's second factor away; they enrol a new one when they sign in."""
    await unit.run(_FORGET_TOTP, {"id": admin_id})


async def session_status(database: Database, session_id: str) -> SessionStatus | None:
    """Return whether a session counts, or None where there is no such session."""
    return await database.look_up(SessionStatus, _SESSION_STATUS, {"id": session_id})


async def hold_person(unit: Unit, person_id: str, *, kind: PersonKind) -> Person | None:
    """Return the person and keep them from changing until the unit of work ends."""
    query = _HOLD_STAFF if kind == "staff" else _HOLD_ADMIN
    return await unit.maybe(Person, query, {"id": person_id})


async def open_session(unit: Unit, session: SessionClaims) -> None:
    """Write down a session that is about to be given out."""
    await unit.run(
        _OPEN_SESSION,
        {
            "id": session.id,
            "family_id": session.family_id,
            "kind": session.kind,
            "person_id": session.person_id,
            "merchant_id": session.merchant_id,
            "signed_in_at": session.signed_in_at,
            "expires_at": session.expires_at,
        },
    )
    await unit.run(_FORGET_EXPIRED, {"person_id": session.person_id})


async def end_session(unit: Unit, session_id: str, *, status: str) -> EndedSession | None:
    """End an open session as `rotated` or `revoked`; None where it was not open any more."""
    return await unit.maybe(EndedSession, _END_SESSION, {"id": session_id, "status": status})


async def end_family(unit: Unit, family_id: str) -> list[EndedSession]:
    """Revoke what is open of a family of sessions."""
    return await unit.all(EndedSession, _END_FAMILY, {"family_id": family_id})


async def end_person(unit: Unit, person_id: str) -> list[EndedSession]:
    """Revoke every open session of a person."""
    return await unit.all(EndedSession, _END_PERSON, {"person_id": person_id})

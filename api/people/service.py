"""API keys and staff, each change in the caller's unit of work.

A change of password or role, and a removal, end the person's sessions with it; what is given back
names them, for the cache to be told once the unit of work has committed.
"""

import asyncio

import psycopg

from api.database import Unit, new_id
from api.errors import Conflict, NotFound
from api.paging import Paging
from api.people import store
from api.people.model import (
    ApiKey,
    EndedSession,
    KeyBody,
    KeyList,
    KeyView,
    NewKeyView,
    Staff,
    StaffBody,
    StaffChange,
    StaffList,
    StaffView,
)
from api.security import hash_password, new_api_key, verify_password

_NO_STAFF = "nobody of your staff has this id"


async def issue_key(unit: Unit, body: KeyBody) -> NewKeyView:
    """Issue an API key; its plain text exists in the answer only.

    Raises NotFound where the unit's merchant does not exist.
    """
    key, key_id, scopes = new_api_key(body.mode), new_id("key"), sorted(set(body.scopes))
    try:
        await store.add_key(unit, key_id=key_id, mode=body.mode, key=key, scopes=list(scopes))
        await store.key(unit, key_id)
    except psycopg.errors.ForeignKeyViolation as refusal:
        raise NotFound("no merchant has this id") from refusal
    return NewKeyView(id=key_id, mode=body.mode, scopes=list(scopes), key=key.plain)


async def list_keys(unit: Unit, paging: Paging) -> KeyList:
    """Return a page of the merchant's keys, newest first, revoked ones too."""
    found, has_more = paging.cut(await store.keys(unit, paging=paging))
    return KeyList(data=[_key_view(key) for key in found], has_more=has_more)


async def revoke_key(unit: Unit, key_id: str) -> KeyView:
    """Revoke a key of the merchant, which from then on opens nothing; again changes nothing."""
    await store.revoke_key(unit, key_id)
    key = await store.key(unit, key_id)
    if key is None:
        raise NotFound("no API key of this merchant has this id")
    return _key_view(key)


async def put_staff(unit: Unit, body: StaffBody) -> tuple[StaffView, list[EndedSession]]:
    """Let a person sign in for the unit's merchant, or change their password and role.

    Sent again it changes nothing. Raises Conflict where the email address belongs to another
    merchant's staff, NotFound where the merchant does not exist.
    """
    email = body.email.lower()
    known = await store.staff_login(unit, email)
    if known is not None and known.merchant_id != unit.merchant_id:
        raise Conflict("this email address signs in for another merchant")
    if known is not None and known.role == body.role:
        same = await asyncio.to_thread(verify_password, body.password, known.password_hash)
        if same:
            return _staff_view(await _one_of_staff(unit, known.staff_id)), []
    password_hash = await asyncio.to_thread(hash_password, body.password)
    try:
        person = await store.put_staff(
            unit, staff_id=new_id("stf"), email=email, password_hash=password_hash, role=body.role
        )
    except psycopg.errors.InsufficientPrivilege as refusal:
        # Row-level security: the row in conflict is another merchant's, from a moment ago.
        raise Conflict("this email address signs in for another merchant") from refusal
    except psycopg.errors.ForeignKeyViolation as refusal:
        raise NotFound("no merchant has this id") from refusal
    return _staff_view(person), await store.end_person(unit, person.id)


async def add_staff(unit: Unit, body: StaffBody) -> StaffView:
    """Add a person who signs in for nobody yet; raises Conflict where the address is taken."""
    if await store.staff_login(unit, body.email.lower()) is not None:
        raise Conflict("this email address signs in already")
    view, _ = await put_staff(unit, body)
    return view


async def list_staff(unit: Unit, paging: Paging) -> StaffList:
    """Return a page of the merchant's staff, newest first."""
    found, has_more = paging.cut(await store.staff(unit, paging=paging))
    return StaffList(data=[_staff_view(person) for person in found], has_more=has_more)


async def change_staff(
    unit: Unit, staff_id: str, change: StaffChange
) -> tuple[StaffView, list[EndedSession]]:
    """Change role or password of one of the staff.

    Raises Conflict where the actor changes their own role, so that a merchant keeps an owner;
    NotFound where the merchant has nobody of this id.
    """
    before = await _one_of_staff(unit, staff_id)
    role = None if change.role == before.role else change.role
    if role is not None and staff_id == unit.identity.actor:
        raise Conflict("another owner must change your role")
    if role is None and change.password is None:
        return _staff_view(before), []
    password_hash = None
    if change.password is not None:
        password_hash = await asyncio.to_thread(hash_password, change.password)
    await store.change_staff(unit, staff_id, role=role, password_hash=password_hash)
    ended = await store.end_person(unit, staff_id)
    return _staff_view(await _one_of_staff(unit, staff_id)), ended


async def remove_staff(unit: Unit, staff_id: str) -> list[EndedSession]:
    """Remove one of the staff, who can not sign in any more; the audit keeps who they were.

    Raises Conflict where they are the actor, NotFound where the merchant has nobody of this id.
    """
    await _one_of_staff(unit, staff_id)
    if staff_id == unit.identity.actor:
        raise Conflict("another owner must remove you")
    await store.remove_staff(unit, staff_id)
    return await store.end_person(unit, staff_id)


async def _one_of_staff(unit: Unit, staff_id: str) -> Staff:
    person = await store.one_of_staff(unit, staff_id)
    if person is None:
        raise NotFound(_NO_STAFF)
    return person


def _key_view(key: ApiKey) -> KeyView:
    return KeyView(
        id=key.id,
        mode=key.mode,
        scopes=key.scopes,
        prefix=key.key_prefix,
        created_at=key.created_at,
        revoked_at=key.revoked_at,
    )


def _staff_view(person: Staff) -> StaffView:
    return StaffView(
        id=person.id, email=person.email, role=person.role, created_at=person.created_at
    )

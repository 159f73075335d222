"""Admins: created, changed, disabled, and freed of a lost second factor, by one another.

A change of password or address, a disabling and the loss of the second factor end the admin's
sessions; what is given back names them, for the cache to be told after the commit.
"""

import asyncio

from api.database import Unit, refused_by
from api.errors import Conflict, FieldError, InvalidRequest, NotFound
from api.paging import Paging
from api.people import store
from api.people.model import Admin, AdminBody, AdminList, AdminLogin, AdminView, EndedSession
from api.security import hash_password, verify_password


async def put(unit: Unit, admin_id: str, body: AdminBody) -> tuple[AdminView, list[EndedSession]]:
    """Create the admin of this id or make them what the body says; again changes nothing.

    Raises Conflict where the address is another's or admins disable themselves, InvalidRequest
    where a new admin lacks a password.
    """
    known = await store.admin_login(unit, admin_id)
    with refused_by("admins_email_key", Conflict("another admin has this email address")):
        if known is None:
            await _add(unit, admin_id, body)
            ended: list[EndedSession] = []
        else:
            ended = await _change(unit, known, body)
        return _view(await _get(unit, admin_id)), ended


async def page(unit: Unit, paging: Paging) -> AdminList:
    """Return a page of admins, newest first."""
    found, has_more = paging.cut(await store.admins(unit, paging=paging))
    return AdminList(data=[_view(admin) for admin in found], has_more=has_more)


async def take_second_factor(unit: Unit, admin_id: str) -> tuple[AdminView, list[EndedSession]]:
    """Take an admin's second factor away; they enrol a new one when they sign in next.

    Raises Conflict where admins do it to themselves: whoever holds a stolen session could.
    """
    await _get(unit, admin_id)
    if admin_id == unit.identity.actor:
        raise Conflict("another admin must take your second factor away")
    await store.forget_totp(unit, admin_id)
    ended = await store.end_person(unit, admin_id)
    return _view(await _get(unit, admin_id)), ended


async def _add(unit: Unit, admin_id: str, body: AdminBody) -> None:
    if body.password is None or body.disabled:
        name = "disabled" if body.disabled else "password"
        raise InvalidRequest(
            "a new admin has a password and is not disabled",
            errors=[FieldError(detail="not of a new admin", pointer=f"/{name}")],
        )
    password_hash = await asyncio.to_thread(hash_password, body.password)
    await store.add_admin(
        unit, admin_id=admin_id, email=body.email.lower(), password_hash=password_hash
    )


async def _change(unit: Unit, known: AdminLogin, body: AdminBody) -> list[EndedSession]:
    if body.disabled and known.admin_id == unit.identity.actor:
        raise Conflict("another admin must disable you")
    email, password_hash = body.email.lower(), None
    if body.password is not None:
        same = await asyncio.to_thread(verify_password, body.password, known.password_hash)
        if not same:
            password_hash = await asyncio.to_thread(hash_password, body.password)
    disabled_before = known.disabled_at is not None
    if password_hash is None and (email, body.disabled) == (known.email, disabled_before):
        return []
    await store.change_admin(
        unit, known.admin_id, email=email, password_hash=password_hash, disabled=body.disabled
    )
    return await store.end_person(unit, known.admin_id)


async def _get(unit: Unit, admin_id: str) -> Admin:
    admin = await store.admin(unit, admin_id)
    if admin is None:
        raise NotFound("no admin has this id")
    return admin


def _view(admin: Admin) -> AdminView:
    return AdminView(
        id=admin.id,
        email=admin.email,
        second_factor_confirmed_at=admin.totp_confirmed_at,
        created_at=admin.created_at,
        disabled_at=admin.disabled_at,
    )

"""Who merchants are, and who may speak for them.

Authentication answers who holds a key or a password; everything after it runs under that merchant's
row-level security. A wrong password and an unknown email address take the same time and get the
same answer.
"""

import asyncio

import psycopg

from api.audit import service as audit
from api.database import Database, Identity, Unit, new_id
from api.errors import Conflict, NotAuthenticated, NotFound
from api.merchants import store
from api.merchants.model import (
    KeyBody,
    KeyHolder,
    KeyView,
    LoginBody,
    Merchant,
    MerchantBody,
    SessionMerchant,
    SessionView,
    StaffBody,
    StaffView,
)
from api.security import (
    SessionSigner,
    api_key_digest,
    hash_password,
    new_api_key,
    verify_password,
)


async def authenticate(database: Database, plain_key: str) -> KeyHolder:
    """Return who holds an API key; raises NotAuthenticated where nobody does (any more)."""
    holder = await store.key_holder(database, api_key_digest(plain_key))
    if holder is None:
        raise NotAuthenticated("this API key is unknown or revoked")
    return holder


async def get_merchant(unit: Unit) -> Merchant:
    """Return the unit's merchant; raises NotFound where there is none of that id."""
    merchant = await store.get(unit)
    if merchant is None:
        raise NotFound("no merchant has this id")
    return merchant


async def put_merchant(unit: Unit, body: MerchantBody) -> Merchant:
    """Create the unit's merchant, or change it to what the body says."""
    await store.put(unit, body.model_dump())
    return await get_merchant(unit)


async def issue_key(unit: Unit, body: KeyBody) -> KeyView:
    """Issue an API key; its plain text exists in the answer only."""
    await get_merchant(unit)
    key, key_id, scopes = new_api_key(body.mode), new_id("key"), sorted(set(body.scopes))
    await store.add_key(unit, key_id=key_id, mode=body.mode, key=key, scopes=list(scopes))
    return KeyView(id=key_id, mode=body.mode, scopes=list(scopes), key=key.plain)


async def put_staff(unit: Unit, body: StaffBody) -> StaffView:
    """Let a person sign in for the unit's merchant, or change their password and role.

    Raises Conflict where the email address belongs to another merchant's staff.
    """
    await get_merchant(unit)
    email = body.email.lower()
    password_hash = await asyncio.to_thread(hash_password, body.password)
    try:
        staff_id = await store.put_staff(
            unit, staff_id=new_id("stf"), email=email, password_hash=password_hash, role=body.role
        )
    except psycopg.errors.InsufficientPrivilege as refusal:
        # Row-level security: the row in conflict is another merchant's.
        raise Conflict("this email address signs in for another merchant") from refusal
    return StaffView(id=staff_id, email=email, role=body.role)


async def sign_in(
    database: Database, signer: SessionSigner, body: LoginBody, *, request_id: str
) -> SessionView:
    """Check email and password and return a session; raises NotAuthenticated."""
    person = await store.staff_for_login(database, body.email.lower())
    known_hash = None if person is None else person.password_hash
    matches = await asyncio.to_thread(verify_password, body.password, known_hash)
    if person is None or not matches:
        raise NotAuthenticated("email and password do not match")
    session = signer.sign(
        staff_id=person.staff_id,
        role=person.role,
        merchant_id=person.merchant_id,
        merchant_name=person.merchant_name,
        timezone=person.timezone,
    )
    identity = Identity(person.staff_id, person.merchant_id, request_id)
    async with database.unit_of_work(identity) as unit:
        await audit.record(
            unit, action="session.opened", subject_type="staff", subject_id=person.staff_id
        )
    return SessionView(
        token=session.token,
        expires_at=session.expires_at,
        merchant=SessionMerchant(
            id=person.merchant_id, name=person.merchant_name, timezone=person.timezone
        ),
    )

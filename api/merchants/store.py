"""The SQL of merchants, staff and API keys."""

from typing import Final, LiteralString

from api.database import Database, Unit
from api.merchants.model import KeyHolder, Merchant, StaffLogin
from api.security import NewKey

_AUTHENTICATE: Final[LiteralString] = "SELECT * FROM authenticate_api_key(%(key_hash)s)"
_STAFF_FOR_LOGIN: Final[LiteralString] = "SELECT * FROM staff_for_login(%(email)s)"

_PUT_MERCHANT: Final[LiteralString] = """
    INSERT INTO merchants (id, name, trade, timezone, country, fee_bps)
    VALUES (%(id)s, %(name)s, %(trade)s, %(timezone)s, %(country)s, %(fee_bps)s)
    ON CONFLICT (id) DO UPDATE
    SET name = EXCLUDED.name, trade = EXCLUDED.trade, timezone = EXCLUDED.timezone,
        country = EXCLUDED.country, fee_bps = EXCLUDED.fee_bps
    WHERE (merchants.name, merchants.trade, merchants.timezone, merchants.country,
           merchants.fee_bps)
          IS DISTINCT FROM
          (EXCLUDED.name, EXCLUDED.trade, EXCLUDED.timezone, EXCLUDED.country, EXCLUDED.fee_bps)
"""
_GET_MERCHANT: Final[LiteralString] = """
    SELECT id, name, trade, timezone, country, fee_bps, created_at, updated_at
    FROM merchants
    WHERE id = %(id)s
"""
_ADD_KEY: Final[LiteralString] = """
    INSERT INTO api_keys (id, merchant_id, mode, key_prefix, key_hash, scopes)
    VALUES (%(id)s, %(merchant_id)s, %(mode)s, %(key_prefix)s, %(key_hash)s, %(scopes)s)
"""
_PUT_STAFF: Final[LiteralString] = """
    INSERT INTO merchant_staff (id, merchant_id, email, password_hash, role)
    VALUES (%(id)s, %(merchant_id)s, %(email)s, %(password_hash)s, %(role)s)
    ON CONFLICT (email) DO UPDATE
    SET password_hash = EXCLUDED.password_hash, role = EXCLUDED.role
    RETURNING id
"""


async def key_holder(database: Database, key_hash: bytes) -> KeyHolder | None:
    """Return who holds the key of this digest, unless it is unknown or revoked."""
    return await database.look_up(KeyHolder, _AUTHENTICATE, {"key_hash": key_hash})


async def staff_for_login(database: Database, email: str) -> StaffLogin | None:
    """Return the person of this email address."""
    return await database.look_up(StaffLogin, _STAFF_FOR_LOGIN, {"email": email})


async def put(unit: Unit, merchant: dict[str, object]) -> None:
    """Create the merchant or change what differs; nothing is written where nothing does."""
    await unit.run(_PUT_MERCHANT, {"id": unit.merchant_id, **merchant})


async def get(unit: Unit) -> Merchant | None:
    """Return the unit's merchant."""
    return await unit.maybe(Merchant, _GET_MERCHANT, {"id": unit.merchant_id})


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


async def put_staff(unit: Unit, *, staff_id: str, email: str, password_hash: str, role: str) -> str:
    """Create the person or set password and role; return the id."""
    kept_id: str = await unit.value(
        _PUT_STAFF,
        {
            "id": staff_id,
            "merchant_id": unit.merchant_id,
            "email": email,
            "password_hash": password_hash,
            "role": role,
        },
    )
    return kept_id

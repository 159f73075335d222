"""The SQL of confirmation policies. Row-level security shows a merchant its own, and all's."""

# Statements are put together from constants alone.
# ruff: noqa: S608

from typing import Final, LiteralString

from api.chain.model import Commitment
from api.database import Unit, refused_by
from api.errors import NotFound
from api.payments.model import Payment
from api.payments.policy_model import ConfirmationPolicy, SetPolicy

_COLUMNS: Final[LiteralString] = (
    "id, merchant_id, mode, asset, up_to_minor, commitment, reason, set_by, created_at, updated_at"
)
_COMMITMENT_FOR: Final[LiteralString] = """
    SELECT commitment FROM confirmation_policies
    WHERE (merchant_id IS NULL OR merchant_id = %(merchant_id)s)
      AND (mode IS NULL OR mode = %(mode)s)
      AND (asset IS NULL OR asset = %(asset)s)
      AND up_to_minor >= %(amount_minor)s
    ORDER BY merchant_id IS NULL, mode IS NULL, asset IS NULL, up_to_minor
    LIMIT 1
"""
_PUT: Final[LiteralString] = (
    """
    INSERT INTO confirmation_policies (id, merchant_id, mode, asset, up_to_minor, commitment,
                                       reason, set_by)
    VALUES (%(id)s, %(merchant_id)s, %(mode)s, %(asset)s, %(up_to_minor)s, %(commitment)s,
            %(reason)s, %(set_by)s)
    ON CONFLICT ON CONSTRAINT confirmation_policies_one_a_band DO UPDATE
    SET commitment = EXCLUDED.commitment, reason = EXCLUDED.reason, set_by = EXCLUDED.set_by
    RETURNING """
    + _COLUMNS
)
_REMOVE: Final[LiteralString] = "DELETE FROM confirmation_policies WHERE id = %(id)s RETURNING true"
_SELECT: Final[LiteralString] = "SELECT " + _COLUMNS + " FROM confirmation_policies "
_OF_MODE: Final[LiteralString] = (
    _SELECT + "WHERE (%(mode)s::text IS NULL OR mode IS NULL OR mode = %(mode)s)"
)
_OLDER: Final[LiteralString] = (
    _OF_MODE + " AND (%(cursor)s::text IS NULL OR id < %(cursor)s) ORDER BY id DESC LIMIT %(limit)s"
)
_NEWER: Final[LiteralString] = _OF_MODE + " AND id > %(cursor)s ORDER BY id LIMIT %(limit)s"


async def commitment_for(unit: Unit, payment: Payment) -> Commitment:
    """Return what the most telling policy that fits says, and finalized where none fits."""
    said: str | None = await unit.value(
        _COMMITMENT_FOR,
        {
            "merchant_id": payment.merchant_id,
            "mode": payment.mode,
            "asset": payment.asset,
            "amount_minor": payment.amount_minor,
        },
    )
    return Commitment.FINALIZED if said is None else Commitment(said)


async def put(unit: Unit, policy_id: str, body: SetPolicy) -> ConfirmationPolicy:
    """Write a policy; one of the same band keeps its id and is changed."""
    parameters = {
        "id": policy_id,
        "merchant_id": body.merchant_id,
        "mode": body.mode,
        "asset": body.asset,
        "up_to_minor": int(body.up_to),
        "commitment": body.commitment,
        "reason": body.reason,
        "set_by": unit.identity.actor,
    }
    stranger = NotFound("no merchant has this id")
    with refused_by("confirmation_policies_merchant_id_fkey", stranger):
        return await unit.one(ConfirmationPolicy, _PUT, parameters)


async def remove(unit: Unit, policy_id: str) -> bool:
    """Remove a policy; say whether it was there."""
    return bool(await unit.value(_REMOVE, {"id": policy_id}))


async def page(
    unit: Unit, *, mode: str | None, cursor: str | None, newer: bool, limit: int
) -> list[ConfirmationPolicy]:
    """Return up to `limit` policies next to the cursor, nearest first; of a mode or of all."""
    parameters = {"mode": mode, "cursor": cursor, "limit": limit}
    return await unit.all(ConfirmationPolicy, _NEWER if newer else _OLDER, parameters)

"""How sure the chain must be before a payment's money is booked: policies, an admin's to change.

Without a policy that says otherwise everything waits for finalized, and so does always what is out
of the ordinary: escrow, a payment with an exception, one whose money vanished before. Of the
policies that fit a payment, the one that says most about it decides.
"""

from api.chain.model import Commitment
from api.database import Unit, new_id
from api.errors import NotFound
from api.paging import Paging
from api.payments import policy_store
from api.payments.decision import OPEN
from api.payments.model import Payment
from api.payments.policy_model import ConfirmationPolicy, SetPolicy


async def books_at(unit: Unit, payment: Payment) -> Commitment:
    """Return the commitment at which simple, full money for this payment is booked."""
    if payment.is_escrow or payment.exception is not None or payment.status not in OPEN:
        return Commitment.FINALIZED
    return await policy_store.commitment_for(unit, payment)


async def set_policy(unit: Unit, body: SetPolicy) -> ConfirmationPolicy:
    """Write a policy, or change the one of the same band; raises NotFound for no merchant."""
    return await policy_store.put(unit, new_id("cfp"), body)


async def remove_policy(unit: Unit, policy_id: str) -> None:
    """Remove a policy; raises NotFound."""
    if not await policy_store.remove(unit, policy_id):
        raise NotFound("no confirmation policy has this id")


async def policies(
    unit: Unit, page: Paging, *, mode: str | None = None
) -> tuple[list[ConfirmationPolicy], bool]:
    """Return a page of the policies that the unit may see, newest first, and has_more."""
    found = await policy_store.page(
        unit, mode=mode, cursor=page.cursor, newer=page.is_backward, limit=page.limit + 1
    )
    return page.cut(found)

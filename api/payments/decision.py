"""What a finalized receipt makes of a payment, and the entries that say so: pure functions.

Every receipt is booked in full, whatever it does to its payment:

| receipt                              | payment                     | booked against         |
|--------------------------------------|-----------------------------|------------------------|
| no payment, or more than one, named  | none                        | suspense               |
| other token than asked for           | exception wrong_asset       | suspense               |
| after the payment's end              | expired, exception late     | suspense               |
| not yet enough                       | pending, exception underpaid| suspense               |
| enough, or short within tolerance    | completed, or escrow_held   | liquidity, then shop   |
| more than enough, or once settled    | as it was, overpaid         | the rest: payer_excess |

In escrow the shop's part waits in `escrow_liability_pool`, whole and under a hold, until it is
released. A payment that failed because its money vanished takes money in time as an open one does.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Final

from api.chain.model import Receipt
from api.contract import Asset, PaymentException, PaymentStatus
from api.ledger.model import AccountKind, Entry, EntryKind, Hold, Leg
from api.payments.model import Payment, Terms, asset_of
from api.rates.model import WHOLE_BPS, convert, worth_minor
from api.security import Mode

# Money that names no payment is in the books of the live house until somebody says whose it is.
NOBODYS_MODE: Final[Mode] = "live"

_TO_CONFIRMING = (PaymentStatus.CREATED, PaymentStatus.PENDING, PaymentStatus.CONFIRMING)
_WALK = (*_TO_CONFIRMING, PaymentStatus.COMPLETED)
_ESCROW_WALK = (*_TO_CONFIRMING, PaymentStatus.ESCROW_HELD)
OPEN = frozenset(_TO_CONFIRMING)
# What still waits for its money: a failed payment has lost what it had.
UNPAID = OPEN | {PaymentStatus.FAILED}


@dataclass(frozen=True, slots=True)
class Decision:
    """What a finalized receipt of `amount_minor` makes of a payment.

    Of the receipt, `to_payment_minor` completes it together with `held_minor` received before,
    `to_excess_minor` is the payer's, `to_suspense_minor` waits; they sum to the receipt.
    `settled_minor` is what the shop is credited for it in the payment's currency, fee included.
    """

    path: tuple[PaymentStatus, ...]
    exception: PaymentException | None
    received_minor: int
    to_payment_minor: int = 0
    to_excess_minor: int = 0
    to_suspense_minor: int = 0
    held_minor: int = 0
    settled_minor: int = 0


def decide(
    payment: Payment, receipt: Receipt, *, held_minor: int, grace_s: int, tolerance_bps: int = 0
) -> Decision:
    """Decide what a finalized receipt makes of the payment that it names.

    `held_minor` is what earlier receipts, too small together, left in suspense for this payment. A
    receipt is late when its block is more than `grace_s` after the payment's end. Late money and
    other tokens do not count as received by the payment.
    """
    amount = receipt.amount_minor
    status = PaymentStatus(payment.status)
    received = payment.received_minor + amount
    if receipt.account.asset != payment.asset:
        return Decision(
            path=(),
            exception=PaymentException.WRONG_ASSET,
            received_minor=payment.received_minor,
            to_suspense_minor=amount,
        )
    if status not in UNPAID and status != PaymentStatus.EXPIRED:
        return Decision(
            path=(),
            exception=PaymentException.OVERPAID,
            received_minor=received,
            to_excess_minor=amount,
        )
    if status == PaymentStatus.EXPIRED or is_late(payment.expires_at, receipt.block_time, grace_s):
        over = status in {PaymentStatus.CREATED, PaymentStatus.PENDING}
        return Decision(
            path=(PaymentStatus.EXPIRED,) if over else (),
            exception=PaymentException.LATE,
            received_minor=payment.received_minor,
            to_suspense_minor=amount,
        )
    settled = settles_for(payment, held_minor + amount, tolerance_bps)
    if settled == 0:
        # A confirming payment stays so: what was seen but is not final yet may still cover it.
        return Decision(
            path=walk(status, PaymentStatus.PENDING),
            exception=PaymentException.UNDERPAID,
            received_minor=received,
            to_suspense_minor=amount,
        )
    excess = max(held_minor + amount - payment.asset_amount_minor, 0)
    return Decision(
        path=walk(status, settled_status(payment)),
        exception=PaymentException.OVERPAID if excess else _still_open(payment),
        received_minor=received,
        to_payment_minor=amount - excess,
        to_excess_minor=excess,
        held_minor=held_minor,
        settled_minor=settled,
    )


def settles_for(payment: Payment, token_minor: int, tolerance_bps: int) -> int:
    """Return what tokens in time settle a payment for: its amount, or 0 where it stays unpaid.

    Short by no more than the merchant's tolerance, they settle it for what they are worth.
    """
    if token_minor >= payment.asset_amount_minor:
        return payment.amount_minor
    if token_minor * WHOLE_BPS < payment.asset_amount_minor * (WHOLE_BPS - tolerance_bps):
        return 0
    return worth_minor(token_minor, payment.currency, asset_of(payment), payment.rate)


def _still_open(payment: Payment) -> PaymentException | None:
    """Return the exception that completion does not settle: its money is still in suspense."""
    unsettled = {PaymentException.LATE, PaymentException.WRONG_ASSET}
    return PaymentException(payment.exception) if payment.exception in unsettled else None


def settled_status(payment: Payment) -> PaymentStatus:
    """Return where a payment goes once its money is there."""
    return PaymentStatus.ESCROW_HELD if payment.is_escrow else PaymentStatus.COMPLETED


def walk(status: PaymentStatus, to: PaymentStatus) -> tuple[PaymentStatus, ...]:
    """Return the statuses to pass through from `status` up to `to`; none where it is reached.

    What expired or failed comes back by confirming, and stays as it is short of that.
    """
    if status not in OPEN:
        return () if to is PaymentStatus.PENDING else (PaymentStatus.CONFIRMING, to)
    way = _ESCROW_WALK if to is PaymentStatus.ESCROW_HELD else _WALK
    return way[way.index(status) + 1 : way.index(to) + 1]


def fee_minor(amount_minor: int, fee_bps: int) -> int:
    """Return the fee on an amount, rounded down to the merchant's advantage."""
    return amount_minor * fee_bps // WHOLE_BPS


def fee_now(payment: Payment, settled_minor: int, terms: Terms) -> int:
    """Return the fee taken on settling: all of it, or in escrow none before the release."""
    return 0 if payment.is_escrow else fee_minor(settled_minor, terms.fee_bps)


def is_late(expires_at: datetime, block_time: datetime | None, grace_s: int) -> bool:
    """Say whether a block came more than `grace_s` after a payment's end."""
    return block_time is not None and block_time > expires_at + timedelta(seconds=grace_s)


def entries(
    payment: Payment, receipt: Receipt, decision: Decision, *, fee: int, losses: int = 0
) -> list[Entry]:
    """Return the balanced entries of a decision.

    `losses` counts the times that this payment's money vanished after it was booked: what is booked
    anew is another entry, under another key.
    """
    token, merchant_id = receipt.account.asset.value, payment.merchant_id
    booked: list[Entry] = []
    if decision.to_payment_minor:
        came = [Leg(AccountKind.CRYPTO_POOL, token, decision.to_payment_minor)]
        if decision.held_minor:
            came.append(Leg(AccountKind.SUSPENSE, token, decision.held_minor))
        booked.append(
            settled_entry(
                payment,
                came,
                settled_minor=decision.settled_minor,
                fee=fee,
                mid=payment.rate_mid or payment.rate,
                quoted=payment.rate,
                description=receipt.signature,
                losses=losses,
            )
        )
    if decision.to_excess_minor:
        booked.append(
            Entry(
                kind=EntryKind.PAYMENT_OVERPAID,
                key=f"payment_overpaid:{receipt.key}{_again(losses)}",
                mode=payment.mode,
                merchant_id=merchant_id,
                payment_id=payment.id,
                legs=(
                    Leg(AccountKind.CRYPTO_POOL, token, decision.to_excess_minor),
                    Leg(AccountKind.PAYER_EXCESS, token, -decision.to_excess_minor, merchant_id),
                ),
                description=receipt.signature,
            )
        )
    if decision.to_suspense_minor:
        booked.append(suspended_entry(receipt, payment, decision.to_suspense_minor, losses))
    return booked


def settled_entry(
    payment: Payment,
    came: list[Leg],
    *,
    settled_minor: int,
    fee: int,
    mid: Decimal,
    quoted: Decimal,
    description: str,
    losses: int = 0,
) -> Entry:
    """Return the entry that turns tokens into the shop's dong, or into what escrow owes it.

    `came` are the legs, all of one token, that bring the tokens; the desk takes their sum and pays
    what it is worth at mid: the shop and the fee, what the spread keeps, and what rounding leaves.
    """
    token, currency, merchant_id = Asset(came[0].asset), payment.currency, payment.merchant_id
    taken = sum(leg.amount_minor for leg in came)
    parts = convert(taken, settled_minor, currency=currency, asset=token, mid=mid, quoted=quoted)
    kind, shop = EntryKind.PAYMENT_COMPLETED, AccountKind.MERCHANT_AVAILABLE
    if payment.is_escrow:
        kind, shop = EntryKind.ESCROW_HELD, AccountKind.ESCROW_LIABILITY_POOL
    legs = [
        *came,
        Leg(AccountKind.LIQUIDITY, token.value, -taken),
        Leg(AccountKind.LIQUIDITY, currency, parts.value_minor),
        Leg(shop, currency, fee - settled_minor, merchant_id),
        Leg(AccountKind.FEE_REVENUE, currency, -fee),
        Leg(AccountKind.SPREAD_REVENUE, currency, -parts.spread_minor),
        Leg(AccountKind.ROUNDING, currency, -parts.rounding_minor),
    ]
    return Entry(
        kind=kind,
        key=f"{kind.value}:{payment.id}{_again(losses)}",
        mode=payment.mode,
        merchant_id=merchant_id,
        payment_id=payment.id,
        legs=tuple(leg for leg in legs if leg.amount_minor),
        description=description,
    )


def escrow_hold(payment: Payment, settled_minor: int) -> Hold:
    """Return the hold under which an escrow payment's money waits for its release."""
    return Hold(
        key=f"escrow:{payment.id}",
        mode=payment.mode,
        kind=AccountKind.ESCROW_LIABILITY_POOL,
        asset=payment.currency,
        amount_minor=settled_minor,
        merchant_id=payment.merchant_id,
        payment_id=payment.id,
    )


def suspended_entry(
    receipt: Receipt, payment: Payment | None, amount_minor: int, losses: int = 0
) -> Entry:
    """Return the entry by which tokens wait until their use is decided."""
    token = receipt.account.asset.value
    return Entry(
        kind=EntryKind.TRANSFER_SUSPENDED,
        key=f"transfer_suspended:{receipt.key}{_again(losses)}",
        mode=NOBODYS_MODE if payment is None else payment.mode,
        merchant_id=None if payment is None else payment.merchant_id,
        payment_id=None if payment is None else payment.id,
        legs=(
            Leg(AccountKind.CRYPTO_POOL, token, amount_minor),
            Leg(AccountKind.SUSPENSE, token, -amount_minor),
        ),
        description=receipt.signature,
    )


def _again(losses: int) -> str:
    return f":again:{losses}" if losses else ""

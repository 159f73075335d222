"""What a receipt does to a payment, and the entries it books.

`decide` is pure: a payment as it stands, a finalized receipt, and the answer. `settle` applies it
in one unit of work: the receipt's row, each status as a change of its own, and balanced entries.
Every finalized receipt is booked in full, whatever it does to its payment:

| receipt                              | payment                     | booked against         |
|--------------------------------------|-----------------------------|------------------------|
| no payment, or more than one, named  | none                        | suspense               |
| other token than asked for           | exception wrong_asset       | suspense               |
| after the payment's end              | expired, exception late     | suspense               |
| not yet enough                       | pending, exception underpaid| suspense               |
| enough                               | completed                   | liquidity, then shop   |
| more than enough, or once completed  | completed, overpaid         | the rest: payer_excess |

Lock order, here as everywhere: payment, then its merchant's event counter, then accounts.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from api.chain import store as chain_store
from api.chain.model import KnownTransfer, Receipt
from api.contract import PaymentException, PaymentStatus
from api.database import Unit
from api.ledger.model import AccountKind, Entry, EntryKind, Leg
from api.ledger.service import post_entry
from api.payments import store
from api.payments.model import Payment

_WALK = (
    PaymentStatus.CREATED,
    PaymentStatus.PENDING,
    PaymentStatus.CONFIRMING,
    PaymentStatus.COMPLETED,
)
_OPEN = frozenset(_WALK[:3])


@dataclass(frozen=True, slots=True)
class Decision:
    """What a finalized receipt of `amount_minor` makes of a payment.

    Of the receipt, `to_payment_minor` completes it together with `held_minor` received before,
    `to_excess_minor` is the payer's, `to_suspense_minor` waits; they sum to the receipt.
    """

    path: tuple[PaymentStatus, ...]
    exception: PaymentException | None
    received_minor: int
    to_payment_minor: int = 0
    to_excess_minor: int = 0
    to_suspense_minor: int = 0
    held_minor: int = 0


def decide(payment: Payment, receipt: Receipt, *, held_minor: int, grace_s: int) -> Decision:
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
    if status is PaymentStatus.COMPLETED:
        return Decision(
            path=(),
            exception=PaymentException.OVERPAID,
            received_minor=received,
            to_excess_minor=amount,
        )
    if status not in _OPEN or _is_late(payment.expires_at, receipt.block_time, grace_s):
        over = status in {PaymentStatus.CREATED, PaymentStatus.PENDING}
        return Decision(
            path=(PaymentStatus.EXPIRED,) if over else (),
            exception=PaymentException.LATE,
            received_minor=payment.received_minor,
            to_suspense_minor=amount,
        )
    missing = payment.asset_amount_minor - held_minor
    if amount < missing:
        # A confirming payment stays so: what was seen but is not final yet may still cover it.
        return Decision(
            path=walk(status, PaymentStatus.PENDING),
            exception=PaymentException.UNDERPAID,
            received_minor=received,
            to_suspense_minor=amount,
        )
    excess = amount - missing
    return Decision(
        path=walk(status, PaymentStatus.COMPLETED),
        exception=PaymentException.OVERPAID if excess else _still_open(payment),
        received_minor=received,
        to_payment_minor=missing,
        to_excess_minor=excess,
        held_minor=held_minor,
    )


def _still_open(payment: Payment) -> PaymentException | None:
    """Return the exception that completion does not settle: its money is still in suspense."""
    unsettled = {PaymentException.LATE, PaymentException.WRONG_ASSET}
    return PaymentException(payment.exception) if payment.exception in unsettled else None


def walk(status: PaymentStatus, to: PaymentStatus) -> tuple[PaymentStatus, ...]:
    """Return the statuses to pass through from `status` up to `to`; none where it is reached."""
    return _WALK[_WALK.index(status) + 1 : _WALK.index(to) + 1]


def fee_minor(amount_minor: int, fee_bps: int) -> int:
    """Return the fee on an amount, rounded down to the merchant's advantage."""
    return amount_minor * fee_bps // 10_000


def _is_late(expires_at: datetime, block_time: datetime | None, grace_s: int) -> bool:
    return block_time is not None and block_time > expires_at + timedelta(seconds=grace_s)


async def settle(unit: Unit, receipt: Receipt, *, grace_s: int) -> str | None:
    """Record and book a finalized receipt, once; return its payment's id, if it names one.

    Called again for the same receipt it changes nothing.
    """
    payment = await _named_payment(unit, receipt)
    if not await chain_store.finalize(unit, receipt, None if payment is None else payment.id):
        return None if payment is None else payment.id
    if payment is None:
        await post_entry(unit, _suspended(receipt, None, receipt.amount_minor))
        return None
    held_minor = payment.received_minor if payment.status in _OPEN else 0
    decision = decide(payment, receipt, held_minor=held_minor, grace_s=grace_s)
    completes = decision.to_payment_minor > 0
    fee = 0
    if completes:
        bps = await store.fee_bps(unit, payment.merchant_id)
        fee = fee_minor(payment.amount_minor, bps)
    await _apply(unit, payment, receipt, decision, fee=fee if completes else payment.fee_minor)
    for entry in entries(payment, receipt, decision, fee=fee):
        await post_entry(unit, entry)
    return payment.id


async def _apply(
    unit: Unit, payment: Payment, receipt: Receipt, decision: Decision, *, fee: int
) -> None:
    """Walk the payment along the path; the last change carries what was received."""
    was = payment.status
    for status in decision.path[:-1]:
        await store.move(unit, payment.id, was=was, status=status)
        was = status
    await store.receive(
        unit,
        payment.id,
        status=decision.path[-1] if decision.path else payment.status,
        exception=decision.exception,
        received_minor=decision.received_minor,
        payer_address=receipt.payer_address,
        fee_minor=fee,
    )


def entries(payment: Payment, receipt: Receipt, decision: Decision, *, fee: int) -> list[Entry]:
    """Return the balanced entries of a decision."""
    token, merchant_id = receipt.account.asset.value, payment.merchant_id
    booked: list[Entry] = []
    if decision.to_payment_minor:
        shop_gets = payment.amount_minor - fee
        legs = [
            Leg(AccountKind.CRYPTO_POOL, token, decision.to_payment_minor),
            Leg(AccountKind.LIQUIDITY, token, -(decision.to_payment_minor + decision.held_minor)),
            Leg(AccountKind.LIQUIDITY, payment.currency, payment.amount_minor),
        ]
        if decision.held_minor:
            legs.insert(1, Leg(AccountKind.SUSPENSE, token, decision.held_minor))
        if shop_gets:
            available = AccountKind.MERCHANT_AVAILABLE
            legs.append(Leg(available, payment.currency, -shop_gets, merchant_id))
        if fee:
            legs.append(Leg(AccountKind.FEE_REVENUE, payment.currency, -fee))
        booked.append(
            Entry(
                kind=EntryKind.PAYMENT_COMPLETED,
                key=f"payment_completed:{payment.id}",
                merchant_id=merchant_id,
                payment_id=payment.id,
                legs=tuple(legs),
                description=receipt.signature,
            )
        )
    if decision.to_excess_minor:
        booked.append(
            Entry(
                kind=EntryKind.PAYMENT_OVERPAID,
                key=f"payment_overpaid:{_receipt_key(receipt)}",
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
        booked.append(_suspended(receipt, payment, decision.to_suspense_minor))
    return booked


def _suspended(receipt: Receipt, payment: Payment | None, amount_minor: int) -> Entry:
    token = receipt.account.asset.value
    return Entry(
        kind=EntryKind.TRANSFER_SUSPENDED,
        key=f"transfer_suspended:{_receipt_key(receipt)}",
        merchant_id=None if payment is None else payment.merchant_id,
        payment_id=None if payment is None else payment.id,
        legs=(
            Leg(AccountKind.CRYPTO_POOL, token, amount_minor),
            Leg(AccountKind.SUSPENSE, token, -amount_minor),
        ),
        description=receipt.signature,
    )


def _receipt_key(receipt: Receipt) -> str:
    return f"{receipt.signature}:{receipt.account.address}"


async def see(unit: Unit, receipt: Receipt, *, grace_s: int) -> str | None:
    """Record a confirmed receipt and show it on its payment; nothing is booked yet.

    A payment becomes confirming when what was seen covers it, and pending before that. Returns the
    payment's id, if the receipt names one.
    """
    payment = await _named_payment(unit, receipt)
    news = await chain_store.see(unit, receipt, None if payment is None else payment.id)
    if payment is None or not news or payment.status not in _OPEN:
        return None if payment is None else payment.id
    late = _is_late(payment.expires_at, receipt.block_time, grace_s)
    if late or receipt.account.asset != payment.asset:
        return payment.id
    seen_minor = await chain_store.seen_minor(unit, payment_id=payment.id, mint=payment.mint)
    covered = seen_minor >= payment.asset_amount_minor
    to = PaymentStatus.CONFIRMING if covered else PaymentStatus.PENDING
    was = PaymentStatus(payment.status)
    for status in walk(was, to):
        await store.move(unit, payment.id, was=was, status=status)
        was = status
    return payment.id


async def vanish(unit: Unit, transfer: KnownTransfer) -> None:
    """Take back a confirmed receipt that a reorganisation removed.

    The rule: a confirming payment returns to pending when what is left no longer covers it. Should
    the same chain transaction land again, it is seen again.
    """
    payment = None
    if transfer.payment_id is not None:
        payment = await store.lock(unit, transfer.payment_id)
    if not await chain_store.drop(unit, transfer):
        return
    if payment is None or payment.status != PaymentStatus.CONFIRMING:
        return
    seen_minor = await chain_store.seen_minor(unit, payment_id=payment.id, mint=payment.mint)
    if seen_minor < payment.asset_amount_minor:
        await store.move(
            unit, payment.id, was=PaymentStatus.CONFIRMING, status=PaymentStatus.PENDING
        )


async def _named_payment(unit: Unit, receipt: Receipt) -> Payment | None:
    """Return and lock the payment whose reference the receipt carries.

    Two references in one chain transaction name none: one amount cannot pay two payments, and who
    is paid is then a person's decision.
    """
    payments = await store.lock_referenced(unit, receipt.keys)
    return payments[0] if len(payments) == 1 else None

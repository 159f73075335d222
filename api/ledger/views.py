"""Balances, statements and entries as the API shows them; amounts are decimal strings."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, Field, StringConstraints

from api.database import ID_BODY
from api.ledger.model import Balance, BookedEntry, StatementLine, TrialLine
from api.rates.model import decimal_string
from api.web import Strict, Text
from api.wording import id_pattern, worded

EntryId = Annotated[str, StringConstraints(pattern=id_pattern("ent"))]
# An entry's id and the place of one leg in it.
LineId = Annotated[
    str,
    StringConstraints(
        pattern=worded(rf"^ent_{ID_BODY}\.[1-9][0-9]{{0,3}}$", "the id of a line of a statement")
    ),
]
MerchantAccount = Literal["merchant_available", "escrow_liability_pool", "payer_excess"]
AnyAsset = Literal["VND", "USDC", "USDT"]


class AssetBalance(BaseModel):
    """A merchant's money in one asset."""

    asset: str = Field(examples=["VND"])
    posted: str = Field(examples=["4752000"], description="Yours, with what is held")
    pending: str = Field(examples=["1500000"], description="Held for refunds and payouts")
    available: str = Field(examples=["3252000"], description="Free to be paid out or refunded")
    escrow: str = Field(examples=["0"], description="Waits for its payers to release it")
    payer_excess: str = Field(examples=["0"], description="Of payers who paid too much")


class BalanceView(BaseModel):
    """A merchant's money; an asset it never held is absent."""

    object: Literal["balance"] = "balance"
    mode: str = Field(examples=["live"])
    at: datetime | None = Field(description="The moment asked for, or null for now")
    balances: list[AssetBalance]


class StatementLineView(BaseModel):
    """One movement on an account: what came in is positive."""

    object: Literal["statement_line"] = "statement_line"
    id: str = Field(examples=["ent_01jz8w5k6h7m9n0p2q3r4s5t6v.2"])
    entry_id: str
    kind: str = Field(examples=["payment_completed"])
    amount: str = Field(examples=["247500"])
    balance: str = Field(examples=["4752000"], description="Of the account, after this line")
    payment_id: str | None
    refund_id: str | None
    payout_id: str | None
    description: str
    created_at: datetime


class StatementView(BaseModel):
    """Movements on one account, oldest first."""

    object: Literal["statement"] = "statement"
    mode: str = Field(examples=["live"])
    account: MerchantAccount
    asset: AnyAsset
    data: list[StatementLineView]
    has_more: bool


class ReverseEntry(Strict):
    """Why an entry is undone."""

    reason: Annotated[Text, StringConstraints(min_length=1, max_length=1000)] = Field(
        examples=["booked for the wrong merchant"]
    )


class EntryView(BaseModel):
    """An entry as the API shows it to admins."""

    object: Literal["entry"] = "entry"
    id: str = Field(examples=["ent_01jz8w5k6h7m9n0p2q3r4s5t6v"])
    merchant_id: str | None
    kind: str = Field(examples=["reversal"])
    payment_id: str | None
    refund_id: str | None
    payout_id: str | None
    reverses_id: str | None
    description: str
    created_at: datetime


class TrialLineView(BaseModel):
    """All accounts of one kind in one asset; what we hold is positive, what we owe negative."""

    asset: str = Field(examples=["VND"])
    kind: str = Field(examples=["merchant_available"])
    posted: str = Field(examples=["-4752000"])
    held: str = Field(examples=["1500000"])


class TrialSum(BaseModel):
    """What all accounts of an asset sum to: nothing, or the books are wrong."""

    asset: str = Field(examples=["VND"])
    posted: str = Field(examples=["0"])


class TrialBalanceView(BaseModel):
    """The books of one mode, summed up."""

    object: Literal["trial_balance"] = "trial_balance"
    mode: str = Field(examples=["live"])
    is_balanced: bool
    sums: list[TrialSum]
    data: list[TrialLineView]


def present_balances(balances: list[Balance], *, mode: str, at: datetime | None) -> BalanceView:
    """Return balances as the API shows them."""
    return BalanceView(
        mode=mode,
        at=at,
        balances=[
            AssetBalance(
                asset=balance.asset,
                posted=decimal_string(balance.posted_minor, balance.asset),
                pending=decimal_string(balance.pending_minor, balance.asset),
                available=decimal_string(balance.available_minor, balance.asset),
                escrow=decimal_string(balance.escrow_minor, balance.asset),
                payer_excess=decimal_string(balance.payer_excess_minor, balance.asset),
            )
            for balance in balances
        ],
    )


def present_line(line: StatementLine, asset: str) -> StatementLineView:
    """Return a line of an account in `asset` as the API shows it."""
    return StatementLineView(
        id=f"{line.entry_id}.{line.seq}",
        entry_id=line.entry_id,
        kind=line.kind,
        amount=decimal_string(line.amount_minor, asset),
        balance=decimal_string(line.balance_minor, asset),
        payment_id=line.payment_id,
        refund_id=line.refund_id,
        payout_id=line.payout_id,
        description=line.description,
        created_at=line.created_at,
    )


def present_entry(entry: BookedEntry) -> EntryView:
    """Return an entry as the API shows it."""
    return EntryView(
        id=entry.id,
        merchant_id=entry.merchant_id,
        kind=entry.kind,
        payment_id=entry.payment_id,
        refund_id=entry.refund_id,
        payout_id=entry.payout_id,
        reverses_id=entry.reverses_id,
        description=entry.description,
        created_at=entry.created_at,
    )


def present_trial_balance(lines: list[TrialLine], *, mode: str) -> TrialBalanceView:
    """Return the sums of all accounts, and of each asset."""
    sums: dict[str, int] = {}
    for line in lines:
        sums[line.asset] = sums.get(line.asset, 0) + line.posted_minor
    return TrialBalanceView(
        mode=mode,
        is_balanced=not any(sums.values()),
        sums=[
            TrialSum(asset=asset, posted=decimal_string(minor, asset))
            for asset, minor in sums.items()
        ],
        data=[
            TrialLineView(
                asset=line.asset,
                kind=line.kind,
                posted=decimal_string(line.posted_minor, line.asset),
                held=decimal_string(line.held_minor, line.asset),
            )
            for line in lines
        ],
    )

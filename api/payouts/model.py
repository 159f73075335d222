"""Payouts and balances as rows, as request bodies, and as the API shows them."""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from api.ledger.model import Balance
from api.rates.model import decimal_string
from api.web import Strict, Text


class CreatePayout(Strict):
    """How much to pay out, and where to."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"amount": "1500000", "asset": "VND", "destination": "VCB 0071000123456"}]
        }
    )

    amount: Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]{0,12}$")]
    asset: Literal["VND"] = "VND"
    destination: Annotated[Text, StringConstraints(min_length=1, max_length=200)]


@dataclass(frozen=True, slots=True)
class Payout:
    """A payout's row."""

    id: str
    merchant_id: str
    status: str
    amount_minor: int
    asset: str
    destination: str
    created_at: datetime
    status_at: datetime


class PayoutView(BaseModel):
    """A payout as the API shows it."""

    object: Literal["payout"] = "payout"
    id: str
    status: str = Field(examples=["requested"])
    amount: str = Field(examples=["1500000"])
    asset: str
    destination: str
    created_at: datetime
    status_at: datetime


class AssetBalance(BaseModel):
    """A merchant's money in one asset."""

    asset: str = Field(examples=["VND"])
    available: str = Field(examples=["4752000"])
    payouts_reserved: str
    refunds_payable: str
    payer_excess: str


class BalanceView(BaseModel):
    """A merchant's money; an asset it never held is absent."""

    object: Literal["balance"] = "balance"
    balances: list[AssetBalance]


def present(payout: Payout) -> PayoutView:
    """Return a payout as the API shows it."""
    return PayoutView(
        id=payout.id,
        status=payout.status,
        amount=decimal_string(payout.amount_minor, payout.asset),
        asset=payout.asset,
        destination=payout.destination,
        created_at=payout.created_at,
        status_at=payout.status_at,
    )


def present_balances(balances: list[Balance]) -> BalanceView:
    """Return balances as the API shows them."""
    return BalanceView(
        balances=[
            AssetBalance(
                asset=balance.asset,
                available=decimal_string(balance.available_minor, balance.asset),
                payouts_reserved=decimal_string(balance.payouts_reserved_minor, balance.asset),
                refunds_payable=decimal_string(balance.refunds_payable_minor, balance.asset),
                payer_excess=decimal_string(balance.payer_excess_minor, balance.asset),
            )
            for balance in balances
        ]
    )

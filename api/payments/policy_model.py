"""Confirmation policies as rows, as request bodies, and as the API shows them."""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from api.contract import VND
from api.merchants.model import MerchantId
from api.payments.model import AssetName, Reason
from api.rates.model import decimal_string
from api.security import Mode
from api.web import DongAmount, Strict
from api.wording import id_pattern

PolicyId = Annotated[str, StringConstraints(pattern=id_pattern("cfp"))]


@dataclass(frozen=True, slots=True)
class ConfirmationPolicy:
    """A policy's row; None of merchant, mode or asset means all of them."""

    id: str
    merchant_id: str | None
    mode: str | None
    asset: str | None
    up_to_minor: int
    commitment: str
    reason: str
    set_by: str
    created_at: datetime
    updated_at: datetime


class SetPolicy(Strict):
    """From which commitment on payments of up to `up_to` dong are booked; whose, unless of all."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "merchant_id": "mer_01jz8w5k6h7m9n0p2q3r4s5t6v",
                    "mode": "live",
                    "up_to": "200000",
                    "commitment": "confirmed",
                    "reason": "a counter that cannot wait for coffee money",
                }
            ]
        }
    )

    merchant_id: MerchantId | None = None
    mode: Mode | None = None
    asset: AssetName | None = None
    up_to: DongAmount = Field(description="Dong of the largest payment that it is for")
    commitment: Literal["confirmed", "finalized"]
    reason: Reason


class PolicyView(BaseModel):
    """A confirmation policy as the API shows it."""

    object: Literal["confirmation_policy"] = "confirmation_policy"
    id: str = Field(examples=["cfp_01jz8w5k6h7m9n0p2q3r4s5t6v"])
    merchant_id: str | None = Field(description="Null: every merchant")
    mode: str | None = Field(description="Null: test and live")
    asset: str | None = Field(description="Null: every token")
    up_to: str = Field(examples=["200000"])
    currency: str = VND
    commitment: str = Field(examples=["confirmed"])
    reason: str
    created_at: datetime
    updated_at: datetime


class PolicyList(BaseModel):
    """A page of confirmation policies, newest first."""

    object: Literal["list"] = "list"
    data: list[PolicyView]
    has_more: bool


def present_policy(policy: ConfirmationPolicy) -> PolicyView:
    """Return a policy as the API shows it; who set it is in the audit trail."""
    return PolicyView(
        id=policy.id,
        merchant_id=policy.merchant_id,
        mode=policy.mode,
        asset=policy.asset,
        up_to=decimal_string(policy.up_to_minor, VND),
        commitment=policy.commitment,
        reason=policy.reason,
        created_at=policy.created_at,
        updated_at=policy.updated_at,
    )

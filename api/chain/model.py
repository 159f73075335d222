"""What the chain tells us: signatures in their order, and receipts of tokens."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from api.contract import Asset


class Commitment(StrEnum):
    """How sure the network is of a receipt; `dropped` is ours: confirmed once, then gone."""

    CONFIRMED = "confirmed"
    FINALIZED = "finalized"
    DROPPED = "dropped"


@dataclass(frozen=True, slots=True)
class TokenAccount:
    """One of our token accounts: where tokens of one mint arrive."""

    address: str
    owner: str
    mint: str
    asset: Asset


@dataclass(frozen=True, slots=True)
class SignatureInfo:
    """One line of an account's history."""

    signature: str
    slot: int
    failed: bool
    finalized: bool


@dataclass(frozen=True, slots=True)
class Receipt:
    """Tokens that one chain transaction brought to one of our token accounts.

    `keys` are all accounts of the chain transaction: a payment's reference is among them.
    """

    signature: str
    account: TokenAccount
    amount_minor: int
    payer_address: str
    keys: tuple[str, ...]
    slot: int
    block_time: datetime | None
    is_assigned: bool = False

    @property
    def key(self) -> str:
        """The name under which it is booked; a person's assignment books it under another."""
        return f"{self.signature}:{self.account.address}" + (
            ":assigned" if self.is_assigned else ""
        )


@dataclass(frozen=True, slots=True)
class KnownTransfer:
    """A receipt as recorded earlier."""

    signature: str
    token_account: str
    payment_id: str | None
    commitment: str
    slot: int


@dataclass(frozen=True, slots=True)
class Transfer:
    """A receipt's row, as it is shown."""

    signature: str
    token_account: str
    payment_id: str | None
    payer_address: str | None
    mint: str
    amount_minor: int
    slot: int
    block_time: datetime | None
    commitment: str
    recorded_at: datetime


@dataclass(frozen=True, slots=True)
class Cursor:
    """Every finalized signature of the token account up to this one has been dealt with."""

    signature: str
    slot: int


class UnreadableTransaction(Exception):  # noqa: N818
    """A chain transaction of a form this version cannot read; a person has to look at it."""

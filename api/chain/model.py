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
class Movement:
    """What one chain transaction changed in one token account, of anybody's."""

    account: str
    owner: str | None
    mint: str
    before_minor: int
    after_minor: int

    @property
    def gained_minor(self) -> int:
        """How many units came; negative where units went."""
        return self.after_minor - self.before_minor


@dataclass(frozen=True, slots=True)
class Landed:
    """A chain transaction as it landed: all accounts it names, and every token that it moved.

    Two nodes that tell of the same chain transaction tell equal ones.
    """

    signature: str
    slot: int
    block_time: datetime | None
    failed: bool
    keys: tuple[str, ...]
    movements: tuple[Movement, ...]


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
class Finalization:
    """That a receipt became final: whether it was booked before, and what it brought then."""

    was_booked: bool
    was_minor: int


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


@dataclass(frozen=True, slots=True)
class AsideLine:
    """A line of a token account that the cursor has passed and that is not dealt with yet."""

    signature: str
    token_account: str
    slot: int
    reason: str
    attempts: int


@dataclass(frozen=True, slots=True)
class Watched:
    """A payment whose reference is looked at."""

    id: str
    merchant_id: str
    reference: str


@dataclass(frozen=True, slots=True)
class Stray:
    """A chain transaction that carries a payment's reference and brought us nothing we take.

    `amount_minor` of `mint` went to `recipient`, where tokens went anywhere.
    """

    signature: str
    payment_id: str
    kind: str
    mint: str | None
    recipient: str | None
    amount_minor: int | None
    slot: int
    block_time: datetime | None


class UnreadableTransaction(Exception):  # noqa: N818
    """A chain transaction of a form this version cannot read; a person has to look at it."""

"""The instructions by which a payer's wallet pays, built by the rules of Solana Pay.

Pure. The order is the one that stock libraries check: the transfer last, its memo right before it,
and nothing behind. Malformed addresses raise ValueError.
"""

from dataclasses import dataclass
from typing import Final

from solders.hash import Hash
from solders.instruction import AccountMeta, Instruction
from solders.message import Message
from solders.pubkey import Pubkey
from solders.transaction import Transaction
from spl.token.constants import TOKEN_PROGRAM_ID
from spl.token.instructions import (
    create_idempotent_associated_token_account,
    get_associated_token_address,
    transfer_checked,
)
from spl.token.models import TransferCheckedParams

MEMO_PROGRAM_ID: Final = Pubkey.from_string("MemoSq4gqABAXKb96qnH8TysNcWxMyWCqXgDLGmfcHr")


@dataclass(frozen=True, slots=True)
class TokenTransfer:
    """Tokens of `mint`, which has `decimals` places, that a wallet owes to `recipient`.

    `recipient` is a wallet. The references mark the transfer in their order; none of them signs.
    """

    recipient: str
    mint: str
    amount_minor: int
    decimals: int
    references: tuple[str, ...]
    memo: str | None = None


def transfer_instructions(
    payer: Pubkey, transfer: TokenTransfer, *, opens_account: bool
) -> list[Instruction]:
    """Return what pays: the recipient's token account where it has to be made, memo, transfer.

    Making the account does nothing where it stands already, but costs a payer who cannot know.
    """
    recipient, mint = Pubkey.from_string(transfer.recipient), Pubkey.from_string(transfer.mint)
    sending = transfer_checked(
        TransferCheckedParams(
            program_id=TOKEN_PROGRAM_ID,
            source=get_associated_token_address(payer, mint),
            mint=mint,
            dest=get_associated_token_address(recipient, mint),
            owner=payer,
            amount=transfer.amount_minor,
            decimals=transfer.decimals,
        )
    )
    marks = [
        AccountMeta(Pubkey.from_string(reference), is_signer=False, is_writable=False)
        for reference in transfer.references
    ]
    instructions = [Instruction(sending.program_id, sending.data, [*sending.accounts, *marks])]
    if transfer.memo is not None:
        # No keys: the payer's signature covers the memo, and stock libraries refuse one with keys.
        instructions.insert(0, Instruction(MEMO_PROGRAM_ID, transfer.memo.encode(), []))
    if opens_account:
        instructions.insert(0, create_idempotent_associated_token_account(payer, recipient, mint))
    return instructions


def unsigned_transfer(
    payer: Pubkey, transfer: TokenTransfer, *, blockhash: Hash, opens_account: bool
) -> bytes:
    """Return a chain transaction, serialised, that only the payer has to sign and pays for.

    Of the legacy format: it has no use for look-up tables, and the stock library for transaction
    requests reads no other.
    """
    instructions = transfer_instructions(payer, transfer, opens_account=opens_account)
    message = Message.new_with_blockhash(instructions, payer, blockhash)
    return bytes(Transaction.new_unsigned(message))

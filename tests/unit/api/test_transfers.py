"""The instructions of a payer's transfer, and the chain transaction made of them."""

import pytest
from solders.hash import Hash
from solders.keypair import Keypair
from solders.pubkey import Pubkey
from solders.transaction import Transaction
from spl.token.constants import ASSOCIATED_TOKEN_PROGRAM_ID, TOKEN_PROGRAM_ID

from api.chain.solana_pay import new_reference, token_account
from api.chain.transfers import (
    MEMO_PROGRAM_ID,
    TokenTransfer,
    transfer_instructions,
    unsigned_transfer,
)
from api.contract import USDC_MINT

RECIPIENT = "mvines9iiHiQTysrwkJjGf2gb9Ex9jXJX8ns3qwf2kN"
REFERENCES = (new_reference(), new_reference())
PAYER = Keypair()
TRANSFER = TokenTransfer(
    recipient=RECIPIENT,
    mint=USDC_MINT,
    amount_minor=9_560_230,
    decimals=6,
    references=REFERENCES,
    memo="giovang:mark",
)


def test_the_transfer_is_last_and_its_memo_right_before_it() -> None:
    opening, memo, transfer = transfer_instructions(PAYER.pubkey(), TRANSFER, opens_account=True)
    assert opening.program_id == ASSOCIATED_TOKEN_PROGRAM_ID
    assert bytes(opening.data) == b"\x01"  # CreateIdempotent
    assert (memo.program_id, bytes(memo.data), memo.accounts) == (
        MEMO_PROGRAM_ID,
        b"giovang:mark",
        [],
    )
    assert transfer.program_id == TOKEN_PROGRAM_ID


def test_a_transfer_moves_exactly_this_from_payer_to_recipient() -> None:
    (transfer,) = transfer_instructions(
        PAYER.pubkey(),
        TokenTransfer(RECIPIENT, USDC_MINT, 9_560_230, 6, REFERENCES),
        opens_account=False,
    )
    # TransferChecked: the tag, the amount as a little-endian u64, the decimals.
    assert bytes(transfer.data) == b"\x0c" + (9_560_230).to_bytes(8, "little") + b"\x06"
    source, mint, destination, owner, *marks = transfer.accounts
    assert str(source.pubkey) == token_account(str(PAYER.pubkey()), USDC_MINT)
    assert str(mint.pubkey) == USDC_MINT
    assert str(destination.pubkey) == token_account(RECIPIENT, USDC_MINT)
    assert (owner.pubkey, owner.is_signer) == (PAYER.pubkey(), True)
    assert [str(mark.pubkey) for mark in marks] == list(REFERENCES)
    assert not any(mark.is_signer or mark.is_writable for mark in marks)


@pytest.mark.parametrize("decimals", [0, 2, 9])
def test_the_decimals_are_the_mints(decimals: int) -> None:
    transfer = TokenTransfer(RECIPIENT, USDC_MINT, 1, decimals, REFERENCES)
    (made,) = transfer_instructions(PAYER.pubkey(), transfer, opens_account=False)
    assert bytes(made.data)[-1] == decimals


def test_only_the_payer_signs_and_pays_the_fee_and_nobody_has_signed() -> None:
    blockhash = Hash.new_unique()
    made = Transaction.from_bytes(
        unsigned_transfer(PAYER.pubkey(), TRANSFER, blockhash=blockhash, opens_account=False)
    )
    assert [bytes(signature) for signature in made.signatures] == [bytes(64)]
    message = made.message
    assert message.header.num_required_signatures == 1
    assert message.account_keys[0] == PAYER.pubkey()
    assert message.recent_blockhash == blockhash
    made.sign([PAYER], blockhash)
    made.verify()


def test_a_malformed_address_is_refused() -> None:
    transfer = TokenTransfer("0OIl", USDC_MINT, 1, 6, ())
    with pytest.raises(ValueError, match=r".+"):
        transfer_instructions(Pubkey.default(), transfer, opens_account=False)

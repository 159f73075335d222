"""Receipts of what real wallets send: every shape is run by the Solana runtime, then read.

Nothing is recorded or made up: LiteSVM executes each chain transaction with the real token
programs, and its account of it is put in the form of `getTransaction`, in both encodings.
"""

import json
from dataclasses import dataclass, field
from typing import Any

import pytest
from solders.account import Account
from solders.address_lookup_table_account import AddressLookupTableAccount
from solders.compute_budget import set_compute_unit_limit, set_compute_unit_price
from solders.hash import Hash
from solders.instruction import AccountMeta, Instruction
from solders.keypair import Keypair
from solders.message import Message, MessageV0
from solders.pubkey import Pubkey
from solders.system_program import ID as SYSTEM_PROGRAM
from solders.system_program import TransferParams, transfer
from solders.token.state import Mint
from solders.transaction import VersionedTransaction
from spl.token.constants import (
    ASSOCIATED_TOKEN_PROGRAM_ID,
    TOKEN_2022_PROGRAM_ID,
    TOKEN_PROGRAM_ID,
)
from spl.token.instructions import (
    approve,
    close_account,
    create_idempotent_associated_token_account,
    get_associated_token_address,
    mint_to,
    transfer_checked,
)
from spl.token.instructions import transfer as transfer_unchecked
from spl.token.models import (
    ApproveParams,
    CloseAccountParams,
    MintToParams,
    TransferCheckedParams,
)
from spl.token.models import TransferParams as TokenTransferParams

from api.chain.model import Receipt, TokenAccount
from api.chain.receipts import landed_of, receipt_of
from api.chain.solana_pay import new_reference
from api.chain.transfers import MEMO_PROGRAM_ID, TokenTransfer, transfer_instructions
from api.contract import USDC_MINT, Asset
from infra.localnet.journal import Landed
from infra.localnet.rendering import render_landed
from infra.localnet.runtime import Runtime
from infra.localnet.submission import decode_wire

USDC = Pubkey.from_string(USDC_MINT)
# A stablecoin of the other token program; who sends it sends nothing that we know.
OTHER = Pubkey.from_string("2b1kV6DkPAnxd5ixfnxCpjxmKwqjjaYmCZfHsFu24GXo")
TABLE = Pubkey.new_unique()
TABLE_PROGRAM = Pubkey.from_string("AddressLookupTab1e1111111111111111111111111")
SOL = 10**9
AMOUNT = 9_560_230


@dataclass
class Bank:
    """A network of one test, with a collection wallet of ours and the mints' authority."""

    runtime: Runtime = field(default_factory=Runtime)
    ours: Keypair = field(default_factory=Keypair)
    authority: Keypair = field(default_factory=Keypair)
    count: int = 0

    def __post_init__(self) -> None:
        data = bytes(Mint(self.authority.pubkey(), 0, 6, is_initialized=True))
        rent = self.runtime.minimum_balance(len(data))
        self.runtime.load(
            [
                (self.authority.pubkey(), Account(1000 * SOL, b"", SYSTEM_PROGRAM)),
                (USDC, Account(rent, data, TOKEN_PROGRAM_ID)),
                (OTHER, Account(rent, data, TOKEN_2022_PROGRAM_ID)),
            ]
        )

    @property
    def account(self) -> TokenAccount:
        owner = self.ours.pubkey()
        return TokenAccount(str(ata(owner)), str(owner), USDC_MINT, Asset.USDC)

    def open(
        self, owner: Pubkey, mint: Pubkey = USDC, program: Pubkey = TOKEN_PROGRAM_ID
    ) -> Pubkey:
        """Make an associated token account."""
        opening = create_idempotent_associated_token_account(
            self.authority.pubkey(), owner, mint, program
        )
        self.land([opening], self.authority)
        return get_associated_token_address(owner, mint, program)

    def payer(self, amount_minor: int = 100 * AMOUNT) -> Keypair:
        """A wallet with SOL and USDC."""
        key = Keypair()
        self.runtime.load([(key.pubkey(), Account(10 * SOL, b"", SYSTEM_PROGRAM))])
        self.open(key.pubkey())
        self.land([self.minting(ata(key.pubkey()), amount_minor)], self.authority)
        return key

    def minting(
        self,
        account: Pubkey,
        amount_minor: int,
        mint: Pubkey = USDC,
        program: Pubkey = TOKEN_PROGRAM_ID,
    ) -> Instruction:
        return mint_to(
            MintToParams(
                program_id=program,
                mint=mint,
                dest=account,
                mint_authority=self.authority.pubkey(),
                amount=amount_minor,
                signers=[],
            )
        )

    def land(
        self,
        instructions: list[Instruction],
        *signers: Keypair,
        table: list[Pubkey] | None = None,
        fails: bool = False,
    ) -> list[dict[str, Any]]:
        """Run a chain transaction and return the node's answers about it, one an encoding."""
        self.count += 1
        blockhash = Hash(self.count.to_bytes(32, "big"))
        message: Message | MessageV0
        if table is None:
            message = Message.new_with_blockhash(instructions, signers[0].pubkey(), blockhash)
        else:
            self.runtime.load([(TABLE, lookup_table(table))])
            tables = [AddressLookupTableAccount(TABLE, table)]
            message = MessageV0.try_compile(signers[0].pubkey(), instructions, tables, blockhash)
        wire = bytes(VersionedTransaction(message, list(signers)))
        submission = decode_wire(wire)
        done = self.runtime.execute(submission, submission.resolve(self.runtime.account))
        assert done.charged
        assert (done.err is not None) == fails, done.logs
        landed = Landed(
            self.count, submission.signature, self.count, done.err, None, wire, done.meta
        )
        return [
            json.loads(json.dumps(render_landed(landed, encoding, 0, 1_700_000_000)))
            for encoding in ("jsonParsed", "json")
        ]

    def receipt(self, answers: list[dict[str, Any]]) -> Receipt | None:
        """Return what our account received, which must not hang on the encoding."""
        read, again = (receipt_of(landed_of(answer), self.account) for answer in answers)
        assert read == again
        return read


def ata(owner: Pubkey) -> Pubkey:
    return get_associated_token_address(owner, USDC)


def lookup_table(addresses: list[Pubkey]) -> Account:
    """A lookup table in the form of its program: 56 bytes that say it is in force, then keys."""
    head = (1).to_bytes(4, "little") + b"\xff" * 8 + bytes(8) + b"\x00\x00" + bytes(32) + bytes(2)
    return Account(SOL, head + b"".join(map(bytes, addresses)), TABLE_PROGRAM)


def memo(text: str, *signers: Pubkey) -> Instruction:
    keys = [AccountMeta(signer, is_signer=True, is_writable=False) for signer in signers]
    return Instruction(MEMO_PROGRAM_ID, text.encode(), keys)


def checked(source: Pubkey, target: Pubkey, owner: Pubkey, amount_minor: int) -> Instruction:
    return transfer_checked(
        TransferCheckedParams(
            program_id=TOKEN_PROGRAM_ID,
            source=source,
            mint=USDC,
            dest=target,
            owner=owner,
            amount=amount_minor,
            decimals=6,
        )
    )


def unchecked(source: Pubkey, target: Pubkey, owner: Pubkey, amount_minor: int) -> Instruction:
    return transfer_unchecked(
        TokenTransferParams(
            program_id=TOKEN_PROGRAM_ID,
            source=source,
            dest=target,
            owner=owner,
            amount=amount_minor,
        )
    )


def marked(instruction: Instruction, reference: str) -> Instruction:
    mark = AccountMeta(Pubkey.from_string(reference), is_signer=False, is_writable=False)
    return Instruction(instruction.program_id, instruction.data, [*instruction.accounts, mark])


@pytest.fixture
def bank() -> Bank:
    made = Bank()
    made.open(made.ours.pubkey())
    return made


def by_link(bank: Bank, payer: Keypair, reference: str, *, opens: bool) -> list[Instruction]:
    """What a wallet builds from our own links."""
    request = TokenTransfer(
        str(bank.ours.pubkey()), USDC_MINT, AMOUNT, 6, (reference,), f"giovang:{reference}"
    )
    return transfer_instructions(payer.pubkey(), request, opens_account=opens)


def test_our_own_links_transfer(bank: Bank) -> None:
    payer, reference = bank.payer(), new_reference()
    receipt = bank.receipt(bank.land(by_link(bank, payer, reference, opens=True), payer))
    assert receipt is not None
    assert (receipt.amount_minor, receipt.payer_address) == (AMOUNT, str(payer.pubkey()))
    assert reference in receipt.keys


def test_a_first_transfer_opens_our_account() -> None:
    bank = Bank()
    payer, reference = bank.payer(), new_reference()
    receipt = bank.receipt(bank.land(by_link(bank, payer, reference, opens=True), payer))
    assert receipt is not None
    assert receipt.amount_minor == AMOUNT


def test_a_wallet_adds_fees_memos_and_a_tip_around(bank: Bank) -> None:
    payer, reference = bank.payer(), new_reference()
    tip = transfer(
        TransferParams(
            from_pubkey=payer.pubkey(), to_pubkey=bank.authority.pubkey(), lamports=10_000
        )
    )
    instructions = [
        set_compute_unit_limit(300_000),
        set_compute_unit_price(50_000),
        memo("before"),
        *by_link(bank, payer, reference, opens=True),
        memo("after, and signed", payer.pubkey()),
        tip,
    ]
    receipt = bank.receipt(bank.land(instructions, payer))
    assert receipt is not None
    assert receipt.amount_minor == AMOUNT
    assert reference in receipt.keys


def test_the_old_transfer_instruction_counts_as_the_checked_one(bank: Bank) -> None:
    payer, reference = bank.payer(), new_reference()
    old = unchecked(ata(payer.pubkey()), ata(bank.ours.pubkey()), payer.pubkey(), AMOUNT)
    receipt = bank.receipt(bank.land([marked(old, reference)], payer))
    assert receipt is not None
    assert receipt.amount_minor == AMOUNT
    assert reference in receipt.keys


def test_several_legs_are_one_receipt_of_their_sum(bank: Bank) -> None:
    payer, reference, friend = bank.payer(), new_reference(), bank.payer()
    source, target = ata(payer.pubkey()), ata(bank.ours.pubkey())
    legs = [
        marked(checked(source, target, payer.pubkey(), 1), reference),
        checked(source, ata(friend.pubkey()), payer.pubkey(), 5 * AMOUNT),
        unchecked(source, target, payer.pubkey(), AMOUNT),
        marked(checked(source, target, payer.pubkey(), 20), reference),
    ]
    receipt = bank.receipt(bank.land(legs, payer))
    assert receipt is not None
    assert receipt.amount_minor == AMOUNT + 21


def test_of_two_payers_the_one_who_gave_most_is_the_payer(bank: Bank) -> None:
    small, large = bank.payer(), bank.payer()
    target = ata(bank.ours.pubkey())
    legs = [
        checked(ata(small.pubkey()), target, small.pubkey(), 1),
        checked(ata(large.pubkey()), target, large.pubkey(), 2),
    ]
    receipt = bank.receipt(bank.land(legs, small, large))
    assert receipt is not None
    assert (receipt.amount_minor, receipt.payer_address) == (3, str(large.pubkey()))


def test_a_relayer_pays_the_fee_and_is_not_the_payer(bank: Bank) -> None:
    payer, relayer = bank.payer(), bank.payer()
    leg = checked(ata(payer.pubkey()), ata(bank.ours.pubkey()), payer.pubkey(), AMOUNT)
    receipt = bank.receipt(bank.land([leg], relayer, payer))
    assert receipt is not None
    assert receipt.payer_address == str(payer.pubkey())


def test_a_delegate_spends_its_owners_tokens(bank: Bank) -> None:
    owner, delegate = bank.payer(), bank.payer()
    allowed = approve(
        ApproveParams(
            program_id=TOKEN_PROGRAM_ID,
            source=ata(owner.pubkey()),
            delegate=delegate.pubkey(),
            owner=owner.pubkey(),
            amount=AMOUNT,
        )
    )
    bank.land([allowed], owner)
    leg = checked(ata(owner.pubkey()), ata(bank.ours.pubkey()), delegate.pubkey(), AMOUNT)
    receipt = bank.receipt(bank.land([leg], delegate))
    assert receipt is not None
    assert (receipt.amount_minor, receipt.payer_address) == (AMOUNT, str(owner.pubkey()))


def test_a_wallet_empties_and_closes_its_account(bank: Bank) -> None:
    payer = bank.payer(AMOUNT)
    source = ata(payer.pubkey())
    closing = close_account(
        CloseAccountParams(
            program_id=TOKEN_PROGRAM_ID,
            account=source,
            dest=payer.pubkey(),
            owner=payer.pubkey(),
        )
    )
    leg = checked(source, ata(bank.ours.pubkey()), payer.pubkey(), AMOUNT)
    receipt = bank.receipt(bank.land([leg, closing], payer))
    assert receipt is not None
    assert (receipt.amount_minor, receipt.payer_address) == (AMOUNT, str(payer.pubkey()))


def test_tokens_minted_to_us_come_from_who_signed(bank: Bank) -> None:
    receipt = bank.receipt(
        bank.land([bank.minting(ata(bank.ours.pubkey()), AMOUNT)], bank.authority)
    )
    assert receipt is not None
    assert receipt.payer_address == str(bank.authority.pubkey())


def test_a_program_transfers_for_the_payer(bank: Bank) -> None:
    # The one program here that calls the token program's transfer: tokens lost in an account that
    # belongs to a token account are recovered to that one's owner, here to us.
    wallet, lost_in = bank.ours.pubkey(), ata(bank.ours.pubkey())
    nested = bank.open(lost_in)
    bank.land([bank.minting(nested, AMOUNT)], bank.authority)
    bank.runtime.load([(wallet, Account(SOL, b"", SYSTEM_PROGRAM))])
    writable = {"is_signer": False, "is_writable": True}
    recovering = Instruction(
        ASSOCIATED_TOKEN_PROGRAM_ID,
        b"\x02",
        [
            AccountMeta(nested, **writable),
            AccountMeta(USDC, is_signer=False, is_writable=False),
            AccountMeta(lost_in, **writable),
            AccountMeta(lost_in, is_signer=False, is_writable=False),
            AccountMeta(USDC, is_signer=False, is_writable=False),
            AccountMeta(wallet, is_signer=True, is_writable=True),
            AccountMeta(TOKEN_PROGRAM_ID, is_signer=False, is_writable=False),
        ],
    )
    answers = bank.land([recovering], bank.ours)
    assert [one["index"] for one in answers[0]["meta"]["innerInstructions"]] == [0]
    receipt = bank.receipt(answers)
    assert receipt is not None
    assert (receipt.amount_minor, receipt.payer_address) == (AMOUNT, str(lost_in))


@pytest.mark.parametrize("looked_up", ["nothing", "reference", "account", "both"])
def test_a_version_0_transaction_names_keys_in_a_table(bank: Bank, looked_up: str) -> None:
    payer, reference = bank.payer(), new_reference()
    target = ata(bank.ours.pubkey())
    table = {
        "nothing": [],
        "reference": [Pubkey.new_unique(), Pubkey.from_string(reference)],
        "account": [target, ata(payer.pubkey()), USDC],
        "both": [Pubkey.from_string(reference), USDC, target, bank.ours.pubkey()],
    }[looked_up]
    instructions = by_link(bank, payer, reference, opens=True)
    answers = bank.land(instructions, payer, table=table)
    loaded = answers[1]["meta"]["loadedAddresses"]
    assert (loaded["writable"] + loaded["readonly"] == []) == (looked_up == "nothing")
    receipt = bank.receipt(answers)
    assert receipt is not None
    assert (receipt.amount_minor, receipt.payer_address) == (AMOUNT, str(payer.pubkey()))
    assert reference in receipt.keys


def test_a_token_of_the_other_program_is_nothing_of_ours(bank: Bank) -> None:
    payer, reference = bank.payer(), new_reference()
    source = bank.open(payer.pubkey(), OTHER, TOKEN_2022_PROGRAM_ID)
    target = bank.open(bank.ours.pubkey(), OTHER, TOKEN_2022_PROGRAM_ID)
    minting = bank.minting(source, AMOUNT, OTHER, TOKEN_2022_PROGRAM_ID)
    bank.land([minting], bank.authority)
    foreign = transfer_checked(
        TransferCheckedParams(
            program_id=TOKEN_2022_PROGRAM_ID,
            source=source,
            mint=OTHER,
            dest=target,
            owner=payer.pubkey(),
            amount=AMOUNT,
            decimals=6,
        )
    )
    assert bank.receipt(bank.land([marked(foreign, reference)], payer)) is None
    # Beside tokens that are ours it changes nothing of what those are.
    beside = checked(ata(payer.pubkey()), ata(bank.ours.pubkey()), payer.pubkey(), 7)
    other_half = Instruction(
        foreign.program_id,
        foreign.data[:1] + (0).to_bytes(8, "little") + foreign.data[9:],
        foreign.accounts,
    )
    receipt = bank.receipt(bank.land([other_half, beside], payer))
    assert receipt is not None
    assert receipt.amount_minor == 7


def test_a_reference_without_money_is_nothing(bank: Bank) -> None:
    payer, reference, friend = bank.payer(), new_reference(), bank.payer()
    elsewhere = checked(ata(payer.pubkey()), ata(friend.pubkey()), payer.pubkey(), AMOUNT)
    of_nothing = checked(ata(payer.pubkey()), ata(bank.ours.pubkey()), payer.pubkey(), 0)
    for leg in (elsewhere, of_nothing):
        assert bank.receipt(bank.land([marked(leg, reference)], payer)) is None


def test_another_token_account_of_our_wallet_is_not_the_one_we_watch(bank: Bank) -> None:
    payer = bank.payer()
    auxiliary = bank.open(Keypair().pubkey())
    account = bank.runtime.account(auxiliary)
    assert account is not None
    owned = account.data[:32] + bytes(bank.ours.pubkey()) + account.data[64:]
    bank.runtime.load([(auxiliary, Account(account.lamports, owned, TOKEN_PROGRAM_ID))])
    leg = checked(ata(payer.pubkey()), auxiliary, payer.pubkey(), AMOUNT)
    assert bank.receipt(bank.land([leg], payer)) is None


def test_what_failed_brought_nothing(bank: Bank) -> None:
    payer = bank.payer(AMOUNT)
    source, target = ata(payer.pubkey()), ata(bank.ours.pubkey())
    legs = [
        checked(source, target, payer.pubkey(), AMOUNT),
        checked(source, target, payer.pubkey(), 1),
    ]
    assert bank.receipt(bank.land(legs, payer, fails=True)) is None


def test_money_that_leaves_us_again_is_not_received(bank: Bank) -> None:
    payer = bank.payer()
    source, target = ata(payer.pubkey()), ata(bank.ours.pubkey())
    there = checked(source, target, payer.pubkey(), AMOUNT)
    back = checked(target, source, bank.ours.pubkey(), AMOUNT - 5)
    receipt = bank.receipt(bank.land([there, back], payer, bank.ours))
    assert receipt is not None
    assert receipt.amount_minor == 5

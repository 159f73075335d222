"""Genesis and faucet: where this network's money comes from.

The faucet's key is made once and kept in the state folder; it holds the first SOL and is the mint
authority of the test USDC and USDT, which stand at their main-net addresses. Whatever the faucet
gives is a Solana transaction like any other: signed, journalled, visible in histories.
"""

import json
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from solders.account import Account
from solders.instruction import AccountMeta, Instruction
from solders.keypair import Keypair
from solders.message import Message
from solders.pubkey import Pubkey
from solders.system_program import ID as SYSTEM_PROGRAM
from solders.system_program import TransferParams, transfer
from solders.token.state import Mint
from solders.transaction import VersionedTransaction

from infra.localnet.errors import RpcError, StateError, describe, invalid_params
from infra.localnet.journal import Journal
from infra.localnet.network import Commitment, Network, Refused
from infra.localnet.runtime import Runtime
from infra.localnet.submission import decode_wire
from infra.localnet.tokens import (
    ASSOCIATED_TOKEN_PROGRAM,
    TOKEN_PROGRAM,
    associated_address,
    read_mint,
)

USDC_MINT: Final = Pubkey.from_string("EPjFWdd5AufqSSqeM2qN1xzybapC8G4wEGGkZwyTDt1v")
USDT_MINT: Final = Pubkey.from_string("Es9vMFrzaCERmJfrF4H2FYD4KCoNkY11McCe8BenwNYB")
_STABLECOIN_DECIMALS: Final = 6
_GENESIS_LAMPORTS: Final = 500_000_000 * 10**9
_MEMO_PROGRAM: Final = Pubkey.from_string("MemoSq4gqABAXKb96qnH8TysNcWxMyWCqXgDLGmfcHr")
# Account creations that fit one packet.
_WALLETS_AT_ONCE: Final = 6
_CREATE_IDEMPOTENT: Final = b"\x01"
_MINT_TO: Final = b"\x07"


def found(state_dir: Path, journal: Journal, runtime: Runtime) -> Keypair:
    """Make the network's genesis if it has none, and return the faucet's key.

    Raises StateError where the folder has a ledger but not the key that goes with it.
    """
    path = state_dir / "faucet.json"
    if journal.seed() is not None:
        return _read_key(path)
    faucet = _read_key(path) if path.exists() else _make_key(path)
    mint = Mint(faucet.pubkey(), 0, _STABLECOIN_DECIMALS, is_initialized=True)
    data = bytes(mint)
    mint_account = Account(runtime.minimum_balance(len(data)), data, TOKEN_PROGRAM)
    journal.found(
        secrets.token_bytes(32),
        {
            faucet.pubkey(): Account(_GENESIS_LAMPORTS, b"", SYSTEM_PROGRAM),
            USDC_MINT: mint_account,
            USDT_MINT: mint_account,
        },
    )
    return faucet


class Faucet:
    """Gives test money by signed Solana transactions."""

    def __init__(self, network: Network, key: Keypair) -> None:
        self._network = network
        self._key = key

    def airdrop(self, owner: Pubkey, lamports: int) -> bytes:
        """Send SOL; returns the signature. Raises RpcError where the faucet cannot."""
        payer = self._key.pubkey()
        sending = TransferParams(from_pubkey=payer, to_pubkey=owner, lamports=lamports)
        return self._submit([transfer(sending)])

    def mint(self, owner: Pubkey, mint: Pubkey, amount_minor: int) -> bytes:
        """Mint test tokens to the owner's associated account, made if missing; the signature."""
        state = read_mint(self._network.view(Commitment.processed).account(mint))
        if state is None or state.mint_authority != self._key.pubkey():
            message = f"the faucet does not mint {mint}; it mints {USDC_MINT} and {USDT_MINT}"
            raise invalid_params(message)
        target = associated_address(owner, mint)
        accounts = [
            AccountMeta(mint, is_signer=False, is_writable=True),
            AccountMeta(target, is_signer=False, is_writable=True),
            AccountMeta(self._key.pubkey(), is_signer=True, is_writable=False),
        ]
        data = _MINT_TO + amount_minor.to_bytes(8, "little")
        minting = Instruction(TOKEN_PROGRAM, data, accounts)
        return self._submit([self._create(owner, mint), minting])

    def prepare(self, owners: Sequence[Pubkey]) -> int:
        """Make the missing USDC and USDT accounts of these wallets; returns how many were made."""
        view = self._network.view(Commitment.processed)
        missing = [
            (owner, mint)
            for owner in dict.fromkeys(owners)
            for mint in (USDC_MINT, USDT_MINT)
            if view.account(associated_address(owner, mint)) is None
        ]
        for start in range(0, len(missing), _WALLETS_AT_ONCE):
            batch = missing[start : start + _WALLETS_AT_ONCE]
            self._submit([self._create(owner, mint) for owner, mint in batch])
        return len(missing)

    def _create(self, owner: Pubkey, mint: Pubkey) -> Instruction:
        accounts = [
            AccountMeta(self._key.pubkey(), is_signer=True, is_writable=True),
            AccountMeta(associated_address(owner, mint), is_signer=False, is_writable=True),
            AccountMeta(owner, is_signer=False, is_writable=False),
            AccountMeta(mint, is_signer=False, is_writable=False),
            AccountMeta(SYSTEM_PROGRAM, is_signer=False, is_writable=False),
            AccountMeta(TOKEN_PROGRAM, is_signer=False, is_writable=False),
        ]
        return Instruction(ASSOCIATED_TOKEN_PROGRAM, _CREATE_IDEMPOTENT, accounts)

    def _submit(self, instructions: list[Instruction]) -> bytes:
        # The number makes two equal gifts within one block hash two different messages.
        memo = f"faucet {self._network.landed_count + 1}".encode()
        instructions.append(Instruction(_MEMO_PROGRAM, memo, []))
        blockhash = self._network.blockhash(self._network.tip)
        message = Message.new_with_blockhash(instructions, self._key.pubkey(), blockhash)
        submission = decode_wire(bytes(VersionedTransaction(message, [self._key])))
        # A failed execution would still cost the faucet its fee, so ask first.
        err = self._network.simulate(submission).err
        if err is None:
            outcome = self._network.submit(submission)
            if not isinstance(outcome, Refused):
                return outcome.signature
            err = outcome.err
        raise RpcError(RpcError.INTERNAL, f"the faucet cannot give this: {describe(err)}")


def _make_key(path: Path) -> Keypair:
    key = Keypair()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(list(bytes(key)), file)
        file.flush()
        os.fsync(file.fileno())
    return key


def _read_key(path: Path) -> Keypair:
    try:
        return Keypair.from_bytes(bytes(json.loads(path.read_text())))
    except (OSError, ValueError) as error:
        message = (
            f"{path} cannot be read ({error}), but the ledger beside it needs this key; "
            "restore it, or remove the folder to start a new network"
        )
        raise StateError(message) from error

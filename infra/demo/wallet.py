"""A customer's wallet on the local Solana network: funded by the faucet, paid by the stock client.

Every payment brings its own tokens from the faucet: a wallet may pay several times at once, and the
checkout's demo pays from one of these wallets too, so none may count on what the wallet holds.
A payment is one SPL `TransferChecked` that carries the payment's reference as a read-only
non-signer key, as Solana Pay has it. RPC failures raise ChainAwayError; the caller decides whether
the customer tries again.
"""

import asyncio
from dataclasses import dataclass

from solana.exceptions import SolanaExceptionBase
from solana.rpc.async_api import AsyncClient
from solana.rpc.commitment import Confirmed
from solana.rpc.core import RPCException, RPCNoResultException, UnconfirmedTxError
from solana.rpc.jsonrpc import JsonRpcRequest, SolanaJsonRpcError
from solders.instruction import AccountMeta, Instruction
from solders.keypair import Keypair
from solders.message import MessageV0
from solders.pubkey import Pubkey
from solders.signature import Signature
from solders.transaction import VersionedTransaction
from spl.token.constants import TOKEN_PROGRAM_ID
from spl.token.instructions import (
    create_idempotent_associated_token_account,
    get_associated_token_address,
    transfer_checked,
)
from spl.token.models import TransferCheckedParams

from infra.demo.settings import DemoError

TOKEN_DECIMALS = 6
RPC_TIMEOUT_S = 10.0
CONFIRM_TIMEOUT_S = 30.0
_LOW_LAMPORTS = 50_000_000
_AIRDROP_LAMPORTS = 1_000_000_000
_CHAIN_ERRORS = (
    SolanaExceptionBase,
    SolanaJsonRpcError,
    RPCException,
    RPCNoResultException,
    UnconfirmedTxError,
    TimeoutError,
)


class ChainAwayError(DemoError):
    """The Solana network did not answer, or did not confirm in time."""


@dataclass(frozen=True, slots=True)
class Invoice:
    """What a Solana Pay URL asks of a wallet."""

    recipient: Pubkey
    mint: Pubkey
    reference: Pubkey


class Wallets:
    """Pays from any demo wallet over one RPC connection; an asynchronous context manager."""

    def __init__(self, rpc_url: str) -> None:
        self._rpc = AsyncClient(rpc_url, commitment=Confirmed, timeout=RPC_TIMEOUT_S, http2=False)

    async def __aenter__(self) -> "Wallets":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._rpc.close()

    async def healthy(self) -> bool:
        """Say whether the network answers."""
        try:
            return await self._rpc.is_connected()
        except _CHAIN_ERRORS:
            return False

    async def pay(self, payer: Keypair, invoice: Invoice, amount_minor: int) -> Signature:
        """Transfer `amount_minor` token units to the invoice and wait until it is confirmed.

        Raises ChainAwayError.
        """
        try:
            await self._fund(payer.pubkey(), invoice.mint, amount_minor)
            blockhash = (await self._rpc.get_latest_blockhash()).value.blockhash
            message = MessageV0.try_compile(
                payer.pubkey(), _instructions(payer.pubkey(), invoice, amount_minor), [], blockhash
            )
            sent = await self._rpc.send_transaction(VersionedTransaction(message, [payer]))
            await self._confirmed(sent.value)
        except _CHAIN_ERRORS as error:
            raise ChainAwayError(f"paying failed: {type(error).__name__}") from error
        return sent.value

    async def _confirmed(self, signature: Signature) -> None:
        async with asyncio.timeout(CONFIRM_TIMEOUT_S):
            await self._rpc.confirm_transaction(signature, Confirmed, sleep_seconds=0.2)

    async def _fund(self, owner: Pubkey, mint: Pubkey, amount_minor: int) -> None:
        if (await self._rpc.get_balance(owner)).value < _LOW_LAMPORTS:
            drop = await self._rpc.request_airdrop(owner, _AIRDROP_LAMPORTS)
            await self._confirmed(drop.value)
        await self._faucet(owner, mint, amount_minor)

    async def _faucet(self, owner: Pubkey, mint: Pubkey, amount_minor: int) -> None:
        """Ask the local network's faucet, a JSON-RPC method the stock client does not know."""
        request = JsonRpcRequest(
            method="giovang_faucet", params=[str(owner), str(mint), str(amount_minor)]
        )
        signature: str = await self._rpc.send_rpc_request(request, str)
        await self._confirmed(Signature.from_string(signature))


def _instructions(payer: Pubkey, invoice: Invoice, amount_minor: int) -> list[Instruction]:
    """Return the instructions of one Solana Pay transfer; the recipient's account may be new."""
    transfer = transfer_checked(
        TransferCheckedParams(
            program_id=TOKEN_PROGRAM_ID,
            source=get_associated_token_address(payer, invoice.mint),
            mint=invoice.mint,
            dest=get_associated_token_address(invoice.recipient, invoice.mint),
            owner=payer,
            amount=amount_minor,
            decimals=TOKEN_DECIMALS,
        )
    )
    reference = AccountMeta(invoice.reference, is_signer=False, is_writable=False)
    with_reference = Instruction(
        transfer.program_id, transfer.data, [*transfer.accounts, reference]
    )
    account = create_idempotent_associated_token_account(payer, invoice.recipient, invoice.mint)
    return [account, with_reference]

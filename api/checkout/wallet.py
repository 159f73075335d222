"""The demo's wallet on the local network: one Solana Pay transfer by the stock client.

Every payment brings its own money from the local network's faucet, tokens and lamports for fees, so
payments that run beside each other never spend each other's. What was asked twice is paid once, and
the chain itself sees to it: with each transfer goes an account that can be made once only. Whatever
else keeps the transfer from being accepted is ChainUnavailable, and then it is safe to ask again.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from solana.exceptions import SolanaRpcException
from solana.rpc.async_api import AsyncClient
from solana.rpc.commitment import Confirmed
from solana.rpc.core import RPCException
from solana.rpc.jsonrpc import JsonRpcRequest, SolanaJsonRpcError
from solders.instruction import Instruction
from solders.keypair import Keypair
from solders.message import MessageV0
from solders.pubkey import Pubkey
from solders.rpc.errors import SendTransactionPreflightFailureMessage
from solders.system_program import ID as SYSTEM_PROGRAM
from solders.system_program import CreateAccountWithSeedParams, create_account_with_seed
from solders.transaction import VersionedTransaction
from solders.transaction_status import (
    InstructionErrorCustom,
    TransactionErrorFieldless,
    TransactionErrorInstructionError,
)

from api.chain.transfers import TokenTransfer, transfer_instructions
from api.errors import ChainUnavailable

# What an account of no bytes has to hold for good.
_MARK_LAMPORTS: Final = 890_880
# The mark, the recipient's token account (2,039,280) and the fee, and enough to stay rent-exempt.
_LAMPORTS: Final = 5_000_000
# The mark is the first instruction; the system program's error where an account stands already.
_ALREADY_MARKED: Final = TransactionErrorInstructionError(0, InstructionErrorCustom(0))
_DEADLINE_S: Final = 20.0


class DemoWallet:
    """One key pair and the RPC it pays through; one for each process."""

    def __init__(self, rpc_url: str, key_base58: str) -> None:
        self._rpc = AsyncClient(rpc_url, commitment=Confirmed, timeout=5, http2=False)
        self._key = Keypair.from_base58_string(key_base58)

    async def close(self) -> None:
        """Close the client's connections."""
        await self._rpc.close()

    async def pay(self, transfer: TokenTransfer) -> None:
        """Send the tokens; the network has accepted the transfer, now or when asked before."""
        owner = self._key.pubkey()
        instructions = [
            _mark(owner, transfer),
            *transfer_instructions(owner, transfer, opens_account=True),
        ]
        async with _asking():
            await self._fund(transfer)
            latest = (await self._rpc.get_latest_blockhash()).value.blockhash
            message = MessageV0.try_compile(owner, instructions, [], latest)
            try:
                await self._rpc.send_transaction(VersionedTransaction(message, [self._key]))
            except RPCException as refusal:
                if not _is_paid_before(refusal):
                    raise

    def sign(self, text: str) -> str:
        """Return the wallet's signature under a text, base58, as a browser's wallet makes it."""
        return str(self._key.sign_message(text.encode()))

    async def _fund(self, transfer: TokenTransfer) -> None:
        """Take what this payment costs, whatever the wallet holds: others may be spending that.

        The faucet answers when its gift has landed, and a transfer is judged by what has landed.
        """
        owner = self._key.pubkey()
        await self._rpc.request_airdrop(owner, _LAMPORTS)
        # A method of the local network that the stock client does not know.
        params = [str(owner), transfer.mint, str(transfer.amount_minor)]
        ask = JsonRpcRequest(method="giovang_faucet", params=params)
        await self._rpc.send_rpc_request(ask, str)


@asynccontextmanager
async def _asking() -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(_DEADLINE_S):
            yield
    except (SolanaRpcException, SolanaJsonRpcError, RPCException, TimeoutError) as failure:
        raise ChainUnavailable("the network did not take the transfer") from failure


def _mark(owner: Pubkey, transfer: TokenTransfer) -> Instruction:
    """Return what makes the account that stands for this amount of this payment."""
    asked = ":".join([*transfer.references, transfer.mint, str(transfer.amount_minor)])
    seed = hashlib.blake2b(asked.encode(), digest_size=16).hexdigest()
    return create_account_with_seed(
        CreateAccountWithSeedParams(
            from_pubkey=owner,
            to_pubkey=Pubkey.create_with_seed(owner, seed, SYSTEM_PROGRAM),
            base=owner,
            seed=seed,
            lamports=_MARK_LAMPORTS,
            space=0,
            owner=SYSTEM_PROGRAM,
        )
    )


def _is_paid_before(refusal: RPCException) -> bool:
    """Say whether the network refused because the very same, or its mark, is there already."""
    reason = refusal.args[0] if refusal.args else None
    if not isinstance(reason, SendTransactionPreflightFailureMessage):
        return False
    return reason.data.err in (TransactionErrorFieldless.AlreadyProcessed, _ALREADY_MARKED)

"""The demo's wallet on the local network: one Solana Pay transfer by the stock client.

What the wallet lacks (lamports for fees, tokens) it takes from the local network's faucet first.
Whatever keeps the transfer from being accepted is ChainUnavailable, and then nothing was paid.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from solana.exceptions import SolanaRpcException
from solana.rpc.async_api import AsyncClient
from solana.rpc.commitment import Confirmed
from solana.rpc.core import RPCException, UnconfirmedTxError
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

from api.contract import DECIMALS, Asset
from api.errors import ChainUnavailable

_ENOUGH_LAMPORTS: Final = 50_000_000
_FAUCET_LAMPORTS: Final = 1_000_000_000
_DEADLINE_S: Final = 20.0


def transfer_instructions(
    payer: Pubkey, *, recipient: Pubkey, mint: Pubkey, amount_minor: int, reference: Pubkey
) -> list[Instruction]:
    """Return what pays by Solana Pay: the recipient's account if missing, then the transfer.

    The reference is a read-only key of the transfer and signs nothing.
    """
    transfer = transfer_checked(
        TransferCheckedParams(
            program_id=TOKEN_PROGRAM_ID,
            source=get_associated_token_address(payer, mint),
            mint=mint,
            dest=get_associated_token_address(recipient, mint),
            owner=payer,
            amount=amount_minor,
            decimals=DECIMALS[Asset.USDC],
        )
    )
    mark = AccountMeta(reference, is_signer=False, is_writable=False)
    return [
        create_idempotent_associated_token_account(payer, recipient, mint),
        Instruction(transfer.program_id, transfer.data, [*transfer.accounts, mark]),
    ]


class DemoWallet:
    """One key pair and the RPC it pays through."""

    def __init__(self, rpc_url: str, key_base58: str) -> None:
        self._rpc_url = rpc_url
        self._key = Keypair.from_base58_string(key_base58)

    async def pay(self, *, recipient: str, mint: str, amount_minor: int, reference: str) -> str:
        """Send the tokens and return the signature, once the network has accepted the transfer."""
        owner, token = self._key.pubkey(), Pubkey.from_string(mint)
        async with self._network() as rpc:
            await self._fund(rpc, token, amount_minor)
            instructions = transfer_instructions(
                owner,
                recipient=Pubkey.from_string(recipient),
                mint=token,
                amount_minor=amount_minor,
                reference=Pubkey.from_string(reference),
            )
            latest = (await rpc.get_latest_blockhash()).value.blockhash
            message = MessageV0.try_compile(owner, instructions, [], latest)
            sent = await rpc.send_transaction(VersionedTransaction(message, [self._key]))
            return str(sent.value)

    async def _fund(self, rpc: AsyncClient, mint: Pubkey, amount_minor: int) -> None:
        owner = self._key.pubkey()
        if (await rpc.get_balance(owner)).value < _ENOUGH_LAMPORTS:
            drop = await rpc.request_airdrop(owner, _FAUCET_LAMPORTS)
            await rpc.confirm_transaction(drop.value, Confirmed, sleep_seconds=0.1)
        account = get_associated_token_address(owner, mint)
        held = 0
        if (await rpc.get_account_info(account)).value is not None:
            held = int((await rpc.get_token_account_balance(account)).value.amount)
        if held < amount_minor:
            # The faucet is a method of the local network that the stock client does not know.
            ask = JsonRpcRequest(
                method="giovang_faucet", params=[str(owner), str(mint), str(amount_minor)]
            )
            given = Signature.from_string(await rpc.send_rpc_request(ask, str))
            await rpc.confirm_transaction(given, Confirmed, sleep_seconds=0.1)

    @asynccontextmanager
    async def _network(self) -> AsyncIterator[AsyncClient]:
        rpc = AsyncClient(self._rpc_url, commitment=Confirmed, timeout=5, http2=False)
        try:
            async with asyncio.timeout(_DEADLINE_S):
                yield rpc
        except (
            SolanaRpcException,
            SolanaJsonRpcError,
            RPCException,
            UnconfirmedTxError,
            TimeoutError,
        ) as failure:
            raise ChainUnavailable("the network did not take the transfer") from failure
        finally:
            await rpc.close()

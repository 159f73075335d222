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
from solders.keypair import Keypair
from solders.message import MessageV0
from solders.pubkey import Pubkey
from solders.signature import Signature
from solders.transaction import VersionedTransaction
from spl.token.instructions import get_associated_token_address

from api.chain.transfers import TokenTransfer, transfer_instructions
from api.errors import ChainUnavailable

_ENOUGH_LAMPORTS: Final = 50_000_000
_FAUCET_LAMPORTS: Final = 1_000_000_000
_DEADLINE_S: Final = 20.0


class DemoWallet:
    """One key pair and the RPC it pays through."""

    def __init__(self, rpc_url: str, key_base58: str) -> None:
        self._rpc_url = rpc_url
        self._key = Keypair.from_base58_string(key_base58)

    async def pay(self, transfer: TokenTransfer) -> str:
        """Send the tokens and return the signature, once the network has accepted the transfer."""
        owner = self._key.pubkey()
        async with self._network() as rpc:
            await self._fund(rpc, Pubkey.from_string(transfer.mint), transfer.amount_minor)
            instructions = transfer_instructions(owner, transfer, opens_account=True)
            latest = (await rpc.get_latest_blockhash()).value.blockhash
            message = MessageV0.try_compile(owner, instructions, [], latest)
            sent = await rpc.send_transaction(VersionedTransaction(message, [self._key]))
            return str(sent.value)

    def sign(self, text: str) -> str:
        """Return the wallet's signature under a text, base58, as a browser's wallet makes it."""
        return str(self._key.sign_message(text.encode()))

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

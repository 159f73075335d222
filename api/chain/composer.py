"""Compose chain transactions for payers to sign: what a transfer needs to know of the network.

That is a recent block hash and whether the recipient's token account stands. Both are asked at most
once in a while and by one question at a time, so the load on the RPC does not grow with the number
of payers. Without an answer that makes sense within the deadline it raises ChainUnavailable.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, Generic, TypeVar

from pydantic import BaseModel
from solana.exceptions import SolanaRpcException
from solana.rpc.async_api import AsyncClient
from solana.rpc.commitment import Confirmed
from solana.rpc.jsonrpc import JsonRpcRequest, SolanaJsonRpcError
from solders.hash import Hash
from solders.pubkey import Pubkey

from api.chain.solana_pay import token_account
from api.chain.transfers import TokenTransfer, unsigned_transfer
from api.errors import ChainUnavailable

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)

# Refused or cut connections and HTTP errors; errors of the node; answers that are none; no answer.
_NO_ANSWER: Final = (SolanaRpcException, SolanaJsonRpcError, ValueError, TimeoutError)
# A block hash serves for about a minute; wallets fetch a fresh one besides.
_BLOCKHASH_S: Final = 2.0
# An account that stands is closed by nobody but us. That one is missing is not kept: any payer may
# make it at any moment, and then the next one has no need to.
_STANDING_S: Final = 60.0
# Accounts of our own wallets: two, and a few more where the wallet was changed.
_MOST_ACCOUNTS: Final = 64


class _BlockHash(BaseModel):
    blockhash: str


class _Latest(BaseModel):
    value: _BlockHash


class _Account(BaseModel):
    value: dict[str, Any] | None


class _Kept(Generic[T]):
    """One answer of the network and how long it serves; asked for by one task at a time."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._asking = asyncio.Lock()
        self._answer: T | None = None
        self._serves_until = float("-inf")

    async def get(self, ask: Callable[[], Awaitable[T]], serves_s: Callable[[T], float]) -> T:
        """Return the answer kept, or ask anew; what `ask` raises is kept from nobody."""
        async with self._asking:
            if self._answer is None or self._clock() >= self._serves_until:
                self._answer = await ask()
                self._serves_until = self._clock() + serves_s(self._answer)
            return self._answer


class Composer:
    """Makes the chain transactions of transaction requests; one for each process."""

    def __init__(
        self, url: str, *, timeout_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._client = AsyncClient(url, timeout=timeout_s, http2=False, max_transport_retries=0)
        self._timeout_s = timeout_s
        self._clock = clock
        self._blockhash: _Kept[Hash] = _Kept(clock)
        self._accounts: dict[str, _Kept[bool]] = {}

    async def close(self) -> None:
        """Close the client's connections."""
        await self._client.close()

    async def compose(self, payer: Pubkey, transfer: TokenTransfer) -> bytes:
        """Return the serialised chain transaction by which `payer` makes a transfer.

        It holds no signature. Raises ChainUnavailable.
        """
        account = token_account(transfer.recipient, transfer.mint)
        try:
            async with asyncio.timeout(self._timeout_s):
                stands = await self._kept(account).get(
                    lambda: self._stands(account),
                    lambda stands: _STANDING_S if stands else 0.0,
                )
                blockhash = await self._blockhash.get(self._latest, lambda _: _BLOCKHASH_S)
        except _NO_ANSWER as failure:
            raise ChainUnavailable("the network did not answer in time") from failure
        return unsigned_transfer(payer, transfer, blockhash=blockhash, opens_account=not stands)

    def _kept(self, account: str) -> _Kept[bool]:
        if account not in self._accounts and len(self._accounts) >= _MOST_ACCOUNTS:
            self._accounts.pop(next(iter(self._accounts)))
        return self._accounts.setdefault(account, _Kept(self._clock))

    async def _stands(self, account: str) -> bool:
        options = {"encoding": "base64", "commitment": Confirmed}
        return (await self._ask("getAccountInfo", [account, options], _Account)).value is not None

    async def _latest(self) -> Hash:
        answer = await self._ask("getLatestBlockhash", [{"commitment": Confirmed}], _Latest)
        return Hash.from_string(answer.value.blockhash)

    async def _ask(self, method: str, params: list[Any], shape: type[M]) -> M:
        # Not by the client's own methods: their parser panics, past any except, at some errors
        # that real nodes send (-32005 without its data).
        request = JsonRpcRequest(method=method, params=params)
        return await self._client.send_rpc_request(request, shape)

"""Solana as the watcher sees it, through the stock `solana` client; each call has a deadline.

This is Solana's `api.chain.interface.Chain`, which has the rules.

Whatever keeps an answer from us (refused connection, timeout, HTTP status, an error of the node)
is ChainUnavailable: nothing was learnt, ask again later. Only a chain transaction of a version that
we do not know is UnreadableTransaction.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from solana.exceptions import SolanaRpcException
from solana.rpc.async_api import AsyncClient
from solana.rpc.commitment import Commitment as RpcCommitment
from solana.rpc.core import RPCException
from solders.errors import SerdeJSONError
from solders.pubkey import Pubkey
from solders.rpc.errors import UnsupportedTransactionVersionMessage
from solders.signature import Signature
from solders.transaction_status import TransactionConfirmationStatus

from api.chain import subscription
from api.chain.interface import Heard
from api.chain.model import Commitment, Landed, SignatureInfo, UnreadableTransaction
from api.chain.receipts import landed_of
from api.errors import ChainUnavailable

_MOST_STATUSES = 256


class ChainReader:
    """One node's view of Solana, over JSON-RPC and, for news, its WebSocket."""

    def __init__(self, url: str, *, timeout_s: float, ws_url: str | None = None) -> None:
        self._ws_url = ws_url or subscription.websocket_url(url)
        self._client = AsyncClient(url, timeout=timeout_s, http2=False, max_transport_retries=0)
        self._timeout_s = timeout_s

    async def close(self) -> None:
        """Close the client's connections."""
        await self._client.close()

    async def finalized_slot(self) -> int:
        """Return the newest slot that can no longer be rolled back."""
        async with self._asking("getSlot"):
            return (await self._client.get_slot(RpcCommitment.FINALIZED)).value

    async def signatures(
        self, account: str, *, before: str | None, until: str | None, limit: int
    ) -> list[SignatureInfo]:
        """Return one page of an account's confirmed history, newest first.

        It starts after `before` going back, or at the newest, and ends short of `until`.
        """
        async with self._asking("getSignaturesForAddress"):
            answer = await self._client.get_signatures_for_address(
                Pubkey.from_string(account),
                before=None if before is None else Signature.from_string(before),
                until=None if until is None else Signature.from_string(until),
                limit=limit,
                commitment=RpcCommitment.CONFIRMED,
            )
            return [
                SignatureInfo(
                    signature=str(line.signature),
                    slot=line.slot,
                    failed=line.err is not None,
                    finalized=line.confirmation_status == TransactionConfirmationStatus.Finalized,
                )
                for line in answer.value
            ]

    async def transaction(self, signature: str, commitment: Commitment) -> Landed | None:
        """Return a chain transaction, or None where it is not (yet) that sure."""
        async with self._asking("getTransaction"):
            answer = await self._client.get_transaction(
                Signature.from_string(signature),
                encoding="jsonParsed",
                commitment=(
                    RpcCommitment.FINALIZED
                    if commitment is Commitment.FINALIZED
                    else RpcCommitment.CONFIRMED
                ),
                max_supported_transaction_version=0,
            )
            if answer.value is None:
                return None
            landed = landed_of(json.loads(answer.to_json())["result"])
            if landed.signature != signature:
                raise ChainUnavailable("getTransaction told of another chain transaction")
            return landed

    async def still_known(self, signatures: Sequence[str]) -> set[str]:
        """Return those of the signatures that the node finds in its history, without an error."""
        known: set[str] = set()
        for first in range(0, len(signatures), _MOST_STATUSES):
            part = signatures[first : first + _MOST_STATUSES]
            async with self._asking("getSignatureStatuses"):
                answer = await self._client.get_signature_statuses(
                    [Signature.from_string(signature) for signature in part],
                    search_transaction_history=True,
                )
                known.update(
                    signature
                    for signature, status in zip(part, answer.value, strict=True)
                    if status is not None and status.err is None
                )
        return known

    def listen(self, accounts: Sequence[str]) -> AbstractAsyncContextManager[AsyncIterator[Heard]]:
        """Hear of news about addresses; raises ChainUnavailable where the line cannot be had."""
        return subscription.listen(self._ws_url, accounts, timeout_s=self._timeout_s)

    @asynccontextmanager
    async def _asking(self, method: str) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._timeout_s):
                yield
        except RPCException as refusal:
            reason = refusal.args[0] if refusal.args else None
            if isinstance(reason, UnsupportedTransactionVersionMessage):
                raise UnreadableTransaction(
                    "a version of chain transaction we do not know"
                ) from None
            raise ChainUnavailable(f"{method} was refused: {type(reason).__name__}") from refusal
        except SerdeJSONError as nonsense:
            # One chain transaction of a strange form must not look like a node that is down.
            if method == "getTransaction":
                raise UnreadableTransaction("an answer of a form we do not know") from nonsense
            raise ChainUnavailable(f"{method} was answered with nonsense") from nonsense
        except (SolanaRpcException, TimeoutError) as failure:
            raise ChainUnavailable(f"{method} was not answered") from failure
        except BaseException as failure:
            # The client panics, beneath Exception, at an error object of a form it does not know.
            if type(failure).__name__ != "PanicException":
                raise
            raise ChainUnavailable(f"{method} was answered with nonsense") from failure

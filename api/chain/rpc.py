"""Read the chain through the stock `solana` client, each call with a deadline.

Whatever keeps an answer from us (refused connection, timeout, HTTP status, an error of the node)
is ChainUnavailable: nothing was learnt, ask again later. Only a chain transaction of a version that
we do not know is UnreadableTransaction.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from solana.exceptions import SolanaRpcException
from solana.rpc.async_api import AsyncClient
from solana.rpc.commitment import Commitment as RpcCommitment
from solana.rpc.core import RPCException
from solders.pubkey import Pubkey
from solders.rpc.errors import UnsupportedTransactionVersionMessage
from solders.signature import Signature
from solders.transaction_status import TransactionConfirmationStatus

from api.chain.model import Commitment, SignatureInfo, UnreadableTransaction
from api.errors import ChainUnavailable

_MOST_STATUSES = 256


class ChainReader:
    """The few questions that watching a token account takes."""

    def __init__(self, url: str, *, timeout_s: float) -> None:
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

    async def transaction(self, signature: str, commitment: Commitment) -> dict[str, Any] | None:
        """Return a chain transaction as jsonParsed, or None where it is not (yet) that sure."""
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
            result: dict[str, Any] = json.loads(answer.to_json())["result"]
            return result

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
        except (SolanaRpcException, TimeoutError) as failure:
            raise ChainUnavailable(f"{method} was not answered") from failure

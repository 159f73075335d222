"""Hear of news on Solana by WebSocket: a hint to look now, and nothing more.

Each address is heard of when something names it (`logsSubscribe`, confirmed) and when what changed
it is final (`accountSubscribe`, finalized). Slots are the signs of life: a node tells of one every
few hundred milliseconds. Whatever goes wrong ends the line with ChainUnavailable.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from api.chain.interface import Heard
from api.errors import ChainUnavailable

# A notification carries an account's 165 bytes or the logs of one chain transaction.
_LONGEST_MESSAGE_BYTES: Final = 256 * 1024
_CLOSE_S: Final = 1.0

Json = dict[str, Any]


def websocket_url(rpc_url: str) -> str:
    """Return where a node's WebSocket is by custom: where a port is named, one above it."""
    parts = urlsplit(rpc_url)
    scheme = {"http": "ws", "https": "wss"}[parts.scheme]
    if parts.port is None:
        return urlunsplit(parts._replace(scheme=scheme))
    host = parts.netloc.rpartition(":")[0]
    return urlunsplit(parts._replace(scheme=scheme, netloc=f"{host}:{parts.port + 1}"))


@asynccontextmanager
async def listen(
    url: str, accounts: Sequence[str], *, timeout_s: float
) -> AsyncIterator[AsyncIterator[Heard]]:
    """Subscribe to addresses; raises ChainUnavailable where that does not succeed in time."""
    with _told_as_unavailable():
        socket = await connect(
            url,
            open_timeout=timeout_s,
            close_timeout=_CLOSE_S,
            max_size=_LONGEST_MESSAGE_BYTES,
        )
    async with socket:
        with _told_as_unavailable():
            async with asyncio.timeout(timeout_s):
                line = await _Line.open(socket, accounts)
        yield line.news()


@contextmanager
def _told_as_unavailable() -> Iterator[None]:
    try:
        yield
    except (
        OSError,
        TimeoutError,
        WebSocketException,
        ValueError,
        LookupError,
        TypeError,
    ) as broken:
        raise ChainUnavailable(f"the WebSocket ended: {type(broken).__name__}") from broken


class _Line:
    """One socket and what its subscriptions are about."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._about: dict[int, str | None] = {}

    @classmethod
    async def open(cls, socket: ClientConnection, accounts: Sequence[str]) -> "_Line":
        """Subscribe to each address and to slots, and wait until all are numbered."""
        line = cls(socket)
        wishes: list[tuple[str | None, str, list[Any]]] = [(None, "slotSubscribe", [])]
        for account in accounts:
            mentions = [{"mentions": [account]}, {"commitment": "confirmed"}]
            # Nothing of the account itself is read: its length would do, and 0 bytes do as well.
            final = [
                account,
                {
                    "commitment": "finalized",
                    "encoding": "base64",
                    "dataSlice": {"offset": 0, "length": 0},
                },
            ]
            wishes += [(account, "logsSubscribe", mentions), (account, "accountSubscribe", final)]
        waiting: dict[int, str | None] = {}
        for number, (about, method, params) in enumerate(wishes):
            waiting[number] = about
            question = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
            await socket.send(json.dumps(question))
        while waiting:
            answer: Json = json.loads(await socket.recv())
            if "id" in answer:
                line._about[answer["result"]] = waiting.pop(answer["id"])
        return line

    async def news(self) -> AsyncIterator[Heard]:
        """Tell what the socket tells; raises ChainUnavailable when it ends."""
        while True:
            with _told_as_unavailable():
                heard = self._heard(json.loads(await self._socket.recv()))
            if heard is not None:
                yield heard

    def _heard(self, said: Json) -> Heard | None:
        method = said.get("method")
        if method == "slotNotification":
            return Heard(slot=int(said["params"]["result"]["slot"]))
        if method not in {"logsNotification", "accountNotification"}:
            return None
        return Heard(
            slot=int(said["params"]["result"]["context"]["slot"]),
            account=self._about[said["params"]["subscription"]],
            is_final=method == "accountNotification",
        )

"""How often a composer asks the network, and what it makes of a network that fails.

The network is a server of the test that answers as a Solana RPC does, slowly, wrongly or never:
the real one cannot be told to.
"""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from solders.hash import Hash
from solders.keypair import Keypair
from solders.transaction import Transaction

from api.chain.composer import Composer
from api.chain.solana_pay import new_reference
from api.chain.transfers import TokenTransfer
from api.contract import USDC_MINT
from api.errors import ChainUnavailable

TRANSFER = TokenTransfer(
    "mvines9iiHiQTysrwkJjGf2gb9Ex9jXJX8ns3qwf2kN", USDC_MINT, 1, 6, (new_reference(),)
)
PAYER = Keypair().pubkey()
ACCOUNT = {
    "data": ["", "base64"],
    "executable": False,
    "lamports": 2_039_280,
    "owner": "TokenkegQfeZyiNwAJbNbGKPFXCWuBvf9Ss623VQ5DA",
    "rentEpoch": 0,
    "space": 165,
}
Answer = Callable[[str], Awaitable[Any]]


class Node:
    """Counts questions and answers them as told."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.stands = True
        self.garbage: bytes | None = None
        self.silent = False
        self.links: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.links.add(task)
        try:
            while (head := await reader.readuntil(b"\r\n\r\n")) != b"":
                length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
                question = json.loads(await reader.readexactly(length))
                self.asked[question["method"]] += 1
                if self.silent:
                    continue
                body = self.garbage or json.dumps(self.answer(question)).encode()
                writer.write(
                    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
                    b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
                )
                await writer.drain()
        except asyncio.IncompleteReadError:
            pass  # the client has closed
        finally:
            writer.close()
            await writer.wait_closed()

    def answer(self, question: dict[str, Any]) -> dict[str, Any]:
        value: Any = ACCOUNT if self.stands else None
        if question["method"] == "getLatestBlockhash":
            value = {"blockhash": str(Hash.new_unique()), "lastValidBlockHeight": 150}
        result = {"context": {"slot": 1, "apiVersion": "3.0.0"}, "value": value}
        return {"jsonrpc": "2.0", "id": question["id"], "result": result}


@asynccontextmanager
async def composing(
    node: Node, now: Callable[[], float] = lambda: 0.0, *, timeout_s: float = 5.0
) -> AsyncIterator[Composer]:
    server = await asyncio.start_server(node.serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    composer = Composer(url, timeout_s=timeout_s, clock=now)
    try:
        yield composer
    finally:
        await composer.close()
        server.close()
        await asyncio.gather(*node.links)


def instructions(made: bytes) -> int:
    return len(Transaction.from_bytes(made).message.instructions)


def test_many_payers_ask_the_network_once() -> None:
    async def run() -> Counter[str]:
        node = Node()
        async with composing(node) as composer:
            await asyncio.gather(*(composer.compose(PAYER, TRANSFER) for _ in range(50)))
        return node.asked

    assert asyncio.run(run()) == {"getAccountInfo": 1, "getLatestBlockhash": 1}


def test_a_kept_answer_ends() -> None:
    async def run() -> tuple[set[Hash], Counter[str]]:
        node, now = Node(), 0.0
        async with composing(node, lambda: now) as composer:
            hashes = set()
            for moment in (0.0, 1.9, 2.0, 59.0, 61.0):
                now = moment
                made = Transaction.from_bytes(await composer.compose(PAYER, TRANSFER))
                hashes.add(made.message.recent_blockhash)
        return hashes, node.asked

    hashes, asked = asyncio.run(run())
    assert len(hashes) == 4
    assert asked == {"getAccountInfo": 2, "getLatestBlockhash": 4}


def test_the_account_is_opened_until_it_stands() -> None:
    async def run() -> list[int]:
        node = Node()
        node.stands = False
        async with composing(node) as composer:
            found = [instructions(await composer.compose(PAYER, TRANSFER))]
            node.stands = True
            found.append(instructions(await composer.compose(PAYER, TRANSFER)))
            node.stands = False  # not looked at again so soon
            found.append(instructions(await composer.compose(PAYER, TRANSFER)))
        return found

    assert asyncio.run(run()) == [2, 1, 1]


@pytest.mark.parametrize(
    "garbage",
    [
        b"<html>bad gateway</html>",
        b"{}",
        b"[]",
        b'{"jsonrpc": "2.0", "id": 0, "error": {"code": -32005, "message": "behind"}}',
        b'{"jsonrpc": "2.0", "id": 0, "result": {"value": 7}}',
    ],
)
def test_an_answer_that_makes_no_sense_is_no_answer(garbage: bytes) -> None:
    async def run() -> None:
        node = Node()
        node.garbage = garbage
        async with composing(node) as composer:
            with pytest.raises(ChainUnavailable):
                await composer.compose(PAYER, TRANSFER)
            # A failure is not kept.
            node.garbage = None
            await composer.compose(PAYER, TRANSFER)

    asyncio.run(run())


def test_a_silent_network_ends_at_the_deadline_for_all_at_once() -> None:
    async def run() -> float:
        node = Node()
        node.silent = True
        loop = asyncio.get_running_loop()
        async with composing(node, timeout_s=0.3) as composer:
            began = loop.time()
            answers = await asyncio.gather(
                *(composer.compose(PAYER, TRANSFER) for _ in range(5)), return_exceptions=True
            )
            assert [type(answer) for answer in answers] == [ChainUnavailable] * 5
            return loop.time() - began

    assert asyncio.run(run()) < 3

"""Trouble around the local network: `python -m infra.localnet.trouble --seed N`.

Serves JSON-RPC and WebSocket notifications like a node does, in front of a local network that runs,
and has go wrong what goes wrong with real ones: forks that roll back confirmed slots, lists that
miss signatures, calls that fail or are never answered, a finalized position that lags, news that is
doubled, late or missing. The same seed brings the same trouble. What it calls finalized is the
truth and stays so. It ends with code 0 on SIGTERM or SIGINT, with 1 where it cannot go on.
"""

import argparse
import asyncio
import logging
import signal
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Final

import httpx

from infra.localnet.errors import LocalnetError, StateError
from infra.localnet.trouble_doors import doors
from infra.localnet.trouble_faults import Faults, Kind
from infra.localnet.trouble_forks import Forks
from infra.localnet.trouble_node import TroubledNode
from infra.telemetry import configure_logging, get_logger, notify_alive, notify_ready

_DESCRIPTION: Final = """\
A node with troubles, in front of a local network that runs.

Point a watcher or a wallet at it instead of at the network, for instance
GIOVANG_API_SOLANA_RPC_URL=http://127.0.0.1:18999. Its WebSocket is one port above. The same seed
brings the same trouble at the same slots, counted from the start."""
_KINDS_HELP: Final = """\
comma-separated, of: forks (confirmed slots are rolled back; what was in them lands again later, or
never), lists (lists of signatures miss some or are out of order), reads (getTransaction and
statuses know nothing for a while), calls (calls fail, are slow, or are never answered), lag (the
finalized position stays behind), news (notifications are missing, doubled or late); default: all"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Make trouble until told to stop; the process's exit code."""
    asked = _parser().parse_args(arguments)
    configure_logging("trouble")
    for chatty in ("websockets", "uvicorn", "httpx"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    log = get_logger(__name__)
    try:
        asyncio.run(_run(asked))
    except (LocalnetError, httpx.HTTPError) as error:
        log.error("the trouble ends", reason=str(error) or type(error).__name__)  # noqa: TRY400
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m infra.localnet.trouble",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seed", type=int, required=True, help="what the trouble is drawn from")
    parser.add_argument(
        "--network", default="http://127.0.0.1:18899", help="RPC address of the local network"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=18999, help="port of the first node")
    parser.add_argument(
        "--nodes",
        type=int,
        default=1,
        choices=(1, 2, 3),
        help="nodes to serve, two ports apart: one chain, and troubles of their own",
    )
    parser.add_argument(
        "--kinds", type=_kinds, default=tuple(Kind), metavar="KIND,…", help=_KINDS_HELP
    )
    parser.add_argument(
        "--slot-ms", type=int, default=400, help="length of a slot, as the network has it"
    )
    parser.add_argument(
        "--calm-after", type=int, metavar="SLOTS", help="end all trouble after so many slots"
    )
    return parser


def _kinds(text: str) -> tuple[Kind, ...]:
    try:
        return tuple(Kind(name) for name in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


async def _run(asked: argparse.Namespace) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for each_signal in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(each_signal, stop.set)
    forks = Forks(asked.seed, await _slot(asked.network))
    # The first node's troubles say when there are forks: the chain is one, however many look at it.
    troubles = [
        Faults(asked.seed + number, asked.kinds, calm_after=asked.calm_after)
        for number in range(asked.nodes)
    ]
    nodes = [
        TroubledNode(asked.network, forks, faults, slot_ms=asked.slot_ms, old=True)
        for faults in troubles
    ]
    async with AsyncExitStack() as parts:
        serving = []
        for number, (node, faults) in enumerate(zip(nodes, troubles, strict=True)):
            parts.push_async_callback(node.close)
            await node.start()
            port = asked.port + 2 * number
            upstream_ws = websocket_url(asked.network)
            serving.append(
                await parts.enter_async_context(doors(asked.host, port, node, faults, upstream_ws))
            )
        get_logger(__name__).info("making trouble", seed=asked.seed, port=asked.port)
        notify_ready(f"seed {asked.seed}")
        while not stop.is_set():
            waiting = asyncio.ensure_future(stop.wait())
            await asyncio.wait(
                (waiting, *serving),
                timeout=asked.slot_ms / 1000,
                return_when=asyncio.FIRST_COMPLETED,
            )
            waiting.cancel()
            for each in serving:
                if each.done():
                    each.result()
                    message = "the HTTP server ended by itself"
                    raise StateError(message)
            forks.advance(chance=troubles[0].fork_chance())
            for node in nodes:
                node.enter()
            notify_alive(f"slot {forks.tip}, {forks.rolled_back} rolled back")


async def _slot(rpc_url: str) -> int:
    asked = {"jsonrpc": "2.0", "id": 1, "method": "getSlot", "params": []}
    async with httpx.AsyncClient(timeout=5) as client:
        answer = (await client.post(rpc_url, json=asked)).raise_for_status()
    return int(answer.json()["result"])


def websocket_url(rpc_url: str) -> str:
    """Return the address of a local network's WebSocket: one port above its RPC."""
    url = httpx.URL(rpc_url)
    return str(url.copy_with(scheme="ws", port=(url.port or 80) + 1))


if __name__ == "__main__":
    sys.exit(main())

"""Entrypoint of the local network: `python -m infra.localnet`.

Starts from GIOVANG_LOCALNET_* settings, tells the supervisor when it serves and that its slots
pass, stops cleanly on SIGTERM or SIGINT with exit code 0, and with 1 where it cannot go on.
"""

import asyncio
import logging
import signal
import sys
import time
from typing import Final

import pydantic

from infra.localnet.account_methods import AccountMethods
from infra.localnet.errors import LocalnetError, NetworkBrokenError
from infra.localnet.faucet import Faucet, found
from infra.localnet.journal import Journal
from infra.localnet.ledger_methods import LedgerMethods
from infra.localnet.network import Network
from infra.localnet.rpc import Dispatcher, rpc_methods
from infra.localnet.runtime import Runtime
from infra.localnet.server import http_door, websocket_door
from infra.localnet.settings import LocalnetSettings
from infra.localnet.submission_methods import SubmissionMethods
from infra.localnet.subscriptions import Hub
from infra.telemetry import configure_logging, get_logger, notify_alive, notify_ready

_ALIVE_EVERY_S: Final = 2.0


def main() -> int:
    """Run the network until it is told to stop; the process's exit code."""
    configure_logging("localnet")
    for chatty in ("websockets", "uvicorn"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    log = get_logger(__name__)
    try:
        asyncio.run(_run(LocalnetSettings()))
    except pydantic.ValidationError as error:
        log.error("settings are wrong", problems=error.errors(include_input=False))  # noqa: TRY400
        return 1
    except LocalnetError as error:
        log.error("the local network cannot go on", reason=str(error))  # noqa: TRY400
        return 1
    return 0


async def _run(settings: LocalnetSettings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    journal = Journal(settings.state_dir)
    try:
        runtime = Runtime()
        key = found(settings.state_dir, journal, runtime)
        network = Network(settings, journal, runtime, _wall_clock_ms)
        faucet = Faucet(network, key)
        faucet.prepare(settings.funded)
        dispatcher = Dispatcher(
            rpc_methods(
                AccountMethods(network, runtime),
                LedgerMethods(network, runtime, journal),
                SubmissionMethods(network, faucet),
            )
        )
        hub = Hub(network, journal)
        async with (
            http_door(settings.host, settings.port, dispatcher) as serving,
            websocket_door(settings.host, settings.websocket_port, hub),
        ):
            get_logger(__name__).info(
                "serving", host=settings.host, port=settings.port, slot=network.tip
            )
            await _pass_slots(network, serving, stop)
    finally:
        journal.close()


async def _pass_slots(network: Network, serving: asyncio.Task[None], stop: asyncio.Event) -> None:
    """Advance the network until it is told to stop. Raises where it cannot go on."""
    notify_ready(f"slot {network.tip}")
    told_at = time.monotonic()
    stopping = asyncio.ensure_future(stop.wait())
    try:
        while not stop.is_set():
            await asyncio.wait(
                (stopping, serving, network.broken),
                timeout=min(network.next_slot_in_s(), _ALIVE_EVERY_S),
                return_when=asyncio.FIRST_COMPLETED,
            )
            if network.broken.done():
                network.broken.result()
            if serving.done():
                serving.result()
                message = "the HTTP server ended by itself"
                raise NetworkBrokenError(message)
            network.advance()
            if time.monotonic() - told_at >= _ALIVE_EVERY_S:
                told_at = time.monotonic()
                notify_alive(f"slot {network.tip}, {network.landed_count} landed")
    finally:
        stopping.cancel()


def _wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


if __name__ == "__main__":
    sys.exit(main())

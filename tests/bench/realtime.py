"""Live status under load: open sockets told of commits, and open payments watched on a chain."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import psutil
import psycopg
from solana.rpc.async_api import AsyncClient
from solders.signature import Signature
from solders.transaction_status import TransactionConfirmationStatus

from api.security import PayerLinks
from infra.stack.process import base_environment
from tests.bench.frame import BenchError, Options, Report, percentile
from tests.bench.ground import query
from tests.bench.raw_sockets import ONE_EVERY_S
from tests.bench.realtime_ground import RealtimeGround, RpcCounter, Sockets, realtime_ground
from tests.fixtures.api import PayerWallet
from tests.fixtures.services import CHECKOUT, free_port

NAME = "realtime"
MANY: Final = "many"
ONE: Final = "one"
ALL_TOLD_S: Final = 60.0
BOOKED_S: Final = 90.0
WARM_UP_SOCKETS: Final = 50

METHOD = """\
Real PostgreSQL, capture, JetStream, realtime worker and Redis with the product's settings and one
API process, all on this machine, clients included. {sockets} WebSockets, opened with a live token
each: {many} payments with a socket each, and one payment with {one}. Fan-out: {updates} payments
chosen by the seed change {rate} a second, then the one payment {one_updates} times, {one_rate} a
second; a time is from the moment that PostgreSQL stamps on the row, before its commit, to the
arrival in the client, of every event at every socket, and each must have arrived; fanout is of all
of them together, fanout_one of the one payment's. kib_per_socket: memory of the API process (PSS)
with the sockets open, less that before, of each; {warm_up} sockets were open and closed before.
Baseline: the websockets library alone under uvloop, no compression, as many sockets, opened and
read by the same client, a message as large to one of them {rate} times a second and to {one} of
them twice a second, timed from its sending. Watcher: {open} open payments on the local network
(400 ms a slot, finalized 8 slots after), watched by api.watcher through a proxy that counts RPC
calls, {idle_s} s without payers (rpc_calls_per_min) and then {paid} payers, {pay_rate} a second
(rpc_calls_per_min_paying); booked is from finalisation, as the network answers a poll of it every
50 ms, to the payment's completion by PostgreSQL's clock."""


@dataclass(frozen=True, slots=True)
class _Size:
    many: int
    one: int
    updates: int
    rate_per_s: float
    one_updates: int
    one_rate_per_s: float
    open_payments: int
    idle_s: float
    paid: int
    pay_rate_per_s: float

    @property
    def sockets(self) -> int:
        return self.many + self.one


SHORT: Final = _Size(450, 50, 60, 20.0, 6, 2.0, 100, 6.0, 4, 2.0)
FULL: Final = _Size(9_000, 1_000, 400, 20.0, 20, 2.0, 2_000, 60.0, 60, 2.0)


def run(options: Options) -> Report:
    """Measure sockets told of commits beside bare websockets, and payments watched on a chain."""
    size = SHORT if options.short else FULL
    figures: dict[str, float] = {}
    baselines: dict[str, float] = {}
    with realtime_ground(options) as ground:
        _fan_out(ground, options, size, figures)
        _bare(ground, options, size, baselines)
        _watched(ground, options, size, figures)
    return Report(
        bench=NAME,
        machine=options.machine,
        seed=options.seed,
        method=" ".join(METHOD.split()).format(
            sockets=size.sockets,
            many=size.many,
            one=size.one,
            updates=size.updates,
            rate=f"{size.rate_per_s:g}",
            one_updates=size.one_updates,
            one_rate=f"{size.one_rate_per_s:g}",
            warm_up=WARM_UP_SOCKETS,
            open=size.open_payments,
            idle_s=f"{size.idle_s:g}",
            paid=size.paid,
            pay_rate=f"{size.pay_rate_per_s:g}",
        ),
        figures=figures,
        baselines=baselines,
        ratios={
            "fanout_p99_vs_websockets": figures["fanout_p99_ms"]
            / baselines["websockets_fanout_p99_ms"],
            "kib_per_socket_vs_websockets": figures["kib_per_socket"]
            / baselines["websockets_kib_per_socket"],
        },
    )


def _fan_out(
    ground: RealtimeGround, options: Options, size: _Size, figures: dict[str, float]
) -> None:
    """Open sockets on payments, change the payments, and time each event at each socket."""
    ids = [payment_id for payment_id, _ in ground.payments(size.many + 1)]
    links = PayerLinks(ground.api.env["GIOVANG_API_SEALING_KEY"])
    port = int(ground.api.base_url.rpartition(":")[2])

    def path(payment_id: str) -> str:
        token = links.token(payment_id, "watch", now_s=int(time.time()))
        return f"/api/v1/payments/{payment_id}/ws?token={token}"

    with Sockets(ground.folder, port, [path(ids[0])] * WARM_UP_SOCKETS, [ONE] * WARM_UP_SOCKETS):
        pass
    before_kib = ground.api_memory_kib()
    options.progress(f"opening {size.sockets} sockets")
    watched = [*ids[1:], *[ids[0]] * size.one]
    groups = [MANY] * size.many + [ONE] * size.one
    with Sockets(ground.folder, port, [path(one) for one in watched], groups) as sockets:
        figures["sockets"] = float(size.sockets)
        figures["opening_s"] = sockets.opening_s
        figures["kib_per_socket"] = (ground.api_memory_kib() - before_kib) / size.sockets
        options.progress(f"changing {size.updates} payments, {size.rate_per_s:g} a second")
        chosen = [ids[1 + (options.seed + 7919 * n) % size.many] for n in range(size.updates)]
        _change(ground, chosen, size.rate_per_s)
        many = _told(sockets, MANY, len(chosen))
        options.progress(f"changing the payment of {size.one} sockets")
        _change(ground, [ids[0]] * size.one_updates, size.one_rate_per_s)
        one = _told(sockets, ONE, size.one_updates * size.one)
        figures["kib_per_socket_after_events"] = (
            ground.api_memory_kib() - before_kib
        ) / size.sockets
    for name, values in (("fanout", many + one), ("fanout_many", many), ("fanout_one", one)):
        figures[f"{name}_p50_ms"] = percentile(values, 0.50)
        figures[f"{name}_p99_ms"] = percentile(values, 0.99)


def _change(ground: RealtimeGround, payment_ids: Sequence[str], rate_per_s: float) -> None:
    with psycopg.connect(ground.made.ledger_url, autocommit=True) as connection:
        begin = time.monotonic()
        for number, payment_id in enumerate(payment_ids):
            time.sleep(max(0.0, begin + number / rate_per_s - time.monotonic()))
            connection.execute(
                "UPDATE payments SET metadata = jsonb_build_object('n', %s::text) WHERE id = %s",
                (number, payment_id),
            )


def _told(sockets: Sockets, group: str, wanted: int) -> list[float]:
    """Return the times of all events of a group, once every one of them has arrived."""
    found: list[float] = []
    deadline = time.monotonic() + ALL_TOLD_S
    while len(found) < wanted:
        if time.monotonic() > deadline:
            raise BenchError(f"{wanted} events were to arrive ({group}), {len(found)} did")
        time.sleep(0.2)
        found += sockets.latencies().get(group, [])
    if len(found) != wanted:
        raise BenchError(f"{wanted} events were to arrive ({group}), {len(found)} did")
    return found


def _bare(
    ground: RealtimeGround, options: Options, size: _Size, baselines: dict[str, float]
) -> None:
    """Do as much with a bare websockets server."""
    options.progress(f"opening {size.sockets} bare websockets")
    with _bare_server(ground.folder) as (port, process):
        with Sockets(ground.folder, port, ["/many"] * WARM_UP_SOCKETS, [MANY] * WARM_UP_SOCKETS):
            pass
        before_kib = process.memory_full_info().pss / 1024
        paths = ["/many"] * size.many + ["/one"] * size.one
        groups = [MANY] * size.many + [ONE] * size.one
        with Sockets(ground.folder, port, paths, groups) as sockets:
            after_kib = process.memory_full_info().pss / 1024
            sockets.latencies()
            time.sleep(size.one_updates * ONE_EVERY_S)
            told = sockets.latencies()
    values = [*told[MANY], *told[ONE]]
    baselines["websockets_fanout_p50_ms"] = percentile(values, 0.50)
    baselines["websockets_fanout_p99_ms"] = percentile(values, 0.99)
    baselines["websockets_kib_per_socket"] = (after_kib - before_kib) / size.sockets


@contextmanager
def _bare_server(folder: Path) -> Iterator[tuple[int, psutil.Process]]:
    port = free_port()
    with subprocess.Popen(
        [sys.executable, "-m", "tests.bench.raw_sockets", str(port)],
        cwd=CHECKOUT,
        env=base_environment(folder),
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None, "a pipe"
            if process.stdout.readline() != "serving\n":
                raise BenchError("the bare websockets server did not start")
            yield port, psutil.Process(process.pid)
        finally:
            process.kill()


def _watched(
    ground: RealtimeGround, options: Options, size: _Size, figures: dict[str, float]
) -> None:
    """Have open payments watched, count what that asks of the chain, and time some bookings."""
    options.progress(f"a network with {size.open_payments} open payments, watched")
    network = ground.network()
    payments = ground.payments(size.open_payments)
    counter = RpcCounter(network.rpc_url)
    ground.parts.callback(counter.close)
    wallet = PayerWallet(network.rpc_url)
    asyncio.run(wallet.fund(amount_minor=10 * size.paid * 1_000_000))
    ground.watcher(counter.url, network.ws_url)
    _wait_for_calls(counter)
    figures["open_payments"] = float(size.open_payments)
    figures["rpc_calls_per_min"] = _calls_per_min(counter, size.idle_s)
    options.progress(f"{size.paid} payers")
    before, began = sum(counter.counts().values()), time.monotonic()
    finalized = asyncio.run(_pay(ground, wallet, payments[: size.paid], size.pay_rate_per_s))
    booked = _booked(ground, list(finalized))
    minutes = (time.monotonic() - began) / 60
    figures["rpc_calls_per_min_paying"] = (sum(counter.counts().values()) - before) / minutes
    times = [(booked[one] - finalized[one]).total_seconds() * 1000 for one in finalized]
    figures["booked_p50_ms"] = percentile(times, 0.50)
    figures["booked_p99_ms"] = percentile(times, 0.99)


def _wait_for_calls(counter: RpcCounter) -> None:
    deadline = time.monotonic() + 30
    while not counter.counts():
        if time.monotonic() > deadline:
            raise BenchError("the watcher asked nothing of the chain")
        time.sleep(0.05)


def _calls_per_min(counter: RpcCounter, seconds: float) -> float:
    before = sum(counter.counts().values())
    time.sleep(seconds)
    return (sum(counter.counts().values()) - before) * 60 / seconds


async def _pay(
    ground: RealtimeGround,
    wallet: PayerWallet,
    payments: Sequence[tuple[str, str]],
    rate_per_s: float,
) -> dict[str, datetime]:
    """Pay payments in full; return when each was first seen finalized."""
    finalized: dict[str, datetime] = {}
    async with asyncio.timeout(BOOKED_S), asyncio.TaskGroup() as tasks:
        for number, (payment_id, reference) in enumerate(payments):
            signature = await wallet.pay(
                ground.api.collection_wallet, 1_000_001 + number, reference
            )
            tasks.create_task(_until_final(wallet.rpc_url, payment_id, signature, finalized))
            await asyncio.sleep(1 / rate_per_s)
    return finalized


async def _until_final(
    rpc_url: str, payment_id: str, signature: str, finalized: dict[str, datetime]
) -> None:
    async with AsyncClient(rpc_url, http2=False) as rpc:
        while True:
            (found,) = (await rpc.get_signature_statuses([Signature.from_string(signature)])).value
            if (
                found is not None
                and found.confirmation_status == TransactionConfirmationStatus.Finalized
            ):
                finalized[payment_id] = datetime.now(UTC)
                return
            await asyncio.sleep(0.05)


def _booked(ground: RealtimeGround, payment_ids: list[str]) -> dict[str, datetime]:
    """Return when each payment completed, once all have."""
    deadline = time.monotonic() + BOOKED_S
    while True:
        found = query(
            ground.made.ledger_url,
            "SELECT id, completed_at FROM payments WHERE id = ANY (%s) AND status = 'completed'",
            payment_ids,
        )
        if len(found) == len(payment_ids):
            return dict(found)
        if time.monotonic() > deadline:
            raise BenchError(f"{len(payment_ids)} were paid, {len(found)} are booked")
        time.sleep(0.2)

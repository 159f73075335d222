"""What the bench of live status runs on: the whole way from a commit to sockets, and a network.

PostgreSQL, capture, NATS, the realtime worker, Redis and one API process, all with the product's
own settings but for the limits per client address; a local Solana network and, before it, a proxy
that counts what is asked of it. What does not come up raises BenchError with its own words.
"""

import http.client
import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import psutil
from solders.keypair import Keypair

from api.contract import USDC_MINT
from api.database import new_id
from infra.stack import brokers, probes
from infra.stack.accounts import service_account
from infra.stack.process import base_environment
from tests.bench.frame import BenchError, Options
from tests.bench.ground import Ground, ground, own_folder, query
from tests.fixtures.api import ApiServer, make_api, make_watcher
from tests.fixtures.localnet import make_localnet
from tests.fixtures.services import CHECKOUT, LocalnetServer, Server, free_port

ANSWER_TIMEOUT_S: Final = 150.0
# Out of the way: all sockets of the bench come from one address.
LIMITS: Final = {
    "live_sockets_per_address": "100000",
    "live_opened_per_minute": "10000000",
    "live_most_sockets": "100000",
}
_MAKE: Final = """
    INSERT INTO payments (id, merchant_id, mode, amount_minor, currency, asset, asset_amount_minor,
                          rate, rate_source, chain, recipient, mint, reference, expires_at)
    SELECT id, %s, 'test', 25000, 'VND', 'USDC', 1000000 + n, 25000, 'bench', 'solana', %s, %s,
           reference, now() + interval '1 hour'
    FROM unnest(%s::text[], %s::text[]) WITH ORDINALITY AS payment (id, reference, n)
"""


@dataclass(frozen=True, slots=True)
class RealtimeGround:
    """Running servers."""

    folder: Path
    made: Ground
    api: ApiServer
    merchant_id: str
    parts: ExitStack

    def payments(self, count: int) -> list[tuple[str, str]]:
        """Make payments and return their ids and references."""
        made = [(new_id("pay"), str(Keypair().pubkey())) for _ in range(count)]
        query(
            self.made.ledger_url,
            _MAKE,
            self.merchant_id,
            self.api.collection_wallet,
            USDC_MINT,
            [payment_id for payment_id, _ in made],
            [reference for _, reference in made],
        )
        return made

    def api_memory_kib(self) -> float:
        """Return the API process's memory, of what is shared with others its share (PSS)."""
        return float(psutil.Process(self.api.pid).memory_full_info().pss) / 1024

    def network(self) -> LocalnetServer:
        """Start a local network; it stops with the ground."""
        network = make_localnet(own_folder(self.folder, "localnet", None))
        network.start()
        self.parts.callback(network.stop)
        return network

    def watcher(self, rpc_url: str, ws_url: str) -> Server:
        """Start the watcher of our wallet on a network; it stops with the ground."""
        watcher = make_watcher(self.api)
        watcher.env = {
            **watcher.env,
            "GIOVANG_API_SOLANA_RPC_URL": rpc_url,
            "GIOVANG_API_SOLANA_WS_URLS": json.dumps([ws_url]),
        }
        # As the stack runs it.
        watcher.env.pop("GIOVANG_API_POLL_INTERVAL_MS", None)
        watcher.start()
        self.parts.callback(watcher.stop)
        return watcher


@contextmanager
def realtime_ground(options: Options) -> Iterator[RealtimeGround]:
    """Start everything but network and watcher; stop and remove all after."""
    with ground(options) as made, ExitStack() as parts:
        try:
            options.progress("starting Redis, capture, the realtime worker and the API")
            redis_url = _redis(parts, made.folder)
            api = make_api(
                own_folder(made.folder, "api", None),
                made.ledger,
                redis_url,
                rpc_url="http://127.0.0.1:9",
                **LIMITS,
            )
            parts.callback(api.stop)
            api.start()
            made.capture().start()
            made.realtime(redis_url).start()
            yield RealtimeGround(made.folder, made, api, api.shop().merchant_id, parts)
        except (AssertionError, probes.NotReadyError, brokers.BrokerError) as error:
            raise BenchError(str(error)) from error


def _redis(parts: ExitStack, folder: Path) -> str:
    own = own_folder(folder, "redis", service_account())
    port, password = free_port(), new_id("redis")
    config = own / "redis.conf"
    config.write_text(brokers.redis_config(folder=own, password=password))
    config.chmod(0o644)
    server = Server(
        name="redis",
        command=brokers.redis_command(port, own),
        folder=own,
        probe=probes.redis(port, password),
        account=service_account(),
    )
    server.start()
    parts.callback(server.stop)
    return f"redis://:{password}@127.0.0.1:{port}/0"


class Sockets:
    """A process full of open sockets."""

    def __init__(
        self, folder: Path, port: int, paths: Sequence[str], groups: Sequence[str]
    ) -> None:
        self._errors = (folder / f"{new_id('sockets')}.log").open("w+")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.sockets_load"],
            cwd=CHECKOUT,
            env=base_environment(folder),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        load = {"host": "127.0.0.1", "port": port, "paths": list(paths), "groups": list(groups)}
        self.opening_s = float(self.ask(json.dumps(load))["opening_s"])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate(timeout=10)
        self._errors.close()

    def ask(self, line: str = "") -> dict[str, Any]:
        """Send a line and return the answer; the process bounds how long that takes."""
        assert self._process.stdin is not None, "a pipe"
        assert self._process.stdout is not None, "a pipe"
        overdue = threading.Timer(ANSWER_TIMEOUT_S, self._process.kill)
        overdue.start()
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        finally:
            overdue.cancel()
        if not answer:
            self._process.wait(timeout=10)
            self._errors.seek(0)
            raise BenchError(f"the sockets failed: {self._errors.read()[-2000:]}")
        told: dict[str, Any] = json.loads(answer)
        return told

    def latencies(self) -> dict[str, list[float]]:
        """Return the times of the events since the last asking, by group."""
        told: dict[str, list[float]] = self.ask()["latencies_ms"]
        return told


class RpcCounter:
    """A proxy before a network's RPC that counts the calls, each of a batch too."""

    def __init__(self, rpc_url: str) -> None:
        host, _, port = rpc_url.removeprefix("http://").partition(":")
        counts: Counter[str] = Counter()
        lock = threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                calls = json.loads(body)
                with lock:
                    counts.update(
                        call["method"] for call in (calls if isinstance(calls, list) else [calls])
                    )
                upstream = http.client.HTTPConnection(host, int(port), timeout=30)
                upstream.request("POST", "/", body, {"Content-Type": "application/json"})
                answer = upstream.getresponse()
                payload = answer.read()
                upstream.close()
                self.send_response(answer.status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                # Who asked may be stopped by now.
                with suppress(ConnectionError):
                    self.wfile.write(payload)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name
                """Say nothing."""

        self._counts, self._lock = counts, lock
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=10)

    def counts(self) -> dict[str, int]:
        """Return the calls so far, by method."""
        with self._lock:
            return dict(self._counts)

"""What the core's bench runs on: PostgreSQL, Redis and the API, on free ports, gone at the end.

All with the product's own settings: synchronous commit on, the log on disk before an answer. What
does not come up raises BenchError with its own words.
"""

import json
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil

from api.database import new_id
from infra.stack import brokers, databases, probes
from infra.stack.accounts import service_account
from infra.stack.postgres import ClusterError
from infra.stack.process import base_environment
from tests.bench.core_baselines import Pgbench
from tests.bench.frame import BenchError, Options
from tests.bench.ground import own_folder, postgres_tree, query
from tests.fixtures.api import ApiServer, make_api
from tests.fixtures.services import (
    CHECKOUT,
    DatabaseServer,
    Server,
    free_port,
    run_module,
    start_cluster,
)

# Nothing listens there; creating a payment asks no chain.
NO_CHAIN: Final = "http://127.0.0.1:9"
# Out of the way: what is measured is the work, not the allowance of one key.
RATE_LIMIT_PER_MINUTE: Final = 10_000_000
# As many as the local stack runs.
API_PROCESSES: Final = 1
CONNECTIONS_IN_ALL: Final = 12  # the default of one process, shared by these


@dataclass(frozen=True, slots=True)
class CoreGround:
    """Running servers with the product's schema."""

    folder: Path
    ledger: DatabaseServer
    apis: tuple[ApiServer, ...]
    pgbench: Pgbench

    @property
    def ledger_url(self) -> str:
        """Superuser URL of the ledger database."""
        return self.ledger.superuser_url("giovang")

    def merchants(self, count: int) -> list[str]:
        """Make merchants that have no keys."""
        made = [new_id("mer") for _ in range(count)]
        query(
            self.ledger_url,
            "INSERT INTO merchants (id, name, trade, timezone, country)"
            " SELECT id, 'Bench', 'bench', 'UTC', 'VN' FROM unnest(%s::text[]) AS id",
            made,
        )
        return made

    def load(self, module: str, load: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """Run a load in a process of its own and return what it prints."""
        answer = subprocess.run(
            [sys.executable, "-m", module],
            cwd=CHECKOUT,
            env=base_environment(self.folder),
            input=json.dumps(load),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if answer.returncode != 0:
            raise BenchError(f"{module} failed: {answer.stderr[-2000:]}")
        outcome: dict[str, Any] = json.loads(answer.stdout)
        return outcome

    def cpu_s(self) -> dict[str, float]:
        """Return the processor seconds used so far by the API's processes and by PostgreSQL."""
        assert self.ledger.process is not None, "the cluster runs"
        return {
            "api": sum(_cpu_s(psutil.Process(api.pid)) for api in self.apis),
            "postgres": _cpu_s(psutil.Process(self.ledger.pid)),
        }

    def settle_down(self) -> None:
        """Write out what earlier measurements left, so that none pays for another."""
        query(self.ledger_url, "CHECKPOINT")
        query(self.ledger_url, "VACUUM ANALYZE")


@contextmanager
def core_ground(options: Options) -> Iterator[CoreGround]:
    """Start everything, apply the schema; stop and remove all after."""
    folder = Path(tempfile.mkdtemp(prefix="giovang-bench-"))
    folder.chmod(0o711)
    try:
        with ExitStack() as parts:
            options.progress("starting PostgreSQL, Redis and the API")
            redis_url = _redis(parts, folder)
            ledger = _ledger(parts, folder)
            run_module("api.migrations", GIOVANG_API_MIGRATION_URL=ledger.url("giovang_owner"))
            apis = tuple(
                make_api(
                    folder / f"api-{number}",
                    ledger,
                    redis_url,
                    rpc_url=NO_CHAIN,
                    rate_limit_per_minute=str(RATE_LIMIT_PER_MINUTE),
                    pool_size=str(CONNECTIONS_IN_ALL // API_PROCESSES),
                )
                for number in range(API_PROCESSES)
            )
            for api in apis:
                parts.callback(api.stop)
                api.start()
            yield CoreGround(folder, ledger, apis, Pgbench(postgres_tree(), ledger, folder))
    except (AssertionError, ClusterError, probes.NotReadyError, brokers.BrokerError) as error:
        raise BenchError(str(error)) from error
    finally:
        shutil.rmtree(folder)


def _cpu_s(process: psutil.Process) -> float:
    total = 0.0
    for one in (process, *process.children(recursive=True)):
        try:
            times = one.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def _ledger(parts: ExitStack, folder: Path) -> DatabaseServer:
    own = own_folder(folder, "ledger-db", service_account())
    names = (*databases.LEDGER_ROLES, *databases.SUPERUSERS)
    passwords = {name: secrets.token_hex(12) for name in names}
    cluster = databases.ledger_cluster(postgres_tree(), own / "data", free_port(), passwords)
    server = start_cluster(cluster, own)
    parts.callback(server.stop)
    return server


def _redis(parts: ExitStack, folder: Path) -> str:
    account = service_account()
    own = own_folder(folder, "redis", account)
    port, password = free_port(), secrets.token_hex(12)
    config = own / "redis.conf"
    config.write_text(brokers.redis_config(folder=own, password=password))
    config.chmod(0o644)
    server = Server(
        name="redis",
        command=brokers.redis_command(port, own),
        folder=own,
        probe=probes.redis(port, password),
        account=account,
    )
    server.start()
    parts.callback(server.stop)
    return f"redis://:{password}@127.0.0.1:{port}/0"

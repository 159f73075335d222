"""The real services a bench measures, on free ports in a temporary folder, gone at its end.

The same building blocks as the product's own stack, with one change: both clusters stamp their
commits (track_commit_timestamp), which is what the benches read their times from. Whatever does not
come up raises BenchError with the service's own words.
"""

import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, LiteralString

import psycopg

from infra.stack import brokers, databases, probes
from infra.stack.accounts import Account, service_account
from infra.stack.notify import NotifySocket
from infra.stack.postgres import ClusterError, PostgresTree
from tests.bench.frame import BenchError, Options
from tests.fixtures.services import (
    CHECKOUT,
    DatabaseServer,
    Server,
    default_tree,
    free_port,
    run_module,
    start_cluster,
)

STAMPED = {"track_commit_timestamp": "on"}


@dataclass(frozen=True, slots=True)
class Ground:
    """Running servers with the product's schemas, provisioned for capture."""

    folder: Path
    ledger: DatabaseServer
    analytics: DatabaseServer
    nats_url: str
    parts: ExitStack

    @property
    def ledger_url(self) -> str:
        """Superuser URL of the ledger database."""
        return self.ledger.superuser_url("giovang")

    @property
    def analytics_url(self) -> str:
        """Superuser URL of the warehouse database."""
        return self.analytics.superuser_url("analytics")

    def capture(self) -> Server:
        """Return the capture process, not started; it is stopped with the ground."""
        return self._room("capture", "ingest.engine", self.ingest_environment())

    def warehouse(self) -> Server:
        """Return the Faust worker, not started; it is stopped with the ground."""
        state = own_folder(self.folder, "warehouse-state", None)
        environment = {
            "GIOVANG_STREAMS_NATS_URL": self.nats_url,
            "GIOVANG_STREAMS_WAREHOUSE_URL": self.analytics.url("giovang_streams"),
            "GIOVANG_STREAMS_STATE_DIR": str(state),
        }
        return self._room("warehouse", "streams.warehouse", environment)

    def realtime(self, redis_url: str) -> Server:
        """Return the Faust worker of live status, not started; it is stopped with the ground."""
        environment = {
            "GIOVANG_STREAMS_NATS_URL": self.nats_url,
            "GIOVANG_STREAMS_REDIS_URL": redis_url,
            "GIOVANG_STREAMS_STATE_DIR": str(own_folder(self.folder, "realtime-state", None)),
        }
        return self._room("realtime", "streams.realtime", environment)

    def ingest_environment(self) -> dict[str, str]:
        """Return the settings of the capture room."""
        return {
            "GIOVANG_INGEST_DATABASE_URL": self.ledger.url("giovang_capture"),
            "GIOVANG_INGEST_NATS_URL": self.nats_url,
        }

    def _room(self, name: str, module: str, environment: Mapping[str, str]) -> Server:
        notices = NotifySocket(self.folder / f"{name}.notify", None)
        self.parts.callback(notices.close)
        server = Server(
            name=name,
            command=(sys.executable, "-m", module),
            folder=self.folder,
            cwd=CHECKOUT,
            probe=lambda: any(notice.ready for notice in notices.drain()),
            env={**environment, "NOTIFY_SOCKET": str(notices.path)},
        )
        self.parts.callback(server.stop)
        return server


@contextmanager
def ground(options: Options) -> Iterator[Ground]:
    """Start clusters and NATS, apply the schemas, provision capture; stop and remove all after."""
    folder = Path(tempfile.mkdtemp(prefix="giovang-bench-"))
    folder.chmod(0o711)
    try:
        with ExitStack() as parts:
            options.progress("starting two PostgreSQL clusters and NATS")
            ledger, analytics = _clusters(parts, folder)
            made = Ground(folder, ledger, analytics, _nats(parts, folder), parts)
            options.progress("applying schemas, provisioning capture")
            _apply_schemas(made)
            run_module("ingest.provision", **made.ingest_environment())
            yield made
    except (AssertionError, ClusterError, probes.NotReadyError, brokers.BrokerError) as error:
        raise BenchError(str(error)) from error
    finally:
        shutil.rmtree(folder)


def query(url: str, statement: LiteralString, *values: object) -> list[tuple[Any, ...]]:
    """Run one statement on a connection of its own and return its rows."""
    with psycopg.connect(url, autocommit=True, connect_timeout=10) as connection:
        cursor = connection.execute(statement, values or None)
        return cursor.fetchall() if cursor.description else []


def postgres_tree() -> PostgresTree:
    """Return the private PostgreSQL tree; raises BenchError where it is not whole."""
    given = os.environ.get("GIOVANG_TEST_POSTGRES_TREE")
    tree = PostgresTree(Path(given) if given else default_tree())
    if not tree.has_timescaledb:
        raise BenchError(f"{tree.root} has no TimescaleDB: run ./giovang doctor")
    return tree


def _clusters(parts: ExitStack, folder: Path) -> list[DatabaseServer]:
    """Start the ledger's and the warehouse's cluster."""
    tree = postgres_tree()
    account = service_account()
    names = (*databases.LEDGER_ROLES, *databases.ANALYTICS_ROLES, *databases.SUPERUSERS)
    passwords = {name: secrets.token_hex(12) for name in names}
    stamped = []
    for describe in (databases.ledger_cluster, databases.analytics_cluster):
        cluster = describe(tree, folder, free_port(), passwords)
        own = own_folder(folder, cluster.name, account)
        settings = {**cluster.settings, **STAMPED}
        stamped.append(replace(cluster, data=own / "data", settings=settings))
    with ThreadPoolExecutor() as workers:
        # Making the files takes longest and can go side by side; servers are started from here.
        for made in [workers.submit(cluster.initialise, account) for cluster in stamped]:
            made.result()
    servers = []
    for cluster in stamped:
        server = start_cluster(cluster, cluster.data.parent)
        parts.callback(server.stop)
        servers.append(server)
    return servers


def _apply_schemas(ground: Ground) -> None:
    owners = {
        "api.migrations": ("GIOVANG_API_MIGRATION_URL", ground.ledger.url("giovang_owner")),
        "streams.schema": (
            "GIOVANG_STREAMS_SCHEMA_URL",
            ground.analytics.url("giovang_warehouse_owner"),
        ),
    }
    with ThreadPoolExecutor() as workers:
        steps = [
            workers.submit(run_module, module, **{name: url})
            for module, (name, url) in owners.items()
        ]
        for step in steps:
            step.result()


def _nats(parts: ExitStack, folder: Path) -> str:
    account = service_account()
    own = own_folder(folder, "nats", account)
    port, monitoring_port = free_port(), free_port()
    config = own / "nats.conf"
    # The product's own durability: every acknowledged message is on the disk.
    config.write_text(
        brokers.nats_config(
            port=port, monitoring_port=monitoring_port, store=own / "store", sync_interval="always"
        )
    )
    config.chmod(0o644)
    server = Server(
        name="nats",
        command=brokers.nats_command(config),
        folder=own,
        probe=probes.http(f"http://127.0.0.1:{monitoring_port}/healthz"),
        account=account,
    )
    server.start()
    parts.callback(server.stop)
    return f"nats://127.0.0.1:{port}"


def own_folder(parent: Path, name: str, account: Account | None) -> Path:
    """Make a folder that the service's account alone may enter."""
    folder = parent / name
    folder.mkdir(mode=0o700)
    if account is not None:
        account.give(folder)
    return folder

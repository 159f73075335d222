"""The services of the product, as data: what is started, on what it depends, when it is ready."""

import signal
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from infra.stack import brokers, environment, probes
from infra.stack.accounts import Account, can_read, service_account
from infra.stack.credentials import load_or_create
from infra.stack.databases import analytics_cluster, ledger_cluster
from infra.stack.environment import Stack
from infra.stack.ports import LOOPBACK, Ports
from infra.stack.postgres import Cluster, PostgresTree
from infra.stack.settings import CHECKOUT, StackSettings
from infra.stack.state import StateFolder, write_private
from infra.stack.units import Kind, Service

HISTORY_TIMEOUT_S = 1800.0


def make_stack(settings: StackSettings, ports: Ports) -> Stack:
    """Decide everything about a stack; makes the secrets on first use."""
    # Importing the demo's shops costs time that only a start needs to pay.
    from infra.demo.merchants import PROFILES  # noqa: PLC0415

    folder = StateFolder(settings.state)
    secrets = load_or_create(folder.secrets)
    own_tree = PostgresTree(settings.state / "postgres")
    analytics_tree = PostgresTree(settings.postgres_tree_or_default)
    shop = PROFILES[0]
    return Stack(
        settings=settings,
        folder=folder,
        ports=ports,
        secrets=secrets,
        ledger=ledger_cluster(
            own_tree if own_tree.root.is_dir() else analytics_tree,
            folder.data / "ledger-db" / "cluster",
            ports.ledger_db,
            secrets,
        ),
        analytics=analytics_cluster(
            analytics_tree,
            folder.data / "analytics-db" / "cluster",
            ports.analytics_db,
            secrets,
        ),
        demo_merchant_id=shop.merchant_id(settings.demo_seed),
        demo_email=shop.email,
    )


def room_account() -> Account | None:
    """Return the user who runs the product's own processes.

    A room runs from the checkout and the interpreter's folder. Where the service user cannot read
    them (a checkout in root's home), rooms run as root; the servers below them never do.
    """
    account = service_account()
    needed = (CHECKOUT / "infra" / "telemetry.py", Path(sys.executable))
    return account if all(can_read(account, file) for file in needed) else None


def services(stack: Stack, *, demo: bool) -> list[Service]:
    """Every service of the stack; without `demo` there is no history and no live traffic."""
    builder = _Builder(stack)
    return [
        *builder.parts(),
        *builder.steps(),
        *builder.rooms(),
        *(builder.demo() if demo else []),
    ]


class _Builder:
    """Turns the decisions about a stack into services with folders, users and environments."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.folder = stack.folder
        self.account = service_account()
        self.room_account = room_account()

    def parts(self) -> Iterable[Service]:
        """The servers everything else stands on."""
        stack, ports = self.stack, self.stack.ports
        yield self._cluster(stack.ledger)
        yield self._cluster(stack.analytics)
        nats, redis = self._own("nats"), self._own("redis")
        yield self._part(
            "nats",
            brokers.nats_command(nats / "nats.conf"),
            cwd=nats,
            address=stack.nats_url,
            probe=probes.http(f"http://{LOOPBACK}:{ports.nats_monitoring}/healthz"),
            prepare=lambda: self._write(
                nats / "nats.conf",
                brokers.nats_config(
                    port=ports.nats,
                    monitoring_port=ports.nats_monitoring,
                    store=nats / "jetstream",
                    sync_interval=stack.settings.nats_sync_interval,
                ),
            ),
        )
        yield self._part(
            "redis",
            brokers.redis_command(ports.redis, redis),
            cwd=redis,
            address=f"redis://{LOOPBACK}:{ports.redis}",
            probe=probes.redis(ports.redis, stack.secrets["redis"]),
            prepare=lambda: self._write(
                redis / "redis.conf",
                brokers.redis_config(folder=redis, password=stack.secrets["redis"]),
            ),
        )
        chain = self._own("localnet", room=True)
        yield self._room(
            "localnet",
            "infra.localnet",
            env=environment.localnet(stack, chain),
            address=stack.rpc_url,
        )

    def steps(self) -> Iterable[Service]:
        """What must have run before a room serves; each is repeatable."""
        stack = self.stack
        yield self._step(
            "migrate-ledger",
            "api.migrations",
            env=environment.ledger_migrations(stack),
            depends_on=("ledger-db",),
        )
        yield self._step(
            "migrate-warehouse",
            "streams.schema",
            env=environment.warehouse_migrations(stack),
            depends_on=("analytics-db",),
        )
        # Before any business row is written: what the slot does not see is never captured.
        yield self._step(
            "provision-capture",
            "ingest.provision",
            env=environment.ingest(stack),
            depends_on=("migrate-ledger", "nats"),
        )

    def rooms(self) -> Iterable[Service]:
        """The product's own processes."""
        stack, ports = self.stack, self.stack.ports
        yield self._room(
            "api",
            "api.app",
            env=environment.api(stack),
            depends_on=("provision-capture", "redis", "localnet"),
            address=stack.api_url,
        )
        yield self._room(
            "watcher",
            "api.watcher",
            env=environment.watcher(stack),
            depends_on=("provision-capture", "redis", "localnet"),
        )
        yield self._room(
            "capture",
            "ingest.engine",
            env=environment.ingest(stack),
            depends_on=("provision-capture",),
        )
        yield self._room(
            "warehouse",
            "streams.warehouse",
            env=environment.streams(stack, self._own("warehouse", room=True)),
            depends_on=("provision-capture", "migrate-warehouse"),
        )
        yield self._room(
            "realtime",
            "streams.realtime",
            env=environment.realtime(stack, self._own("realtime", room=True)),
            depends_on=("provision-capture", "redis"),
        )
        yield self._room(
            "risk",
            "streams.risk",
            env=environment.risk(stack, self._own("risk", room=True)),
            depends_on=("provision-capture", "migrate-warehouse"),
        )
        yield self._room(
            "modeller",
            "infra.modeller",
            env=environment.dbt(stack, self._own("modeller", room=True)),
            depends_on=("migrate-warehouse",),
        )
        dashboards_url = f"http://{LOOPBACK}:{ports.dashboards}"
        yield self._room(
            "dashboards",
            "streamlit",
            "run",
            str(CHECKOUT / "dashboards" / "app.py"),
            f"--server.address={LOOPBACK}",
            f"--server.port={ports.dashboards}",
            "--server.headless=true",
            "--server.fileWatcherType=none",
            "--browser.gatherUsageStats=false",
            env=environment.dashboards(stack),
            depends_on=("migrate-warehouse",),
            address=dashboards_url,
            probe=probes.http(f"{dashboards_url}/_stcore/health"),
        )

    def demo(self) -> Iterable[Service]:
        """Customers who keep buying, and behind them, once, a year of history."""
        env = environment.demo(self.stack, self._own("demo", room=True))
        yield self._step(
            "demo-history",
            "infra.demo",
            "history",
            env=env,
            depends_on=("api", "capture", "warehouse"),
            timeout_s=HISTORY_TIMEOUT_S,
            background=True,
        )
        yield self._room(
            "demo",
            "infra.demo",
            "traffic",
            env=env,
            depends_on=("api", "watcher", "capture", "warehouse"),
        )

    def _cluster(self, cluster: Cluster) -> Service:
        own = self._own(cluster.name)
        return self._part(
            cluster.name,
            cluster.command(),
            cwd=own,
            address=f"postgresql://{cluster.host}:{cluster.port}/{cluster.database}",
            probe=probes.sql(cluster.superuser_url()),
            prepare=lambda: cluster.initialise(self.account),
            settle=cluster.provision,
            # SIGINT is PostgreSQL's fast stop: it ends clients and writes a checkpoint. SIGQUIT,
            # when we are gone, ends its processes at once and leaves recovery to the next start.
            stop_signal=signal.SIGINT,
            stop_timeout_s=60.0,
            death_signal=signal.SIGQUIT,
        )

    def _part(self, name: str, command: tuple[str, ...], *, cwd: Path, **more: object) -> Service:
        values = {"start_timeout_s": self.stack.settings.start_timeout_s, **more}
        return Service(
            name=name,
            command=command,
            cwd=cwd,
            log=self.folder.log(name),
            env=environment.common(self.stack, cwd),
            account=self.account,
            **values,  # type: ignore[arg-type]
        )

    def _room(
        self, name: str, module: str, *arguments: str, env: Mapping[str, str], **more: object
    ) -> Service:
        values = {"start_timeout_s": self.stack.settings.start_timeout_s, **more}
        return Service(
            name=name,
            command=(sys.executable, "-m", module, *arguments),
            cwd=CHECKOUT,
            log=self.folder.log(name),
            env={**environment.common(self.stack, self._own(name, room=True)), **env},
            account=self.room_account,
            **values,  # type: ignore[arg-type]
        )

    def _step(
        self,
        name: str,
        module: str,
        *arguments: str,
        env: Mapping[str, str],
        depends_on: tuple[str, ...],
        timeout_s: float = 180.0,
        background: bool = False,
    ) -> Service:
        return self._room(
            name,
            module,
            *arguments,
            env=env,
            depends_on=depends_on,
            kind=Kind.STEP,
            background=background,
            start_timeout_s=timeout_s,
        )

    def _own(self, name: str, *, room: bool = False) -> Path:
        return self.folder.own_folder(name, self.room_account if room else self.account)

    def _write(self, path: Path, text: str) -> None:
        write_private(path, text)
        if self.account is not None:
            self.account.give(path)

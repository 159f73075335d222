"""The environment of each room: exactly the variables it needs, with this stack's addresses.

A room never sees another's passwords: each gets the database role, keys and addresses that its own
settings name, and nothing of the caller's shell.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from infra.stack.ports import LOOPBACK, Ports
from infra.stack.postgres import Cluster
from infra.stack.process import base_environment
from infra.stack.settings import CHECKOUT, StackSettings
from infra.stack.state import INSTANCE_VARIABLE, StateFolder


@dataclass(frozen=True, slots=True)
class Stack:
    """All that is decided about one stack before it starts: the ground of every environment."""

    settings: StackSettings
    folder: StateFolder
    ports: Ports
    secrets: Mapping[str, str] = field(repr=False)
    ledger: Cluster
    analytics: Cluster
    demo_merchant_id: str
    demo_email: str

    @property
    def api_url(self) -> str:
        """Base address of the API."""
        return f"http://{LOOPBACK}:{self.ports.api}"

    @property
    def rpc_url(self) -> str:
        """JSON-RPC address of the local chain."""
        return f"http://{LOOPBACK}:{self.ports.localnet}"

    @property
    def nats_url(self) -> str:
        """Address of NATS."""
        return f"nats://{LOOPBACK}:{self.ports.nats}"

    @property
    def redis_url(self) -> str:
        """Address of Redis, with its password."""
        return f"redis://:{self.secrets['redis']}@{LOOPBACK}:{self.ports.redis}/0"

    def endpoints(self) -> dict[str, str]:
        """Addresses a person or a test wants, without secrets."""
        return {
            "api": self.api_url,
            "api_docs": f"{self.api_url}/docs",
            "checkout_demo": f"{self.api_url}/demo/checkout",
            "dashboards": f"http://{LOOPBACK}:{self.ports.dashboards}",
            "rpc": self.rpc_url,
            "rpc_ws": f"ws://{LOOPBACK}:{self.ports.localnet_ws}",
            "nats": self.nats_url,
            "nats_monitoring": f"http://{LOOPBACK}:{self.ports.nats_monitoring}",
            "capture_metrics": f"http://{LOOPBACK}:{self.ports.capture_metrics}/metrics",
            "warehouse_metrics": f"http://{LOOPBACK}:{self.ports.warehouse_metrics}/metrics",
            "realtime_metrics": f"http://{LOOPBACK}:{self.ports.realtime_metrics}/metrics",
            "risk_metrics": f"http://{LOOPBACK}:{self.ports.risk_metrics}/metrics",
            "redis": f"redis://{LOOPBACK}:{self.ports.redis}/0",
            "ledger_db": f"postgresql://{LOOPBACK}:{self.ports.ledger_db}/{self.ledger.database}",
            "analytics_db": (
                f"postgresql://{LOOPBACK}:{self.ports.analytics_db}/{self.analytics.database}"
            ),
        }


def common(stack: Stack, home: Path) -> dict[str, str]:
    """What every process of the stack gets; the mark finds it should it ever escape."""
    return {**base_environment(home), INSTANCE_VARIABLE: str(stack.folder.root)}


def api(stack: Stack) -> dict[str, str]:
    """The HTTP process."""
    return {
        **_api_common(stack),
        "GIOVANG_API_DATABASE_URL": stack.ledger.url("giovang_api"),
        "GIOVANG_API_OPERATOR_URL": stack.ledger.url("giovang_operator"),
        "GIOVANG_API_REDIS_URL": stack.redis_url,
        "GIOVANG_API_HOST": LOOPBACK,
        "GIOVANG_API_PORT": str(stack.ports.api),
        "GIOVANG_API_SESSION_PRIVATE_KEY": stack.secrets["session_private_key"],
        "GIOVANG_API_ADMIN_KEY": stack.secrets["admin_key"],
        "GIOVANG_API_SEALING_KEY": stack.secrets["sealing_key"],
        "GIOVANG_API_DEMO": "true",
        "GIOVANG_API_DEMO_PAYER_KEY": stack.secrets["demo_payer_key"],
        "GIOVANG_API_DEMO_MERCHANT_ID": stack.demo_merchant_id,
    }


def watcher(stack: Stack) -> dict[str, str]:
    """The chain watcher."""
    return {
        **_api_common(stack),
        "GIOVANG_API_WATCHER_DATABASE_URL": stack.ledger.url("giovang_watcher"),
        "GIOVANG_API_REDIS_URL": stack.redis_url,
    }


def auditor(stack: Stack) -> dict[str, str]:
    """The verification of the audit trail, which reads as the operator."""
    return {"GIOVANG_API_OPERATOR_URL": stack.ledger.url("giovang_operator")}


def ledger_migrations(stack: Stack) -> dict[str, str]:
    """The step that brings the ledger's tables up to date."""
    return {"GIOVANG_API_MIGRATION_URL": stack.ledger.url("giovang_owner")}


def ingest(stack: Stack) -> dict[str, str]:
    """Capture, and the step that provides its stream and slot."""
    masking = {}
    if stack.settings.capture_mask is not None:
        masking["GIOVANG_INGEST_MASK"] = stack.settings.capture_mask
    if stack.settings.capture_mask_key is not None:
        masking["GIOVANG_INGEST_MASK_KEY"] = stack.settings.capture_mask_key.get_secret_value()
    return {
        "GIOVANG_INGEST_DATABASE_URL": stack.ledger.url("giovang_capture"),
        "GIOVANG_INGEST_NATS_URL": stack.nats_url,
        "GIOVANG_INGEST_NATS_MONITORING_URL": f"http://{LOOPBACK}:{stack.ports.nats_monitoring}",
        "GIOVANG_INGEST_METRICS_PORT": str(stack.ports.capture_metrics),
        **masking,
    }


def warehouse_migrations(stack: Stack) -> dict[str, str]:
    """The step that brings the warehouse's tables up to date."""
    return {"GIOVANG_STREAMS_SCHEMA_URL": stack.analytics.url("giovang_warehouse_owner")}


def streams(stack: Stack, state_dir: Path) -> dict[str, str]:
    """The Faust worker that fills the warehouse."""
    return {
        "GIOVANG_STREAMS_NATS_URL": stack.nats_url,
        "GIOVANG_STREAMS_WAREHOUSE_URL": stack.analytics.url("giovang_streams"),
        "GIOVANG_STREAMS_STATE_DIR": str(state_dir),
        "GIOVANG_STREAMS_METRICS_PORT": str(stack.ports.warehouse_metrics),
    }


def realtime(stack: Stack, state_dir: Path) -> dict[str, str]:
    """The Faust worker that pushes payments' steps to sockets; it knows no database."""
    return {
        "GIOVANG_STREAMS_NATS_URL": stack.nats_url,
        "GIOVANG_STREAMS_REDIS_URL": stack.redis_url,
        "GIOVANG_STREAMS_STATE_DIR": str(state_dir),
        "GIOVANG_STREAMS_METRICS_PORT": str(stack.ports.realtime_metrics),
    }


def risk(stack: Stack, state_dir: Path) -> dict[str, str]:
    """The Faust worker that flags payments; its alerts are rows of the warehouse."""
    return {
        **streams(stack, state_dir),
        "GIOVANG_STREAMS_METRICS_PORT": str(stack.ports.risk_metrics),
    }


def dbt(stack: Stack, state_dir: Path) -> dict[str, str]:
    """dbt, in the modeller or from the command line; it writes below `state_dir` only."""
    return {
        "GIOVANG_DBT_HOST": LOOPBACK,
        "GIOVANG_DBT_PORT": str(stack.ports.analytics_db),
        "GIOVANG_DBT_DATABASE": stack.analytics.database,
        "GIOVANG_DBT_USER": "giovang_dbt",
        "GIOVANG_DBT_PASSWORD": stack.secrets["giovang_dbt"],
        "GIOVANG_DBT_THREADS": "2",
        "DBT_PROJECT_DIR": str(CHECKOUT / "dbt"),
        "DBT_PROFILES_DIR": str(CHECKOUT / "dbt"),
        "DBT_TARGET_PATH": str(state_dir / "target"),
        "DBT_LOG_PATH": str(state_dir / "logs"),
        "DBT_SEND_ANONYMOUS_USAGE_STATS": "false",
    }


def dashboards(stack: Stack) -> dict[str, str]:
    """The merchants' pages: the marts and the key that proves a login, nothing else."""
    return {
        "GIOVANG_DASHBOARDS_WAREHOUSE_URL": stack.analytics.url("giovang_dashboards"),
        "GIOVANG_DASHBOARDS_API_URL": stack.api_url,
        "GIOVANG_DASHBOARDS_SESSION_PUBLIC_KEY": stack.secrets["session_public_key"],
    }


def localnet(stack: Stack, state_dir: Path) -> dict[str, str]:
    """The local Solana network; both demo wallets can hold tokens from the first block."""
    owners = f'["{stack.secrets["collection_wallet"]}", "{stack.secrets["demo_payer"]}"]'
    return {
        "GIOVANG_LOCALNET_HOST": LOOPBACK,
        "GIOVANG_LOCALNET_PORT": str(stack.ports.localnet),
        "GIOVANG_LOCALNET_STATE_DIR": str(state_dir),
        "GIOVANG_LOCALNET_SLOT_MS": str(stack.settings.localnet_slot_ms),
        "GIOVANG_LOCALNET_FUNDED": owners,
    }


def demo(stack: Stack, state_dir: Path) -> dict[str, str]:
    """The demo shops and their customers; the only room with the ledger's superuser."""
    return {
        "GIOVANG_DEMO_API_URL": stack.api_url,
        "GIOVANG_DEMO_ADMIN_KEY": stack.secrets["admin_key"],
        "GIOVANG_DEMO_RPC_URL": stack.rpc_url,
        "GIOVANG_DEMO_PAYER_KEY": stack.secrets["demo_payer_key"],
        "GIOVANG_DEMO_LEDGER_URL": stack.ledger.superuser_url(stack.ledger.database),
        "GIOVANG_DEMO_STATE_DIR": str(state_dir),
        "GIOVANG_DEMO_SEED": str(stack.settings.demo_seed),
        "GIOVANG_DEMO_RATE_PER_MINUTE": str(stack.settings.demo_rate_per_minute),
        "GIOVANG_DEMO_DAYS": str(stack.settings.demo_days),
        "GIOVANG_DEMO_PASSWORD": stack.secrets["demo_password"],
    }


def _api_common(stack: Stack) -> dict[str, str]:
    return {
        "GIOVANG_API_PUBLIC_URL": stack.api_url,
        "GIOVANG_API_SOLANA_RPC_URL": stack.rpc_url,
        "GIOVANG_API_COLLECTION_WALLET": stack.secrets["collection_wallet"],
    }

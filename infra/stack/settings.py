"""Settings of the local stack: where its state lives and which port each service listens on.

Read from the environment (GIOVANG_STACK_…). A value that makes no sense stops the command with one
sentence; nothing is started.
"""

import hashlib
import os
from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

CHECKOUT = Path(__file__).resolve().parents[2]

Port = Annotated[int, Field(ge=0, le=65535, description="0 chooses a free port at each start")]


class StackSettings(BaseSettings):
    """Settings of one local stack; two stacks side by side differ in folder and port offset."""

    model_config = SettingsConfigDict(env_prefix="GIOVANG_STACK_", frozen=True, extra="ignore")

    state_dir: Path | None = None
    port_offset: int = Field(default=0, ge=-1024, le=40000)
    api_port: Port = 8000
    dashboards_port: Port = 8501
    ledger_db_port: Port = 15432
    analytics_db_port: Port = 15433
    nats_port: Port = 14222
    nats_monitoring_port: Port = 18222
    capture_metrics_port: Port = 19464
    warehouse_metrics_port: Port = 19465
    realtime_metrics_port: Port = 19466
    risk_metrics_port: Port = 19467
    redis_port: Port = 16379
    localnet_port: Port = 18899
    localnet_slot_ms: int = Field(default=400, ge=10, le=10_000)
    nats_sync_interval: str = Field(default="always", pattern=r"^(always|[1-9]\d*(ms|s|m))$")
    # A ready PostgreSQL tree to use for the analytics cluster, such as one with TimescaleDB's
    # community edition; the ledger always runs on the tree that `./giovang` prepared.
    postgres_tree: Path | None = None
    # How long one service may take to become ready; a slow machine may need more.
    start_timeout_s: float = Field(default=180, gt=0, le=3600)
    # Which columns capture masks, and by which key: see ingest.masking.
    capture_mask: str | None = None
    capture_mask_key: SecretStr | None = None
    log_limit_mb: int = Field(default=20, ge=1, le=1000)
    demo_rate_per_minute: float = Field(default=6, gt=0, le=6000)
    demo_seed: int = 42
    demo_days: int = Field(default=365, ge=1, le=1000)

    @field_validator("state_dir", "postgres_tree")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        return None if value is None else value.expanduser().absolute()

    @property
    def state(self) -> Path:
        """The state folder: the setting, else `.giovang` in the checkout, else below /var/lib.

        The last is for a checkout that other users cannot enter, such as one in the super user's
        home. The `giovang` script finds the same folder by the same rule.
        """
        if self.state_dir is not None:
            return self.state_dir
        return default_state_dir(CHECKOUT)

    @property
    def postgres_tree_or_default(self) -> Path:
        """The PostgreSQL tree of the analytics cluster."""
        return self.postgres_tree or self.state / "postgres"


def default_state_dir(checkout: Path) -> Path:
    """Where state lives when no setting says so."""
    if os.geteuid() == 0 and not _others_may_pass(checkout):
        name = hashlib.sha256(str(checkout).encode()).hexdigest()[:8]
        return Path("/var/lib/giovang") / f"{checkout.name}-{name}"
    return checkout / ".giovang"


def _others_may_pass(folder: Path) -> bool:
    return all(part.stat().st_mode & 0o001 for part in (folder, *folder.parents))

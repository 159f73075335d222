"""Settings of the room, read from the environment with the prefix GIOVANG_STREAMS_.

Built only in entrypoints; a missing or malformed value stops the process with the setting's name.
"""

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class OnlookerSettings(BaseSettings):
    """What a command needs that looks at the streams."""

    model_config = SettingsConfigDict(env_prefix="GIOVANG_STREAMS_", frozen=True)

    nats_url: SecretStr


class WorkerSettings(OnlookerSettings):
    """What every Faust worker needs."""

    state_dir: Path
    batch_size: int = Field(default=1000, ge=1, le=10_000)
    lease_ms: int = Field(default=4_000, ge=2_000, le=60_000)
    replicas: int = Field(default=1, ge=1, le=5)
    metrics_port: int = Field(default=0, ge=0, le=65535)
    """Where Prometheus may ask; 0 asks for no metrics."""
    metrics_host: str = "127.0.0.1"


class StreamsSettings(WorkerSettings):
    """What the warehouse worker needs."""

    warehouse_url: SecretStr
    batch_window_ms: int = Field(default=3, ge=0, le=10_000)


class RiskSettings(StreamsSettings):
    """What the risk worker needs; without a file of rules it takes those of the package."""

    rules_file: Path | None = None


class RealtimeSettings(WorkerSettings):
    """What the realtime worker needs; it has no batch window, which would only delay."""

    redis_url: SecretStr
    redis_timeout_ms: int = Field(default=2_000, ge=50, le=30_000)


class SchemaSettings(BaseSettings):
    """What the migrations of the warehouse need: the role that owns the database."""

    model_config = SettingsConfigDict(env_prefix="GIOVANG_STREAMS_", frozen=True)

    schema_url: SecretStr

"""Settings of the capture room, read once by an entrypoint from `GIOVANG_INGEST_*`.

A missing or malformed setting is named when the process starts, never later.
"""

from typing import Annotated, Final

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict
from pydantic import AfterValidator, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from ingest import contract
from ingest.columns import MaskWay

GIB: Final = 1024**3


def _is_database_url(value: SecretStr) -> SecretStr:
    try:
        parts = conninfo_to_dict(value.get_secret_value())
    except ProgrammingError:
        # Its text would show what was given, and so perhaps a password.
        raise ValueError("the database URL is not one that libpq understands") from None
    missing = [name for name in ("host", "user", "dbname") if not parts.get(name)]
    if missing:
        raise ValueError(f"the database URL names no {', '.join(missing)}")
    return value


PostgresName = Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_]{0,40}$")]


class IngestSettings(BaseSettings):
    """What capture needs to know about the machine it runs on."""

    model_config = SettingsConfigDict(
        env_prefix="GIOVANG_INGEST_",
        frozen=True,
        hide_input_in_errors=True,  # what is wrong may hold a password
    )

    database_url: Annotated[SecretStr, AfterValidator(_is_database_url)]
    """libpq URL of the ledger database as a role that may replicate."""
    nats_url: str
    stream: str = Field(default=contract.STREAM, pattern=r"^[A-Za-z0-9_-]+$")
    slot: PostgresName = "giovang_capture"
    publication: PostgresName = "payment_gateway_publication"
    heap_mb: int = Field(default=256, ge=96, le=16384)
    heartbeat_ms: int = Field(default=5000, ge=200, le=60_000)
    replicas: int = Field(default=1, ge=1, le=5)
    stream_max_bytes: int = Field(default=8 * GIB, ge=1024**2)
    """The stream refuses changes beyond this size; it never drops old ones by itself."""
    silence_s: int = Field(default=10, ge=2, le=300)
    """A standby takes over from a leader that has not beaten for so long."""
    metrics_port: int = Field(default=0, ge=0, le=65535)
    """Where Prometheus may ask; 0 asks for no metrics."""
    metrics_host: str = "127.0.0.1"
    nats_monitoring_url: str | None = None
    """HTTP address of NATS's monitoring, which alone tells when the server syncs to disk."""

    mask: dict[str, MaskWay] = Field(default_factory=dict)
    """`table.column` to the way it is masked, as JSON; `ingest.masking` says what is possible."""
    mask_key: SecretStr | None = None
    """Key of the hashes, hexadecimal; another key makes other hashes of the same values."""

    @property
    def offset_table(self) -> str:
        """Name of the table, in schema `capture`, that holds Debezium's offset of this slot."""
        return f"{self.slot}_offset"

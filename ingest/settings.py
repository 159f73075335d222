"""Settings of the capture room, read once by an entrypoint from `GIOVANG_INGEST_*`.

A missing or malformed setting is named when the process starts, never later.
"""

from typing import Annotated, Final

from psycopg.conninfo import conninfo_to_dict
from pydantic import AfterValidator, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from ingest import contract

GIB: Final = 1024**3


def _is_database_url(value: SecretStr) -> SecretStr:
    parts = conninfo_to_dict(value.get_secret_value())
    missing = [name for name in ("host", "user", "dbname") if not parts.get(name)]
    if missing:
        raise ValueError(f"the database URL names no {', '.join(missing)}")
    return value


PostgresName = Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_]{0,40}$")]


class IngestSettings(BaseSettings):
    """What capture needs to know about the machine it runs on."""

    model_config = SettingsConfigDict(env_prefix="GIOVANG_INGEST_", frozen=True)

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

    @property
    def offset_table(self) -> str:
        """Name of the table, in schema `capture`, that holds Debezium's offset of this slot."""
        return f"{self.slot}_offset"

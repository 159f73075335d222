"""What the api room is told by its environment, prefix GIOVANG_API_.

Each entrypoint builds the one class it needs, once; a missing or malformed value ends it at start
with the name of the setting. Secrets have no default.
"""

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from api.contract import USDC_MINT, USDT_MINT, Asset

_ROOM = SettingsConfigDict(env_prefix="GIOVANG_API_", frozen=True, extra="ignore")


class MigrationSettings(BaseSettings):
    """For `python -m api.migrations`."""

    model_config = _ROOM

    migration_url: SecretStr


class ChainSettings(BaseSettings):
    """The network, our wallet on it, and the mints whose tokens count."""

    model_config = _ROOM

    solana_rpc_url: str
    collection_wallet: str = Field(pattern=r"^[1-9A-HJ-NP-Za-km-z]{32,44}$")
    usdc_mint: str = USDC_MINT
    usdt_mint: str = USDT_MINT
    rpc_timeout_s: float = Field(default=5.0, gt=0)

    def mint(self, asset: Asset) -> str:
        """Return the mint address whose tokens are `asset`."""
        return {Asset.USDC: self.usdc_mint, Asset.USDT: self.usdt_mint}[asset]


class ApiSettings(ChainSettings):
    """For `python -m api.app`."""

    database_url: SecretStr
    redis_url: SecretStr
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=1, le=65535)
    public_url: str = "http://127.0.0.1:8000"
    session_private_key: SecretStr
    admin_key: SecretStr = Field(min_length=16)
    rates_file: Path = Path(__file__).parent / "rates" / "local.json"
    rates_max_age_s: int = Field(default=60, ge=1)
    pool_size: int = Field(default=12, ge=1, le=100)
    max_body_bytes: int = Field(default=64 * 1024, ge=1024)
    demo: bool = False
    demo_payer_key: SecretStr | None = None
    demo_merchant_id: str | None = None


class WatcherSettings(ChainSettings):
    """For `python -m api.watcher`."""

    watcher_database_url: SecretStr
    poll_interval_ms: int = Field(default=500, ge=10, le=60_000)
    page_limit: int = Field(default=1000, ge=1, le=1000)
    rpc_concurrency: int = Field(default=8, ge=1, le=64)
    expiry_grace_s: int = Field(default=5, ge=0, le=3600)
    idempotency_days: int = Field(default=7, ge=2)

"""What the api room is told by its environment, prefix GIOVANG_API_.

Each entrypoint builds the one class it needs, once; a missing or malformed value ends it at start
with the name of the setting. Secrets have no default.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from api.contract import USDC_MINT, USDT_MINT, Asset

_ROOM = SettingsConfigDict(env_prefix="GIOVANG_API_", frozen=True, extra="ignore")


class MigrationSettings(BaseSettings):
    """For `python -m api.migrations`."""

    model_config = _ROOM

    migration_url: SecretStr
    migration_lock_wait_s: float = Field(default=30.0, gt=0, le=3600)


class AuditorSettings(BaseSettings):
    """For `python -m api.auditor`: a role that may read the whole audit trail."""

    model_config = _ROOM

    operator_url: SecretStr


class ChainSettings(BaseSettings):
    """The network, our wallet on it, and the mints whose tokens count."""

    model_config = _ROOM

    solana_rpc_url: str
    collection_wallet: str = Field(pattern=r"^[1-9A-HJ-NP-Za-km-z]{32,44}$")
    usdc_mint: str = USDC_MINT
    usdt_mint: str = USDT_MINT
    rpc_timeout_s: float = Field(default=5.0, gt=0)
    expiry_grace_s: int = Field(default=5, ge=0, le=3600)

    def mint(self, asset: Asset) -> str:
        """Return the mint address whose tokens are `asset`."""
        return {Asset.USDC: self.usdc_mint, Asset.USDT: self.usdt_mint}[asset]

    def asset(self, mint: str) -> Asset:
        """Return the asset that tokens of a mint of ours are; raises KeyError for another's."""
        return {self.usdc_mint: Asset.USDC, self.usdt_mint: Asset.USDT}[mint]


class ApiSettings(ChainSettings):
    """For `python -m api.app`."""

    database_url: SecretStr
    operator_url: SecretStr
    redis_url: SecretStr
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=1, le=65535)
    public_url: str = "http://127.0.0.1:8000"
    session_private_key: SecretStr
    admin_key: SecretStr = Field(min_length=16)
    sealing_key: SecretStr
    rates_file: Path = Path(__file__).parent / "rates" / "local.json"
    rates_max_age_s: int = Field(default=60, ge=1)
    # In the order in which they are believed; a later one speaks where an earlier has nothing new.
    rates_sources: tuple[Literal["file", "static"], ...] = ("file",)
    rates_static: dict[str, str] = {}
    rates_spread_bps: int = Field(default=0, ge=0, le=2_000)
    rates_spread_bps_of_pair: dict[str, Annotated[int, Field(ge=0, le=2_000)]] = {}
    pool_size: int = Field(default=12, ge=1, le=100)
    operator_pool_size: int = Field(default=4, ge=1, le=100)
    # After this, a payout that nobody approved is cancelled.
    payout_request_days: int = Field(default=7, ge=1, le=90)
    max_body_bytes: int = Field(default=64 * 1024, ge=1024)
    # Per API key, person, or address of who is neither.
    rate_limit_per_minute: int = Field(default=6000, ge=1, le=10_000_000)
    # Per email address and per client address.
    sign_in_limit_per_minute: int = Field(default=10, ge=1, le=100_000)
    # Whose X-Forwarded-For is believed: addresses or networks, separated by commas.
    trusted_proxies: str = ""
    demo: bool = False
    demo_payer_key: SecretStr | None = None
    demo_merchant_id: str | None = None


class WatcherSettings(ChainSettings):
    """For `python -m api.watcher`."""

    watcher_database_url: SecretStr
    poll_interval_ms: int = Field(default=500, ge=10, le=60_000)
    page_limit: int = Field(default=1000, ge=1, le=1000)
    rpc_concurrency: int = Field(default=8, ge=1, le=64)
    idempotency_days: int = Field(default=7, ge=2)

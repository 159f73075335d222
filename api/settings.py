"""What the api room is told by its environment, prefix GIOVANG_API_.

Each entrypoint builds the one class it needs, once; a missing or malformed value ends it at start
with the name of the setting. Secrets have no default.
"""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, model_validator
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


class LiveSettings(BaseSettings):
    """How live status is served, by one process unless it says otherwise."""

    model_config = _ROOM

    live_most_sockets: int = Field(default=15_000, ge=1, le=1_000_000)
    # Of one client address, or of one /64 of IPv6: open in this process, and opened in any.
    live_sockets_per_address: int = Field(default=200, ge=1, le=1_000_000)
    live_opened_per_minute: int = Field(default=600, ge=1, le=10_000_000)
    # Messages that wait for one slow reader before it is let go.
    live_queue: int = Field(default=64, ge=2, le=10_000)
    live_ping_ms: int = Field(default=20_000, ge=100, le=300_000)
    # How often PostgreSQL is asked for what was not pushed: while Redis is away, and otherwise.
    live_poll_ms: int = Field(default=2_000, ge=50, le=60_000)
    live_patrol_ms: int = Field(default=15_000, ge=100, le=300_000)
    # How often keys and sessions that hold sockets open are looked up again.
    live_recheck_ms: int = Field(default=30_000, ge=100, le=300_000)


class ApiSettings(ChainSettings, LiveSettings):
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
    # More providers of the same chain, as a JSON list. With any, a transfer is booked only where
    # all of them and `solana_rpc_url` tell it the same.
    solana_more_rpc_urls: tuple[str, ...] = Field(default=(), max_length=4)
    # The providers' WebSockets, in the same order, as a JSON list. Empty: where web3.js looks, one
    # port above the RPC where that names a port.
    solana_ws_urls: tuple[str, ...] = Field(default=(), max_length=5)
    # How often the chain is asked while no WebSocket holds, and while one does.
    poll_interval_ms: int = Field(default=500, ge=10, le=60_000)
    quiet_poll_interval_ms: int = Field(default=2_000, ge=10, le=60_000)
    # Looks at payments' references, with what is read for them, at every provider together.
    reference_calls_per_minute: int = Field(default=120, ge=0, le=60_000)
    # How often the newest page of a token account is read again for what was passed over.
    second_look_s: int = Field(default=60, ge=1, le=3600)
    page_limit: int = Field(default=1000, ge=1, le=1000)
    rpc_concurrency: int = Field(default=8, ge=1, le=64)
    idempotency_days: int = Field(default=7, ge=2)

    @model_validator(mode="after")
    def _one_socket_for_each(self) -> Self:
        if self.solana_ws_urls and len(self.solana_ws_urls) != len(self.rpc_urls):
            raise ValueError("solana_ws_urls names one WebSocket for each RPC, or none at all")
        return self

    @property
    def rpc_urls(self) -> tuple[str, ...]:
        """All providers, in the order in which they are numbered."""
        return (self.solana_rpc_url, *self.solana_more_rpc_urls)

"""Settings of the demo, read from GIOVANG_DEMO_* in its entrypoint only."""

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class DemoError(Exception):
    """Root of the demo's own errors; its sentence is for the person at the terminal."""


class DemoSettings(BaseSettings):
    """Where the demo finds the product, and how much life it shows."""

    model_config = SettingsConfigDict(env_prefix="GIOVANG_DEMO_", frozen=True)

    api_url: str = "http://127.0.0.1:8000"
    rpc_url: str = "http://127.0.0.1:18899"
    admin_key: SecretStr
    # Superuser URL of the ledger database: the year of history enters past the API, by COPY.
    ledger_url: SecretStr
    # The wallet of the checkout demo; it takes part in live traffic as one more customer.
    payer_key: SecretStr | None = None
    password: SecretStr
    state_dir: Path
    seed: int = 42
    days: int = Field(default=365, ge=1, le=1_000)
    payments_per_day: float = Field(default=123, gt=0, le=20_000)
    rate_per_minute: float = Field(default=6, ge=0, le=6_000)
    # Ledger rows a second while history loads, so that the machine stays usable; 0: no limit.
    pace_rows_per_s: int = Field(default=2_000, ge=0)

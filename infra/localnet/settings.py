"""Settings of the local network, read from GIOVANG_LOCALNET_* environment variables.

Values are checked once, when the process starts; a wrong one stops the start with its name.
"""

from pathlib import Path
from typing import Annotated, Self

from pydantic import BeforeValidator, Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from solders.pubkey import Pubkey


def _addresses(value: object) -> object:
    if not isinstance(value, list | tuple):
        return value
    return tuple(Pubkey.from_string(item) if isinstance(item, str) else item for item in value)


class LocalnetSettings(BaseSettings):
    """Where the network listens, where its state lies, and how fast its slots pass."""

    model_config = SettingsConfigDict(
        env_prefix="GIOVANG_LOCALNET_", frozen=True, arbitrary_types_allowed=True
    )

    host: str = "127.0.0.1"
    port: int = Field(default=18899, ge=1, le=65534)
    state_dir: Path = Path(".giovang/localnet")
    slot_ms: int = Field(default=400, ge=20, le=4000)
    confirmed_slots: int = Field(default=1, ge=1, le=64)
    finalized_slots: int = Field(default=8, ge=1, le=64)
    funded: Annotated[tuple[Pubkey, ...], BeforeValidator(_addresses)] = Field(
        default=(), max_length=10_000
    )

    @property
    def websocket_port(self) -> int:
        """Port of the WebSocket: one above the RPC port, where the JavaScript client looks."""
        return self.port + 1

    @model_validator(mode="after")
    def _finality_follows_confirmation(self) -> Self:
        if self.finalized_slots < self.confirmed_slots:
            message = "finalized_slots must not be smaller than confirmed_slots"
            raise ValueError(message)
        return self

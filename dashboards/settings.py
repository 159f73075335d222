"""Settings of the dashboards, read from GIOVANG_DASHBOARDS_* once in a process.

A missing or malformed setting ends the start with pydantic's message, which names it and does not
repeat secrets.
"""

import base64
import binascii
from functools import cache

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class DashboardSettings(BaseSettings):
    """Where the marts and the API are, and the key that proves a session token."""

    model_config = SettingsConfigDict(env_prefix="GIOVANG_DASHBOARDS_", frozen=True)

    warehouse_url: SecretStr
    api_url: str
    session_public_key: str

    @field_validator("session_public_key")
    @classmethod
    def _is_ed25519(cls, value: str) -> str:
        try:
            raw = base64.b64decode(value, validate=True)
        except binascii.Error as error:
            message = "must be base64"
            raise ValueError(message) from error
        if len(raw) != 32:
            message = f"must be the base64 of 32 bytes, not of {len(raw)}"
            raise ValueError(message)
        return value

    @field_validator("api_url")
    @classmethod
    def _has_no_slash(cls, value: str) -> str:
        return value.rstrip("/")

    @property
    def verification_key(self) -> Ed25519PublicKey:
        """The API's public key."""
        return Ed25519PublicKey.from_public_bytes(base64.b64decode(self.session_public_key))


@cache
def settings() -> DashboardSettings:
    """The settings of this process."""
    return DashboardSettings()

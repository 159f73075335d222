"""Keys, passwords and sessions: made and checked here, stored by the merchants slice.

API keys are 256 random bits, stored as SHA-256; passwords are hashed by argon2id; sessions are JWTs
signed with Ed25519, so that who checks them needs no secret. Every comparison takes the same time
whatever differs. Malformed key material fails at start.
"""

import base64
import hashlib
import hmac
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final, Literal

import jwt
from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

Mode = Literal["test", "live"]

SESSION_ISSUER: Final = "giovang-api"
SESSION_AUDIENCE: Final = "giovang"
SESSION_LIFETIME: Final = timedelta(hours=8)

_SHOWN_CHARACTERS = 16
_hasher = PasswordHasher()


@dataclass(frozen=True, slots=True)
class NewKey:
    """An API key at its birth: `plain` is shown once, `prefix` and `digest` are kept."""

    plain: str
    prefix: str
    digest: bytes


def new_api_key(mode: Mode) -> NewKey:
    """Return a new key, `gv_test_…` or `gv_live_…`."""
    plain = f"gv_{mode}_{secrets.token_hex(32)}"
    return NewKey(plain, plain[:_SHOWN_CHARACTERS], api_key_digest(plain))


def api_key_digest(plain: str) -> bytes:
    """Return the 32 bytes by which a key is looked up."""
    return hashlib.sha256(plain.encode()).digest()


def same_secret(presented: str, expected: str) -> bool:
    """Compare two secrets in the same time whatever differs."""
    return hmac.compare_digest(presented.encode(), expected.encode())


def hash_password(password: str) -> str:
    """Return the argon2id hash of a password, with its salt and cost; takes tens of ms."""
    return _hasher.hash(password)


def verify_password(password: str, password_hash: str | None) -> bool:
    """Say whether the password is the one hashed; where there is none, take as long to say no."""
    try:
        return _hasher.verify(password_hash or _nobodys_hash(), password)
    except (VerificationError, InvalidHashError):
        return False


@lru_cache(maxsize=1)
def _nobodys_hash() -> str:
    return _hasher.hash(secrets.token_hex(32))


@dataclass(frozen=True, slots=True)
class Session:
    """A signed-in person's token and its end."""

    token: str
    expires_at: datetime


class SessionSigner:
    """Signs sessions with one Ed25519 key."""

    def __init__(self, seed_base64: str) -> None:
        seed = base64.b64decode(seed_base64, validate=True)
        if len(seed) != 32:
            raise ValueError("the session key is the base64 of a 32-byte Ed25519 seed")
        self._key = Ed25519PrivateKey.from_private_bytes(seed)

    def sign(
        self, *, staff_id: str, role: str, merchant_id: str, merchant_name: str, timezone: str
    ) -> Session:
        """Return a session for a member of a merchant's staff, valid for eight hours."""
        now = datetime.now(UTC).replace(microsecond=0)
        expires_at = now + SESSION_LIFETIME
        token = jwt.encode(
            {
                "iss": SESSION_ISSUER,
                "aud": SESSION_AUDIENCE,
                "iat": now,
                "exp": expires_at,
                "jti": secrets.token_hex(16),
                "sub": staff_id,
                "role": role,
                "merchant_id": merchant_id,
                "merchant_name": merchant_name,
                "timezone": timezone,
            },
            self._key,
            algorithm="EdDSA",
        )
        return Session(token, expires_at)

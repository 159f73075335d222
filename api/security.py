"""Keys, passwords, sessions and second factors: made and checked here, stored by the people slice.

API keys are 256 random bits, stored as SHA-256; passwords are hashed by argon2id; sessions are JWTs
signed with Ed25519, so that who checks them needs no secret; secrets that must be read again are
sealed by AES-GCM; payers' links are signed by HMAC. Every comparison takes the same time whatever
differs. Malformed key material fails at start.
"""

import base64
import binascii
import hashlib
import hmac
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Final, Literal, get_args

import jwt
import pyotp
from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from api.errors import NotAuthenticated

Mode = Literal["test", "live"]
PersonKind = Literal["staff", "admin"]
Purpose = Literal["release", "dispute", "watch"]

KEY_PREFIXES: Final = ("gv_test_", "gv_live_")
SESSION_ISSUER: Final = "giovang-api"
SESSION_AUDIENCE: Final = "giovang"
SESSION_LIFETIME: Final = timedelta(minutes=60)
# A session may be exchanged for its successor until this long after the person proved who they are.
SESSION_FAMILY_LIFETIME: Final = timedelta(hours=12)
# How long a payer's token is good. Those to release or dispute do nothing alone: they are part of a
# text that the paying wallet signs (api.checkout.proof).
LINK_LIFETIME_S: Final = 15 * 60

_SHOWN_CHARACTERS = 16
_NONCE_BYTES = 12
_TOTP_STEP_S = 30
_LONGEST_TOKEN = 4096
_LINKS_INFO: Final = b"giovang payer links 1"
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


class Sealer:
    """Seals small secrets with one AES-256 key, each bound to what it belongs to."""

    def __init__(self, key_base64: str) -> None:
        key = base64.b64decode(key_base64, validate=True)
        if len(key) != 32:
            raise ValueError("the sealing key is the base64 of 32 bytes")
        self._cipher = AESGCM(key)

    def seal(self, plain: str, *, owner: str) -> bytes:
        """Return `plain` so that only this key opens it, and only for `owner`."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, plain.encode(), owner.encode())

    def open(self, sealed: bytes, *, owner: str) -> str:
        """Return what was sealed for `owner`; ValueError where key, owner or bytes differ."""
        try:
            nonce, body = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
            return self._cipher.decrypt(nonce, body, owner.encode()).decode()
        except InvalidTag as error:
            raise ValueError(f"the sealed secret of {owner} does not open") from error


class PayerLinks:
    """Makes and checks the tokens of payers' links: what the payer holds is the permission.

    A token is the end of its life and an HMAC-SHA256 over payment, purpose and that end, under a
    key derived from the sealing key (HKDF, RFC 5869). It says nothing, and one for another payment,
    another purpose or a past time is refused. One of purpose "watch" opens live status
    and nothing else; a connection outlives none.
    """

    def __init__(self, sealing_key_base64: str) -> None:
        self._key = _links_key(sealing_key_base64)

    def token(self, payment_id: str, purpose: Purpose, *, now_s: int) -> str:
        """Return a token that lets its holder do this to this payment for its lifetime."""
        ends_at_s = now_s + LINK_LIFETIME_S
        return f"{ends_at_s}.{self._mac(payment_id, purpose, ends_at_s)}"

    def is_valid(self, token: str, payment_id: str, purpose: Purpose, *, now_s: int) -> bool:
        """Say whether a token lets its holder do this to this payment now."""
        return self.end_s(token, payment_id, purpose, now_s=now_s) is not None

    def end_s(self, token: str, payment_id: str, purpose: Purpose, *, now_s: int) -> int | None:
        """Return until when a token lets its holder do this, or None where it does not now."""
        end, _, mac = token.partition(".")
        # Twelve digits last for thirty thousand years; more would only cost time to read.
        is_number = end.isascii() and end.isdigit() and len(end) <= 12
        ends_at_s = int(end) if is_number else 0
        is_ours = same_secret(mac, self._mac(payment_id, purpose, ends_at_s))
        return ends_at_s if is_ours and now_s < ends_at_s else None

    def _mac(self, payment_id: str, purpose: Purpose, ends_at_s: int) -> str:
        message = f"{purpose}\n{payment_id}\n{ends_at_s}".encode()
        digest = hmac.new(self._key, message, hashlib.sha256).digest()
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


@lru_cache(maxsize=4)
def _links_key(sealing_key_base64: str) -> bytes:
    sealing_key = base64.b64decode(sealing_key_base64, validate=True)
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=_LINKS_INFO).derive(sealing_key)


def new_totp_secret() -> str:
    """Return 160 random bits in base32, as authenticator apps take them."""
    return pyotp.random_base32()


def totp_uri(secret: str, *, email: str) -> str:
    """Return the `otpauth://` address of a secret, which apps show as a QR code."""
    return pyotp.TOTP(secret).provisioning_uri(name=email, issuer_name="Giovang")


def totp_step(secret: str, code: str, now: datetime) -> int | None:
    """Return the 30-second step whose code this is: the current one or a neighbour, else None.

    Every candidate is compared, so the time tells nothing (RFC 6238 section 5.2 for the window).
    """
    current = int(now.timestamp()) // _TOTP_STEP_S
    totp = pyotp.TOTP(secret)
    found = None
    for step in (current - 1, current, current + 1):
        if same_secret(code, totp.generate_otp(step)):
            found = step
    return found


@dataclass(frozen=True, slots=True)
class SessionClaims:
    """What a session says: whose it is, for whom it speaks, and how long.

    `family_id` is the id of the session that was signed in; those rotated out of it share it.
    `second_factor` is False of an admin who has still to confirm theirs.
    """

    id: str
    family_id: str
    person_id: str
    kind: PersonKind
    role: str
    signed_in_at: datetime
    expires_at: datetime
    second_factor: bool = False
    merchant_id: str | None = None
    merchant_name: str = ""
    timezone: str = "UTC"


def session_end(signed_in_at: datetime, now: datetime) -> datetime:
    """Return when a session made `now` ends: in an hour, and with its family at the latest."""
    return min(now + SESSION_LIFETIME, signed_in_at + SESSION_FAMILY_LIFETIME)


class SessionSigner:
    """Signs and proves sessions with one Ed25519 key."""

    def __init__(self, seed_base64: str) -> None:
        seed = base64.b64decode(seed_base64, validate=True)
        if len(seed) != 32:
            raise ValueError("the session key is the base64 of a 32-byte Ed25519 seed")
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self._public = self._key.public_key()

    def sign(self, session: SessionClaims) -> str:
        """Return the JWT of a session; times are kept to the second."""
        claims: dict[str, Any] = {
            "iss": SESSION_ISSUER,
            "aud": SESSION_AUDIENCE,
            "iat": datetime.now(UTC),
            "exp": session.expires_at,
            "auth_time": int(session.signed_in_at.timestamp()),
            "jti": session.id,
            "family": session.family_id,
            "sub": session.person_id,
            "kind": session.kind,
            "role": session.role,
            "amr": ["pwd", "otp"] if session.second_factor else ["pwd"],
        }
        if session.merchant_id is not None:
            claims |= {
                "merchant_id": session.merchant_id,
                "merchant_name": session.merchant_name,
                "timezone": session.timezone,
            }
        return jwt.encode(claims, self._key, algorithm="EdDSA")

    def prove(self, token: str) -> SessionClaims:
        """Return what a token says; NotAuthenticated where it is not ours or has ended.

        A token that is proved may still have been revoked: ask the people slice.
        """
        if len(token) > _LONGEST_TOKEN:
            raise NotAuthenticated("no session is that long; sign in")
        try:
            claims = jwt.decode(
                token,
                self._public,
                algorithms=["EdDSA"],
                audience=SESSION_AUDIENCE,
                issuer=SESSION_ISSUER,
                options={"require": ["exp", "iat", "sub", "jti", "family", "auth_time", "kind"]},
            )
            return _claims(claims)
        except (jwt.InvalidTokenError, KeyError, TypeError, ValueError, binascii.Error) as error:
            raise NotAuthenticated("this session is not valid or has ended; sign in") from error


def _claims(claims: dict[str, Any]) -> SessionClaims:
    if claims["kind"] not in get_args(PersonKind):
        raise ValueError("nobody of that kind signs in")
    if (claims["kind"] == "staff") != isinstance(claims.get("merchant_id"), str):
        raise ValueError("staff speak for a merchant, and nobody else does")
    return SessionClaims(
        id=claims["jti"],
        family_id=claims["family"],
        person_id=claims["sub"],
        kind=claims["kind"],
        role=claims["role"],
        signed_in_at=datetime.fromtimestamp(claims["auth_time"], UTC),
        expires_at=datetime.fromtimestamp(claims["exp"], UTC),
        second_factor="otp" in claims["amr"],
        merchant_id=claims.get("merchant_id"),
        merchant_name=claims.get("merchant_name", ""),
        timezone=claims.get("timezone", "UTC"),
    )

"""Keys, passwords and sessions."""

import base64
import hashlib

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from api.security import (
    SessionSigner,
    api_key_digest,
    hash_password,
    new_api_key,
    same_secret,
    verify_password,
)

SEED = bytes(range(32))


def test_a_key_is_shown_once_and_kept_as_its_digest() -> None:
    key = new_api_key("test")
    assert key.plain.startswith("gv_test_")
    assert len(key.plain) == len("gv_test_") + 64
    assert key.digest == hashlib.sha256(key.plain.encode()).digest() == api_key_digest(key.plain)
    assert key.plain.startswith(key.prefix)
    assert len(key.prefix) == 16
    assert new_api_key("live").plain.startswith("gv_live_")
    assert new_api_key("test").plain != key.plain


def test_passwords() -> None:
    kept = hash_password("mật khẩu dài")
    assert kept.startswith("$argon2id$")
    assert verify_password("mật khẩu dài", kept)
    assert not verify_password("mật khẩu dai", kept)
    assert not verify_password("anything", None)
    assert not verify_password("anything", "not a hash")


def test_secrets_compare() -> None:
    assert same_secret("khóa", "khóa")
    assert not same_secret("khóa", "khoá")


def test_a_session_is_verified_by_the_public_key_alone() -> None:
    signer = SessionSigner(base64.b64encode(SEED).decode())
    session = signer.sign(
        staff_id="stf_1",
        role="owner",
        merchant_id="mer_1",
        merchant_name="Phở",
        timezone="Asia/Ho_Chi_Minh",
    )
    public = Ed25519PrivateKey.from_private_bytes(SEED).public_key()
    claims = jwt.decode(
        session.token, public, algorithms=["EdDSA"], audience="giovang", issuer="giovang-api"
    )
    assert (claims["sub"], claims["merchant_id"], claims["timezone"]) == (
        "stf_1",
        "mer_1",
        "Asia/Ho_Chi_Minh",
    )
    assert claims["exp"] - claims["iat"] == 8 * 3600
    assert claims["exp"] == session.expires_at.timestamp()
    other = Ed25519PrivateKey.generate().public_key()
    with pytest.raises(jwt.InvalidSignatureError):
        jwt.decode(session.token, other, algorithms=["EdDSA"], audience="giovang")


@pytest.mark.parametrize("seed", ["", "not base64!", base64.b64encode(b"short").decode()])
def test_a_malformed_key_fails_at_start(seed: str) -> None:
    with pytest.raises(ValueError, match=r"32-byte|base64|Only base64"):
        SessionSigner(seed)

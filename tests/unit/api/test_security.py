"""Keys, passwords, sessions, seals and second factors."""

import base64
import hashlib
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pyotp
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from api.errors import NotAuthenticated
from api.security import (
    Sealer,
    SessionClaims,
    SessionSigner,
    api_key_digest,
    hash_password,
    new_api_key,
    new_totp_secret,
    same_secret,
    session_end,
    totp_step,
    totp_uri,
    verify_password,
)

SEED = bytes(range(32))
KEY = Ed25519PrivateKey.from_private_bytes(SEED)
SIGNER = SessionSigner(base64.b64encode(SEED).decode())
NOW = datetime.now(UTC).replace(microsecond=0)
STAFF = SessionClaims(
    id="ses_1",
    family_id="ses_0",
    person_id="stf_1",
    kind="staff",
    role="owner",
    signed_in_at=NOW,
    expires_at=NOW + timedelta(hours=1),
    merchant_id="mer_1",
    merchant_name="Phở",
    timezone="Asia/Ho_Chi_Minh",
)


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
    claims = jwt.decode(
        SIGNER.sign(STAFF),
        KEY.public_key(),
        algorithms=["EdDSA"],
        audience="giovang",
        issuer="giovang-api",
    )
    assert (claims["sub"], claims["merchant_id"], claims["merchant_name"], claims["timezone"]) == (
        "stf_1",
        "mer_1",
        "Phở",
        "Asia/Ho_Chi_Minh",
    )
    assert (claims["jti"], claims["family"], claims["kind"]) == ("ses_1", "ses_0", "staff")
    assert claims["exp"] == STAFF.expires_at.timestamp()


def test_a_session_says_what_was_signed() -> None:
    assert SIGNER.prove(SIGNER.sign(STAFF)) == STAFF
    admin = SessionClaims("ses_2", "ses_2", "adm_1", "admin", "admin", NOW, STAFF.expires_at)
    assert SIGNER.prove(SIGNER.sign(admin)) == admin


def test_an_hour_at_a_time_and_twelve_in_all() -> None:
    assert session_end(NOW, NOW) == NOW + timedelta(hours=1)
    late = NOW + timedelta(hours=11, minutes=30)
    assert session_end(NOW, late) == NOW + timedelta(hours=12)


def signed(key: Any = KEY, algorithm: str = "EdDSA", **changes: Any) -> str:
    """Sign the claims of a good session with some of them changed, None for left out."""
    claims = jwt.decode(SIGNER.sign(STAFF), options={"verify_signature": False})
    claims |= changes
    return jwt.encode({k: v for k, v in claims.items() if v is not None}, key, algorithm=algorithm)


def unsigned() -> str:
    head = base64.urlsafe_b64encode(json.dumps({"alg": "none"}).encode()).rstrip(b"=").decode()
    return f"{head}.{signed().split('.')[1]}."


@pytest.mark.parametrize(
    "token",
    [
        "",
        "..",
        "a.b.c",
        "x" * 5000,
        unsigned(),
        signed(Ed25519PrivateKey.from_private_bytes(bytes(32))),
        # The public key as the secret of a shared-key algorithm: the classic confusion.
        signed(KEY.public_key().public_bytes_raw(), "HS256"),
        signed(exp=int(NOW.timestamp()) - 1),
        signed(exp=None),
        signed(jti=None),
        signed(family=None),
        signed(auth_time=None),
        signed(auth_time="now"),
        signed(aud="another"),
        signed(iss="another"),
        signed(kind="root"),
        signed(kind="admin"),
        signed(merchant_id=None),
        signed(merchant_id=["mer_1"]),
    ],
)
def test_no_other_token_proves_anything(token: str) -> None:
    with pytest.raises(NotAuthenticated):
        SIGNER.prove(token)


def test_claims_under_another_claims_signature_prove_nothing() -> None:
    head, _, signature = signed().split(".")
    _, body, _ = signed(merchant_id="mer_2").split(".")
    with pytest.raises(NotAuthenticated):
        SIGNER.prove(f"{head}.{body}.{signature}")


@pytest.mark.parametrize("key", ["", "not base64!", base64.b64encode(b"short").decode()])
def test_a_malformed_key_fails_at_start(key: str) -> None:
    for takes_key in (SessionSigner, Sealer):
        with pytest.raises(ValueError, match=r"32|base64|Only base64"):
            takes_key(key)


def test_what_is_sealed_opens_for_its_owner_alone() -> None:
    sealer = Sealer(base64.b64encode(SEED).decode())
    sealed = sealer.seal("bí mật", owner="adm_1")
    assert sealer.open(sealed, owner="adm_1") == "bí mật"
    assert sealer.seal("bí mật", owner="adm_1") != sealed
    for other, owner in (
        (sealed, "adm_2"),
        (sealed[:-1] + bytes([sealed[-1] ^ 1]), "adm_1"),
        (sealed[:12], "adm_1"),
    ):
        with pytest.raises(ValueError, match="does not open"):
            sealer.open(other, owner=owner)
    with pytest.raises(ValueError, match="does not open"):
        Sealer(base64.b64encode(bytes(32)).decode()).open(sealed, owner="adm_1")


def test_codes_are_those_of_rfc_6238() -> None:
    # Appendix B: the secret "12345678901234567890" at 59 s and at 1111111109 s, last six digits.
    secret = base64.b32encode(b"12345678901234567890").decode()
    assert totp_step(secret, "287082", datetime.fromtimestamp(59, UTC)) == 1
    assert totp_step(secret, "081804", datetime.fromtimestamp(1111111109, UTC)) == 37037036


def test_a_code_counts_one_step_around_its_own() -> None:
    secret = new_totp_secret()
    moment = datetime(2026, 1, 31, 9, 0, 15, tzinfo=UTC)
    step = int(moment.timestamp()) // 30
    code = pyotp.TOTP(secret).generate_otp(step)
    found = {
        offset: totp_step(secret, code, moment + timedelta(seconds=30 * offset))
        for offset in range(-3, 4)
    }
    assert {offset for offset, at in found.items() if at == step} == {-1, 0, 1}
    assert {at for offset, at in found.items() if abs(offset) > 1} == {None}
    assert totp_step(secret, "", moment) is None
    assert totp_step(secret, "x" * 6, moment) is None


def test_an_authenticator_app_reads_the_address_of_a_secret() -> None:
    secret = new_totp_secret()
    read = pyotp.parse_uri(totp_uri(secret, email="an@giovang.vn"))
    assert isinstance(read, pyotp.TOTP)
    assert (read.secret, read.name, read.issuer) == (secret, "an@giovang.vn", "Giovang")

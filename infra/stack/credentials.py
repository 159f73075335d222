"""Passwords and keys of one local stack, made once and kept in a file only its owner can read.

A file that lacks a name (an older stack's) gets it added; nothing that exists is ever changed,
since databases and wallets depend on it.
"""

import base64
import json
import secrets as randomness
from collections.abc import Mapping
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from infra.stack.databases import ANALYTICS_ROLES, LEDGER_ROLES, SUPERUSERS
from infra.stack.state import StateError, write_private

_DEMO_WORDS = (
    "bien",
    "gao",
    "hoa",
    "lua",
    "mai",
    "nang",
    "pho",
    "sen",
    "sua",
    "tra",
    "tre",
    "xoai",
)


def load_or_create(path: Path) -> dict[str, str]:
    """Return the secrets kept at `path`, made on first use; StateError if the file is damaged."""
    known: dict[str, str] = {}
    if path.exists():
        try:
            known = dict(json.loads(path.read_text()))
        except (OSError, ValueError) as error:
            message = f"{path} cannot be read ({error}); ./giovang reset starts afresh"
            raise StateError(message) from error
    complete = _complete(known)
    if complete != known:
        write_private(path, json.dumps(complete, indent=1) + "\n")
    return complete


def _complete(known: Mapping[str, str]) -> dict[str, str]:
    # Solana's library is only needed to make keys, which happens once.
    complete = dict(known)
    for name in (*LEDGER_ROLES, *ANALYTICS_ROLES, *SUPERUSERS, "redis"):
        complete.setdefault(name, randomness.token_hex(16))
    complete.setdefault("admin_key", "gv_admin_" + randomness.token_urlsafe(32))
    sealing_key = base64.b64encode(randomness.token_bytes(32)).decode()
    complete.setdefault("sealing_key", sealing_key)
    words = (randomness.choice(_DEMO_WORDS) for _ in range(3))
    complete.setdefault("demo_password", "-".join(words) + f"-{randomness.randbelow(9000) + 1000}")
    if "session_private_key" not in complete or "session_public_key" not in complete:
        complete |= _session_keys()
    for wallet in ("collection_wallet", "demo_payer"):
        if f"{wallet}_key" not in complete:
            complete |= _wallet(wallet)
    return complete


def _session_keys() -> dict[str, str]:
    key = Ed25519PrivateKey.generate()
    seed = key.private_bytes(
        serialization.Encoding.Raw,
        serialization.PrivateFormat.Raw,
        serialization.NoEncryption(),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.Raw, serialization.PublicFormat.Raw
    )
    return {
        "session_private_key": base64.b64encode(seed).decode(),
        "session_public_key": base64.b64encode(public).decode(),
    }


def _wallet(name: str) -> dict[str, str]:
    from solders.keypair import Keypair  # noqa: PLC0415 - 0.1 s that only the first start pays

    pair = Keypair()
    return {name: str(pair.pubkey()), f"{name}_key": str(pair)}

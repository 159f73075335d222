"""Identifiers and chances that depend on the seed alone.

Everything the demo invents (ids, wallets, references, random draws) comes from SHA-256 over the
seed and a path of names, so the same seed gives the same shops, the same customers and the same
year on every machine. Nothing here is secret or unpredictable; never use it for keys that matter.
"""

import hashlib
import random
from datetime import UTC, datetime

from solders.keypair import Keypair
from solders.pubkey import Pubkey
from solders.signature import Signature

_CROCKFORD = "0123456789abcdefghjkmnpqrstvwxyz"
_ID_LENGTH = 26

# Shops exist before their first payment; a fixed moment keeps their ids the same for every period.
FOUNDED_AT = datetime(2024, 1, 1, tzinfo=UTC)


def digest(seed: int, *path: str | int) -> bytes:
    """Return the 32 bytes that belong to `path` under `seed`."""
    return hashlib.sha256(
        "\x1f".join(["giovang-demo", str(seed), *map(str, path)]).encode()
    ).digest()


def chances(seed: int, *path: str | int) -> random.Random:
    """Return a random source of its own for `path`, independent of every other path."""
    return random.Random(int.from_bytes(digest(seed, *path)))


def made_id(prefix: str, at: datetime, seed: int, *path: str | int) -> str:
    """Return `prefix_` and the 26 characters of a UUIDv7 dated `at`, fixed by seed and path.

    Layout by RFC 9562: 48 bits of Unix milliseconds, version 7, 12 bits, variant 2, 62 bits.
    """
    milliseconds = int(at.timestamp() * 1000)
    noise = int.from_bytes(digest(seed, prefix, *path)[:10])
    value = (
        (milliseconds & ((1 << 48) - 1)) << 80
        | 0x7 << 76
        | (noise >> 64 & 0xFFF) << 64
        | 0b10 << 62
        | noise & ((1 << 62) - 1)
    )
    digits = [_CROCKFORD[value >> shift & 31] for shift in range(5 * (_ID_LENGTH - 1), -1, -5)]
    return f"{prefix}_{''.join(digits)}"


def address(seed: int, *path: str | int) -> str:
    """Return a base58 key of 32 bytes that nobody holds: a reference or a recipient of the past."""
    return str(Pubkey(digest(seed, "address", *path)))


def signature(seed: int, *path: str | int) -> str:
    """Return a base58 signature of 64 bytes, of a chain transaction that never was."""
    return str(Signature(digest(seed, "signature", *path) + digest(seed, "proof", *path)))


def person_id(seed: int, merchant_id: str, duty: str) -> str:
    """Return the id of whoever of a shop's staff asked for or approved payouts in the past."""
    return made_id("stf", FOUNDED_AT, seed, merchant_id, duty)


def wallet(seed: int, *path: str | int) -> Keypair:
    """Return the key pair of a demo wallet."""
    return Keypair.from_seed(digest(seed, "wallet", *path))

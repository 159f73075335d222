"""The memory of API keys: whose they are, for a few seconds, and of so many at most."""

from api.people import known_keys
from api.people.known_keys import KnownKeys
from api.people.model import Caller


def caller(name: str) -> Caller:
    return Caller(
        actor=name,
        kind="key",
        merchant_id="mer_1",
        merchant_name="Phở Thìn",
        mode="test",
        scopes=frozenset(),
        role="key",
    )


def test_a_key_is_remembered_and_then_forgotten() -> None:
    now = 100.0
    keys = KnownKeys(clock=lambda: now)
    assert keys.find(b"a") is None
    keys.remember(b"a", caller("key_a"))
    assert keys.find(b"a") == caller("key_a")
    assert keys.find(b"b") is None
    now += 11
    assert keys.find(b"a") is None
    keys.remember(b"a", caller("key_c"))
    assert keys.find(b"a") == caller("key_c")


def test_the_oldest_make_room() -> None:
    keys = KnownKeys(clock=lambda: 0.0)
    for number in range(known_keys._MOST + 1):
        keys.remember(b"%d" % number, caller(f"key_{number}"))
    assert keys.find(b"0") is None
    assert keys.find(b"1") == caller("key_1")

"""Ids: UUIDv7 by RFC 9562 in Crockford's digits, ordered by time."""

import re
import uuid

from hypothesis import given
from hypothesis import strategies as st

from api.database import ID_BODY, encode_id, new_id
from api.migrations.apply import sqlalchemy_url

DIGITS = "0123456789abcdefghjkmnpqrstvwxyz"
MOMENTS = st.integers(0, 2**48 - 1)
NOISE = st.integers(0, 2**74 - 1)


def as_uuid(identifier: str) -> uuid.UUID:
    value = 0
    for digit in identifier.partition("_")[2]:
        value = value * 32 + DIGITS.index(digit)
    return uuid.UUID(int=value)


@given(moment=MOMENTS, noise=NOISE)
def test_an_id_is_a_uuid_of_version_7(moment: int, noise: int) -> None:
    found = as_uuid(encode_id("pay", moment, noise))
    assert (found.version, found.variant) == (7, uuid.RFC_4122)
    assert found.int >> 80 == moment


@given(a=MOMENTS, b=MOMENTS, noise=NOISE)
def test_ids_sort_by_time(a: int, b: int, noise: int) -> None:
    assert (a < b) == (encode_id("pay", a, noise) < encode_id("pay", b, noise))


@given(moment=MOMENTS, a=NOISE, b=NOISE)
def test_no_bit_of_noise_is_lost(moment: int, a: int, b: int) -> None:
    assert (a == b) == (encode_id("pay", moment, a) == encode_id("pay", moment, b))


def test_the_example_of_rfc_9562() -> None:
    # Appendix A.6: 017F22E2-79B0-7CC3-98C4-DC0C0C07398F.
    noise = 0xCC3 << 62 | 0x18C4DC0C0C07398F
    identifier = encode_id("pay", 0x017F22E279B0, noise)
    assert str(as_uuid(identifier)) == "017f22e2-79b0-7cc3-98c4-dc0c0c07398f"


def test_new_ids_differ_and_match_the_pattern_of_the_database() -> None:
    made = {new_id("pay") for _ in range(1000)}
    assert len(made) == 1000
    assert all(re.fullmatch(f"pay_{ID_BODY}", identifier) for identifier in made)


def test_sqlalchemy_is_told_the_driver() -> None:
    assert sqlalchemy_url("postgresql://u:p@h:1/d") == "postgresql+psycopg://u:p@h:1/d"


def test_ids_of_one_process_sort_as_they_were_made() -> None:
    made = [new_id("pay") for _ in range(5_000)]
    assert made == sorted(set(made))

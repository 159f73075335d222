"""The payer's links: what they permit, and everything else that they do not."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.security import LINK_LIFETIME_S, PayerLinks

LINKS = PayerLinks(base64.b64encode(b"k" * 32).decode())
OTHERS = PayerLinks(base64.b64encode(b"l" * 32).decode())
PAYMENT = "pay_01jz8w5k6h7m9n0p2q3r4s5t6v"
NOW_S = 1_800_000_000
TOKEN = LINKS.token(PAYMENT, "release", now_s=NOW_S)


def test_a_token_is_good_until_its_end() -> None:
    for now_s in (NOW_S, NOW_S + LINK_LIFETIME_S - 1):
        assert LINKS.is_valid(TOKEN, PAYMENT, "release", now_s=now_s)
    assert not LINKS.is_valid(TOKEN, PAYMENT, "release", now_s=NOW_S + LINK_LIFETIME_S)


def test_a_token_is_of_one_payment_one_purpose_and_one_house() -> None:
    assert not LINKS.is_valid(TOKEN, PAYMENT[:-1] + "w", "release", now_s=NOW_S)
    assert not LINKS.is_valid(TOKEN, PAYMENT, "dispute", now_s=NOW_S)
    assert not OTHERS.is_valid(TOKEN, PAYMENT, "release", now_s=NOW_S)


def test_a_later_end_cannot_be_written_in() -> None:
    end, _, mac = TOKEN.partition(".")
    assert not LINKS.is_valid(f"{int(end) + 1}.{mac}", PAYMENT, "release", now_s=NOW_S)
    assert not LINKS.is_valid(f"0{end}.{mac}", PAYMENT, "dispute", now_s=NOW_S)


@given(position=st.integers(0, len(TOKEN) - 2), letter=st.sampled_from("09AZaz_-.é"))
def test_any_other_letter_spoils_it(position: int, letter: str) -> None:
    changed = TOKEN[:position] + letter + TOKEN[position + 1 :]
    is_same = changed == TOKEN
    assert LINKS.is_valid(changed, PAYMENT, "release", now_s=NOW_S) == is_same


@given(text=st.text(max_size=120))
def test_no_text_is_taken_for_a_token(text: str) -> None:
    assert not LINKS.is_valid(text, PAYMENT, "release", now_s=NOW_S)


def test_a_sealing_key_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="base64"):
        PayerLinks("not base64!")

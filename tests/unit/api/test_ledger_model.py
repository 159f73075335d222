"""An entry that does not balance cannot even be built, nor a hold of nothing or for nobody."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.ledger.model import AccountKind, Entry, EntryKind, Hold, Leg

LEGS = st.lists(
    st.builds(
        Leg,
        kind=st.sampled_from(AccountKind),
        asset=st.sampled_from(["USDC", "USDT", "VND"]),
        amount_minor=st.integers(-3, 3),
    ),
    max_size=5,
)


def entry(legs: tuple[Leg, ...]) -> Entry:
    return Entry(kind=EntryKind.PAYMENT_COMPLETED, key="k", mode="test", legs=legs)


@given(legs=LEGS)
def test_only_balanced_entries_exist(legs: list[Leg]) -> None:
    sums: dict[str, int] = {}
    for leg in legs:
        sums[leg.asset] = sums.get(leg.asset, 0) + leg.amount_minor
    sound = bool(legs) and all(leg.amount_minor for leg in legs) and not any(sums.values())
    if sound:
        assert entry(tuple(legs)).legs == tuple(legs)
    else:
        with pytest.raises(ValueError, match="payment_completed"):
            entry(tuple(legs))


def test_assets_do_not_balance_each_other() -> None:
    legs = (Leg(AccountKind.CRYPTO_POOL, "USDC", 5), Leg(AccountKind.LIQUIDITY, "USDT", -5))
    with pytest.raises(ValueError, match="does not balance"):
        entry(legs)


@pytest.mark.parametrize(
    ("amount", "subjects", "sound"),
    [
        (1, {"payout_id": "pyo"}, True),
        (0, {"payout_id": "pyo"}, False),
        (-1, {"payout_id": "pyo"}, False),
        (1, {}, False),
        (1, {"payout_id": "pyo", "refund_id": "rfd"}, False),
    ],
)
def test_a_hold_is_of_something_for_one_subject(
    amount: int, subjects: dict[str, Any], sound: bool
) -> None:
    def build() -> Hold:
        return Hold(
            key="k",
            mode="test",
            kind=AccountKind.MERCHANT_AVAILABLE,
            asset="VND",
            amount_minor=amount,
            merchant_id="mer",
            **subjects,
        )

    if sound:
        assert build().amount_minor == amount
    else:
        with pytest.raises(ValueError, match="one subject"):
            build()

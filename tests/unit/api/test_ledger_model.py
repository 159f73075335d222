"""An entry that does not balance cannot even be built."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.ledger.model import AccountKind, Entry, EntryKind, Leg

LEGS = st.lists(
    st.builds(
        Leg,
        kind=st.sampled_from(AccountKind),
        asset=st.sampled_from(["USDC", "USDT", "VND"]),
        amount_minor=st.integers(-3, 3),
    ),
    max_size=5,
)


@given(legs=LEGS)
def test_only_balanced_entries_exist(legs: list[Leg]) -> None:
    sums: dict[str, int] = {}
    for leg in legs:
        sums[leg.asset] = sums.get(leg.asset, 0) + leg.amount_minor
    sound = bool(legs) and all(leg.amount_minor for leg in legs) and not any(sums.values())
    if sound:
        assert Entry(EntryKind.PAYMENT_COMPLETED, "k", tuple(legs)).legs == tuple(legs)
    else:
        with pytest.raises(ValueError, match="payment_completed"):
            Entry(EntryKind.PAYMENT_COMPLETED, "k", tuple(legs))


def test_assets_do_not_balance_each_other() -> None:
    legs = (Leg(AccountKind.CRYPTO_POOL, "USDC", 5), Leg(AccountKind.LIQUIDITY, "USDT", -5))
    with pytest.raises(ValueError, match="does not balance"):
        Entry(EntryKind.PAYMENT_COMPLETED, "k", legs)

"""What a live customer is going to do: decided by the seed and the visit's number alone.

Pure, so that the same seed brings the same customers in the same order, and tests can look at a
thousand visits without a network.
"""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from infra.demo.ids import chances
from infra.demo.merchants import PROFILES, Profile
from infra.demo.rhythm import busyness, pick, ticket_vnd
from infra.demo.story import Payer, payer

WALLETS_PER_SHOP = 6
# The rate follows the hour only in part: a newcomer at three in the morning wants to see life too.
_HOUR_WEIGHT = 0.4


class Conduct(StrEnum):
    """How a customer behaves at the till."""

    PAY = "pay"
    ABANDON = "abandon"
    UNDERPAY = "underpay"
    OVERPAY = "overpay"
    PAY_TWICE = "pay_twice"
    PAY_AND_RETURN = "pay_and_return"


_CONDUCTS: dict[Conduct, float] = {
    Conduct.PAY: 0.845,
    Conduct.ABANDON: 0.07,
    Conduct.UNDERPAY: 0.025,
    Conduct.OVERPAY: 0.02,
    Conduct.PAY_TWICE: 0.01,
    Conduct.PAY_AND_RETURN: 0.03,
}


@dataclass(frozen=True, slots=True)
class Visit:
    """One customer at one till."""

    number: int
    profile: Profile
    amount_vnd: int
    asset: str
    customer: Payer
    customer_number: int
    description: str
    conduct: Conduct
    # Part of the amount due that is really sent, in thousandths; 1000 is exact.
    sent_permille: int
    hesitates_s: float


def visit(seed: int, number: int, at: datetime) -> Visit:
    """Decide visit `number`; the hour of `at` (UTC) makes some shops likelier than others."""
    source = chances(seed, "visit", number)
    profile = PROFILES[pick(tuple(0.05 + weight for weight in busyness(PROFILES, at)), source)]
    customer_number = source.randrange(WALLETS_PER_SHOP)
    conduct = tuple(_CONDUCTS)[pick(tuple(_CONDUCTS.values()), source)]
    permille = {
        Conduct.UNDERPAY: source.randrange(300, 960),
        Conduct.OVERPAY: source.randrange(1010, 1300),
    }
    return Visit(
        number=number,
        profile=profile,
        amount_vnd=ticket_vnd(profile, source),
        asset="USDC" if source.random() < profile.usdc_share else "USDT",
        customer=payer(seed, profile.slug, customer_number, tuple(profile.countries.items())),
        customer_number=customer_number,
        description=source.choice(profile.descriptions),
        conduct=conduct,
        sent_permille=permille.get(conduct, 1000),
        hesitates_s=min(12.0, 2.0 * source.lognormvariate(0, 0.7)),
    )


def pause_s(seed: int, number: int, at: datetime, rate_per_minute: float) -> float:
    """Return how long after visit `number` the next customer comes, in seconds."""
    weights = busyness(PROFILES, at)
    mean = sum(p.payments_per_day for p in PROFILES) / 24
    busier = 1 - _HOUR_WEIGHT + _HOUR_WEIGHT * sum(weights) / mean
    return chances(seed, "pause", number).expovariate(rate_per_minute * busier / 60)

"""When a shop's customers come and what they spend: expected counts, moments and tickets.

Pure functions of profile, local day and a random source. Every amount is a whole number of VND, a
multiple of the profile's step inside its limits.
"""

import math
from bisect import bisect
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from itertools import accumulate
from random import Random
from zoneinfo import ZoneInfo

from infra.demo.holidays import Season, season
from infra.demo.ids import chances
from infra.demo.merchants import PROFILES, TIMEZONE, Profile

LOCAL = ZoneInfo(TIMEZONE)
_HOUR_MS = 3_600_000
_POISSON_PIECE = 30.0
_SUM_PER_DAY = sum(p.payments_per_day for p in PROFILES)

# VND per token around which the demo's past moves; near the local rates file, so that the change
# from history to live traffic shows no jump.
_RATE_VND = {"USDC": 26_150, "USDT": 26_120}


def season_factor(profile: Profile, day: date) -> float:
    """Return how many times busier than an ordinary day the season makes `day`."""
    return {
        Season.ORDINARY: 1.0,
        Season.HOLIDAY: profile.holiday,
        Season.BEFORE_TET: profile.before_tet,
        Season.TET: profile.tet,
        Season.AFTER_TET: profile.after_tet,
    }[season(day)]


def expected_payments(
    profile: Profile, day: date, *, middle: date, payments_per_day: float
) -> float:
    """Return the mean number of payments on a local day, before day-to-day variation.

    `middle` is the day on which growth is neutral; `payments_per_day` is for all shops together.
    """
    growth = math.exp(math.log1p(profile.growth_per_year) * (day - middle).days / 365)
    return (
        profile.payments_per_day
        * payments_per_day
        / _SUM_PER_DAY
        * profile.weekdays[day.weekday()]
        * profile.months[day.month - 1]
        * season_factor(profile, day)
        * growth
    )


def day_count(profile: Profile, mean: float, source: Random) -> int:
    """Draw how many payments a day has: Poisson around a mean that itself varies by the day."""
    sigma = profile.day_variation
    return poisson(mean * math.exp(source.gauss(-sigma * sigma / 2, sigma)), source)


def poisson(mean: float, source: Random) -> int:
    """Draw a Poisson number by Knuth's product, in pieces so that it never underflows."""
    count = 0
    while mean > 0:
        piece = min(mean, _POISSON_PIECE)
        mean -= piece
        limit, product = math.exp(-piece), source.random()
        while product > limit:
            count += 1
            product *= source.random()
    return count


def moment(profile: Profile, day: date, source: Random) -> datetime:
    """Draw a moment of a local day by the profile's hours, to the millisecond, with its zone."""
    hour = pick(profile.hour_weights, source)
    offset = timedelta(hours=hour, milliseconds=int(source.random() * _HOUR_MS))
    return datetime.combine(day, time(), tzinfo=LOCAL) + offset


def ticket_vnd(profile: Profile, source: Random) -> int:
    """Draw what a customer pays, log-normal and rounded as prices are."""
    low, high = profile.ticket_limits_vnd
    raw = profile.ticket_median_vnd * math.exp(profile.ticket_sigma * source.gauss(0, 1))
    step = profile.ticket_step_vnd
    floor = -(-low // step) * step
    return max(floor, min(high // step * step, round(raw / step) * step))


def rate_vnd(seed: int, asset: str, day: date) -> Decimal:
    """Return the past quote of a day in VND per token: two slow waves and a daily wobble."""
    number = day.toordinal()
    waves = 0.006 * math.sin(number / 15) + 0.002 * math.sin(number / 3.7)
    wobble = chances(seed, "rate", asset, number).uniform(-0.001, 0.001)
    return Decimal(round(_RATE_VND[asset] * (1 + waves + wobble)))


def busyness(profiles: tuple[Profile, ...], at: datetime) -> list[float]:
    """Return each shop's expected payments in the local hour of `at`; live traffic leans on it."""
    local = at.astimezone(LOCAL)
    return [
        p.payments_per_day * p.weekdays[local.weekday()] * p.hour_weights[local.hour]
        for p in profiles
    ]


def pick(weights: tuple[float, ...], source: Random) -> int:
    """Draw an index by weight."""
    bounds = list(accumulate(weights))
    return min(bisect(bounds, source.random() * bounds[-1]), len(weights) - 1)

"""What the overview says in words and figures: pure functions from marts to texts.

Nothing here reads or draws; amounts stay Decimal, so tables and exports sum exactly.
"""

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Final, Literal

from dashboards.language import Language
from dashboards.tiles import Change, Freshness, Tile
from dashboards.warehouse import Comparison, Hour, Live, Peaks, Today, TypicalHour

LATE_AFTER_S: Final = 90

Direction = Literal["more", "less"]


@dataclass(frozen=True, slots=True)
class Table:
    """A table in words: its head, its rows and the sums below them."""

    head: list[str]
    rows: list[list[str]]
    foot: list[str]


def freshness_of(live: Live, now: datetime, words: Language) -> Freshness:
    """Say up to when the marts are complete, in the merchant's time; `now` is local and aware."""
    return freshness_at(live.complete_through, now, words)


def freshness_at(complete_through: datetime | None, now: datetime, words: Language) -> Freshness:
    """Say up to when something is complete, as `freshness_of` does."""
    if complete_through is None:
        return Freshness(words.text("fresh.unknown"), is_late=True)
    through = complete_through.astimezone(now.tzinfo)
    behind_s = (now - through).total_seconds()
    time = words.clock(through, now.date())
    if behind_s <= LATE_AFTER_S:
        return Freshness(words.text("fresh.complete", time=time), is_late=False)
    minutes = words.number(round(behind_s / 60))
    return Freshness(words.text("fresh.late", time=time, minutes=minutes), is_late=True)


def today_tiles(today: Today, words: Language) -> Iterator[Tile]:
    """The four tiles of today with their comparisons."""
    yield Tile(
        words.text("tile.net"),
        words.dong(today.net_vnd),
        words.text("tile.net.note", gross=words.dong(today.volume_vnd)),
        _changes(today, words, "net_vnd", words.dong, better="more"),
    )
    yield Tile(
        words.text("tile.payments"),
        words.number(today.tx_count),
        words.text(
            "tile.payments.note", average=words.dong(round(today.volume_vnd / today.tx_count))
        )
        if today.tx_count
        else words.text("tile.payments.note_none"),
        _changes(today, words, "tx_count", words.number, better="more"),
    )
    yield Tile(
        words.text("tile.conversion"),
        "–" if today.conversion is None else words.percent(today.conversion),
        words.text(
            "tile.conversion.note",
            completed=words.number(today.created_completed_count),
            created=words.number(today.created_count),
        )
        if today.created_count
        else words.text("tile.conversion.note_none"),
        list(_point_changes(today, words)),
    )
    yield Tile(
        words.text("tile.refunds"),
        words.dong(today.refunds_vnd),
        words.text("tile.refunds.note", count=words.number(today.refund_count)),
        _changes(today, words, "refunds_vnd", words.dong, better="less"),
    )


def _earlier(today: Today) -> Iterator[tuple[str, Comparison]]:
    if today.day_before is not None:
        yield "compare.day", today.day_before
    if today.week_before is not None:
        yield "compare.week", today.week_before


def _changes(
    today: Today,
    words: Language,
    figure: Literal["net_vnd", "tx_count", "refunds_vnd"],
    write: Callable[[Decimal], str],
    *,
    better: Direction,
) -> list[Change]:
    changes = []
    for key, then in _earlier(today):
        difference = Decimal(getattr(today, figure)) - getattr(then, figure)
        if difference == 0:
            changes.append(Change(words.text("compare.equal"), words.text(key)))
            continue
        base = Decimal(getattr(then, figure))
        # There is no percentage of nothing, so there the difference itself is said.
        size = abs(difference)
        amount = words.percent(size / base) if base > 0 else write(size)
        arrow = "▲" if difference > 0 else "▼"
        judgement = "good" if (difference > 0) == (better == "more") else "bad"
        changes.append(Change(f"{arrow} {amount}", words.text(key), judgement))
    return changes or [Change("", words.text("compare.none"))]


def _point_changes(today: Today, words: Language) -> Iterator[Change]:
    """Compare shares in points: a percentage of a percentage misleads."""
    if today.conversion is not None:
        for key, then in _earlier(today):
            if then.conversion is not None:
                points = round((today.conversion - then.conversion) * 100, 1)
                against = words.text(key)
                if points == 0:
                    yield Change(words.text("compare.equal"), against)
                    continue
                amount = words.text("compare.points", points=words.number(abs(points), 1))
                arrow, judgement = ("▲", "good") if points > 0 else ("▼", "bad")
                yield Change(f"{arrow} {amount}", against, judgement)


def hours_summary(hours: Sequence[Hour], words: Language) -> str:
    """Say in words what the chart of today's hours shows."""
    paid = [hour for hour in hours if hour.tx_count]
    if not paid:
        return words.text("hours.summary_none")
    best = max(paid, key=lambda hour: hour.volume_vnd)
    return words.text(
        "hours.summary",
        span=words.span(best.at.hour),
        volume=words.dong(best.volume_vnd),
        count=words.number(best.tx_count),
        payments=words.number(sum(hour.tx_count for hour in paid)),
        total=words.dong(sum((hour.volume_vnd for hour in paid), Decimal(0))),
    )


def hours_table(hours: Sequence[Hour], typical: Sequence[TypicalHour], words: Language) -> Table:
    """The table of today's hours; each total is the sum of the figures above it, as shown."""
    averages = {hour.local_hour: round(hour.avg_volume) for hour in typical}
    beside = [averages.get(hour.at.hour) for hour in hours]
    return Table(
        head=[
            words.text(key)
            for key in ("hours.hour", "hours.volume", "hours.count", "hours.average")
        ],
        rows=[
            [
                words.span(hour.at.hour),
                words.dong(hour.volume_vnd),
                words.number(hour.tx_count),
                "–" if average is None else words.dong(average),
            ]
            for hour, average in zip(hours, beside, strict=True)
        ],
        foot=[
            words.text("hours.total"),
            words.dong(sum((hour.volume_vnd for hour in hours), Decimal(0))),
            words.number(sum(hour.tx_count for hour in hours)),
            words.dong(sum(average for average in beside if average is not None)),
        ],
    )


def profile_table(typical: Sequence[TypicalHour], words: Language) -> Table:
    """The table of the typical day."""
    return Table(
        head=[words.text(key) for key in ("hours.hour", "hours.average", "peaks.payments")],
        rows=[
            [
                words.span(hour.local_hour),
                words.dong(round(hour.avg_volume)),
                words.number(hour.avg_payments, 1),
            ]
            for hour in typical
        ],
        foot=[
            words.text("hours.total"),
            words.dong(sum(round(hour.avg_volume) for hour in typical)),
            words.number(sum((round(h.avg_payments, 1) for h in typical), Decimal(0)), 1),
        ],
    )


def hours_csv(hours: Sequence[Hour]) -> str:
    """Today's hours as CSV: exact amounts, one row an hour, and nothing that a sum would count."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(["hour_start", "volume_vnd", "payments"])
    writer.writerows([h.at.isoformat(), f"{h.volume_vnd:f}", h.tx_count] for h in hours)
    return out.getvalue()


def evidence(peaks: Peaks, words: Language) -> str:
    """Say what the peak hours rest on."""
    if peaks.window_start is None or peaks.window_end is None:
        return words.text("peaks.evidence_none")
    return words.text(
        "peaks.evidence",
        payments=words.number(peaks.payments),
        days=words.number(peaks.days),
        start=words.short_day(peaks.window_start),
        end=words.short_day(peaks.window_end),
    )

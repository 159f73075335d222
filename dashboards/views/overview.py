"""The overview: today beside earlier days, volume by hour, the typical day and its peak hours.

What moves is in a fragment that reads again every few seconds. Each fragment proves the session
anew and goes back to the login page when it has ended. Where the warehouse is away the fragment
says so and tries again by itself.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

import streamlit as st

from dashboards import charts, figures, session, tiles, warehouse
from dashboards.language import Language, chosen_language
from dashboards.settings import settings
from dashboards.warehouse import Live, Peaks, Today, TypicalHour

LIVE_EVERY_S: Final = 5
SLOW_EVERY_S: Final = 60


def show() -> None:
    """Show the page of the merchant who is logged in."""
    _live_part()
    _peaks_part()


@st.fragment(run_every=LIVE_EVERY_S)
def _live_part() -> None:
    merchant, words = session.proved_merchant(settings()), chosen_language()
    try:
        live = warehouse.live(merchant.id, merchant.timezone.key)
        typical = warehouse.profile(merchant.id)
        peaks = warehouse.peaks(merchant.id)
    except warehouse.WarehouseAwayError:
        st.warning(words.text("warehouse.away"), icon=":material/cloud_off:")
        return
    now = datetime.now(UTC).astimezone(merchant.timezone)
    day = live.today.local_date if live.today else now.date()
    aside = f"{words.day(day)} · {words.text('today.zone', zone=words.zone(merchant.timezone))}"
    tiles.heading(merchant.name, aside, level=1)
    if live.today is None:
        st.info(words.text("warehouse.empty"), icon=":material/hourglass_top:")
        return
    freshness = figures.freshness_of(live, now, words)
    tiles.tiles(figures.today_tiles(live.today, words), freshness)
    st.space("small")
    tiles.heading(words.text("hours.title"), words.text("hours.axis"))
    with st.container(border=True):
        _hours(live, live.today, typical, peaks.days if peaks else 0, words)
        tiles.fresh(freshness)


def _hours(
    live: Live, today: Today, typical: Sequence[TypicalHour], days: int, words: Language
) -> None:
    chart = charts.hours_chart(live.hours, typical, words, days, dark=tiles.is_dark())
    st.altair_chart(chart, width="stretch", alt=words.text("hours.alt"))
    tiles.paragraph(figures.hours_summary(live.hours, words))
    with st.expander(words.text("hours.table")):
        table = figures.hours_table(live.hours, typical, words)
        tiles.table(table.head, table.rows, table.foot)
        st.download_button(
            words.text("hours.csv"),
            data=figures.hours_csv(live.hours),
            file_name=f"giovang-{today.local_date.isoformat()}.csv",
            mime="text/csv",
            icon=":material/download:",
            on_click="ignore",
        )


@st.fragment(run_every=SLOW_EVERY_S)
def _peaks_part() -> None:
    merchant, words = session.proved_merchant(settings()), chosen_language()
    try:
        typical = warehouse.profile(merchant.id)
        peaks = warehouse.peaks(merchant.id)
        live = warehouse.live(merchant.id, merchant.timezone.key)
    except warehouse.WarehouseAwayError:
        return  # The part above says so already.
    if peaks is None:
        return
    now = datetime.now(UTC).astimezone(merchant.timezone)
    tiles.heading(words.text("peaks.title"), words.text("hours.axis"))
    with st.container(border=True):
        _peak_words(peaks, words)
        if typical:
            chart = charts.profile_chart(typical, peaks.hours, words, dark=tiles.is_dark())
            st.altair_chart(chart, width="stretch", alt=words.text("peaks.alt"))
            with st.expander(words.text("peaks.table")):
                table = figures.profile_table(typical, words)
                tiles.table(table.head, table.rows, table.foot)
        tiles.paragraph(figures.evidence(peaks, words), quiet=True)
        tiles.fresh(figures.freshness_of(live, now, words))


def _peak_words(peaks: Peaks, words: Language) -> None:
    if not peaks.confident or peaks.avg_volume is None:
        tiles.chips([words.text("peaks.none")])
    else:
        tiles.chips([words.span(hour) for hour in peaks.hours])
        average = words.dong(round(peaks.avg_volume))
        tiles.paragraph(words.text("peaks.average", volume=average), quiet=True)
    tiles.paragraph(peaks.recommendations[words.code])

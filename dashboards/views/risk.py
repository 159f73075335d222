"""The risk page: the merchant's latest alerts, each with its reason and a link to the payment.

It reads again every few seconds, proving the session anew, and says up to when payments were
judged. Where the warehouse is away it says so and tries again by itself.
"""

from datetime import UTC, datetime
from typing import Final

import streamlit as st

from dashboards import alerts, figures, session, tiles, warehouse
from dashboards.alerts import Alert
from dashboards.language import Language, chosen_language
from dashboards.session import Merchant
from dashboards.settings import settings
from dashboards.tiles import Notice

LIVE_EVERY_S: Final = 5


def show() -> None:
    """Show the page of the merchant who is logged in."""
    _alerts_part()


@st.fragment(run_every=LIVE_EVERY_S)
def _alerts_part() -> None:
    merchant, words = session.proved_merchant(settings()), chosen_language()
    try:
        found = alerts.latest(merchant.id)
    except warehouse.WarehouseAwayError:
        st.warning(words.text("warehouse.away"), icon=":material/cloud_off:")
        return
    now = datetime.now(UTC).astimezone(merchant.timezone)
    zone = words.text("today.zone", zone=words.zone(merchant.timezone))
    tiles.heading(words.text("risk.title"), zone, level=1)
    tiles.paragraph(words.text("risk.hint"), quiet=True)
    with st.container(border=True):
        if found.latest:
            tiles.notices(_notice(alert, merchant, now, words) for alert in found.latest)
        else:
            tiles.paragraph(words.text("risk.none"))
        tiles.fresh(figures.freshness_at(found.complete_through, now, words))


def _notice(alert: Alert, merchant: Merchant, now: datetime, words: Language) -> Notice:
    return Notice(
        label=words.text(f"risk.severity.{alert.severity}"),
        is_grave=alert.severity == "high",
        text=alert.explanations[words.code],
        note=words.clock(alert.occurred_at.astimezone(merchant.timezone), now.date()),
        link=f"{settings().api_url}/order/{alert.payment_id}",
        link_text=words.text("risk.payment", id=alert.payment_id),
    )

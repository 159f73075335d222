"""The two charts of the overview, as Altair specifications.

Colours are Okabe and Ito's, told apart with every kind of colour vision; series differ in shape as
well. Amounts become floats only to be drawn: words and tables keep the exact Decimal.
"""

from collections.abc import Sequence
from typing import Final

import altair as alt
import pandas as pd

from dashboards.language import Language
from dashboards.warehouse import Hour, TypicalHour

HEIGHT_PX: Final = 290
_EVERY_THIRD_HOUR: Final = (
    "datum.value % 3 == 0 ? (datum.value < 10 ? '0' : '') + datum.value + ':00' : ''"
)
_LIGHT: Final = {"bar": "#0072B2", "line": "#5F6670", "peak": "#D55E00", "other": "#A9C7DA"}
_DARK: Final = {"bar": "#56B4E9", "line": "#B8BFCA", "peak": "#F0A03C", "other": "#3F5C70"}


def hours_chart(
    hours: Sequence[Hour],
    typical: Sequence[TypicalHour],
    words: Language,
    typical_days: int,
    *,
    dark: bool,
) -> alt.LayerChart | alt.FacetChart:
    """Bars of today's volume by local hour, with the typical day as a line."""
    colours = _DARK if dark else _LIGHT
    today_name = words.text("hours.today")
    typical_name = words.text("hours.typical", days=words.number(typical_days))
    today = pd.DataFrame(
        [
            {
                "hour": hour.at.hour,
                "volume": float(hour.volume_vnd),
                "series": today_name,
                "amount": words.dong(hour.volume_vnd),
                "count": words.number(hour.tx_count),
                "span": words.span(hour.at.hour),
            }
            for hour in hours
        ],
        columns=["hour", "volume", "series", "amount", "count", "span"],
    )
    usual = pd.DataFrame(
        [
            {
                "hour": hour.local_hour,
                "volume": float(hour.avg_volume),
                "series": typical_name,
                "amount": words.dong(round(hour.avg_volume)),
                "count": words.number(hour.avg_payments, 1),
                "span": words.span(hour.local_hour),
            }
            for hour in typical
        ],
        columns=["hour", "volume", "series", "amount", "count", "span"],
    )
    names = [today_name, typical_name] if typical else [today_name]
    colour = alt.Color(
        "series:N",
        scale=alt.Scale(domain=names, range=[colours["bar"], colours["line"]][: len(names)]),
        legend=alt.Legend(title=None, orient="top", direction="horizontal", labelLimit=400),
    )
    tooltip = _tooltip(words, "hours.count")
    bars = (
        alt.Chart(today)
        .mark_bar(cornerRadiusTopLeft=3, cornerRadiusTopRight=3, clip=True)
        .encode(x=_hour_axis(), y=_volume_axis(words), color=colour, tooltip=tooltip)
    )
    line = (
        alt.Chart(usual)
        .mark_line(interpolate="monotone", strokeDash=[5, 4], point={"size": 22, "filled": True})
        .encode(x=_hour_axis(), y=_volume_axis(words), color=colour, tooltip=tooltip)
    )
    return alt.layer(bars, line).properties(height=HEIGHT_PX)


def profile_chart(
    typical: Sequence[TypicalHour], peaks: Sequence[int], words: Language, *, dark: bool
) -> alt.LayerChart | alt.FacetChart:
    """Bars of the average day by local hour, with the peak hours marked by colour and a pointer."""
    colours = _DARK if dark else _LIGHT
    peak_name, other_name = words.text("peaks.legend"), words.text("peaks.other")
    frame = pd.DataFrame(
        [
            {
                "hour": hour.local_hour,
                "volume": float(hour.avg_volume),
                "series": peak_name if hour.local_hour in peaks else other_name,
                "amount": words.dong(round(hour.avg_volume)),
                "count": words.number(hour.avg_payments, 1),
                "span": words.span(hour.local_hour),
            }
            for hour in typical
        ],
        columns=["hour", "volume", "series", "amount", "count", "span"],
    )
    names = [peak_name, other_name] if peaks else [other_name]
    palette = [colours["peak"], colours["other"]] if peaks else [colours["other"]]
    colour = alt.Color(
        "series:N",
        scale=alt.Scale(domain=names, range=palette),
        legend=alt.Legend(title=None, orient="top", direction="horizontal") if peaks else None,
    )
    x, y = _hour_axis(), _volume_axis(words)
    bars = (
        alt.Chart(frame)
        .mark_bar(cornerRadiusTopLeft=3, cornerRadiusTopRight=3)
        .encode(x=x, y=y, color=colour, tooltip=_tooltip(words, "peaks.payments"))
    )
    pointers = (
        alt.Chart(frame[frame["series"] == peak_name])
        .mark_text(text="▼", dy=-9, fontSize=12)
        .encode(x=x, y=y, color=colour)
    )
    return alt.layer(bars, pointers).properties(height=HEIGHT_PX)


def _hour_axis() -> alt.X:
    return alt.X(
        "hour:O",
        scale=alt.Scale(domain=list(range(24)), paddingInner=0.18),
        axis=alt.Axis(
            title=None,
            labelAngle=0,
            labelExpr=_EVERY_THIRD_HOUR,
            labelOverlap=False,
            tickSize=0,
            labelPadding=6,
        ),
    )


def _volume_axis(words: Language) -> alt.Y:
    shortened = "format(datum.value, '~r')"
    for name, power in (("thousand", 3), ("million", 6), ("billion", 9)):
        unit = words.text(f"unit.{name}")
        shortened = (
            f"(abs(datum.value) >= 1e{power} ? "
            f"format(datum.value / 1e{power}, '.3~r') + ' {unit}' : {shortened})"
        )
    if words.code == "vi":
        shortened = f"replace({shortened}, '.', ',')"
    return alt.Y(
        "volume:Q",
        stack=None,
        axis=alt.Axis(title=None, labelExpr=shortened, tickCount=5, grid=True, domain=False),
    )


def _tooltip(words: Language, count_key: str) -> list[alt.Tooltip]:
    return [
        alt.Tooltip("series:N", title=" "),
        alt.Tooltip("span:N", title=words.text("hours.hour")),
        alt.Tooltip("amount:N", title=words.text("hours.volume")),
        alt.Tooltip("count:N", title=words.text(count_key)),
    ]

"""What Prometheus may ask a capture process: the numbers of `capture.process`, and the levels.

A number that is not known is left out rather than told as it was. No label carries row data.
"""

from collections.abc import Iterable, Mapping
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ingest.levels import Filling, Level
from ingest.standby import Figures

PREFIX: Final = "giovang_capture_"


class CaptureMetrics(Collector):
    """A Prometheus collector; `tell` is called each second by the process that leads."""

    def __init__(self) -> None:
        self._figures: Figures | None = None
        self._levels: Mapping[str, tuple[Filling, Level]] = {}

    def tell(self, figures: Figures, levels: Mapping[str, tuple[Filling, Level]]) -> None:
        """Take in what a leading process knows of itself; `levels` by what fills up."""
        self._figures, self._levels = figures, levels

    def collect(self) -> Iterable[Metric]:
        """Return the metrics as they stand."""
        figures, levels = self._figures, self._levels
        yield _gauge(
            "active",
            "1 while this process captures, 0 while it stands by",
            int(figures is not None),
        )
        if figures is None:
            return
        yield CounterMetricFamily(
            f"{PREFIX}events", "Changes published and acknowledged", value=figures.events
        )
        yield CounterMetricFamily(
            f"{PREFIX}passed_over", "Changes heard again", value=figures.passed_over
        )
        yield _gauge("lag_bytes", "Log that is not published yet", figures.lag_bytes)
        if figures.lag_ms is not None:
            yield _gauge("lag_seconds", "From commit to acknowledgement", figures.lag_ms / 1000)
        yield _gauge("position_bytes", "Log position, all before is published", figures.position)
        yield from _fillings(levels)


def _fillings(levels: Mapping[str, tuple[Filling, Level]]) -> Iterable[Metric]:
    used = _labelled("used_bytes", "Bytes of the log held back, or of the stream")
    limit = _labelled("limit_bytes", "Limit of it, where there is one")
    forecast = _labelled("forecast_seconds", "Until it is full, while it grows")
    level = _labelled("level", "0 ok, 1 warning, 2 critical, 3 lost")
    for of, (filling, reached) in levels.items():
        used.add_metric([of], filling.used)
        level.add_metric([of], reached.rank)
        if filling.limit is not None:
            limit.add_metric([of], filling.limit)
        if filling.forecast_s is not None:
            forecast.add_metric([of], filling.forecast_s)
    return used, limit, forecast, level


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(PREFIX + name, text, value=value)


def _labelled(name: str, text: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(PREFIX + name, text, labels=["of"])

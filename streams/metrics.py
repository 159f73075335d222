"""What Prometheus may ask a worker: how far its processor is, how far behind, how fast.

A number that is not known is left out rather than told as it was: a worker that stands by, or does
not reach NATS, tells no lag. No label carries row data.
"""

from collections.abc import Iterable
from typing import Final

from mode import Service
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from infra.telemetry import serve_metrics
from streams.progress import Progress, Standing
from streams.settings import WorkerSettings

PREFIX: Final = "giovang_streams_"


class MetricsRefusedError(Exception):
    """The metrics cannot be served; the sentence says what to set."""


class ProcessorMetrics(Collector):
    """A Prometheus collector over what a worker's reporter notes each second."""

    def __init__(self, processor: str, progress: Progress) -> None:
        self._processor = processor
        self._progress = progress

    def collect(self) -> Iterable[Metric]:
        """Return the metrics as they stand."""
        progress = self._progress
        yield self._gauge(
            "active",
            "1 while this process owns the partitions, 0 while it stands by",
            int(progress.is_active),
        )
        yield self._gauge(
            "blocked",
            "1 while something that the work needs is away",
            int(bool(progress.blocked_by)),
        )
        yield self._counter("events", "Events finished", progress.events)
        yield self._counter("rows", "Rows written or messages pushed", progress.rows)
        yield self._counter("dead_letters", "Events kept as dead letters", progress.dead_letters)
        yield self._gauge("events_per_second", "Events finished, of late", progress.events_per_s)
        if progress.last_commit_at is not None:
            yield self._gauge(
                "last_commit_timestamp_seconds",
                "When this process last committed, since the epoch",
                progress.last_commit_at.timestamp(),
            )
        if progress.standing is not None:
            yield from self._partition(progress.standing)

    def _partition(self, standing: Standing) -> Iterable[Metric]:
        yield self._gauge(
            "dead_letters_waiting", "Dead letters that wait for a person", standing.letters
        )
        backlog = standing.backlog
        for name, text, value in (
            ("committed_sequence", "Last event that is finished for good", standing.committed),
            ("lag_events", "Events that wait", backlog.events),
            ("lag_seconds", "Age of the first that waits, from its commit", backlog.lag_ms / 1000),
        ):
            family = GaugeMetricFamily(
                PREFIX + name, text, labels=["processor", "topic", "partition"]
            )
            family.add_metric(
                [self._processor, standing.tp.topic, str(standing.tp.partition)], value
            )
            yield family

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(PREFIX + name, text, labels=["processor"])
        family.add_metric([self._processor], value)
        return family

    def _counter(self, name: str, text: str, value: float) -> Metric:
        family = CounterMetricFamily(PREFIX + name, text, labels=["processor"])
        family.add_metric([self._processor], value)
        return family


class MetricsServer(Service):  # type: ignore[misc]
    """Serves the metrics while the worker runs; port 0 serves none."""

    mundane_level = "debug"

    def __init__(
        self, metrics: ProcessorMetrics, settings: WorkerSettings, **kwargs: object
    ) -> None:
        super().__init__(**kwargs)
        self._metrics = metrics
        self._host, self._port = settings.metrics_host, settings.metrics_port

    async def on_start(self) -> None:
        """Begin to serve; raises MetricsRefusedError where the address is taken."""
        if not self._port:
            return
        try:
            self.add_context(serve_metrics(self._metrics, host=self._host, port=self._port))
        except OSError as error:
            raise MetricsRefusedError(
                f"metrics cannot be served on {self._host}:{self._port} ({error.strerror}): set "
                "GIOVANG_STREAMS_METRICS_PORT to a free port, or to 0"
            ) from error

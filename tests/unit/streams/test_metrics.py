"""What Prometheus is told of a worker: what is known, and nothing that is not."""

import socket

import pytest
from faust.types import TP
from prometheus_client import CollectorRegistry

from streams import progress as progress_module
from streams.backlog import Backlog
from streams.metrics import MetricsRefusedError, MetricsServer, ProcessorMetrics
from streams.progress import Progress, Standing
from streams.settings import WorkerSettings

PARTITION = TP("ledger", 0)


def scrape(progress: Progress) -> dict[str, float]:
    """Return the samples as a scrape has them, without the prefix and the processor."""
    registry = CollectorRegistry()
    registry.register(ProcessorMetrics("giovang-test", progress))
    samples = [sample for metric in registry.collect() for sample in metric.samples]
    assert {sample.labels["processor"] for sample in samples} == {"giovang-test"}
    return {
        sample.name.removeprefix("giovang_streams_"): sample.value
        for sample in samples
        if not sample.name.endswith("_created")
    }


def standing(committed: int, behind: int = 0) -> Standing:
    return Standing(PARTITION, committed, Backlog(behind, lag_ms=1500), letters=2)


def test_a_worker_that_stands_by_tells_no_lag() -> None:
    progress = Progress()
    progress.stands(None, is_active=False)
    assert scrape(progress) == {
        "active": 0,
        "blocked": 0,
        "events_total": 0,
        "rows_total": 0,
        "dead_letters_total": 0,
        "events_per_second": 0,
    }


def test_an_active_worker_tells_its_partition_and_its_last_commit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = iter([100.0, 101.0, 102.0, 103.0, 104.0])
    monkeypatch.setattr(progress_module, "monotonic", lambda: next(clock))
    progress = Progress()
    progress.stands(standing(7, behind=3), is_active=True)
    told = scrape(progress)
    assert (told["committed_sequence"], told["lag_events"], told["lag_seconds"]) == (7, 3, 1.5)
    assert told["dead_letters_waiting"] == 2
    assert "last_commit_timestamp_seconds" not in told, "somebody else may have committed that"

    progress.advanced(sequence=27, events=20, rows=12)
    progress.dead_letters += 1
    progress.blocked("warehouse away")
    progress.stands(standing(27), is_active=True)
    told = scrape(progress)
    assert told["events_total"] == 20
    assert told["rows_total"] == 12
    assert told["dead_letters_total"] == 1
    assert told["blocked"] == 1
    assert told["events_per_second"] == 10
    assert told["last_commit_timestamp_seconds"] > 0

    progress.stands(None, is_active=True)
    told = scrape(progress)
    assert told["active"] == 1
    assert not {"lag_events", "dead_letters_waiting"} & told.keys(), "NATS is away"


async def test_a_port_that_is_taken_is_refused_with_advice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setenv("GIOVANG_STREAMS_METRICS_PORT", str(port))
        monkeypatch.setenv("GIOVANG_STREAMS_NATS_URL", "nats://127.0.0.1")
        monkeypatch.setenv("GIOVANG_STREAMS_STATE_DIR", "/nowhere")
        server = MetricsServer(ProcessorMetrics("giovang-test", Progress()), WorkerSettings())
        with pytest.raises(MetricsRefusedError, match=f"127.0.0.1:{port} .*METRICS_PORT"):
            await server.start()

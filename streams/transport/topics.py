"""Topics: which stream carries which topic, and how many partitions it has.

Declared topics become streams of ours; external topics are streams of somebody else, named in the
broker URL as `?topic.<topic>=<STREAM>`; changelogs of tables lie in the app's state stream. A
stream is created only when the app declares its topic; a missing or differently shaped one is an
error, never mended in silence.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig, StreamInfo
from nats.js.errors import NotFoundError
from yarl import URL

from streams.transport import names
from streams.transport.connection import Connection, is_missing_stream
from streams.transport.errors import TopicMismatchError, TopicMissingError, TopicMovedError
from streams.transport.state import ensure_state_stream

DEDUPLICATION_WINDOW_S = 120.0
EXTERNAL_PREFIX = "topic."


@dataclass(frozen=True, slots=True)
class TopicShape:
    """How a topic lies in JetStream.

    `counts` are the partitions of each of its layouts, the last the present one: a topic that was
    given more keeps what was stored before where it was.
    """

    topic: str
    stream: str
    partitions: int
    compacting: bool
    external: bool
    is_changelog: bool = False
    root: str = ""
    counts: tuple[int, ...] = ()

    @property
    def layout(self) -> int:
        """The number of the present layout: how often the topic was given more partitions."""
        return max(0, len(self.counts) - 1)

    def former(self, layout: int, partition: int | str = "*") -> str:
        """Return the subject filter of a former layout, of all partitions or of one."""
        root = names.topic_root(self.topic, layout)
        return f"{root}.{partition}" + (".*" if self.compacting else "")

    def origin(self, subject: str) -> tuple[int, int]:
        """Return the layout and the partition that a message was stored in."""
        first, *rest = subject.removeprefix(f"{names.topic_root(self.topic)}.").split(".")
        return (int(first[1:]), int(rest[0])) if first.startswith("e") else (0, int(first))

    def filter(self, partition: int) -> str | None:
        """Return the subject filter of a partition; None when it is the whole stream."""
        if self.external:
            return None
        return f"{self.root}.{partition}" + (".>" if self.compacting else "")

    def subject(self, partition: int, key: bytes | None) -> str:
        """Return the subject a message is published on; a compacted topic has one a key."""
        return f"{self.root}.{partition}" + (f".{names.key_token(key)}" if self.compacting else "")


@dataclass(frozen=True, slots=True)
class Changelogs:
    """Which topics are changelogs of an app's tables; they lie in its state stream."""

    app_id: str
    includes: Callable[[str], bool]


NO_CHANGELOGS = Changelogs("", lambda _: False)


def external_topics(urls: list[URL]) -> dict[str, str]:
    """Read the topics that are other people's streams from the broker URLs."""
    return {
        name.removeprefix(EXTERNAL_PREFIX): stream
        for url in urls
        for name, stream in url.query.items()
        if name.startswith(EXTERNAL_PREFIX)
    }


def declared_shape(topic: str, metadata: Mapping[str, str]) -> TopicShape:
    """Return how a declared topic lies, as the metadata of its stream say."""
    partitions = metadata[names.PARTITIONS_METADATA]
    counts = tuple(map(int, metadata.get(names.LAYOUTS_METADATA, partitions).split(",")))
    return TopicShape(
        topic=topic,
        stream=names.topic_stream(topic),
        partitions=int(partitions),
        compacting=metadata.get(names.COMPACTING_METADATA) == "1",
        external=False,
        root=names.topic_root(topic, len(counts) - 1),
        counts=counts,
    )


class Topics:
    """The topics one connection knows; loaded once, then answered without I/O."""

    def __init__(
        self,
        connection: Connection,
        external: Mapping[str, str],
        changelogs: Changelogs = NO_CHANGELOGS,
    ) -> None:
        self._connection = connection
        self._external = dict(external)
        self._changelogs = changelogs
        self._known: dict[str, TopicShape] = {}

    def known(self, topic: str) -> TopicShape | None:
        """Return a loaded topic, without I/O."""
        return self._known.get(topic)

    async def load(self, topic: str) -> TopicShape:
        """Return a topic's shape; the first time the server is asked, or TopicMissingError raised.

        An external stream counts as one partition, so that its total order is kept.
        """
        known = self._known.get(topic)
        return known if known is not None else await self.learn(topic)

    async def confirm(self, topic: str) -> TopicShape:
        """Ask the server again; TopicMovedError when the topic's layout is not the loaded one."""
        known = self._known.get(topic)
        found = await self._look_up(topic)
        if known is not None and known.root != found.root:
            raise TopicMovedError(topic, known.partitions, found.partitions)
        self._known[topic] = found
        return found

    async def learn(self, topic: str) -> TopicShape:
        """Ask the server, whatever was known before, and keep what it says."""
        self._known[topic] = shape = await self._look_up(topic)
        return shape

    async def _look_up(self, topic: str) -> TopicShape:
        if self._changelogs.includes(topic):
            return await self._changelog(topic)
        external = topic in self._external
        stream = self._external.get(topic) or names.topic_stream(topic)
        info = await self._stream_info(topic, stream)
        if external:
            return TopicShape(topic, stream, 1, compacting=False, external=True)
        return declared_shape(topic, info.config.metadata or {})

    async def create(
        self,
        topic: str,
        *,
        partitions: int,
        replicas: int,
        retention_s: float | None = None,
        compacting: bool = False,
        config: Mapping[str, Any] | None = None,
    ) -> TopicShape:
        """Create the stream of a declared topic, or check the one there is.

        `config` may state `max_bytes`. An external topic is only looked up. TopicMismatchError when
        the stream has another partition count or compaction.
        """
        if topic in self._external:
            return await self.load(topic)
        if self._changelogs.includes(topic):
            await self._create_changelog(topic, partitions, replicas)
            return await self._checked(topic, partitions, compacting=True)
        wanted = StreamConfig(
            name=names.topic_stream(topic),
            description=f"Faust topic {topic}",
            subjects=[names.topic_subjects(topic)],
            retention=RetentionPolicy.LIMITS,
            storage=StorageType.FILE,
            discard=DiscardPolicy.OLD,
            num_replicas=replicas,
            max_age=None if compacting else retention_s,
            max_bytes=int((config or {}).get("max_bytes", -1)),
            max_msgs_per_subject=1 if compacting else -1,
            duplicate_window=DEDUPLICATION_WINDOW_S,
            allow_atomic=True,
            metadata={
                names.PARTITIONS_METADATA: str(partitions),
                names.COMPACTING_METADATA: "1" if compacting else "0",
            },
        )
        await self._connection.ensure_stream(f"declare topic {topic}", wanted)
        return await self._checked(topic, partitions, compacting=compacting)

    async def _checked(self, topic: str, partitions: int, *, compacting: bool) -> TopicShape:
        shape = await self.confirm(topic)
        if (shape.partitions, shape.compacting) != (partitions, compacting):
            raise TopicMismatchError(
                topic,
                f"{partitions} partitions, compacting={compacting}",
                f"{shape.partitions} partitions, compacting={shape.compacting}",
            )
        return shape

    async def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        """Return the first and the next offset of a partition; (0, 0) when it is empty."""
        shape = await self.load(topic)
        subject = shape.filter(partition)
        if subject is None:
            state = (await self._stream_info(topic, shape.stream)).state
            return (state.first_seq, state.last_seq + 1) if state.last_seq else (0, 0)
        # What former layouts hold counts for every partition: a bound that is too wide is harmless.
        first, last = 0, 0
        for each in [*map(shape.former, range(shape.layout)), subject]:
            newest = await self._connection.last_message(shape.stream, each)
            if newest is not None:
                oldest = await self._connection.next_message(shape.stream, each)
                first = first or (oldest or newest).sequence
                last = max(last, newest.sequence)
        return first, last + 1 if last else 0

    async def _stream_info(self, topic: str, stream: str) -> StreamInfo:
        try:
            return await self._connection.retrying(
                f"look up {stream}", lambda: self._connection.jetstream.stream_info(stream)
            )
        except NotFoundError as error:
            if is_missing_stream(error):
                raise TopicMissingError(topic, stream) from error
            raise

    async def _changelog(self, topic: str) -> TopicShape:
        app_id = self._changelogs.app_id
        stream = names.group_stream(app_id)
        await self._stream_info(topic, stream)
        record = await self._connection.last_message(stream, names.changelog_record(app_id, topic))
        if record is None:
            raise TopicMissingError(topic, stream)
        document = json.loads(record.data)
        return TopicShape(
            topic=topic,
            stream=stream,
            partitions=int(document["partitions"]),
            compacting=True,
            external=False,
            is_changelog=True,
            root=names.changelog_root(app_id, topic, document.get("layout", "")),
        )

    async def _create_changelog(self, topic: str, partitions: int, replicas: int) -> None:
        app_id = self._changelogs.app_id
        await ensure_state_stream(self._connection, app_id, replicas)
        subject = names.changelog_record(app_id, topic)
        payload = json.dumps({"partitions": partitions}).encode()
        await self._connection.retrying(
            f"declare topic {topic}",
            lambda: self._connection.put_if(subject, payload, expected=0),
        )

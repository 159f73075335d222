"""Growth: a declared topic is given more partitions, and the apps that read it follow.

A topic changes in one step: its stream takes other subjects, and says how many partitions they
have. Producers of the former count are refused by the server from then on, and learn the new one.
An app follows in one step too (relocation.py), and until it has its workers refuse to start. So a
run that was killed anywhere is told again, with the same result. What cannot be done safely is
refused before anything is changed, with PartitionsRefusedError.
"""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nats.js.api import StorageType, StreamConfig
from nats.js.errors import NotFoundError

from streams.transport import names
from streams.transport.connection import Connection
from streams.transport.errors import PartitionsRefusedError
from streams.transport.layouts import app_layout
from streams.transport.relocation import (
    AppState,
    Relocation,
    Say,
    app_state,
    tidy_up,
)
from streams.transport.topics import TopicShape, declared_shape

PARTITIONS_LIMIT = 500
GROUP_PREFIX = names.group_stream("")


@dataclass(frozen=True, slots=True)
class _Topic:
    """A topic to be grown: how it lies, and since when its stream exists."""

    shape: TopicShape
    created: str
    wanted: int

    @property
    def grows(self) -> bool:
        return self.shape.partitions < self.wanted

    def grown(self) -> TopicShape:
        """Return how the topic lies afterwards."""
        if not self.grows:
            return self.shape
        counts = (*self.shape.counts, self.wanted)
        root = names.topic_root(self.shape.topic, len(counts) - 1)
        return replace(self.shape, partitions=self.wanted, counts=counts, root=root)


async def add_partitions(
    connection: Connection,
    topics: Sequence[str],
    partitions: int,
    *,
    apps: Collection[str] = (),
    dry_run: bool = False,
    say: Say = lambda _: None,
) -> None:
    """Give each of `topics` that many partitions, and take the apps that read them along.

    `apps` names those to take along now; without it all are. Told again, it goes on where it was.
    Raises PartitionsRefusedError before anything is changed, or where somebody came between.
    """
    growing = [await _topic(connection, topic, partitions) for topic in dict.fromkeys(topics)]
    for each in growing:
        await _check_plan(connection, each)
    found = await _readers_of(connection, [each.shape.topic for each in growing])
    unknown = set(apps) - {app.app_id for app in found}
    if unknown:
        raise PartitionsRefusedError(
            f"app {min(unknown)!r} has read none of these topics: leave it out"
        )
    chosen = [app for app in found if not apps or app.app_id in apps]
    for app in found:
        await _check_members(connection, app, growing, is_chosen=app in chosen)
        _check_companions(app, growing, await _counts(connection, app))
    for app in chosen:
        relocation = await _relocation(connection, app, growing, say)
        if relocation is not None:
            await relocation.examine()
    for each in growing:
        becomes = f"become {partitions}" if each.grows else "are there already"
        say(f"topic {each.shape.topic}: {each.shape.partitions} partitions {becomes}")
    if dry_run:
        say("nothing was changed: this was a dry run")
        return
    grown = [await _grow(connection, each, say) for each in growing]
    for app in chosen:
        relocation = await _relocation(connection, app, grown, say)
        if relocation is None:
            await tidy_up(connection, app.app_id)
        else:
            await relocation.run()
    say(f"done: declare {partitions} partitions, and start the workers")


async def _topic(connection: Connection, topic: str, wanted: int) -> _Topic:
    stream = names.topic_stream(topic)
    try:
        info = await connection.stream_document(stream)
    except NotFoundError:
        info = {}
    metadata = info.get("config", {}).get("metadata", {})
    if names.PARTITIONS_METADATA not in metadata:
        raise PartitionsRefusedError(
            f"topic {topic!r} is none that an app declared (there is no stream {stream!r} of this "
            "transport): the partitions of an external topic are its owner's"
        )
    shape = declared_shape(topic, metadata)
    if wanted < shape.partitions:
        raise PartitionsRefusedError(
            f"topic {topic!r} has {shape.partitions} partitions, and none can be taken away: "
            f"ask for more than {shape.partitions}"
        )
    if wanted > PARTITIONS_LIMIT:
        raise PartitionsRefusedError(f"a topic has at most {PARTITIONS_LIMIT} partitions")
    return _Topic(shape, info["created"], wanted)


async def _check_plan(connection: Connection, topic: _Topic) -> tuple[int, dict[str, Any]]:
    """Return the last plan for a topic and its sequence; refuse where another is under way."""
    name = topic.shape.topic
    try:
        stored = await connection.last_message(names.PLAN_STREAM, names.plan_subject(name))
    except NotFoundError:
        stored = None
    if stored is None:
        return 0, {}
    plan = json.loads(stored.data)
    is_under_way = (plan["created"], plan["layout"]) == (topic.created, topic.shape.layout + 1)
    if is_under_way and plan["partitions"] != topic.wanted:
        raise PartitionsRefusedError(
            f"topic {name!r} is being given {plan['partitions']} partitions: "
            f"finish that first, with --partitions {plan['partitions']}"
        )
    return stored.sequence, plan


async def _readers_of(connection: Connection, topics: Collection[str]) -> list[AppState]:
    """Return the apps that have offsets of one of the topics, or living workers that read one."""
    streams: list[str] = []
    while True:
        page = await connection.call("STREAM.NAMES", {"offset": len(streams)})
        streams += page["streams"] or []
        if not page["streams"] or len(streams) >= page["total"]:
            break
    apps = [
        await app_state(connection, names.from_token(stream.removeprefix(GROUP_PREFIX)))
        for stream in sorted(streams)
        if stream.startswith(GROUP_PREFIX)
    ]
    return [app for app in apps if (app.topics() | app.subscribed) & set(topics)]


async def _check_members(
    connection: Connection, app: AppState, growing: Sequence[_Topic], *, is_chosen: bool
) -> None:
    behind = is_chosen and await _behind(connection, app, growing)
    if app.members and (behind or any(each.grows for each in growing)):
        raise PartitionsRefusedError(
            f"app {app.app_id!r} has workers alive ({', '.join(app.members)}): stop them, then "
            "tell the command again (one that was killed counts until its lease is over)"
        )


async def _counts(connection: Connection, app: AppState) -> dict[str, int]:
    """Return how many partitions the topics have that an app reads; an external one has one."""
    counts = {}
    for topic in app.topics():
        try:
            info = await connection.stream_document(names.topic_stream(topic))
        except NotFoundError:
            counts[topic] = 1
            continue
        shape = declared_shape(topic, info["config"]["metadata"])
        layout = await app_layout(connection, app.app_id, topic)
        counts[topic] = shape.counts[min(layout.layout, shape.layout)]
    return counts


def _check_companions(app: AppState, growing: Sequence[_Topic], counts: dict[str, int]) -> None:
    """Refuse where tables may rest on topics of as many partitions that are not named."""
    named = {each.shape.topic for each in growing}
    wanted = {each.wanted for each in growing}
    former = {count for topic, count in counts.items() if topic in named} - wanted
    left = sorted(topic for topic in counts.keys() - named if counts[topic] in former)
    if left and any(table.partitions in former for table in app.tables):
        raise PartitionsRefusedError(
            f"app {app.app_id!r} has tables and also reads {', '.join(map(repr, left))} of as many "
            "partitions: name all of them, each with --topic, so that they stay together"
        )


async def _behind(
    connection: Connection, app: AppState, topics: Sequence[_Topic]
) -> dict[str, Any]:
    """Return the topics whose present (or next) layout an app's offsets do not lie in."""
    behind = {}
    for each in topics:
        shape = each.grown()
        layout = await app_layout(connection, app.app_id, shape.topic)
        if shape.topic in app.topics() and layout.layout < shape.layout:
            behind[shape.topic] = layout
    return behind


async def _relocation(
    connection: Connection, app: AppState, topics: Sequence[_Topic], say: Say
) -> Relocation | None:
    behind = await _behind(connection, app, topics)
    if not behind:
        return None
    shapes = {
        each.shape.topic: (each.shape, behind[each.shape.topic])
        for each in topics
        if each.shape.topic in behind
    }
    return Relocation(connection, app, shapes, topics[0].wanted, say)


async def _grow(connection: Connection, topic: _Topic, say: Say) -> _Topic:
    """Bring a topic into its next layout; return it as it lies then."""
    if not topic.grows:
        return topic
    shape, grown = topic.shape, topic.grown()
    plans = StreamConfig(
        name=names.PLAN_STREAM,
        description="how many partitions Faust topics are being given",
        subjects=[f"{names.PLAN_ROOT}.>"],
        storage=StorageType.FILE,
        max_msgs_per_subject=1,
    )
    info = await connection.stream_document(shape.stream)
    plans.num_replicas = int(info["config"]["num_replicas"])
    await connection.ensure_stream("plan partitions", plans)
    sequence, plan = await _check_plan(connection, topic)
    wanted = {"created": topic.created, "layout": grown.layout, "partitions": topic.wanted}
    if plan != wanted:
        payload = json.dumps(wanted).encode()
        subject = names.plan_subject(shape.topic)
        if await connection.put_if(subject, payload, expected=sequence) is None:
            raise PartitionsRefusedError(
                f"another run of this command gives topic {shape.topic!r} partitions: "
                "let it finish, then tell this one again"
            )
    say(f"topic {shape.topic}: decided")
    config = info["config"]
    config["subjects"] = [names.topic_subjects(shape.topic, grown.layout)]
    config["metadata"] |= {
        names.PARTITIONS_METADATA: str(grown.partitions),
        names.LAYOUTS_METADATA: ",".join(map(str, grown.counts)),
    }
    await connection.call(f"STREAM.UPDATE.{shape.stream}", config)
    say(f"topic {shape.topic}: takes events in {grown.partitions} partitions")
    return replace(topic, shape=grown)

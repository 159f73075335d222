"""The ledger stream as it is stated: every limit of it, in this one place, version by version.

What JetStream holds is compared with the statement of the version that made it; a difference is
named, never mended in silence. Provisioning brings a stream that is exactly as an earlier version
stated it forward, one version after the other. A limit that its setting raises is raised; nothing
is ever lowered, since that could only refuse or drop what is there.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig

from ingest import contract
from ingest.checkpoint import METADATA_ORIGIN, METADATA_SLOT, METADATA_SYSTEM, LogState
from ingest.errors import ProvisionRefused
from ingest.settings import IngestSettings

METADATA_STATED: Final = "giovang.stated"
METADATA_ENVELOPE: Final = "giovang.envelope"
DUPLICATE_WINDOW_S: Final = 120.0
"""The least JetStream offers to state; ids are not used as message ids, the fence stands in."""
SYNC_REPLICAS: Final = 3
"""With fewer replicas each write must be on disk before it is acknowledged."""


@dataclass(frozen=True, slots=True)
class Statement:
    """The stream as one version states it, and why that version came to be."""

    version: int
    reason: str
    config: StreamConfig


def statements(settings: IngestSettings, log_state: LogState, origin: int) -> tuple[Statement, ...]:
    """State the stream in every version there was, oldest first; the last one counts.

    A full stream refuses new changes rather than dropping old ones, so its last event, from which
    capture resumes, never goes, and nothing that a reader has not seen is discarded in silence.
    """
    first = StreamConfig(
        name=settings.stream,
        description="Every committed change of the ledger, once, in commit order",
        subjects=[f"{contract.SUBJECT_ROOT}.>"],
        retention=RetentionPolicy.LIMITS,
        storage=StorageType.FILE,
        discard=DiscardPolicy.NEW,
        max_bytes=settings.stream_max_bytes,
        max_msgs=-1,
        max_msgs_per_subject=-1,
        max_msg_size=-1,
        max_age=0,
        max_consumers=-1,
        num_replicas=settings.replicas,
        duplicate_window=DUPLICATE_WINDOW_S,
        allow_atomic=True,
        deny_delete=True,
        metadata={
            METADATA_SYSTEM: log_state.system,
            METADATA_SLOT: settings.slot,
            METADATA_ORIGIN: str(origin),
        },
    )
    second = _with_metadata(
        replace(first, subjects=list(contract.SUBJECTS)),
        {METADATA_STATED: "2", METADATA_ENVELOPE: "2"},
    )
    return (
        Statement(1, "the stream of release 0.1", first),
        Statement(
            2,
            "says which version states it, and the newest envelope that it may hold; takes only "
            "subjects of published tables",
            second,
        ),
    )


_STATED: Final = (
    "subjects",
    "retention",
    "storage",
    "discard",
    "max_bytes",
    "max_msgs",
    "max_msgs_per_subject",
    "max_msg_size",
    "max_age",
    "max_consumers",
    "num_replicas",
    "duplicate_window",
    "allow_atomic",
    "deny_delete",
)
_RAISED: Final = ("max_bytes", "num_replicas")
"""Limits that a setting may raise on a stream that holds events."""


def drift(stated: StreamConfig, found: StreamConfig) -> list[str]:
    """Name each setting in which a stream differs from what is stated."""
    differences = [
        f"{name} is {getattr(found, name)!r}, stated is {_plain(getattr(stated, name))!r}"
        for name in _STATED
        if _plain(getattr(found, name)) != _plain(getattr(stated, name))
    ]
    stated_metadata, metadata = stated.metadata or {}, found.metadata or {}
    return differences + [
        f"metadata {name} is {metadata.get(name)!r}, stated is {value!r}"
        for name, value in stated_metadata.items()
        if name != METADATA_ORIGIN and metadata.get(name) != value
    ]


def stated_version(found: StreamConfig) -> int:
    """Return the version that stated a stream; the first one did not say so yet."""
    text = (found.metadata or {}).get(METADATA_STATED, "1")
    if not text.isdecimal():
        raise ProvisionRefused(f"stream {found.name}: {METADATA_STATED} is {text!r}, not a number")
    return int(text)


def steps(stated: tuple[Statement, ...], found: StreamConfig) -> list[Statement]:
    """Return what brings a stream to the last statement, in order; nothing where it is there.

    Raises `ProvisionRefused` naming every difference from the version that made it, or where a
    later release made it.
    """
    version = stated_version(found)
    if version > stated[-1].version:
        raise ProvisionRefused(
            f"stream {found.name} is stated in version {version} by a later release; this one "
            f"knows {stated[-1].version}"
        )
    at = next(index for index, each in enumerate(stated) if each.version == version)
    raised = {
        name: getattr(stated[at].config, name)
        for name in _RAISED
        if (getattr(found, name) or 0) < (getattr(stated[at].config, name) or 0)
    }
    # "No limit" is the highest of all, and JetStream writes it as -1.
    if found.max_bytes is not None and found.max_bytes < 0:
        raised.pop("max_bytes", None)
    if differences := drift(stated[at].config, replace(found, **raised)):
        raise ProvisionRefused(
            f"stream {found.name} differs from what is stated: {'; '.join(differences)}"
        )
    todo = list(stated[at + 1 :])
    if raised and not todo:
        todo.append(replace(stated[at], reason=f"{' and '.join(raised)} raised by its setting"))
    return todo


async def bring_forward(
    jetstream: JetStreamContext, stated: tuple[Statement, ...], found: StreamConfig
) -> list[Statement]:
    """Take a stream through `steps`, each an update that JetStream checks; return them."""
    kept = {
        name: value for name, value in (found.metadata or {}).items() if name == METADATA_ORIGIN
    }
    todo = steps(stated, found)
    for step in todo:
        try:
            await jetstream.update_stream(_with_metadata(step.config, kept))
        except (NatsError, TimeoutError) as error:
            raise ProvisionRefused(
                f"stream {found.name} cannot be brought to version {step.version} "
                f"({step.reason}): {error!r}"
            ) from error
    return todo


def sync_drift(replicas: int, server: Mapping[str, Any]) -> str | None:
    """Say what is wrong with when the server syncs to disk; None where it is as stated.

    `server` is `config` of the server's `/jsz` monitoring. An acknowledged event is on one disk or
    on three machines.
    """
    if replicas >= SYNC_REPLICAS or server.get("sync_always"):
        return None
    every_s = server.get("sync_interval", 0) / 1e9
    return (
        f"the server syncs to disk every {every_s:.0f} s, stated is sync_interval: always with "
        f"fewer than {SYNC_REPLICAS} replicas"
    )


def _with_metadata(config: StreamConfig, more: Mapping[str, str]) -> StreamConfig:
    return replace(config, metadata={**(config.metadata or {}), **more})


def _plain(value: object) -> object:
    return getattr(value, "value", value)

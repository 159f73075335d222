"""The ledger stream as it is stated: every limit of it, in this one place.

What JetStream holds is compared with this; a difference is named, never mended in silence.
"""

from typing import Final

from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig

from ingest import contract
from ingest.checkpoint import METADATA_ORIGIN, METADATA_SLOT, METADATA_SYSTEM, LogState
from ingest.settings import IngestSettings

DUPLICATE_WINDOW_S: Final = 120.0
"""The least JetStream offers to state; ids are not used as message ids, the fence stands in."""


def stream_config(settings: IngestSettings, log_state: LogState, origin: int) -> StreamConfig:
    """State the ledger stream, every limit of it.

    A full stream refuses new changes rather than dropping old ones, so its last event, from which
    capture resumes, never goes, and nothing that a reader has not seen is discarded in silence.
    """
    return StreamConfig(
        name=settings.stream,
        description="Every committed change of the ledger, once, in commit order",
        subjects=[contract.SUBJECTS],
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


def drift(stated: StreamConfig, found: StreamConfig) -> list[str]:
    """Name each setting in which a stream differs from what is stated."""
    differences = [
        f"{name} is {getattr(found, name)!r}, stated is {_plain(getattr(stated, name))!r}"
        for name in _STATED
        if _plain(getattr(found, name)) != _plain(getattr(stated, name))
    ]
    stated_metadata, metadata = stated.metadata or {}, found.metadata or {}
    return differences + [
        f"metadata {name} is {metadata.get(name)!r}, stated is {stated_metadata[name]!r}"
        for name in (METADATA_SYSTEM, METADATA_SLOT)
        if metadata.get(name) != stated_metadata[name]
    ]


def _plain(value: object) -> object:
    return getattr(value, "value", value)

"""The stated stream: which version is brought to which, and what is refused."""

from dataclasses import replace
from typing import Any

import pytest
from nats.js.api import StreamConfig

from ingest import contract
from ingest.checkpoint import LogState
from ingest.errors import ProvisionRefused
from ingest.settings import IngestSettings
from ingest.stream import METADATA_ENVELOPE, METADATA_STATED, statements, steps, sync_drift

SETTINGS = IngestSettings.model_validate(
    {"database_url": "postgresql://u@h/d", "nats_url": "nats://h"}
)
LOG = LogState(system="7", position=500, slot=None, offset=100, origin=100)
STATED = statements(SETTINGS, LOG, 100)


def found(index: int, **changes: Any) -> StreamConfig:
    """A stream as JetStream tells it, which adds metadata of its own."""
    config = STATED[index].config
    metadata = {**(config.metadata or {}), "_nats.ver": "2.15.0"}
    return replace(config, **{"metadata": metadata, **changes})


def test_versions_count_up_and_the_last_one_names_the_envelope() -> None:
    assert [each.version for each in STATED] == list(range(1, len(STATED) + 1))
    assert all(each.reason for each in STATED)
    metadata = STATED[-1].config.metadata or {}
    assert metadata[METADATA_STATED] == str(STATED[-1].version)
    assert metadata[METADATA_ENVELOPE] == str(contract.SCHEMA_VERSION), (
        "a new envelope takes a new version of the stream"
    )


def test_the_newest_stream_is_left_alone() -> None:
    assert steps(STATED, found(-1)) == []


def test_an_earlier_stream_goes_through_every_version_after_it() -> None:
    assert [step.version for step in steps(STATED, found(0))] == [2]


@pytest.mark.parametrize("index", [0, -1])
def test_nothing_is_brought_across_a_difference(index: int) -> None:
    with pytest.raises(ProvisionRefused, match="max_age is 60, stated is 0"):
        steps(STATED, found(index, max_age=60))
    with pytest.raises(ProvisionRefused, match=r"giovang\.system is '8'"):
        steps(STATED, found(index, metadata={**found(index).metadata, "giovang.system": "8"}))


def test_a_raised_limit_is_raised_and_never_lowered() -> None:
    smaller = SETTINGS.stream_max_bytes // 2
    step = steps(STATED, found(-1, max_bytes=smaller))
    assert [each.config.max_bytes for each in step] == [SETTINGS.stream_max_bytes]
    assert step[0].reason == "max_bytes raised by its setting"
    with pytest.raises(ProvisionRefused, match="max_bytes is"):
        steps(STATED, found(-1, max_bytes=SETTINGS.stream_max_bytes + 1))
    with pytest.raises(ProvisionRefused, match="max_bytes is -1"):
        steps(STATED, found(-1, max_bytes=-1))


def test_a_later_release_is_not_undone() -> None:
    later = {**found(-1).metadata, METADATA_STATED: "99"}
    with pytest.raises(ProvisionRefused, match="version 99 by a later release"):
        steps(STATED, found(-1, metadata=later))
    with pytest.raises(ProvisionRefused, match="not a number"):
        steps(STATED, found(-1, metadata={**later, METADATA_STATED: "new"}))


def test_one_copy_must_be_on_disk_before_it_is_acknowledged() -> None:
    assert sync_drift(1, {"sync_always": True, "sync_interval": 120_000_000_000}) is None
    told = sync_drift(1, {"sync_interval": 120_000_000_000})
    assert told is not None
    assert "every 120 s" in told
    assert sync_drift(3, {"sync_interval": 120_000_000_000}) is None

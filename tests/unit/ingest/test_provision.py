"""What is stated, what drifted, what may be made anew."""

from dataclasses import replace

import pytest
from nats.js.api import DiscardPolicy, StreamConfig

from ingest import debezium
from ingest.checkpoint import (
    Done,
    LogState,
    SlotState,
    StreamState,
    WalStatus,
    offset_key,
    offset_value,
)
from ingest.contract import EventId
from ingest.provision import plan
from ingest.settings import IngestSettings
from ingest.stream import drift, statements

SETTINGS = IngestSettings(
    database_url="postgresql://capture:p%40ss@db.local:6432/giovang?sslmode=require",
    nats_url="nats://localhost:4222",
)
SLOT = SlotState(confirmed=100, restart=90, wal_status=WalStatus.RESERVED, active_pid=None)
LOG = LogState(system="7", position=500, slot=SLOT, offset=300, origin=100)
STREAM = StreamState(last_sequence=12, messages=12, last_id=EventId(200, 3), system="7", origin=100)


def test_every_limit_of_the_stream_is_stated() -> None:
    stated = statements(SETTINGS, LOG, 100)[-1].config
    assert stated.discard is DiscardPolicy.NEW, "old events, and so the last, would go"
    assert stated.max_age == 0
    assert stated.max_msgs == stated.max_msgs_per_subject == -1
    assert stated.max_bytes == SETTINGS.stream_max_bytes
    assert stated.allow_atomic
    assert stated.deny_delete
    assert "ledger.payment.>" in stated.subjects
    assert "ledger.>" not in stated.subjects, "others tell of the ledger too"
    assert drift(stated, stated) == []


def test_drift_is_named() -> None:
    stated = statements(SETTINGS, LOG, 100)[-1].config
    found = stated.evolve(
        max_bytes=5, allow_atomic=None, discard="old", metadata={"giovang.system": "8"}
    )
    told = drift(stated, found)
    assert f"max_bytes is 5, stated is {SETTINGS.stream_max_bytes}" in told
    assert "allow_atomic is None, stated is True" in told
    assert "discard is 'old', stated is 'new'" in told
    assert "metadata giovang.system is '8', stated is '7'" in told
    assert "metadata giovang.slot is None, stated is 'giovang_capture'" in told
    assert len(told) == 7, "and the two that say what states it"


def test_servers_own_metadata_is_no_drift() -> None:
    stated = statements(SETTINGS, LOG, 100)[-1].config
    metadata = dict(stated.metadata or {}) | {"_nats.ver": "2.15.1", "giovang.origin": "1"}
    assert drift(stated, StreamConfig(**(vars(stated) | {"metadata": metadata}))) == []


NOTHING = replace(LOG, slot=None, offset=None, origin=None)


@pytest.mark.parametrize(
    ("log", "stream", "todo", "losses"),
    [
        (NOTHING, None, (True, True, True), []),
        (LOG, STREAM, (False, False, False), []),
        (replace(LOG, offset=100), None, (True, False, False), []),
        (replace(LOG, offset=None, origin=None), None, (True, False, True), []),
        (LOG, None, (True, False, True), ["were published to it"]),
        (replace(LOG, slot=None), STREAM, (False, True, True), ["captured by nobody"]),
        (
            replace(LOG, slot=replace(SLOT, wal_status=WalStatus.LOST)),
            STREAM,
            (False, True, True),
            ["was invalidated"],
        ),
        (replace(LOG, slot=None), None, (True, True, True), ["published to it", "by nobody"]),
        (replace(LOG, offset=None), STREAM, (False, False, True), ["published again"]),
        (replace(NOTHING), STREAM, (False, True, True), ["captured by nobody"]),
        (replace(LOG, offset=99), STREAM, (False, False, True), ["ahead of the stored offset"]),
        (replace(LOG, offset_sequence=12), STREAM, (False, False, False), []),
        (replace(LOG, offset_sequence=13), STREAM, (False, False, True), ["acknowledged 13"]),
    ],
)
def test_what_held_events_is_not_made_anew_in_silence(
    log: LogState, stream: StreamState | None, todo: tuple[bool, bool, bool], losses: list[str]
) -> None:
    found = plan("s", log, stream)
    assert (found.stream, found.slot, found.offset) == todo
    assert len(found.losses) == len(losses)
    for loss, told in zip(found.losses, losses, strict=True):
        assert told in loss


@pytest.mark.parametrize(
    ("log", "stream", "told_to"),
    [
        (replace(LOG, slot=None), STREAM, 300),
        (replace(LOG, slot=replace(SLOT, wal_status=WalStatus.LOST)), STREAM, 300),
        (replace(LOG, offset=99), STREAM, 99),
        (NOTHING, STREAM, 200),
        (LOG, None, None),
        (replace(LOG, slot=None), None, None),
        (replace(LOG, offset=None, slot=replace(SLOT, confirmed=201)), STREAM, 200),
        (replace(LOG, offset_sequence=13, slot=replace(SLOT, confirmed=201)), STREAM, 200),
    ],
)
def test_what_the_stream_will_lack_is_a_gap(
    log: LogState, stream: StreamState | None, told_to: int | None
) -> None:
    found = plan("s", log, stream)
    assert found.untold
    assert found.told_to == told_to


@pytest.mark.parametrize(
    ("log", "stream"), [(LOG, STREAM), (NOTHING, None), (replace(LOG, offset=None), STREAM)]
)
def test_what_the_stream_will_have_is_no_gap(log: LogState, stream: StreamState | None) -> None:
    assert not plan("s", log, stream).untold


def test_the_first_offset_is_under_the_engines_key_and_skips_the_search() -> None:
    assert offset_key(SETTINGS) == '["giovang_capture",{"server":"giovang"}]'
    assert offset_value(Done(5, 7)) == {
        "lsn": 5,
        "lsn_commit": 5,
        "messageType": "COMMIT",
        "giovang_sequence": 7,
    }
    properties = debezium.engine_properties(SETTINGS, "?", Done(5, 7))
    assert properties["name"] == "giovang_capture"
    assert properties["topic.prefix"] == "giovang"


def test_the_engine_gets_the_database_and_never_retries_by_itself() -> None:
    properties = debezium.engine_properties(SETTINGS, "?", Done(5, 7))
    assert properties["database.hostname"] == "db.local"
    assert properties["database.port"] == "6432"
    assert properties["database.password"] == "p@ss"
    assert properties["database.sslmode"] == "require"
    assert properties["offset.storage.jdbc.table.name"] == "giovang_capture_offset"
    assert properties["errors.max.retries"] == "0"
    assert properties["message.prefix.exclude.list"] == ".*"


def test_settings_name_what_is_missing() -> None:
    with pytest.raises(ValueError, match="names no user"):
        IngestSettings(database_url="postgresql://host/db", nats_url="nats://x")
    with pytest.raises(ValueError, match="slot"):
        IngestSettings(
            database_url=SETTINGS.database_url, nats_url="nats://x", slot="Robert'); DROP"
        )


def test_the_class_path_is_what_postgresql_needs() -> None:
    names = [path.rpartition("/")[2] for path in debezium.class_path()]
    assert len(names) == len(set(names))
    assert any(name.startswith("debezium-connector-postgres-") for name in names)
    assert not any("mysql" in name or "mongo" in name or "oracle" in name for name in names)
    assert len(names) < 40

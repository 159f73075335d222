"""Capture as it is run: a standby that takes over, levels, metrics, status, the stated stream.

Real PostgreSQL, NATS and engines; what the stream holds is compared with what an auditor with a
slot of its own saw committed.
"""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nats
import orjson
import psycopg
import pytest
from nats.js.api import StreamConfig
from psycopg import sql

from ingest.contract import SUBJECTS
from ingest.health import examine
from ingest.report import LOOK_S
from ingest.settings import IngestSettings
from ingest.status import document
from tests.fixtures.capture import CaptureProcess, CaptureRoom, capture_room, poll
from tests.fixtures.checksum import assert_same
from tests.fixtures.ledger_writers import PAYMENT
from tests.fixtures.services import CHECKOUT, BrokerServer, DatabaseServer, free_port

MIB = 1024**2
SILENCE_S = 6
NOBODY = "no process captures: `./giovang logs capture` says why"
TAKEOVER_TIMEOUT_S = 120.0


@contextlib.contextmanager
def well_room(
    database: DatabaseServer, broker: BrokerServer, folder: Path, **limits: int
) -> Iterator[CaptureRoom]:
    """A room where all is well: the rows that other tests left in the database are no gap of it."""
    with capture_room(database, broker, folder, **limits) as made:
        with psycopg.connect(made.url, autocommit=True) as ledger:
            ledger.execute(
                "UPDATE capture.gap SET closed_at = clock_timestamp(), closed_by = 'this test' "
                "WHERE slot = %s",
                (made.slot,),
            )
        yield made


@pytest.fixture
def room(
    ledger_database: DatabaseServer, broker: BrokerServer, tmp_path: Path
) -> Iterator[CaptureRoom]:
    with well_room(ledger_database, broker, tmp_path) as made:
        yield made


@pytest.fixture
def standby(room: CaptureRoom, tmp_path: Path) -> Iterator[CaptureProcess]:
    """A leader that captures, and beside it a second process that stands by."""
    room.env["GIOVANG_INGEST_SILENCE_S"] = str(SILENCE_S)
    room.engine.start()
    second = CaptureProcess(room.env, tmp_path / "second")
    second.folder.mkdir()
    try:
        second.start()
        yield second
    finally:
        second.close()


def test_a_standby_takes_over_when_the_leader_is_killed(
    room: CaptureRoom, standby: CaptureProcess
) -> None:
    assert standby.statuses[-1].startswith("standby: ")

    def both_are_well() -> bool:
        code, told = status(room)
        alive = sorted(row["role"] for row in told["processes"] if row["alive"])
        return (code, told["problems"], alive) == (0, [], ["active", "standby"])

    poll(both_are_well, what="one captures, one stands by", timeout_s=60)
    write(room, "before")
    room.engine.kill()
    write(room, "between")
    wait_for_line(standby, "capture streams")
    write(room, "after")
    assert_same(room.drain(), room.auditor)
    assert standby.stop() == 0
    code, told = status(room)
    assert (code, told["state"]) == (1, "down")
    assert told["problems"] == [NOBODY]


def test_a_frozen_leader_is_unseated_and_ends_when_it_wakes(
    room: CaptureRoom, standby: CaptureProcess
) -> None:
    """Woken in the middle of its work, it neither writes a message nor its older offset."""
    frozen = room.engine.process
    assert frozen is not None
    write(room, "large", 3000)
    os.kill(frozen.pid, signal.SIGSTOP)
    try:
        write(room, "between")
        wait_for_line(standby, "capture streams")
        write(room, "after")
        room.drain()
        poll(lambda: room.stored_offset() == reached(room), what="the offset", timeout_s=60)
        offset = room.stored_offset()
    finally:
        os.kill(frozen.pid, signal.SIGCONT)
    assert room.engine.wait_for_exit() == 1
    assert room.stored_offset() >= offset
    write(room, "last")
    assert_same(room.drain(), room.auditor)
    # From where it stands now the next one resumes: the slot is not ahead of the offset.
    assert standby.stop() == 0
    assert status(room)[1]["problems"] == [NOBODY]


def test_a_filling_stream_is_told_and_a_full_one_loses_nothing(
    ledger_database: DatabaseServer, broker: BrokerServer, tmp_path: Path
) -> None:
    """It refuses changes and capture ends; with a larger one it goes on where it stopped."""
    with well_room(ledger_database, broker, tmp_path, stream_max_bytes=MIB) as room:
        port = free_port()
        room.env["GIOVANG_INGEST_METRICS_PORT"] = str(port)
        room.engine.start()
        assert metrics(port)["giovang_capture_active"] == 1
        while room.ledger.last_sequence() < 5 or stream_bytes(room) < 0.55 * MIB:
            write(room, f"part{room.ledger.last_sequence()}x", 120)
            room.drain()
        poll(
            lambda: metrics(port)['giovang_capture_level{of="stream"}'] == 1,
            what="the level warning",
            timeout_s=60 + 3 * LOOK_S,
        )
        wait_for_line(room.engine, "level changed")
        code, told = status(room)
        assert code == 1
        assert "raise GIOVANG_INGEST_STREAM_MAX_BYTES" in told["problems"][0]
        write(room, "much", 1500)
        assert room.engine.wait_for_exit() == 1
        assert "maximum bytes exceeded" in room.engine.reasons()[-1]
        assert "maximum bytes exceeded" in status(room)[1]["last_error"]

        room.env["GIOVANG_INGEST_STREAM_MAX_BYTES"] = str(64 * MIB)
        raised = room.provision()
        assert raised.returncode == 0, raised.stderr
        assert "max_bytes raised by its setting" in raised.stderr
        room.engine.start()
        assert_same(room.drain(), room.auditor)
        assert status(room)[0] == 0


def test_a_column_that_goes_while_capture_runs_stops_it(room: CaptureRoom) -> None:
    room.engine.start()
    write(room, "before")
    with psycopg.connect(room.url, autocommit=True) as owner:
        owner.execute("ALTER TABLE merchants RENAME COLUMN timezone TO time_zone")
        try:
            assert room.engine.wait_for_exit() == 1
        finally:
            owner.execute("ALTER TABLE merchants RENAME COLUMN time_zone TO timezone")
    assert "merchants.timezone is missing" in room.engine.reasons()[-1]
    room.engine.start()
    write(room, "after")
    assert_same(room.drain(), room.auditor)


def test_a_slot_that_falls_behind_is_told_until_it_is_lost(room: CaptureRoom) -> None:
    """From `ok` to `lost` while capture is away; then everything says what to do."""
    with psycopg.connect(room.url, autocommit=True) as server, keeping(server, "96MB"):
        levels = [slot_level(room)]
        for segments in (4, 2, 4):
            pass_over_log(server, segments)
            if segments == 4 and len(levels) > 1:
                server.execute("CHECKPOINT")
            levels.append(slot_level(room))
    assert levels == ["ok", "warning", "critical", "lost"]
    code, told = status(room)
    assert code == 1
    assert any("was invalidated" in problem for problem in told["problems"])
    room.engine.start(ready=False)
    assert room.engine.wait_for_exit() == 1
    assert "was invalidated" in room.engine.reasons()[-1]
    assert room.provision().returncode == 1
    accepted = room.provision("--accept-gap")
    assert accepted.returncode == 0, accepted.stderr
    told = status(room)[1]
    gap = told["open_gaps"][0]
    closing = f"`./giovang capture backfill start --gap {gap['id']}` closes it"
    assert told["problems"] == [NOBODY, f"gap {gap['id']} is open: {gap['reason']}; {closing}"]


def test_a_stream_of_the_release_before_is_brought_forward(room: CaptureRoom) -> None:
    def config(change: dict[str, Any]) -> StreamConfig:
        async def work() -> StreamConfig:
            client = await nats.connect(room.broker.url)
            try:
                jetstream = client.jetstream()
                found = (await jetstream.stream_info("LEDGER")).config
                if change:
                    await jetstream.update_stream(replace(found, **change))
                return found
            finally:
                await client.close()

        return asyncio.run(work())

    newest = config({}).metadata or {}
    first = {
        name: value
        for name, value in newest.items()
        if name in {"giovang.system", "giovang.slot", "giovang.origin"}
    }
    config({"metadata": first, "subjects": ["ledger.>"], "max_age": 3600.0})
    refused = room.provision()
    assert refused.returncode == 1
    assert "max_age is 3600" in refused.stderr
    code, told = status(room)
    assert code == 1
    assert told["stream"]["version"] == 1
    assert any("max_age is 3600" in problem for problem in told["problems"])
    config({"max_age": 0})
    brought = room.provision()
    assert brought.returncode == 0, brought.stderr
    assert '"stream brought forward"' in brought.stderr
    assert config({}).metadata == newest
    assert config({}).subjects == list(SUBJECTS)


def test_status_names_what_does_not_answer(room: CaptureRoom) -> None:
    nobody = free_port()
    for name, url, word in (
        ("GIOVANG_INGEST_NATS_URL", f"nats://127.0.0.1:{nobody}", "NATS"),
        ("GIOVANG_INGEST_DATABASE_URL", f"postgresql://x@127.0.0.1:{nobody}/x", "PostgreSQL"),
    ):
        code, told = status(room, **{name: url})
        assert code == 2
        assert [line.split()[0] for line in told["unreachable"]] == [word]


def test_the_status_command_answers_people_and_programs(room: CaptureRoom) -> None:
    code, said, _ = command(room, "ingest.status")
    assert code == 1
    assert said.splitlines()[-2:] == ["Needs a person:", f"  - {NOBODY}"]
    code, said, _ = command(room, "ingest.status", "--json")
    assert code == json.loads(said)["exit_status"] == 1
    room.env["GIOVANG_INGEST_DATABASE_URL"] = "postgresql:secret"
    code, said, complaint = command(room, "ingest.status")
    assert (code, said) == (2, "")
    assert complaint.startswith("GIOVANG_INGEST_DATABASE_URL: ")
    assert "secret" not in complaint


def test_a_taken_metrics_port_is_named(room: CaptureRoom) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        room.env["GIOVANG_INGEST_METRICS_PORT"] = str(taken.getsockname()[1])
        room.engine.start(ready=False)
        assert room.engine.wait_for_exit() == 1
    assert "set GIOVANG_INGEST_METRICS_PORT" in room.engine.reasons()[-1]


def write(room: CaptureRoom, name: str, count: int = 50) -> None:
    with room.connect() as writer:
        writer.execute(PAYMENT, {"prefix": f"{room.tag}{name}", "count": count})


def wait_for_line(process: CaptureProcess, event: str) -> None:
    poll(
        lambda: f'"event":"{event}"' in process.log.read_text(),
        what=f"{event!r} in the log",
        timeout_s=TAKEOVER_TIMEOUT_S,
    )


def reached(room: CaptureRoom) -> int:
    with psycopg.connect(room.url, autocommit=True) as database:
        row = database.execute(
            "SELECT (furthest::jsonb ->> 'lsn_commit')::bigint FROM capture.slot_origin "
            "WHERE slot = %s",
            (room.slot,),
        ).fetchone()
    assert row is not None
    position: int = row[0]
    return position


def status(room: CaptureRoom, **variables: str) -> tuple[int, dict[str, Any]]:
    """Look as `python -m ingest.status --json` does."""
    given = {
        name.removeprefix("GIOVANG_INGEST_").lower(): value
        for name, value in {**room.env, **variables}.items()
        if name.startswith("GIOVANG_INGEST_")
    }
    health = asyncio.run(examine(IngestSettings.model_validate(given)))
    return health.exit_status, orjson.loads(orjson.dumps(document(health)))


def command(room: CaptureRoom, module: str, *arguments: str) -> tuple[int, str, str]:
    """Run one of the room's commands; return its status, its answer and its complaints."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=CHECKOUT,
        env=room.env,
        text=True,
        capture_output=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def slot_level(room: CaptureRoom) -> str:
    level: str = status(room)[1]["slot"]["level"]
    return level


def metrics(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    told = [line.rpartition(" ") for line in lines if not line.startswith("#")]
    return {name: float(value) for name, _, value in told}


def stream_bytes(room: CaptureRoom) -> int:
    used: int = status(room)[1]["stream"]["bytes"]
    return used


def pass_over_log(server: psycopg.Connection[tuple[Any, ...]], segments: int) -> None:
    """Use up log files of 16 MB each without writing them."""
    for _ in range(segments):
        server.execute("SELECT pg_logical_emit_message(false, 'giovang', 'x')")
        server.execute("SELECT pg_switch_wal()")


@contextlib.contextmanager
def keeping(server: psycopg.Connection[tuple[Any, ...]], limit: str) -> Iterator[None]:
    """Let slots hold back no more than `limit`."""
    server.execute(
        sql.SQL("ALTER SYSTEM SET max_slot_wal_keep_size = {}").format(sql.Literal(limit))
    )
    server.execute("SELECT pg_reload_conf()")
    try:
        yield
    finally:
        server.execute("ALTER SYSTEM RESET max_slot_wal_keep_size")
        server.execute("SELECT pg_reload_conf()")

"""The private servers themselves: roles hold, a crash loses nothing, only loopback is served."""

import asyncio
import os

import nats
import psutil
import psycopg
import pytest
import redis

from infra.stack.probes import http, tcp
from tests.fixtures.services import BrokerServer, DatabaseServer


def test_roles_have_their_passwords_and_no_powers(ledger_cluster: DatabaseServer) -> None:
    with psycopg.connect(ledger_cluster.superuser_url("giovang")) as database:
        roles = database.execute(
            "SELECT rolname, rolsuper, rolbypassrls, rolreplication FROM pg_roles"
            " WHERE rolname LIKE 'giovang%' ORDER BY rolname"
        ).fetchall()
    assert roles == [
        ("giovang_api", False, False, False),
        ("giovang_capture", False, False, True),
        ("giovang_operator", False, False, False),
        ("giovang_owner", False, False, False),
        ("giovang_watcher", False, False, False),
    ]
    with psycopg.connect(ledger_cluster.url("giovang_api")) as database:
        assert database.execute("SELECT current_user").fetchone() == ("giovang_api",)
    wrong = ledger_cluster.url("giovang_api").replace("giovang_api:", "giovang_api:x")
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(wrong)


def test_ledger_is_a_logical_source_that_syncs(ledger_cluster: DatabaseServer) -> None:
    with psycopg.connect(ledger_cluster.superuser_url()) as database:
        for name, expected in {
            "wal_level": "logical",
            "fsync": "on",
            "full_page_writes": "on",
            "data_checksums": "on",
            "listen_addresses": "127.0.0.1",
        }.items():
            shown = database.execute("SELECT current_setting(%s)", [name]).fetchone()
            assert shown == (expected,), name


def test_analytics_has_timescaledb(analytics_cluster: DatabaseServer) -> None:
    with psycopg.connect(analytics_cluster.url("giovang_warehouse_owner")) as database:
        row = database.execute(
            "SELECT count(*) FROM pg_extension WHERE extname = 'timescaledb'"
        ).fetchone()
        telemetry = database.execute(
            "SELECT current_setting('timescaledb.telemetry_level')"
        ).fetchone()
    assert row == (1,)
    assert telemetry == ("off",)


def test_committed_rows_survive_a_killed_server(ledger_cluster: DatabaseServer) -> None:
    with psycopg.connect(ledger_cluster.superuser_url("giovang")) as database:
        database.execute("CREATE TABLE survivors AS SELECT generate_series(1, 1000) AS n")
    ledger_cluster.kill()
    assert not tcp(ledger_cluster.port)()
    ledger_cluster.start()
    with psycopg.connect(ledger_cluster.superuser_url("giovang")) as database:
        count = database.execute("SELECT count(*) FROM survivors").fetchone()
        database.execute("DROP TABLE survivors")
    assert count == (1000,)


def test_a_lock_left_by_a_crash_does_not_prevent_the_start(
    ledger_cluster: DatabaseServer,
) -> None:
    ledger_cluster.kill()
    lock = ledger_cluster.cluster.data / "postmaster.pid"
    assert lock.exists()
    # The number of the dead server now belongs to another program: this one.
    lock.write_text(f"{os.getpid()}\n" + lock.read_text().split("\n", 1)[1])
    ledger_cluster.start()
    with psycopg.connect(ledger_cluster.url("giovang_api")) as database:
        assert database.execute("SELECT 1").fetchone() == (1,)


async def test_acknowledged_messages_survive_a_killed_nats(nats_server: BrokerServer) -> None:
    client = await nats.connect(nats_server.url, connect_timeout=5)
    jetstream = client.jetstream()
    await jetstream.add_stream(name="SURVIVORS", subjects=["survivors.>"], storage="file")
    for number in range(50):
        await jetstream.publish("survivors.one", str(number).encode())
    await client.close()
    await asyncio.to_thread(nats_server.kill)
    await asyncio.to_thread(nats_server.start)
    client = await nats.connect(nats_server.url, connect_timeout=5)
    info = await client.jetstream().stream_info("SURVIVORS")
    await client.jetstream().delete_stream("SURVIVORS")
    await client.close()
    assert info.state.messages == 50


def test_nats_monitoring_answers(nats_server: BrokerServer) -> None:
    assert http(f"{nats_server.monitoring_url}/healthz")()


def test_redis_asks_for_its_password(redis_server: BrokerServer) -> None:
    with redis.Redis.from_url(redis_server.url) as client:
        assert client.set("greeting", "xin chào")
        assert client.get("greeting") == "xin chào".encode()
    without = redis_server.url.replace(redis_server.url.split("@")[0] + "@", "redis://")
    with redis.Redis.from_url(without) as client, pytest.raises(redis.AuthenticationError):
        client.ping()


def test_nothing_listens_beyond_loopback(
    ledger_cluster: DatabaseServer,
    analytics_cluster: DatabaseServer,
    nats_server: BrokerServer,
    redis_server: BrokerServer,
) -> None:
    for server in (ledger_cluster, analytics_cluster, nats_server, redis_server):
        listening = [
            entry.laddr.ip
            for entry in psutil.Process(server.pid).net_connections(kind="inet")
            if entry.status == psutil.CONN_LISTEN
        ]
        assert listening, server.name
        assert set(listening) == {"127.0.0.1"}, server.name

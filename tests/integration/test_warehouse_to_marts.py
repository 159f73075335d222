"""Hop: hypertables to marts, by the real dbt project on the real TimescaleDB.

What is attacked: that incremental builds equal a full rebuild whatever arrives late, twice or
corrected, that nothing is missed while a batch is open, and that no tenant reads another's mart.
"""

import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest

from infra.modeller import PostgresWarehouse, Work
from tests.fixtures.marts import Batch, Marts, marts, merchant_id, noon_zone  # noqa: F401
from tests.fixtures.services import CHECKOUT

# dbt warns about things of its own; what it finds wrong with this project is asserted by name.
pytestmark = pytest.mark.filterwarnings("ignore")

A, B, C = merchant_id("a"), merchant_id("b"), merchant_id("c")
HOURLY = (
    "SELECT hour, merchant_id, total_volume, tx_count FROM marts.hourly_volume"
    " ORDER BY hour, merchant_id"
)
LOCAL = (
    "SELECT merchant_id, local_date, local_hour, sum(volume_vnd), sum(payments)"
    " FROM intermediate.int_local_hours WHERE payments > 0"
    " GROUP BY merchant_id, local_date, local_hour ORDER BY merchant_id, local_date, local_hour"
)
PROFILE = (
    "SELECT merchant_id, local_hour, avg_volume, payments FROM marts.hour_profile"
    " ORDER BY merchant_id, local_hour"
)
TRUTH = (
    "SELECT time_bucket('1 hour', time) AS hour, merchant_id, sum(amount_vnd), count(*)"
    " FROM (SELECT DISTINCT ON (payment_id) * FROM raw.payment_analytics"
    "       ORDER BY payment_id, position DESC, ordinal DESC) AS latest"
    " WHERE status = 'completed' GROUP BY hour, merchant_id ORDER BY hour, merchant_id"
)
NOW = datetime.now(UTC)


def hour_of(instant: datetime) -> datetime:
    return instant.replace(minute=0, second=0, microsecond=0)


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s} s"
        time.sleep(0.1)


def test_an_empty_warehouse_is_modelled(marts: Marts) -> None:  # noqa: F811
    marts.build()
    assert marts.rows(HOURLY) == []
    assert marts.rows("SELECT * FROM marts.freshness") == []
    assert marts.rows("SELECT is_pending FROM intermediate.int_pending_arrivals") == [(False,)]


def test_half_past_five_utc_is_the_next_day_in_vietnam(marts: Marts) -> None:  # noqa: F811
    hanoi, kathmandu = merchant_id("h"), merchant_id("k")
    with marts.batch() as batch:
        batch.merchant(hanoi)
        batch.merchant(kathmandu, "Asia/Kathmandu")
        batch.paid("pay_first", hanoi, datetime(2026, 1, 31, 17, 30, tzinfo=UTC), 250_000)
        batch.paid("pay_nepal", kathmandu, datetime(2026, 1, 31, 18, 15, tzinfo=UTC), 70_000)
    marts.build()
    assert marts.read_as(hanoi, HOURLY) == [
        (datetime(2026, 1, 31, 17, tzinfo=UTC), hanoi, Decimal(250_000), 1)
    ]
    assert [row for row in marts.rows(LOCAL) if row[0] in {hanoi, kathmandu}] == [
        (hanoi, date(2026, 2, 1), 0, Decimal(250_000), 1),
        (kathmandu, date(2026, 2, 1), 0, Decimal(70_000), 1),
    ]


def test_an_hour_that_becomes_empty_stays_as_zero(marts: Marts) -> None:  # noqa: F811
    emptied = merchant_id("e")
    at = datetime(2026, 1, 31, 17, 30, tzinfo=UTC)
    with marts.batch() as batch:
        batch.merchant(emptied)
        batch.paid("pay_reverted", emptied, at, 250_000)
    marts.build()
    assert marts.read_as(emptied, HOURLY) == [(hour_of(at), emptied, Decimal(250_000), 1)]
    with marts.batch() as batch:
        batch.state("pay_reverted", emptied, "failed", at + timedelta(days=3), 250_000)
    marts.build()
    assert marts.read_as(emptied, HOURLY) == [(hour_of(at), emptied, Decimal(0), 0)]
    assert [row for row in marts.rows(LOCAL) if row[0] == emptied] == []


def test_a_replay_and_a_second_capture_count_once(marts: Marts) -> None:  # noqa: F811
    at = datetime(2026, 3, 8, 4, 20, tzinfo=UTC)
    with marts.batch() as batch:
        event = batch.state("pay_twice", A, "completed", at, 90_000)
    marts.build()
    before = marts.rows(HOURLY)
    with marts.batch() as batch:  # the same event again
        batch.state("pay_twice", A, "completed", at, 90_000, position=int(event[:16], 16))
    marts.build()
    assert marts.rows(HOURLY) == before
    with marts.batch() as batch:  # the same state, captured anew by a second snapshot
        batch.state("pay_twice", A, "completed", at, 90_000)
    marts.build()
    assert marts.rows(HOURLY) == before
    assert (hour_of(at), A, Decimal(90_000), 1) in before


def test_a_batch_that_was_open_during_a_build_is_not_missed(marts: Marts) -> None:  # noqa: F811
    at = datetime(2026, 3, 9, 2, 5, tzinfo=UTC)
    opened = marts.batch()
    opened.paid("pay_open", A, at)
    marts.build()
    assert hour_of(at) not in {row[0] for row in marts.rows(HOURLY)}
    opened.commit()
    assert PostgresWarehouse(marts.settings).look().is_pending
    marts.build()
    assert (hour_of(at), A, Decimal(100_000), 1) in marts.rows(HOURLY)
    assert not PostgresWarehouse(marts.settings).look().is_pending


def test_an_event_injected_again_beside_the_stream_is_not_missed(
    marts: Marts,  # noqa: F811
) -> None:
    at = datetime(2026, 3, 9, 5, 5, tzinfo=UTC)
    beside = marts.batch()  # begun before the stream's next batch, with an old log position
    beside.state("pay_injected", A, "completed", at, 40_000, position=1)
    with marts.batch() as batch:
        batch.paid("pay_stream", A, datetime(2026, 3, 9, 6, 0, tzinfo=UTC))
    marts.build()
    beside.commit(moves_watermark=False)
    marts.build()
    assert (hour_of(at), A, Decimal(40_000), 1) in marts.rows(HOURLY)


def test_a_merchant_who_is_known_late_or_moves_is_placed_in_local_time(
    marts: Marts,  # noqa: F811
) -> None:
    at = datetime(2026, 3, 9, 20, 40, tzinfo=UTC)
    with marts.batch() as batch:
        batch.paid("pay_unknown", C, at)
    marts.build()
    assert [row for row in marts.rows(LOCAL) if row[0] == C] == []
    with marts.batch() as batch:
        batch.merchant(C)
    marts.build()
    expected = (C, date(2026, 3, 10), 3, Decimal(100_000), 1)
    assert [row for row in marts.rows(LOCAL) if row[0] == C] == [expected]
    with marts.batch() as batch:
        batch.merchant(C, "Europe/London")
    marts.build()
    expected = (C, date(2026, 3, 9), 20, Decimal(100_000), 1)
    assert [row for row in marts.rows(LOCAL) if row[0] == C] == [expected]


def arrive(batch: Batch, known: list[tuple[str, str, datetime]], dice: random.Random) -> None:
    """One thing that may happen: a payment of any hour, a correction, or a second capture."""
    kind = dice.choice(("late", "late", "fresh", "corrected", "captured again", "paid again"))
    if kind in {"late", "fresh"} or not known:
        age = timedelta(minutes=dice.randrange(1, 200 * 24 * 60 if kind == "late" else 90))
        payment = (f"pay_{len(known):026d}", dice.choice((A, B, C)), NOW - age)
        known.append(payment)
        batch.paid(*payment, amount=dice.randrange(1, 900) * 1000)
        return
    payment_id, merchant, at = dice.choice(known)
    if kind == "corrected":
        batch.state(payment_id, merchant, dice.choice(("failed", "disputed")), at, 1)
    elif kind == "captured again":
        batch.state(payment_id, merchant, "completed", at, 500_000)
    else:
        batch.state(payment_id, merchant, "completed", at + timedelta(hours=dice.randrange(9)))


@pytest.mark.parametrize("seed", [20260201, 7])
def test_incremental_equals_full_rebuild(marts: Marts, seed: int) -> None:  # noqa: F811
    dice = random.Random(seed)
    known: list[tuple[str, str, datetime]] = []
    with marts.batch() as batch:
        for merchant in (A, B, C):
            batch.merchant(merchant)
    for _ in range(2):
        with marts.batch() as batch:
            for _ in range(dice.randrange(5, 120)):
                arrive(batch, known, dice)
        marts.build()
        kept = [row for row in marts.rows(HOURLY) if row[3]]
        assert kept == marts.rows(TRUTH)
    queries = (HOURLY, LOCAL, PROFILE)
    incremental = [marts.rows(query) for query in queries]
    outcome = marts.run("run", "--full-refresh")
    assert outcome.succeeded, outcome.failures
    assert [marts.rows(query) for query in queries] == incremental


def test_today_and_peaks_follow_the_merchants_clock(marts: Marts) -> None:  # noqa: F811
    payer, zone = merchant_id("p"), noon_zone()
    midnight = marts.rows(
        f"SELECT (now() AT TIME ZONE '{zone}')::date::timestamp AT TIME ZONE '{zone}'"
    )[0][0]
    with marts.batch() as batch:
        batch.merchant(payer, zone)
        for day in range(1, 29):
            for hour in range(8, 22):
                weight = 2 if hour in {11, 12, 18, 19} else 1
                at = midnight - timedelta(days=day) + timedelta(hours=hour, minutes=7)
                batch.paid(f"pay_{day:02d}{hour:02d}{'p' * 22}", payer, at, weight * 50_000)
        batch.paid("pay_midnight", payer, midnight, 300_000)
        batch.paid("pay_just_before", payer, midnight - timedelta(microseconds=1), 1)
        batch.refund("rfd_1", "pay_midnight", payer, midnight + timedelta(seconds=1), 20_000)
    marts.build()
    (today,) = marts.read_as(
        payer, "SELECT volume_vnd, tx_count, refunds_vnd, net_vnd FROM marts.merchant_today"
    )
    assert today == (Decimal(300_000), 1, Decimal(20_000), Decimal(280_000))
    (peaks,) = marts.read_as(
        payer,
        "SELECT peak_hours, avg_volume, share_percent, payments, days, confident"
        " FROM marts.peak_hours",
    )
    assert peaks == ([11, 12, 18, 19], Decimal(100_000), 44, 393, 28, True)


def test_freshness_follows_heartbeats_but_never_overtakes_what_is_pending(
    marts: Marts,  # noqa: F811
) -> None:
    marts.build()
    with marts.batch() as heartbeat:
        heartbeat._next_position()
    marts.build(Work.FRESHNESS)
    through = "SELECT committed_through FROM marts.freshness"
    watermark = "SELECT committed_through FROM raw.watermark"
    assert marts.rows(through, "giovang_dashboards") == marts.rows(watermark)
    before = marts.rows(through)
    with marts.batch() as batch:
        batch.paid("pay_pending", A, NOW)
    marts.build(Work.FRESHNESS)
    assert marts.rows(through) <= before < marts.rows(watermark)
    marts.build()
    assert marts.rows(through) == marts.rows(watermark)


def test_every_data_test_and_unit_test_of_the_project_passes(marts: Marts) -> None:  # noqa: F811
    with marts.batch() as batch:
        for merchant in (A, B, C):
            batch.merchant(merchant)
    marts.build()
    outcome = marts.run("test")
    assert outcome.succeeded, outcome.failures
    outcome = marts.run("source", "freshness")
    assert outcome.succeeded, outcome.failures


def test_the_private_aggregate_is_what_the_edition_offers(marts: Marts) -> None:  # noqa: F811
    marts.build()
    license_and_kind = marts.rows(
        "SELECT current_setting('timescaledb.license'), relkind::text,"
        " obj_description(oid) LIKE 'giovang-sql %' FROM pg_class"
        " WHERE oid = 'intermediate.int_hourly_volume'::regclass"
    )
    assert license_and_kind in ([("apache", "r", None)], [("timescale", "v", True)])


TENANT_MARTS = (
    "SELECT table_name FROM information_schema.columns"
    " WHERE table_schema = 'marts' AND column_name = 'merchant_id' ORDER BY table_name"
)


def test_every_mart_with_a_merchant_is_closed_without_one(marts: Marts) -> None:  # noqa: F811
    with marts.batch() as batch:
        for merchant in (A, B):
            batch.merchant(merchant)
            batch.paid(f"pay_closed_{merchant}", merchant, NOW - timedelta(days=2))
    marts.build()
    tenant_marts = [row[0] for row in marts.rows(TENANT_MARTS)]
    assert tenant_marts == ["hour_profile", "hourly_volume", "merchant_today", "peak_hours"]
    for mart in tenant_marts:
        count = f"SELECT count(*), count(DISTINCT merchant_id) FROM marts.{mart}"  # noqa: S608
        assert marts.rows(count)[0][1] > 1, f"{mart} must hold several merchants to prove a thing"
        assert marts.rows(count, "giovang_dashboards") == [(0, 0)]
        assert marts.read_as("", count) == [(0, 0)]
        rows, merchants = marts.read_as(A, count)[0]
        assert rows > 0
        assert merchants == 1


def test_a_mart_without_its_policy_fails_the_tests(marts: Marts) -> None:  # noqa: F811
    name = "every_tenant_mart_is_secured"
    wounds = {
        "CREATE TABLE marts.leak AS SELECT ''::text AS merchant_id": "DROP TABLE marts.leak",
        "CREATE VIEW marts.leak AS SELECT * FROM marts.peak_hours": "DROP VIEW marts.leak",
        "ALTER TABLE marts.peak_hours NO FORCE ROW LEVEL SECURITY": (
            "ALTER TABLE marts.peak_hours FORCE ROW LEVEL SECURITY"
        ),
        "CREATE POLICY open ON marts.peak_hours USING (TRUE)": (
            "DROP POLICY open ON marts.peak_hours"
        ),
    }
    assert marts.run("test", "--select", name).succeeded
    for wound, bandage in wounds.items():
        with marts.connect("giovang_dbt") as connection:
            connection.execute(wound.encode())
            try:
                assert name in marts.run("test", "--select", name).failures, wound
            finally:
                connection.execute(bandage.encode())
    assert marts.run("test", "--select", name).succeeded


def test_readers_never_see_a_mart_without_its_policies(marts: Marts) -> None:  # noqa: F811
    """A reader who asks all the time, while `table` models swap their relations."""
    with marts.connect("giovang_dashboards") as connection:
        seen: list[tuple[Any, ...]] = []

        def read() -> None:
            seen.extend(connection.execute("SELECT merchant_id FROM marts.peak_hours").fetchall())

        process = subprocess.Popen(
            [sys.executable, "-m", "dbt.cli.main", "run", "--select", "peak_hours"],
            cwd=CHECKOUT / "dbt",
            stdout=subprocess.DEVNULL,
        )
        reads = 0
        deadline = time.monotonic() + 120
        while process.poll() is None:
            assert time.monotonic() < deadline
            read()
            reads += 1
        assert process.returncode == 0
    assert reads > 100
    assert seen == []


def test_the_dashboards_role_reads_nothing_but_marts(marts: Marts) -> None:  # noqa: F811
    forbidden = (
        "SELECT * FROM raw.payment_analytics",
        "SELECT * FROM staging.stg_payment_states",
        "SELECT * FROM intermediate.int_hourly_volume",
        "DELETE FROM marts.hourly_volume",
        "UPDATE marts.peak_hours SET payments = 0",
        "CREATE TABLE marts.mine (id int)",
    )
    for statement in forbidden:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            marts.rows(statement, "giovang_dashboards")


def test_the_modeller_shows_a_payment_and_stops_when_asked(
    marts: Marts,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind(address)
        supervisor.settimeout(60)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        monkeypatch.setenv("GIOVANG_DBT_INTERVAL_S", "1")
        log = tmp_path / "modeller.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "infra.modeller"], cwd=CHECKOUT, stderr=output
            )
        try:
            said = ""
            while "READY=1" not in said:
                said = supervisor.recv(4096).decode()
            with marts.batch() as batch:
                batch.paid("pay_live", merchant_id("z"), datetime.now(UTC))
                batch.merchant(merchant_id("z"), noon_zone())
            query = "SELECT tx_count FROM marts.merchant_today"
            wait_until(
                lambda: marts.read_as(merchant_id("z"), query) == [(1,)],
                "the payment in its mart",
                timeout_s=240,
            )
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0, log.read_text()
        finally:
            process.kill()
            process.wait()
    assert '"event":"built"' in log.read_text()


def test_the_modeller_gives_up_on_a_warehouse_it_may_not_enter(
    marts: Marts,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert marts.database
    monkeypatch.setenv("GIOVANG_DBT_PASSWORD", "wrong")
    monkeypatch.setenv("GIOVANG_DBT_INTERVAL_S", "0.1")
    monkeypatch.setenv("GIOVANG_DBT_FAILURE_LIMIT", "2")
    answer = subprocess.run(
        [sys.executable, "-m", "infra.modeller"],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert answer.returncode == 1
    assert "giving up" in answer.stderr
    assert "wrong" not in answer.stderr.replace("went wrong", "")

"""Hop: alerts to dashboards. The risk page shows a merchant its own alerts, and nobody else's."""

import base64
import time
from collections.abc import Iterator
from datetime import UTC, datetime

import jwt
import orjson
import psycopg
import pytest
import streamlit as st
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from psycopg.types.json import Jsonb
from streamlit.testing.v1 import AppTest

from dashboards import warehouse
from dashboards.alerts import MOST_SHOWN
from dashboards.settings import settings
from streams.risk.engine import Alert
from tests.fixtures.marts import HO_CHI_MINH, merchant_id
from tests.fixtures.risk import judged, payment, rules
from tests.fixtures.services import DatabaseServer

pytestmark = pytest.mark.filterwarnings("ignore")

PHO, TEA, NEW = merchant_id("f"), merchant_id("t"), merchant_id("n")
KEY = Ed25519PrivateKey.generate()
ADD = """
INSERT INTO raw.risk_alerts (occurred_at, alert_id, merchant_id, payment_id, event_id, rule_id,
    rule_version, rule_set, severity, score, reasons)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
"""
REACH = """
INSERT INTO raw.watermark (source, committed_through, position, ordinal, stream_sequence)
VALUES ('risk', %s, 1, 1, 1)
ON CONFLICT (source) DO UPDATE SET committed_through = EXCLUDED.committed_through
"""


def alerts_of(merchant: str, count: int, amount: int) -> list[Alert]:
    """What the rules find of new wallets that pay much."""
    now = datetime.now(UTC)
    return judged(
        rules(),
        [
            payment(
                number,
                now,
                merchant_id=merchant,
                wallet=f"w{number}",
                amount_vnd=amount,
                payment_id=f"pay_{number}",
                country=None,
            )
            for number in range(1, count + 1)
        ],
    )


def page() -> None:
    """Run by AppTest by its source alone."""
    from dashboards.views import risk  # noqa: PLC0415

    risk.show()


def connect(server: DatabaseServer) -> psycopg.Connection[tuple[object, ...]]:
    return psycopg.connect(server.url("giovang_streams"), autocommit=True, connect_timeout=5)


@pytest.fixture(scope="module")
def shops(analytics_database: DatabaseServer) -> DatabaseServer:
    with psycopg.connect(analytics_database.superuser_url("analytics")) as database:
        database.execute("TRUNCATE raw.risk_alerts")
    with connect(analytics_database) as database:
        for alert in (*alerts_of(PHO, MOST_SHOWN + 5, 51_234_567), *alerts_of(TEA, 1, 57_654_321)):
            told = orjson.loads(alert.to_bytes())
            database.execute(
                ADD,
                (
                    told["occurred_at"],
                    f"{told['id']}:{alert.merchant_id}",
                    *(told[name] for name in ("merchant_id", "payment_id", "event_id", "rule_id")),
                    *(told[name] for name in ("rule_version", "rule_set", "severity", "score")),
                    Jsonb(told["reasons"]),
                ),
            )
    return analytics_database


@pytest.fixture
def app(shops: DatabaseServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[AppTest]:
    public_key = base64.b64encode(KEY.public_key().public_bytes_raw()).decode()
    monkeypatch.setenv("GIOVANG_DASHBOARDS_WAREHOUSE_URL", shops.url("giovang_dashboards"))
    monkeypatch.setenv("GIOVANG_DASHBOARDS_API_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("GIOVANG_DASHBOARDS_SESSION_PUBLIC_KEY", public_key)
    with connect(shops) as database:
        database.execute(REACH, (datetime.now(UTC),))
    yield AppTest.from_function(page, default_timeout=60)
    warehouse.warehouse().close()
    st.cache_resource.clear()
    st.cache_data.clear()
    settings.cache_clear()


def shown(app: AppTest, merchant: str, language: str = "vi") -> str:
    claims = {
        "sub": "stf_00000000000000000000000000",
        "iss": "giovang-api",
        "aud": "giovang",
        "exp": int(time.time()) + 600,
        "merchant_id": merchant,
        "merchant_name": "Phở",
        "timezone": HO_CHI_MINH,
    }
    app.session_state["session_token"] = jwt.encode(claims, KEY, algorithm="EdDSA")
    app.session_state["lang"] = language
    app.run()
    assert not app.exception
    pieces = [node.proto.body for node in app.get("html")]
    return "\n".join([*pieces, *(node.value for node in app.warning)])


def test_each_merchant_sees_its_own_alerts_with_reason_link_and_freshness(app: AppTest) -> None:
    told = shown(app, TEA)
    assert "Một ví mới trả ₫\u00a057.654.321" in told
    assert "Trung bình" in told
    assert 'href="http://127.0.0.1:9/order/pay_1"' in told
    assert "đủ đến" in told
    assert "51.234.567" not in told
    told = shown(app, PHO)
    assert told.count("Một ví mới trả ₫\u00a051.234.567") == told.count("<article") == MOST_SHOWN
    assert "57.654.321" not in told


def test_the_page_speaks_english_on_request(app: AppTest) -> None:
    told = shown(app, TEA, "en")
    assert "A new wallet paid ₫\u00a057,654,321" in told
    assert "complete up to" in told


def test_a_merchant_without_alerts_is_told_so_and_how_late_that_is(
    app: AppTest, shops: DatabaseServer
) -> None:
    with connect(shops) as database:
        database.execute(REACH, (datetime(2026, 1, 1, tzinfo=UTC),))
    told = shown(app, NEW)
    assert "Chưa có giao dịch nào khác thường." in told
    assert "gv-late" in told


def test_a_warehouse_that_is_away_is_said_so(app: AppTest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "GIOVANG_DASHBOARDS_WAREHOUSE_URL", "postgresql://giovang_dashboards:x@127.0.0.1:9/none"
    )
    monkeypatch.setattr(warehouse, "POOL_WAIT_S", 0.2)
    assert "Chưa đọc được số liệu" in shown(app, PHO)

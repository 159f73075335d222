"""Hop: marts to dashboards. The page shows a merchant its own figures, and nobody else's, ever.

Streamlit's own AppTest runs the real app on the real marts; the tokens are signed as the API signs
them, with a key that only this test knows.
"""

import base64
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import jwt
import pytest
import streamlit as st
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from streamlit.testing.v1 import AppTest

from dashboards import warehouse
from dashboards.settings import settings
from tests.fixtures.marts import Marts, marts, merchant_id, noon_zone  # noqa: F401
from tests.fixtures.services import CHECKOUT

pytestmark = pytest.mark.filterwarnings("ignore")

PHO, TEA, NEW = merchant_id("f"), merchant_id("t"), merchant_id("n")
NAMES = {PHO: "Phở Hà Nội", TEA: "Trà sữa Mộc", NEW: "Chưa bán gì"}
PHO_VOLUME, TEA_VOLUME = "₫\u00a01.234.567", "₫\u00a07.654.321"
ZONE = noon_zone()
KEY = Ed25519PrivateKey.generate()


def token(
    merchant: str, key: Ed25519PrivateKey = KEY, expires_in_s: int = 600, **changes: object
) -> str:
    claims = {
        "sub": "stf_00000000000000000000000000",
        "iss": "giovang-api",
        "aud": "giovang",
        "exp": int(time.time()) + expires_in_s,
        "merchant_id": merchant,
        "merchant_name": NAMES[merchant],
        "timezone": ZONE,
    }
    return jwt.encode({**claims, **changes}, key, algorithm="EdDSA")


@pytest.fixture(scope="module")
def shops(marts: Marts) -> Marts:  # noqa: F811
    """Two shops with a payment today and a history, and one that has sold nothing."""
    now = datetime.now(UTC)
    with marts.batch() as batch:
        for shop, amount in ((PHO, 1_234_567), (TEA, 7_654_321)):
            batch.merchant(shop, ZONE)
            batch.paid(f"pay_today_{shop}", shop, now - timedelta(microseconds=1), amount)
            for day in range(1, 20):
                for hour in (11, 12):
                    at = now.replace(hour=hour - 7, minute=0) - timedelta(days=day)
                    batch.paid(f"pay_{day}_{hour}_{shop}", shop, at, 50_000)
    marts.build()
    return marts


@pytest.fixture
def app(shops: Marts, monkeypatch: pytest.MonkeyPatch) -> Iterator[AppTest]:
    """The app with nobody logged in; the API is away."""
    public_key = base64.b64encode(KEY.public_key().public_bytes_raw()).decode()
    monkeypatch.setenv("GIOVANG_DASHBOARDS_WAREHOUSE_URL", shops.url("giovang_dashboards"))
    monkeypatch.setenv("GIOVANG_DASHBOARDS_API_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("GIOVANG_DASHBOARDS_SESSION_PUBLIC_KEY", public_key)
    yield AppTest.from_file(str(CHECKOUT / "dashboards" / "app.py"), default_timeout=60)
    warehouse.warehouse().close()
    st.cache_resource.clear()
    st.cache_data.clear()
    settings.cache_clear()


def opened(app: AppTest, session_token: str) -> AppTest:
    app.session_state["session_token"] = session_token
    app.run()
    assert not app.exception
    return app


def shown(app: AppTest) -> str:
    """Everything the page shows, charts included."""
    pieces = [node.proto.body for node in app.get("html") if hasattr(node.proto, "body")]
    messages = [node.value for kind in (app.info, app.warning, app.error) for node in kind]
    charts = [str(node.proto) for node in app.get("arrow_vega_lite_chart")]
    return "\n".join([*pieces, *messages, *charts])


def is_login(app: AppTest) -> bool:
    return [field.label for field in app.text_input] == ["Email", "Mật khẩu"]


def test_nobody_is_logged_in_without_a_token(app: AppTest) -> None:
    app.run()
    assert is_login(app)
    assert not any(name in shown(app) for name in NAMES.values())


def test_each_merchant_sees_its_own_figures_and_no_others(app: AppTest) -> None:
    page = shown(opened(app, token(PHO)))
    assert NAMES[PHO] in page
    assert PHO_VOLUME in page
    assert "đủ đến" in page
    assert TEA_VOLUME not in page
    # In the same process, over the same cache and the same pool of connections.
    page = shown(opened(app, token(TEA)))
    assert TEA_VOLUME in page
    assert PHO_VOLUME not in page
    assert NAMES[PHO] not in page


def test_a_merchant_without_figures_gets_an_empty_state(app: AppTest) -> None:
    page = shown(opened(app, token(NEW)))
    assert "chưa có số liệu" in page
    assert "₫" not in page


def test_the_merchant_does_not_come_from_the_url(app: AppTest) -> None:
    app.query_params["merchant_id"] = TEA
    page = shown(opened(app, token(PHO)))
    assert PHO_VOLUME in page
    assert TEA_VOLUME not in page


# Made when their turn comes: one made while tests are collected may have ended by then.
BAD_TOKENS: dict[str, Callable[[], str]] = {
    "ended": lambda: token(PHO, expires_in_s=-1),
    "signed by another": lambda: token(PHO, Ed25519PrivateKey.generate()),
    "for another": lambda: token(PHO, aud="another"),
    "of a merchant that is SQL": lambda: token(PHO, merchant_id="mer_x' OR ''='"),
    "nonsense": lambda: "not.a.token",
}


@pytest.mark.parametrize("kind", BAD_TOKENS)
def test_a_bad_token_leads_back_to_the_login_page(app: AppTest, kind: str) -> None:
    words = "hết hạn" if kind == "ended" else "không hợp lệ"
    opened(app, BAD_TOKENS[kind]())
    assert is_login(app)
    assert words in shown(app)
    assert "session_token" not in app.session_state
    assert not any(name in shown(app) for name in NAMES.values())


def test_a_session_that_expires_while_the_page_is_open_ends_at_the_next_rerun(
    app: AppTest,
) -> None:
    opened(app, token(PHO, expires_in_s=600))
    assert PHO_VOLUME in shown(app)
    opened(app, token(PHO, expires_in_s=-1))
    assert is_login(app)


def test_logging_out_forgets_the_token(app: AppTest) -> None:
    opened(app, token(PHO))
    (button,) = [button for button in app.button if button.label == "Đăng xuất"]
    button.click().run()
    assert is_login(app)
    assert "session_token" not in app.session_state


def test_an_api_that_is_away_is_said_so(app: AppTest) -> None:
    app.run()
    app.text_input(key="email").set_value("pho@example.vn")
    app.text_input(key="password").set_value("secret")
    app.button[0].click().run()
    assert not app.exception
    assert "Chưa kết nối được máy chủ" in shown(app)


def test_the_page_speaks_english_on_request(app: AppTest) -> None:
    app.session_state["lang"] = "en"
    page = shown(opened(app, token(PHO)))
    assert "Net volume" in page
    assert "₫\u00a01,234,567" in page
    assert "This does not show that a promotion adds sales" in page


def test_a_warehouse_that_is_away_is_said_so(app: AppTest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "GIOVANG_DASHBOARDS_WAREHOUSE_URL", "postgresql://giovang_dashboards:x@127.0.0.1:9/none"
    )
    monkeypatch.setattr(warehouse, "POOL_WAIT_S", 0.2)
    page = shown(opened(app, token(PHO)))
    assert "Chưa đọc được số liệu" in page
    assert NAMES[TEA] not in page


def test_the_pool_forgets_the_merchant_between_queries(shops: Marts) -> None:
    marts_of = warehouse.Warehouse(shops.url("giovang_dashboards"))
    count = "SELECT count(*) FROM marts.peak_hours"
    try:
        with marts_of.as_merchant(PHO) as cursor:
            assert cursor.execute(count).fetchall() == [(1,)]
        with marts_of._pool.connection() as connection:
            assert connection.execute(count).fetchall() == [(0,)]
        with pytest.raises(warehouse.WarehouseAwayError), marts_of.as_merchant(PHO) as cursor:
            cursor.execute("CREATE TEMPORARY TABLE t (id int)")
    finally:
        marts_of.close()


def test_no_cached_reader_hides_its_merchant_from_the_key() -> None:
    # Streamlit leaves arguments that begin with an underscore out of the key of the cache.
    source = (CHECKOUT / "dashboards" / "warehouse.py").read_text()
    cached = source.split("@st.cache_data")[1:]
    assert len(cached) == 3
    for reader in cached:
        assert "(merchant_id: str" in reader
        assert "ttl=" in reader
        assert "max_entries=" in reader


def test_no_module_of_the_dashboards_shadows_a_package() -> None:
    # Streamlit puts the script's folder first on the module path.
    folder = CHECKOUT / "dashboards"
    names = {path.stem for path in folder.iterdir() if path.suffix == ".py" or path.is_dir()}
    installed = {path.name.partition(".")[0] for path in Path(st.__file__).parents[1].iterdir()}
    assert names & installed <= {"__init__", "__pycache__"}

"""Only the wallet that paid acts for the payer: every other way to release or dispute is tried."""

import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from solders.keypair import Keypair

from api.database import new_id
from api.security import PayerLinks
from tests.fixtures.api import ApiServer, Shop, problem
from tests.fixtures.desk import admin_at_work, assert_sound, balance, make_desk_api, pay
from tests.fixtures.payer import PAYER, TOKENS, actions, asked, hold, post, proof
from tests.fixtures.services import BrokerServer, DatabaseServer


@pytest.fixture(scope="module")
def api(
    ledger_database: DatabaseServer, redis_server: BrokerServer, tmp_path_factory: Any
) -> Iterator[ApiServer]:
    server = make_desk_api(tmp_path_factory.mktemp("api"), ledger_database, redis_server)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def shop(api: ApiServer, ledger_database: DatabaseServer) -> Iterator[Shop]:
    yield api.shop()
    assert_sound(ledger_database)


@pytest.fixture
def held(api: ApiServer, shop: Shop, ledger_database: DatabaseServer) -> dict[str, Any]:
    """Return the mission's example: 100 USDT at 23,000 dong, paid and held in escrow."""
    return hold(api, shop, ledger_database)


@pytest.mark.parametrize("lang", ["vi", "en"])
def test_the_text_says_what_is_signed_and_looking_does_nothing(
    api: ApiServer, shop: Shop, ledger_database: DatabaseServer, lang: str
) -> None:
    payment = shop.create("2300000", asset="USDT", escrow=True)
    assert actions(api, payment["id"]) == set()
    problem(httpx.get(f"{api.base_url}/order/{payment['id']}/release"), 409, "conflict")
    pay(api, ledger_database, payment, payer=str(PAYER.pubkey()))
    assert actions(api, payment["id"]) == {"release", "dispute"}
    for action in ("release", "dispute"):
        code, text = asked(api, payment["id"], action, lang)
        dong = "2.300.000" if lang == "vi" else "2,300,000"
        said = [api.base_url, "Phở Thìn", payment["id"], dong, "100.000000 USDT", code]
        for part in [*said, str(PAYER.pubkey()), f": {action}\n"]:
            assert part in text
    assert shop.payment(payment["id"])["status"] == "escrow_held"


def test_a_proof_in_either_language_or_of_the_command_line_tool_acts(
    api: ApiServer, shop: Shop, ledger_database: DatabaseServer
) -> None:
    for lang, wrapped in (("vi", False), ("en", False), ("vi", True)):
        payment_id = hold(api, shop, ledger_database)["id"]
        code, text = asked(api, payment_id, "release", lang)
        signed = text.encode()
        if wrapped:
            length = len(signed).to_bytes(2, "little")
            signed = b"\xffsolana offchain" + bytes([0, 1]) + length + signed
        form = {"code": code, "signature": f" {PAYER.sign_message(signed)}\n"}
        assert post(api, payment_id, "release", lang=lang, **form).status_code == 303
        assert shop.payment(payment_id)["status"] == "completed"


def test_nobody_but_the_paying_wallet_acts(
    api: ApiServer, shop: Shop, held: dict[str, Any], ledger_database: DatabaseServer
) -> None:
    payment_id = held["id"]
    other_id = hold(api, shop, ledger_database)["id"]
    code, text = asked(api, payment_id, "release")
    good = proof(api, payment_id, "release")["signature"]
    dispute_code, dispute_text = asked(api, payment_id, "dispute")
    other_code, other_text = asked(api, other_id, "release")
    stranger = Keypair()

    def signed(words: str, key: Keypair = PAYER) -> str:
        return str(key.sign_message(words.encode()))

    ends, _, mac = code.partition(".")
    forged = {
        "nothing": {},
        "a code alone": {"code": code},
        "another wallet": {"code": code, "signature": signed(text, stranger)},
        "another payment": {"code": other_code, "signature": signed(other_text)},
        "another payment's text": {"code": code, "signature": signed(other_text)},
        "another purpose": {"code": dispute_code, "signature": signed(dispute_text)},
        "another purpose's text": {"code": code, "signature": signed(dispute_text)},
        "another amount": {"code": code, "signature": signed(text.replace("2,300,000", "2,300"))},
        "a letter more": {"code": code, "signature": signed(text + " ")},
        "another code's": {"code": f"{ends}.{mac[:-1]}A", "signature": good},
        "a later end": {
            "code": f"{int(ends) + 60}.{mac}",
            "signature": signed(text.replace(ends, str(int(ends) + 60))),
        },
        "no number": {"code": f"٣.{mac}", "signature": good},
        "too short": {"code": code, "signature": signed(text)[:40]},
        "not base58": {"code": code, "signature": "0OIl" * 22},
        "zeros": {"code": code, "signature": "1" * 64},
    }
    for what, form in forged.items():
        answer = post(api, payment_id, "release", **form)
        assert (what, answer.status_code) == (what, 403), answer.text
    # The text of the other language is another text.
    form = {"code": code, "signature": signed(text)}
    problem(post(api, payment_id, "release", lang="vi", **form), 403, "not_permitted")
    path = f"{api.base_url}/order/{payment_id}/release"
    problem(httpx.post(path, content=b"\xff" * 50), 403, "not_permitted")
    problem(httpx.post(path, content=b"a=b&" * 50), 403, "not_permitted")
    problem(post(api, new_id("pay"), "release", **form), 404, "not_found")
    assert shop.payment(payment_id)["status"] == "escrow_held"
    assert shop.payment(other_id)["status"] == "escrow_held"


def test_the_shop_cannot_release_in_the_payers_name(
    api: ApiServer, shop: Shop, held: dict[str, Any], ledger_database: DatabaseServer
) -> None:
    payment_id = held["id"]
    # It knows the id, so it sees the page and its code; with its key and its own wallet it is
    # still not the payer, not by dust sent before, nor by more than the price sent after.
    own = Keypair()
    shops = str(own.pubkey())
    code, text = asked(api, payment_id, "release")
    answer = shop.client.post(f"/order/{payment_id}/release?lang=en", data={"code": code})
    problem(answer, 403, "not_permitted")
    pay(api, ledger_database, held, 2 * TOKENS, payer=shops, slot=9)
    form = {"code": code, "signature": str(own.sign_message(text.encode()))}
    problem(post(api, payment_id, "release", **form), 403, "not_permitted")
    dusted = shop.create("2300000", asset="USDT", escrow=True)
    pay(api, ledger_database, dusted, 1, payer=shops)
    pay(api, ledger_database, dusted, TOKENS - 1, payer=str(PAYER.pubkey()), slot=2)
    assert shop.payment(dusted["id"])["payer_address"] == shops
    form = proof(api, dusted["id"], "release", own)
    problem(post(api, dusted["id"], "release", **form), 403, "not_permitted")
    for action in ("release", "resolve"):
        assert shop.post(f"/api/v1/payments/{payment_id}/{action}", {}).status_code == 404
    assert shop.payment(payment_id)["status"] == "escrow_held"
    assert shop.payment(dusted["id"])["status"] == "escrow_held"
    # The payer still can.
    assert post(api, payment_id, "release", **proof(api, payment_id, "release")).status_code == 303
    form = proof(api, dusted["id"], "release")
    assert post(api, dusted["id"], "release", **form).status_code == 303


def test_a_text_is_good_for_a_quarter_of_an_hour(
    api: ApiServer, shop: Shop, held: dict[str, Any]
) -> None:
    payment_id = held["id"]
    links = PayerLinks(api.env["GIOVANG_API_SEALING_KEY"])
    fresh, text = asked(api, payment_id, "release")
    for made_before_s, status in ((15 * 60 + 1, 403), (15 * 60 - 60, 303)):
        code = links.token(payment_id, "release", now_s=int(time.time()) - made_before_s)
        until = datetime.fromtimestamp(int(code.partition(".")[0]), UTC)
        old = re.sub(r"Good until: \S+", f"Good until: {until:%Y-%m-%dT%H:%M:%SZ}", text)
        signature = str(PAYER.sign_message(old.replace(fresh, code).encode()))
        answer = post(api, payment_id, "release", code=code, signature=signature)
        assert answer.status_code == status, answer.text
    assert shop.payment(payment_id)["status"] == "completed"


def test_what_was_signed_before_changes_nothing_after(
    api: ApiServer, shop: Shop, held: dict[str, Any], ledger_database: DatabaseServer
) -> None:
    payment_id = held["id"]
    release = proof(api, payment_id, "release")
    dispute = {**proof(api, payment_id, "dispute"), "reason": "vỡ"}
    assert post(api, payment_id, "dispute", **dispute).status_code == 303
    problem(post(api, payment_id, "release", **release), 409, "conflict")
    problem(post(api, payment_id, "dispute", **dispute), 409, "conflict")
    assert shop.payment(payment_id)["status"] == "disputed"
    other_id = hold(api, shop, ledger_database)["id"]
    release = proof(api, other_id, "release")
    dispute = {**proof(api, other_id, "dispute"), "reason": "vỡ"}
    for _ in range(2):
        assert post(api, other_id, "release", **release).status_code == 303
    problem(post(api, other_id, "dispute", **dispute), 409, "conflict")
    assert balance(ledger_database, shop, "merchant_available") == (2_277_000, 0)


def test_who_cannot_sign_is_told_whom_to_ask(
    api: ApiServer, shop: Shop, ledger_database: DatabaseServer
) -> None:
    payment = shop.create("2300000", asset="USDT", escrow=True)
    for slot in (1, 2):
        pay(api, ledger_database, payment, TOKENS // 2, payer=str(Keypair().pubkey()), slot=slot)
    assert shop.payment(payment["id"])["status"] == "escrow_held"
    assert actions(api, payment["id"]) == set()
    page = httpx.get(f"{api.base_url}/order/{payment['id']}?lang=en").text
    assert "Ask Phở Thìn" in page
    problem(httpx.get(f"{api.base_url}/order/{payment['id']}/dispute"), 409, "conflict")
    opened = shop.post(f"/api/v1/payments/{payment['id']}/dispute", {"reason": "khách nhờ"})
    assert opened.json()["status"] == "disputed"


def test_an_admin_disputes_for_a_payer_whom_the_shop_does_not_help(
    api: ApiServer, shop: Shop, held: dict[str, Any]
) -> None:
    path, said = f"/api/v1/admin/payments/{held['id']}/dispute", {"reason": "sàn giao dịch, vỡ"}
    problem(shop.post(path, said), 401, "not_authenticated")
    admin = admin_at_work(api)
    opened = admin.post(path, json=said)
    assert (opened.status_code, opened.json()["status"]) == (200, "disputed"), opened.text
    (dispute,) = [
        one
        for one in admin.get("/api/v1/admin/disputes", headers={"Giovang-Mode": "test"}).json()[
            "data"
        ]
        if one["payment_id"] == held["id"]
    ]
    assert (dispute["reason"], dispute["opened_by"][:4]) == ("sàn giao dịch, vỡ", "adm_")
    problem(admin.post(path, json=said), 409, "conflict")


def test_a_browser_is_refused_by_a_page(api: ApiServer, held: dict[str, Any]) -> None:
    path = f"{api.base_url}/order/{held['id']}/release"
    answer = httpx.post(f"{path}?lang=en", headers={"Accept": "text/html"})
    assert answer.status_code == 403
    assert answer.headers["content-type"].startswith("text/html")
    assert "Nothing has changed" in answer.text
    assert "default-src 'none'" in answer.headers["content-security-policy"]


def test_the_pages_are_limited_for_each_address(
    ledger_database: DatabaseServer, redis_server: BrokerServer, tmp_path: Path
) -> None:
    limited = make_desk_api(tmp_path, ledger_database, redis_server, rate_limit_per_minute="4")
    limited.start()
    # Addresses of this machine alone, so that no other test's bucket is emptied.
    transport = httpx.HTTPTransport(local_address="127.0.0.77")
    with httpx.Client(base_url=limited.base_url, transport=transport) as reader:
        path = f"/order/{new_id('pay')}"
        addresses = [path, f"{path}/success", f"{path}/release", f"{path}/dispute", path]
        answers = [reader.get(address) for address in addresses]
        assert [answer.status_code for answer in answers] == [404, 404, 404, 404, 429]
        assert int(answers[-1].headers["retry-after"]) >= 1
        shown = reader.post(f"{path}/release", headers={"Accept": "text/html,*/*"})
        assert (shown.status_code, shown.headers["content-type"][:9]) == (429, "text/html")
        assert int(shown.headers["retry-after"]) >= 1
    limited.stop()

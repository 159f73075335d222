"""Rules of escrow, disputes and exceptions attacked in raw SQL, as the role that moves money."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from api.database import new_id
from tests.fixtures.api import ApiServer, Shop
from tests.fixtures.books import refused, sign_in
from tests.fixtures.desk import make_desk_api, pay
from tests.fixtures.services import BrokerServer, DatabaseServer

Operator = psycopg.Connection[Any]


@pytest.fixture(scope="module")
def api(
    ledger_database: DatabaseServer, redis_server: BrokerServer, tmp_path_factory: Any
) -> Iterator[ApiServer]:
    folder: Path = tmp_path_factory.mktemp("api")
    server = make_desk_api(folder, ledger_database, redis_server)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def shop(api: ApiServer) -> Shop:
    return api.shop()


@pytest.fixture
def operator(ledger_database: DatabaseServer) -> Iterator[Operator]:
    with sign_in(ledger_database, "giovang_operator") as connection:
        yield connection


@pytest.fixture
def held(api: ApiServer, ledger_database: DatabaseServer, shop: Shop) -> str:
    """Return the id of a payment that is held in escrow."""
    payment = shop.create(escrow=True)
    pay(api, ledger_database, payment)
    payment_id: str = payment["id"]
    assert shop.payment(payment_id)["status"] == "escrow_held"
    return payment_id


def move(operator: Operator, payment_id: str, assignments: str) -> None:
    operator.execute(f"UPDATE payments SET {assignments} WHERE id = %s", (payment_id,))  # noqa: S608


def test_delivery_names_its_date(operator: Operator, held: str) -> None:
    with refused("payments_escrow_due"):
        move(operator, held, "status = 'awaiting_release'")
    with refused("payments_escrow_due_once"):
        move(operator, held, "escrow_release_due_at = now() + interval '7 days'")
    with refused("payments_escrow_due_once"):
        move(operator, held, "status = 'awaiting_release', escrow_release_due_at = now()")


def test_a_date_of_release_is_not_moved(operator: Operator, held: str, shop: Shop) -> None:
    assert shop.post(f"/api/v1/payments/{held}/deliver", {}).status_code == 200
    for moved in ("now() + interval '2 hours'", "now() + interval '60 days'", "NULL"):
        with refused("payments_escrow_due_once"):
            move(operator, held, f"escrow_release_due_at = {moved}")


def test_a_release_says_when_and_by_whom(operator: Operator, held: str, shop: Shop) -> None:
    assert shop.post(f"/api/v1/payments/{held}/deliver", {}).status_code == 200
    with refused("payments_escrow_released"):
        move(operator, held, "status = 'completed'")
    with refused("payments_escrow_released"):
        move(operator, held, "status = 'completed', escrow_released_at = now()")
    with refused("payments_escrow_released"):
        move(operator, held, "escrow_released_at = now(), escrow_released_by = 'payer'")
    # With both it is the ledger that refuses: nothing was booked, and the hold still stands.
    with refused("payments_completed_is_booked"):
        move(
            operator,
            held,
            "status = 'completed', escrow_released_at = now(), escrow_released_by = 'payer'",
        )


def test_a_payment_without_escrow_is_never_in_it(
    api: ApiServer, ledger_database: DatabaseServer, shop: Shop, operator: Operator
) -> None:
    payment = shop.create()
    pay(api, ledger_database, payment)
    with refused("payments_escrow"):
        move(
            operator,
            payment["id"],
            "escrow_released_at = now(), escrow_released_by = 'payer'",
        )
    with refused("payments_outcome_of_exception"):
        move(operator, payment["id"], "exception_outcome = 'refunded'")


def test_a_dispute_is_resolved_whole_and_once(
    operator: Operator, ledger_database: DatabaseServer, held: str, shop: Shop
) -> None:
    opened = shop.post(f"/api/v1/payments/{held}/dispute", {"reason": "nothing came"})
    assert opened.status_code == 200, opened.text
    with refused("disputes_resolved_whole"):
        operator.execute("UPDATE disputes SET outcome = 'payer' WHERE payment_id = %s", (held,))
    with sign_in(ledger_database, "giovang_api", shop.merchant_id) as merchant:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            merchant.execute("UPDATE disputes SET outcome = 'merchant'")
        with pytest.raises(psycopg.errors.UniqueViolation):
            merchant.execute(
                "INSERT INTO disputes (id, merchant_id, payment_id, opened_by, reason)"
                " VALUES (%s, %s, %s, 'key_x', 'again')",
                (new_id("dsp"), shop.merchant_id, held),
            )
    resolution = """UPDATE disputes
        SET outcome = 'merchant', merchant_minor = 1, resolved_by = 'adm_x',
            resolution_reason = 'so it is', resolved_at = now()
        WHERE payment_id = %s"""
    operator.execute(resolution, (held,))
    with refused("disputes_resolved_once"):
        operator.execute(resolution, (held,))


def test_a_hold_is_posted_by_an_entry_alone(operator: Operator, held: str) -> None:
    with refused("ledger_holds_posted_by"):
        operator.execute("UPDATE ledger_holds SET status = 'posted' WHERE payment_id = %s", (held,))

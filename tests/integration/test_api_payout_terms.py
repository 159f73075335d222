"""Who may approve a payout and when its terms may change, under attack by raw SQL."""

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import errors as pg

from api.database import new_id
from tests.fixtures import books
from tests.fixtures.books import (
    APPROVER,
    ASKER,
    approve,
    ask_payout,
    change,
    fund,
    refused,
    sign_in,
)
from tests.fixtures.services import DatabaseServer

Connection = psycopg.Connection[Any]


@pytest.fixture(scope="module", autouse=True)
def _books_balance_afterwards(ledger_database: DatabaseServer) -> Any:
    yield
    books.assert_books_balance(ledger_database)


@pytest.fixture
def merchant(ledger_database: DatabaseServer) -> str:
    """A merchant with 500,000 dong, and a million that is test money."""
    merchant_id = books.new_merchant(ledger_database)
    fund(ledger_database, merchant_id, 500_000, mode="live")
    fund(ledger_database, merchant_id, 1_000_000)
    return merchant_id


@pytest.fixture
def tenant(ledger_database: DatabaseServer, merchant: str) -> Iterator[Connection]:
    """The API's role, speaking for the merchant."""
    with sign_in(ledger_database, "giovang_api", merchant) as connection:
        yield connection


def test_the_api_moves_no_payout_beyond_approval(tenant: Connection, merchant: str) -> None:
    payout = ask_payout(tenant, merchant, 10_000)
    move = "UPDATE payouts SET status = %s WHERE id = %s"
    with refused("status_transitions"):
        tenant.execute(move, ("failed", payout))
    approve(tenant, payout)
    for status in ("sent", "failed"):
        with pytest.raises(pg.InsufficientPrivilege, match=f"giovang_api may not move .* {status}"):
            tenant.execute(move, (status, payout))
    for status in ("settled", "requested"):
        with pytest.raises(pg.CheckViolation, match="may not go from approved"):
            tenant.execute(move, (status, payout))


@pytest.mark.parametrize(
    "by", [ASKER, "key_01jz8w5k6h7m9n0p2q3r4s5t6w", "admin", "release_0_2", ""]
)
def test_only_a_second_person_approves(tenant: Connection, merchant: str, by: str) -> None:
    payout = ask_payout(tenant, merchant, 10_000)
    with refused("payouts_second_person"):
        approve(tenant, payout, by=by)


def test_who_asked_as_a_person_does_not_approve(tenant: Connection, merchant: str) -> None:
    payout = ask_payout(tenant, merchant, 10_000)
    tenant.execute(
        """UPDATE payouts SET destination = 'my own', revision = 2, requested_by = %s
           WHERE id = %s""",
        (APPROVER, payout),
    )
    with refused("payouts_second_person"):
        approve(tenant, payout)
    approve(tenant, payout, by=new_id("adm"))


APPROVAL = """UPDATE payouts SET status = 'approved', approved_by = %(by)s,
                     approved_revision = %(revision)s, approved_at = %(at)s WHERE id = %(payout)s"""


@pytest.mark.parametrize(
    ("changed", "constraint"),
    [
        ({"revision": 2}, "payouts_approved_revision"),
        ({"revision": 0}, "payouts_approved_revision"),
        ({"revision": None}, "payouts_approved_revision"),
        ({"at": None}, "payouts_approved_revision"),
        ({"by": None, "revision": None, "at": None}, "payouts_approved"),
    ],
)
def test_an_approval_is_whole_and_of_the_revision_that_stands(
    tenant: Connection, merchant: str, changed: dict[str, Any], constraint: str
) -> None:
    payout = ask_payout(tenant, merchant, 10_000)
    whole = {"by": APPROVER, "revision": 1, "at": "2026-01-01T00:00:00Z", "payout": payout}
    with refused(constraint):
        tenant.execute(APPROVAL, {**whole, **changed})
    tenant.execute(APPROVAL, whole)


@pytest.mark.parametrize(
    "terms",
    [
        "amount_minor = 20000",
        "destination = 'elsewhere'",
        "amount_minor = 20000, revision = revision + 2",
        "revision = revision + 1",
        f"requested_by = '{APPROVER}'",
        f"approved_by = '{APPROVER}', approved_revision = 1, approved_at = now()",
        f"""status = 'approved', approved_by = '{APPROVER}', approved_revision = 2,
            approved_at = now(), destination = 'elsewhere', revision = 2""",
    ],
)
def test_terms_change_by_a_revision_of_their_own(
    tenant: Connection, merchant: str, terms: str
) -> None:
    payout = ask_payout(tenant, merchant, 10_000)
    with refused("payouts_terms"):
        change(tenant, "payouts", terms, payout)


@pytest.mark.parametrize("role", ["giovang_api", "giovang_operator"])
@pytest.mark.parametrize(
    "terms",
    [
        "destination = 'elsewhere'",
        "destination = 'elsewhere', revision = revision + 1",
        "amount_minor = 1, revision = revision + 1",
        f"requested_by = '{APPROVER}'",
        "approved_by = 'stf_01jz8w5k6h7m9n0p2q3r4s5t6w'",
        "approved_by = NULL, approved_revision = NULL, approved_at = NULL",
        "approved_at = now() + interval '1 day'",
    ],
)
def test_terms_are_fixed_by_approval(
    ledger_database: DatabaseServer, tenant: Connection, merchant: str, role: str, terms: str
) -> None:
    payout = ask_payout(tenant, merchant, 10_000)
    approve(tenant, payout)
    with (
        sign_in(ledger_database, role, merchant) as database,
        pytest.raises((pg.CheckViolation, pg.InsufficientPrivilege)),
    ):
        change(database, "payouts", terms, payout)

"""The unit of work on a real connection: what an error leaves behind is nothing."""

from functools import partial

import psycopg
import pytest
from redis.asyncio import Redis

from api.database import Database, Identity, new_id
from api.errors import IdempotencyKeyReused, RateUnavailable
from api.idempotency import Answer, Request, answer_at_once, whole
from api.payments.model import CreatePayment
from api.payments.service import create_once
from api.payments.views import present
from api.rates.service import Rates, StaticRates
from api.settings import ChainSettings
from tests.fixtures.core import RATES, WALLET
from tests.fixtures.services import BrokerServer, DatabaseServer

# As often as psycopg runs a statement before it prepares it.
BEFORE_PREPARING = 5
STATEMENT = "SELECT count(*) FROM merchants WHERE name = %(name)s"
REFUSED = "INSERT INTO merchants (id, name, trade, timezone, country) VALUES ('', '', '', '', '')"


async def test_an_error_leaves_no_statement_that_only_one_side_knows(
    ledger_database: DatabaseServer,
) -> None:
    url = ledger_database.url("giovang_api")
    async with Database(url, application_name="test", pool_size=1) as database:

        async def work(*, fails: bool) -> None:
            async with database.unit_of_work(Identity("test", "mer_x")) as unit:
                if fails:
                    await unit.run(REFUSED, {})
                await unit.run(STATEMENT, {"name": "x"})

        with pytest.raises(psycopg.Error):
            await work(fails=True)
        for _ in range(BEFORE_PREPARING):
            await work(fails=False)
        with pytest.raises(psycopg.Error):
            # Its turn to be prepared comes where PostgreSQL skips everything.
            await work(fails=True)
        await work(fails=False)


OPEN_SHOP = whole("""
    INSERT INTO merchants (id, name, trade, timezone, country)
    SELECT %(merchant_id)s, 'Shop', 'cafe', 'UTC', %(country)s
    FROM begun WHERE is_new
    RETURNING 'opened' AS body
""")


async def test_one_statement_is_a_whole_unit_of_work(ledger_database: DatabaseServer) -> None:
    url = ledger_database.url("giovang_api")
    async with Database(url, application_name="test", pool_size=1) as database:
        merchant_id = new_id("mer")
        identity, request = Identity("test", merchant_id), Request("once", b"1" * 32, "test")

        async def ask(request: Request, country: str = "VN") -> tuple[str, bool]:
            answer = await answer_at_once(
                database, identity, request, OPEN_SHOP, {"country": country}, status=201
            )
            assert answer.status == 201
            return answer.body, answer.replayed

        # What is refused is not kept: neither by a check, nor as the key's answer.
        with pytest.raises(psycopg.errors.CheckViolation):
            await ask(request, country="vn")
        assert await ask(request) == ("opened", False)
        assert await ask(request) == ("opened", True)
        with pytest.raises(IdempotencyKeyReused):
            await ask(Request("once", b"2" * 32, "test"))
        # Under another key the merchant is there already.
        with pytest.raises(psycopg.errors.UniqueViolation):
            await ask(Request("twice", b"1" * 32, "test"))

        async with database.unit_of_work(identity) as unit:
            kept = await unit.value("SELECT count(*) FROM idempotency_keys", {})
        assert kept == 1
        # Nothing of it outlives the statement: the next on this connection is nobody's.
        async with database.unit_of_work(Identity("test")) as unit:
            assert await unit.value("SELECT count(*) FROM idempotency_keys", {}) == 0


async def test_what_was_answered_needs_no_rate_any_more(
    ledger_database: DatabaseServer, redis_server: BrokerServer
) -> None:
    merchant_id = new_id("mer")
    identity = Identity("test", merchant_id)
    redis = Redis.from_url(redis_server.url)
    some = Rates(StaticRates(RATES), redis, max_age_s=60, sources="some")
    none = Rates(StaticRates({}), redis, max_age_s=60, sources="none")

    async with Database(
        ledger_database.url("giovang_api"), application_name="test", pool_size=1
    ) as database:

        async def create(key: str, rates: Rates) -> Answer:
            return await create_once(
                database,
                identity,
                Request(key, b"1" * 32, "test"),
                CreatePayment(amount="1000", asset="USDC"),
                mode="test",
                rates=rates,
                chain=ChainSettings(solana_rpc_url="http://127.0.0.1:9", collection_wallet=WALLET),
                shown=partial(present, merchant_name="Shop", public_url="https://pay.vn"),
            )

        opening = Request("open", b"0" * 32, "test")
        await answer_at_once(database, identity, opening, OPEN_SHOP, {"country": "VN"}, status=201)
        with pytest.raises(RateUnavailable):
            await create("a", none)
        first = await create("a", some)
        again = await create("a", none)
        assert (again.status, again.body) == (first.status, first.body)
        assert (first.replayed, again.replayed) == (False, True)
        with pytest.raises(RateUnavailable):
            await create("b", none)
    await redis.aclose()

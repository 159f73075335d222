"""The unit of work on a real connection: what an error leaves behind is nothing."""

import psycopg
import pytest

from api.database import Database, Identity
from tests.fixtures.services import DatabaseServer

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

"""Asking an agent and hearing its answer: from a client that is no worker, and within a worker."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests.conformance.apps import START_DEADLINE_S, STOP_DEADLINE_S, Apps, running

ANSWER_DEADLINE_S = 90.0


def doubling(app: Any, topic: str) -> Any:
    """Give an app an agent that answers with twice the number it is asked."""

    async def double(stream: Any) -> AsyncIterator[int]:
        async for number in stream:
            yield 2 * number

    declared = app.topic(topic, key_type=str, value_type=int, internal=True, partitions=3)
    return app.agent(declared, name="double")(double)


@asynccontextmanager
async def client_of(app: Any) -> AsyncIterator[Any]:
    """Run an app as a client for the length of a block."""
    async with asyncio.timeout(START_DEADLINE_S):
        await app.start_client()
    try:
        yield app
    finally:
        async with asyncio.timeout(STOP_DEADLINE_S):
            await app.stop()


async def test_clients_ask_a_worker_and_hear_their_own_answers(apps: Apps, name: str) -> None:
    worker = apps.new()
    doubling(worker, name)
    one, other = apps.new(reply_create_topic=True), apps.new(reply_create_topic=True)
    asked, asked_too = doubling(one, name), doubling(other, name)
    async with running(worker), client_of(one), client_of(other):
        async with asyncio.timeout(ANSWER_DEADLINE_S):
            answers = await asyncio.gather(
                *(asked.ask(number, key=f"k{number}") for number in range(20)),
                *(asked_too.ask(number, key=f"k{number}") for number in range(100, 120)),
            )
        assert answers == [2 * number for number in (*range(20), *range(100, 120))]
        assert len(worker.consumer.assignment()) == 3, "a client takes no partitions"


async def test_a_worker_asks_an_agent_of_its_own(apps: Apps, name: str) -> None:
    worker = apps.new(reply_create_topic=True)
    agent = doubling(worker, name)
    async with running(worker), asyncio.timeout(ANSWER_DEADLINE_S):
        assert await agent.join([1, 2, 3]) == [2, 4, 6]
        assert {value async for value in agent.map([4, 5])} == {8, 10}

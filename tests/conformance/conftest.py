"""The broker under test, a name for each test, and apps that are stopped when it ends."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.conformance.apps import Apps
from tests.conformance.broker import Broker, chosen_broker


@pytest.fixture(scope="module")
def broker(module_folder: Path) -> Iterator[Broker]:
    """A broker of the module's own, which it may kill and start."""
    started = chosen_broker(module_folder)
    yield started
    started.close()


@pytest.fixture
def name() -> str:
    """A name that no other test uses, with a dot in it as topics have."""
    return f"c.{uuid4().hex[:12]}"


@pytest.fixture
async def apps(broker: Broker, name: str, tmp_path: Path) -> AsyncIterator[Apps]:
    """Makes apps of one id; those that still run are stopped at the end."""
    made = Apps(broker, f"app-{name}", tmp_path)
    yield made
    await made.stop_all()

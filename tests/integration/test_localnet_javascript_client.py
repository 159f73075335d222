"""Hop: the stock JavaScript clients, unchanged from npm, to the local network."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures.localnet import make_localnet
from tests.fixtures.node import NEEDS_NODE, SOURCES, run_scenario
from tests.fixtures.services import LocalnetServer

# @solana/kit names this release of Node in its package; Debian 12 carries an older one.
KIT_NODE = (20, 18)

pytestmark = NEEDS_NODE


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalnetServer]:
    server = make_localnet(tmp_path_factory.mktemp("localnet"), slot_ms="200")
    server.start()
    yield server
    server.stop()


def _node_version() -> tuple[int, int]:
    printed = subprocess.run(
        ["node", "--version"], capture_output=True, text=True, timeout=10, check=True
    ).stdout
    major, minor, _ = printed.strip().lstrip("v").split(".", 2)
    return int(major), int(minor)


@pytest.mark.parametrize("scenario", ["web3", "spl_token", "pay", "kit"])
def test_stock_library(
    scenario: str, libraries: Path, network: LocalnetServer, tmp_path: Path
) -> None:
    if scenario == "kit" and _node_version() < KIT_NODE:
        pytest.skip(f"@solana/kit needs Node {KIT_NODE[0]}.{KIT_NODE[1]} or later")
    run_scenario(scenario, libraries, tmp_path, network.rpc_url, network.ws_url)


def test_lock_file_names_no_host() -> None:
    lock = (SOURCES / "package-lock.json").read_text()
    assert '"resolved"' not in lock
    assert "://" not in lock
    assert lock.count('"integrity"') > 100

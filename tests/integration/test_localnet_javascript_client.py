"""Hop: the stock JavaScript clients, unchanged from npm, to the local network.

The scenarios in tests/fixtures/javascript check themselves and print "passed" at their end. The
libraries are installed once per lock file, into a cache below the state folder.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures.localnet import make_localnet
from tests.fixtures.services import CHECKOUT, LocalnetServer

SOURCES = CHECKOUT / "tests" / "fixtures" / "javascript"
INSTALL_TIMEOUT_S = 280
SCENARIO_TIMEOUT_S = 120
# @solana/kit names this release of Node in its package; Debian 12 carries an older one.
KIT_NODE = (20, 18)

pytestmark = [
    pytest.mark.timeout(INSTALL_TIMEOUT_S + SCENARIO_TIMEOUT_S),
    pytest.mark.skipif(
        shutil.which("node") is None or shutil.which("npm") is None,
        reason="needs node and npm (apt-get install nodejs npm)",
    ),
]


@pytest.fixture(scope="module")
def libraries() -> Path:
    """A folder with the locked libraries in node_modules."""
    lock = (SOURCES / "package-lock.json").read_bytes()
    state = Path(os.environ.get("GIOVANG_STACK_STATE_DIR", CHECKOUT / ".giovang"))
    cache = state / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / f"javascript-{hashlib.sha256(lock).hexdigest()[:16]}"
    # Two test runs may share the state folder: one installs, the other waits for it.
    with (cache / "javascript.lock").open("ab") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        if not folder.exists():
            _install(cache, folder)
    return folder


def _install(cache: Path, folder: Path) -> None:
    unfinished = Path(tempfile.mkdtemp(prefix="javascript-", dir=cache))
    try:
        for name in ("package.json", "package-lock.json"):
            shutil.copy(SOURCES / name, unfinished)
        command = ["npm", "ci", "--omit=dev", "--ignore-scripts", "--no-audit", "--no-fund"]
        installed = subprocess.run(
            command,
            cwd=unfinished,
            capture_output=True,
            text=True,
            timeout=INSTALL_TIMEOUT_S,
            check=False,
        )
        assert installed.returncode == 0, installed.stderr
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


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
    for source in SOURCES.glob("*.mjs"):
        shutil.copy(source, tmp_path)
    (tmp_path / "node_modules").symlink_to(libraries / "node_modules")
    ended = subprocess.run(
        ["node", f"{scenario}.mjs", network.rpc_url, network.ws_url],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=SCENARIO_TIMEOUT_S,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.splitlines()[-1] == "passed"


def test_lock_file_names_no_host() -> None:
    lock = (SOURCES / "package-lock.json").read_text()
    assert '"resolved"' not in lock
    assert "://" not in lock
    assert lock.count('"integrity"') > 100

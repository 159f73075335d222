"""What is missing on this machine, and how to mend it.

Only looks; mends nothing. Each finding is one sentence, and each fault names one thing to do.
"""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

from infra.stack.accounts import SERVICE_USER, can_read
from infra.stack.accounts import service_account as current_account
from infra.stack.ports import Ports, is_free, taken_message
from infra.stack.postgres import ClusterError, PostgresTree
from infra.stack.settings import CHECKOUT, StackSettings
from infra.stack.state import StateFolder

DISK_MB = 2048
MEMORY_MB = 3072
SETUP = "./giovang up installs it"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; `mend` says what to do where it is not good.

    What is optional does not keep the stack from running.
    """

    good: bool
    what: str
    mend: str = ""
    optional: bool = False


def examine(settings: StackSettings) -> list[Finding]:
    """Look at everything a start needs."""
    folder = StateFolder(settings.state)
    running = folder.is_supervised()
    return [
        _system(),
        *_packages(),
        _interpreter(),
        _tree(settings),
        _state(folder),
        _disk(folder),
        _memory(),
        _rooms_user(),
        *([] if running else _ports(settings)),
        _left(folder, running=running),
    ]


def _system() -> Finding:
    release = _release()
    name = release.get("PRETTY_NAME", "an unknown system")
    good = release.get("ID") == "debian" and release.get("VERSION_ID") in {"12", "13"}
    return Finding(good, f"system: {name}", "the set-up knows Debian 12 and 13")


def _packages() -> list[Finding]:
    version = _release().get("VERSION_ID", "")
    lines = (CHECKOUT / "infra" / "stack" / "packages").read_text().splitlines()
    wanted: dict[str, list[str]] = {}
    for line in lines:
        words = line.split()
        if len(words) == 3 and words[0] == version:
            wanted.setdefault(words[1], []).append(words[2])
    uses = {"run": "to run", "test": "for ./giovang test"}
    findings = []
    for purpose, use in uses.items():
        missing = [name for name in wanted.get(purpose, []) if not _installed(name)]
        what = f"packages {use}: " + (", ".join(missing) or "all installed")
        command = "apt-get install --no-install-recommends " + " ".join(missing)
        mend = f"./giovang installs them, or: {command}"
        findings.append(Finding(not missing, what, mend, optional=purpose == "test"))
    return findings


def _installed(package: str) -> bool:
    answer = subprocess.run(
        ["/usr/bin/dpkg-query", "-W", "-f", "${db:Status-Abbrev}", package],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return answer.stdout[1:2] == "i"


def _interpreter() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    good = (3, 11) <= sys.version_info[:2] <= (3, 13)
    return Finding(good, f"Python {version} in {sys.prefix}", "Python 3.11 to 3.13 is supported")


def _tree(settings: StackSettings) -> Finding:
    tree = PostgresTree(settings.postgres_tree_or_default)
    try:
        major = tree.major
    except ClusterError:
        return Finding(good=False, what=f"private PostgreSQL in {tree.root}", mend=SETUP)
    what = f"private PostgreSQL {major} with TimescaleDB in {tree.root}"
    return Finding(tree.has_timescaledb, what, SETUP)


def _state(folder: StateFolder) -> Finding:
    what = f"state folder {folder.root}"
    if not folder.root.exists():
        return Finding(good=True, what=f"{what} (made at the first start)")
    mine = folder.root.stat().st_uid == os.geteuid() and os.access(folder.root, os.W_OK)
    mend = "run as its owner, or set GIOVANG_STACK_STATE_DIR to a folder of your own"
    return Finding(mine, what, mend)


def _disk(folder: StateFolder) -> Finding:
    place = next(part for part in (folder.root, *folder.root.parents) if part.exists())
    free_mb = shutil.disk_usage(place).free // 1024**2
    mend = "free some space, or set GIOVANG_STACK_STATE_DIR to a larger disk"
    return Finding(free_mb >= DISK_MB, f"disk: {free_mb} MB free for {folder.root}", mend)


def _memory() -> Finding:
    total_mb = psutil.virtual_memory().total // 1024**2
    mend = f"{MEMORY_MB} MB are comfortable; ./giovang up --no-demo needs less"
    return Finding(total_mb >= MEMORY_MB, f"memory: {total_mb} MB", mend)


def _rooms_user() -> Finding:
    account = current_account()
    if account is None:
        return Finding(good=True, what="services run as you, without privileges")
    if can_read(account, CHECKOUT / "infra" / "telemetry.py"):
        return Finding(good=True, what=f"services run as the unprivileged user {SERVICE_USER}")
    return Finding(
        good=False,
        what=f"the user {SERVICE_USER} cannot read {CHECKOUT}: our own processes run as root "
        "(databases and brokers do not)",
        mend="put the checkout where other users may read it, such as /srv",
        optional=True,
    )


def _ports(settings: StackSettings) -> list[Finding]:
    findings = []
    for name in Ports.__dataclass_fields__:
        port = getattr(settings, f"{name}_port")
        port += settings.port_offset if port else 0
        if port and not is_free(port):
            sentence, _, advice = taken_message(name, port).partition(": ")
            findings.append(Finding(good=False, what=sentence, mend=advice))
    return findings or [Finding(good=True, what="ports: all free")]


def _left(folder: StateFolder, *, running: bool) -> Finding:
    if running:
        return Finding(good=True, what=f"the stack runs (supervisor pid {folder.supervisor_pid()})")
    left = len(folder.leftovers())
    what = f"{left} processes of an earlier run are still there" if left else "nothing left behind"
    return Finding(left == 0, what, "./giovang down ends them")


def _release() -> dict[str, str]:
    try:
        lines = Path("/etc/os-release").read_text().splitlines()
    except OSError:
        return {}
    return {key: value.strip('"') for key, _, value in (line.partition("=") for line in lines)}

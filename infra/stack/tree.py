"""Prepares the private PostgreSQL tree: a copy of the distribution's server with TimescaleDB in it.

`python -m infra.stack.tree MAJOR` makes `<state>/postgres`; the machine's own server is only read.
Where the distribution packages TimescaleDB for its server (Debian 13), the copy already has it;
else it is built from the source package of the release that does, fetched by apt from the
machine's own mirror and checked against Debian's keys. The finished tree appears under its name in
one step; an interrupted run leaves nothing that looks finished.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from infra.stack.apt_sources import NoMirrorError, mirror_of
from infra.stack.settings import StackSettings

# The release whose source package of TimescaleDB (2.19) is built where there is no binary one. Its
# versions up to 2.28 support PostgreSQL 15.
SOURCE_RELEASE = "trixie"
BUILD_TIMEOUT_S = 1200
FETCH_TIMEOUT_S = 600
MEMORY_PER_JOB_BYTES = 700 * 1024 * 1024


class TreeError(Exception):
    """The tree cannot be made; the message says which step failed."""


def prepare(state: Path, major: str) -> Path:
    """Make the tree and point `<state>/postgres` to it; returns the finished tree."""
    system = Path("/usr/lib/postgresql") / major
    if not (system / "bin" / "postgres").is_file():
        message = f"the distribution's PostgreSQL {major} is not installed in {system}"
        raise TreeError(message)
    state.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="postgres-new-", dir=state) as name:
        work = Path(name)
        tree = work / "tree"
        _say(f"copying PostgreSQL {major}")
        for part in (f"lib/postgresql/{major}", f"share/postgresql/{major}"):
            shutil.copytree(Path("/usr") / part, tree / part, symlinks=True)
        if not _control(tree, major).is_file():
            _say("fetching TimescaleDB's source package")
            source = _fetch(work / "fetch")
            _say("building TimescaleDB")
            _build(source, work, tree, major, system / "bin" / "pg_config")
        if not _control(tree, major).is_file():
            message = "TimescaleDB was built, but its control file is not in the tree"
            raise TreeError(message)
        tree.chmod(0o755)
        finished = Path(tempfile.mkdtemp(prefix=f"postgres-{major}-", dir=state))
        finished.chmod(0o755)
        tree.rename(finished)
    _point(state / "postgres", finished)
    _remove_older(state, finished)
    return finished


def _control(tree: Path, major: str) -> Path:
    return tree / f"share/postgresql/{major}/extension/timescaledb.control"


def _fetch(folder: Path) -> Path:
    """Fetch and unpack the source package with an apt of our own; returns the source folder."""
    for part in ("parts", "lists/partial", "cache/archives/partial"):
        (folder / part).mkdir(parents=True)
    codename = _release()["VERSION_CODENAME"]
    try:
        text = mirror_of(codename).for_release(SOURCE_RELEASE)
    except NoMirrorError as error:
        raise TreeError(str(error)) from error
    (folder / "parts" / "source.sources").write_text(text)
    # The machine's apt.conf (proxy, certificates) stays in force; only lists and cache are ours.
    private = {
        "Dir::Etc::SourceList": "/dev/null",
        "Dir::Etc::SourceParts": str(folder / "parts"),
        "Dir::State::Lists": str(folder / "lists"),
        "Dir::Cache": str(folder / "cache"),
        "APT::Sandbox::User": "",
    }
    apt = ["apt-get", "-q"]
    for name, value in private.items():
        apt += ["-o", f"{name}={value}"]
    _run([*apt, "update"], folder, FETCH_TIMEOUT_S)
    _run([*apt, "source", "--download-only", "timescaledb"], folder, FETCH_TIMEOUT_S)
    described = sorted(folder.glob("timescaledb_*.dsc"))
    if len(described) != 1:
        message = f"apt fetched {len(described)} descriptions of timescaledb, one was expected"
        raise TreeError(message)
    source = folder / "source"
    _run(["dpkg-source", "-x", described[0].name, str(source)], folder, FETCH_TIMEOUT_S)
    return source


def _build(source: Path, work: Path, tree: Path, major: str, pg_config: Path) -> None:
    build, staged = work / "build", work / "staged"
    configure = ["cmake", "-S", str(source), "-B", str(build), "-DCMAKE_BUILD_TYPE=Release"]
    configure += ["-DAPACHE_ONLY=1", "-DREGRESS_CHECKS=OFF", "-DWARNINGS_AS_ERRORS=OFF"]
    configure += ["-DSEND_TELEMETRY_DEFAULT=OFF", f"-DPG_CONFIG={pg_config}"]
    _run(configure, work, BUILD_TIMEOUT_S)
    _run(["make", "-C", str(build), f"-j{_jobs()}"], work, BUILD_TIMEOUT_S)
    _run(["make", "-C", str(build), "install"], work, BUILD_TIMEOUT_S, {"DESTDIR": str(staged)})
    for part in (f"lib/postgresql/{major}/lib", f"share/postgresql/{major}/extension"):
        shutil.copytree(staged / "usr" / part, tree / part, dirs_exist_ok=True)


def _jobs() -> int:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(len(os.sched_getaffinity(0)), memory // MEMORY_PER_JOB_BYTES))


def _point(link: Path, target: Path) -> None:
    unfinished = link.with_name(link.name + ".new")
    unfinished.unlink(missing_ok=True)
    unfinished.symlink_to(target.name)
    unfinished.replace(link)


def _remove_older(state: Path, keep: Path) -> None:
    for folder in state.glob("postgres-*-*"):
        if folder != keep and folder.is_dir() and "-new-" not in folder.name:
            shutil.rmtree(folder)


def _release() -> dict[str, str]:
    lines = Path("/etc/os-release").read_text().splitlines()
    return {
        key: value.strip('"') for key, _, value in (line.partition("=") for line in lines) if key
    }


def _run(
    command: Sequence[str], cwd: Path, timeout_s: float, more: Mapping[str, str] | None = None
) -> None:
    print("+", " ".join(command), flush=True)
    env = {**os.environ, "LC_ALL": "C.UTF-8", **(more or {})}
    try:
        subprocess.run(
            list(command),
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            timeout=timeout_s,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        message = f"{command[0]} failed: {error}"
        raise TreeError(message) from error


def _say(text: str) -> None:
    print(f"== {text}", flush=True)


def main() -> None:
    """Prepare the tree of the configured state folder; one sentence and status 1 on failure."""
    os.umask(0o022)
    try:
        print(prepare(StackSettings().state, sys.argv[1]))
    except TreeError as error:
        sys.exit(f"giovang: {error}")


if __name__ == "__main__":
    main()

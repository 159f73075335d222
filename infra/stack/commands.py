"""Commands that hand over to another program: tests, demo, dbt, audit, capture, benches.

`demo`, `dbt`, `audit`, `capture`, `chaos` and `bench` become the other program (exec), with the
variables of its room and as the user who runs that room, so its exit status and its answer to
Ctrl-C are its own.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from rich.console import Console
from rich.text import Text

from infra.stack import environment
from infra.stack.accounts import Account
from infra.stack.environment import Stack
from infra.stack.ports import Ports
from infra.stack.process import base_environment
from infra.stack.services import make_stack, room_account
from infra.stack.settings import CHECKOUT, StackSettings
from infra.stack.state import StateError, StateFolder

CODE = ("api", "ingest", "streams", "dashboards", "infra", "tests")
DEMO = (sys.executable, "-m", "infra.demo")
AUDITOR = (sys.executable, "-m", "api.auditor")
CHAOS = (sys.executable, "-m", "tests.chaos")
DBT = (str(Path(sys.executable).parent / "dbt"),)
GATE_TIMEOUT_S = 900
PYTEST_TIMEOUT_S = 3300
LOCK_TIMEOUT_S = 900
# Options after the other program's own words are its own, its --help included.
PASS_ON = {
    "allow_extra_args": True,
    "ignore_unknown_options": True,
    "allow_interspersed_args": False,
}


class CommandError(Exception):
    """A command cannot do its work here; the message says what to do."""


class CannotTellError(Exception):
    """A command whose status 1 is an answer has none; the message says why. Its status is 2."""


@dataclass(frozen=True, slots=True)
class Gate:
    """One check of the whole checkout."""

    name: str
    command: Sequence[str]


def gates() -> list[Gate]:
    """Return the checks that run before the tests, fastest first."""
    tools = Path(sys.executable).parent
    return [
        Gate("lint", [str(tools / "ruff"), "check", "--no-cache", "."]),
        Gate("format", [str(tools / "ruff"), "format", "--no-cache", "--check", "."]),
        Gate("import rules", [str(tools / "lint-imports"), "--no-cache"]),
        Gate("SQL style", [str(tools / "sqlfluff"), "lint", "--disable-progress-bar", "dbt"]),
        Gate("types", [sys.executable, "-m", "mypy", *CODE]),
    ]


def run_tests(console: Console, arguments: Sequence[str]) -> int:
    """Run the gates and then pytest; with arguments only pytest. Returns the exit status."""
    arguments = [word for index, word in enumerate(arguments) if index or word != "--"]
    settings = StackSettings()
    env = {
        **{name: value for name, value in os.environ.items() if not _moves_a_stack(name)},
        "GIOVANG_TEST_POSTGRES_TREE": str(settings.postgres_tree_or_default),
        "DBT_SEND_ANONYMOUS_USAGE_STATS": "false",
    }
    failed = [] if arguments else [g.name for g in gates() if not _passes(console, g, env)]
    began = time.monotonic()
    status, summary = _pytest(arguments, env, colour=console.is_terminal)
    if failed:
        console.print(f"failed before the tests: {', '.join(failed)}", style="red")
        console.print(Text.from_ansi(summary))
    elif not arguments:
        console.print(f"tests took {time.monotonic() - began:.0f} s")
        console.print(Text.from_ansi(summary))
    return status or (1 if failed else 0)


def _moves_a_stack(variable: str) -> bool:
    """Whether a variable is about the stack beside the tests, and so none of their business."""
    kept = variable.startswith("GIOVANG_TEST_") or variable == "GIOVANG_STACK_STATE_DIR"
    return variable.startswith("GIOVANG_") and not kept


def enter_help(program: Sequence[str], arguments: Sequence[str]) -> NoReturn:
    """Become a program that only explains itself, which needs no running stack."""
    os.chdir(CHECKOUT)
    os.execve(program[0], [*program, *arguments], dict(os.environ))  # noqa: S606


def enter_demo(settings: StackSettings, arguments: Sequence[str]) -> NoReturn:
    """Become `python -m infra.demo` with the running stack's addresses."""
    stack, account = running_stack(settings), room_account()
    home = stack.folder.own_folder("demo", account)
    become([*DEMO, *arguments], environment.demo(stack, home), home, account)


def enter_dbt(settings: StackSettings, arguments: Sequence[str]) -> NoReturn:
    """Become dbt on the running stack's warehouse, with folders of its own for what it writes."""
    stack, account = running_stack(settings), room_account()
    home = stack.folder.own_folder("dbt", account)
    become([*DBT, *arguments], environment.dbt(stack, home), home, account)


def enter_auditor(settings: StackSettings, arguments: Sequence[str]) -> NoReturn:
    """Become `python -m api.auditor` on the running stack's ledger."""
    stack, account = running_stack(settings), room_account()
    home = stack.folder.own_folder("auditor", account)
    become([*AUDITOR, *arguments], environment.auditor(stack), home, account)


def enter_chaos(settings: StackSettings, arguments: Sequence[str]) -> NoReturn:
    """Become `python -m tests.chaos`, which starts what it kills by itself."""
    tree = str(settings.postgres_tree_or_default)
    os.chdir(CHECKOUT)
    env = {**os.environ, "GIOVANG_TEST_POSTGRES_TREE": tree}
    os.execve(CHAOS[0], [*CHAOS, *(arguments or ["--help"])], env)  # noqa: S606 - our own


def enter_bench(settings: StackSettings, arguments: Sequence[str]) -> NoReturn:
    """Become `python -m tests.bench`, which starts what it measures by itself."""
    command = [sys.executable, "-m", "tests.bench", *(arguments or ["list"])]
    tree = str(settings.postgres_tree_or_default)
    os.chdir(CHECKOUT)
    os.execve(command[0], command, {**os.environ, "GIOVANG_TEST_POSTGRES_TREE": tree})  # noqa: S606


def lock_environment(console: Console) -> None:
    """Compile requirements.txt with hashes for every supported Python, naming no registry."""
    with tempfile.TemporaryDirectory(prefix="giovang-lock-") as name:
        folder = Path(name)
        console.print("Fetching the compiler into a folder of its own …")
        _run([sys.executable, "-m", "venv", str(folder / "venv")])
        _run([str(folder / "venv/bin/pip"), "install", "--quiet", "uv"])
        console.print("Compiling requirements.txt …")
        target = folder / "requirements.txt"
        # What is pinned stays, unless pyproject.toml asks otherwise.
        target.write_bytes((CHECKOUT / "requirements.txt").read_bytes())
        command = [str(folder / "venv/bin/uv"), "pip", "compile", "pyproject.toml"]
        command += ["--extra", "dev", "--universal", "--python-version", "3.11"]
        command += ["--generate-hashes", "--no-emit-index-url", "--quiet", "-o", str(target)]
        command += ["--custom-compile-command", "./giovang env lock"]
        _run(command)
        text = target.read_text()
        if "://" in text:
            message = "the compiled file names a registry address; requirements.txt is unchanged"
            raise CommandError(message)
        (CHECKOUT / "requirements.txt").write_text(text)
    console.print("requirements.txt is compiled; the next ./giovang command installs it.")


def _passes(console: Console, gate: Gate, env: Mapping[str, str]) -> bool:
    began = time.monotonic()
    try:
        done = subprocess.run(
            list(gate.command),
            cwd=CHECKOUT,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=GATE_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        console.print(f"{gate.name:<14} failed  {error}", style="red", markup=False)
        return False
    verdict = "ok" if done.returncode == 0 else "failed"
    colour = "green" if done.returncode == 0 else "red"
    console.print(f"{gate.name:<14} [{colour}]{verdict:<6}[/] {time.monotonic() - began:6.1f} s")
    if done.returncode != 0:
        console.print(done.stdout, markup=False, highlight=False)
    return done.returncode == 0


def _pytest(arguments: Sequence[str], env: Mapping[str, str], *, colour: bool) -> tuple[int, str]:
    """Run pytest, its output as it comes; return its status and its own last line."""
    command = [sys.executable, "-m", "pytest", f"--color={'yes' if colour else 'no'}", *arguments]
    summary = "pytest said nothing"
    with subprocess.Popen(
        command,
        cwd=CHECKOUT,
        env=dict(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        bufsize=1,
    ) as process:
        if process.stdout is None:
            message = "pytest's output was not opened"
            raise AssertionError(message)
        # pytest-timeout bounds each test; the caller bounds the whole.
        for line in process.stdout:
            sys.stdout.write(line)
            sys.stdout.flush()
            if re.search(r"\d+ (passed|failed|error|skipped|deselected)", line):
                summary = line.rstrip()
    return process.returncode, summary


def running() -> StackSettings:
    """Return the settings of the stack that runs; `StateError` where none does."""
    settings = StackSettings()
    if not StateFolder(settings.state).is_supervised():
        message = "the stack is not running: ./giovang up starts it"
        raise StateError(message)
    return settings


def running_or_unknown() -> StackSettings:
    """Return the settings of the stack that runs; `CannotTellError` where none does."""
    try:
        return running()
    except StateError as error:
        raise CannotTellError(str(error)) from error


def running_stack(settings: StackSettings) -> Stack:
    """Return all that was decided about the stack that runs."""
    known = StateFolder(settings.state).read_status()
    ports = {name: known["ports"][name] for name in Ports.__dataclass_fields__}
    return make_stack(settings, Ports(**ports))


def become(
    command: Sequence[str], variables: Mapping[str, str], home: Path, account: Account | None
) -> NoReturn:
    """Become another program, as the user and with the variables of its room."""
    env = {**os.environ, **base_environment(home), **variables}
    os.chdir(CHECKOUT)
    if account is not None:
        os.setgroups([account.gid])
        os.setgid(account.gid)
        os.setuid(account.uid)
    os.execve(command[0], list(command), env)  # noqa: S606 - our own programs


def _run(command: Sequence[str]) -> None:
    try:
        subprocess.run(
            list(command),
            cwd=CHECKOUT,
            check=True,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LOCK_TIMEOUT_S,
        )
    except subprocess.CalledProcessError as error:
        message = f"{' '.join(command[:4])} failed:\n{(error.stderr or error.stdout).strip()}"
        raise CommandError(message) from error
    except (OSError, subprocess.TimeoutExpired) as error:
        message = f"{' '.join(command[:4])} failed: {error}"
        raise CommandError(message) from error

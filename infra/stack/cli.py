"""The command line: `./giovang COMMAND`, or `python -m infra.stack COMMAND` in a prepared venv.

Every command ends with status 0 when it did what it says. What a person can mend is told in one
sentence on standard error, with status 1; a wrong argument has status 2.
"""

import contextlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.console import Console

from infra.stack import background, capture, commands, doctor, logs, processors, view
from infra.stack.accounts import AccountError
from infra.stack.brokers import BrokerError
from infra.stack.ports import PortError
from infra.stack.postgres import ClusterError
from infra.stack.process import tail, wait_for_exit
from infra.stack.run import Run, Snapshot, stopped_snapshot
from infra.stack.settings import StackSettings
from infra.stack.state import AlreadyRunningError, StateError, StateFolder, end_leftovers
from infra.stack.supervisor import StartError

DOWN_TIMEOUT_S = 120.0
WIDE = 140  # columns

app = typer.Typer(
    help="Giovang: stablecoin payments whose ledger streams into analytics merchants can trust.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
# Where output goes to a file or a program, lines are never broken to the width of a terminal.
_width = None if sys.stdout.isatty() else 240
console = Console(highlight=False, width=_width)
errors = Console(stderr=True, highlight=False, soft_wrap=True)


@app.command()
def up(
    *,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Return once all is healthy; keep it running.")
    ] = False,
    demo: Annotated[
        bool, typer.Option("--demo/--no-demo", help="Demo shops: a year of history, live payers.")
    ] = True,
    rate: Annotated[
        float | None, typer.Option(min=0.01, max=6000, help="Live demo payments a minute.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the demo's history.")] = None,
    supervise: Annotated[bool, typer.Option("--supervise", hidden=True)] = False,
) -> None:
    """Start everything; stay in the foreground until Ctrl-C.

    State lives in one folder (GIOVANG_STACK_STATE_DIR moves it) and every port is a setting
    (GIOVANG_STACK_PORT_OFFSET moves them all), so that two checkouts run side by side.
    """
    settings = _settings(rate, seed)
    folder = StateFolder(settings.state)
    if supervise:
        Run(settings, demo=demo).until_stopped()
        return
    if folder.is_supervised():
        if not detach:
            raise AlreadyRunningError(folder.supervisor_pid())
        console.print("The stack is already running.")
        _show(settings, folder.read_status())
        return
    progress = view.Progress(console)
    console.print(f"Starting Giovang; its state lives in {settings.state}")
    if detach:
        arguments = ["--demo" if demo else "--no-demo"]
        arguments += [f"--rate={rate}"] if rate is not None else []
        arguments += [f"--seed={seed}"] if seed is not None else []
        snapshot = background.start(settings, arguments, progress.update)
        _show(settings, snapshot)
        console.print("\nStop it with [bold]./giovang down[/bold].")
        return
    presented = False

    def on_snapshot(snapshot: Snapshot) -> None:
        nonlocal presented
        progress.update(snapshot)
        if snapshot["supervisor"]["phase"] in {"starting", "running"} and not presented:
            presented = view.serves(snapshot)
            if presented:
                _show(settings, snapshot)
                console.print("\nStop it with Ctrl-C.")

    Run(settings, demo=demo, on_snapshot=on_snapshot).until_stopped()
    console.print("All stopped.")


@app.command()
def down() -> None:
    """Stop everything cleanly, in reverse order of start."""
    folder = StateFolder(_settings().state)
    pid = folder.supervisor_pid()
    if not folder.is_supervised() or pid is None:
        left = end_leftovers(folder)
        console.print(
            f"The stack was not running; ended {left} processes of an earlier run."
            if left
            else "The stack is not running."
        )
        return
    began = time.monotonic()
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    if not wait_for_exit(pid, timeout_s=DOWN_TIMEOUT_S):
        # Its children end with it.
        os.kill(pid, signal.SIGKILL)
        wait_for_exit(pid, timeout_s=10)
        end_leftovers(folder)
        message = f"the supervisor (pid {pid}) did not end within {DOWN_TIMEOUT_S:g} s: killed"
        raise StateError(message)
    end_leftovers(folder)
    console.print(f"All stopped in {time.monotonic() - began:.1f} s.")


@app.command()
def status(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")] = False,
) -> None:
    """Show every service: state, address, process, memory, log."""
    settings = _settings()
    snapshot = _snapshot(settings)
    if as_json:
        for row in snapshot["services"]:
            used = view.memory_mb(row["pid"])
            row["memory_mb"] = None if used is None else round(used, 1)
        print(json.dumps(snapshot, indent=1))
        return
    supervisor = snapshot["supervisor"]
    if supervisor["pid"] is None:
        console.print("The stack is not running; ./giovang up starts it.")
        if not snapshot["services"]:
            return
    console.print(view.table(snapshot, memory=True, words=console.width >= WIDE))
    if supervisor["phase"] not in {"running", "stopped"}:
        console.print(f"\nThe stack is {supervisor['phase']}.")


@app.command("logs")
def show_logs(
    service: Annotated[str | None, typer.Argument(help="One service; all without it.")] = None,
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as lines come.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="Lines to begin with.")] = 50,
) -> None:
    """Show the log of one service, or of all with the service's name before each line."""
    folder = StateFolder(_settings().state)
    known = {log.stem: log for log in sorted(folder.logs.glob("*.log"))}
    if service is not None and service not in known:
        names = ", ".join(known) or "none yet"
        message = f"there is no log of {service!r}; there are: {names}"
        raise StateError(message)
    chosen = known if service is None else {service: known[service]}
    width = max((len(name) for name in chosen), default=0)
    prefix = {log: f"{name:<{width}}  " if service is None else "" for name, log in chosen.items()}
    for log in chosen.values():
        for line in tail(log, lines, limit_bytes=4 * 1024 * 1024):
            print(prefix[log] + line)
    if follow:
        sys.stdout.flush()
        with contextlib.suppress(KeyboardInterrupt):
            for log, line in logs.follow(chosen.values(), until=lambda: False):
                print(prefix[log] + line, flush=True)


@app.command("doctor")
def show_doctor() -> None:
    """Say what is missing on this machine and how to mend it."""
    findings = doctor.examine(_settings())
    for finding in findings:
        bad = "[yellow]note   [/]" if finding.optional else "[red]missing[/]"
        mark = "[green]ok     [/]" if finding.good else bad
        console.print(f"{mark} {finding.what}")
        if not finding.good:
            console.print(f"        → {finding.mend}")
    if not all(finding.good or finding.optional for finding in findings):
        raise typer.Exit(1)


@app.command()
def reset(
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Remove all data, secrets and logs of this stack; the next start begins afresh."""
    folder = StateFolder(_settings().state)
    if folder.is_supervised():
        raise AlreadyRunningError(folder.supervisor_pid())
    if not yes:
        if not sys.stdin.isatty():
            message = "reset removes all data: confirm with --yes where nobody can be asked"
            raise StateError(message)
        question = f"Remove all payments, events, marts, keys and logs in {folder.root}?"
        if not typer.confirm(question):
            console.print("Nothing was removed.")
            return
    end_leftovers(folder)
    for part in (folder.data, folder.logs, folder.run):
        if part.exists():
            shutil.rmtree(part)
    folder.secrets.unlink(missing_ok=True)
    console.print("Removed. ./giovang up starts afresh.")


@app.command(context_settings=commands.PASS_ON)
def test(context: typer.Context) -> None:
    """Run lint, types, import rules and all tests; arguments after it go to pytest.

    Everything the tests need is started on free ports in temporary folders, so it works beside a
    running stack. With arguments (`./giovang test -k payment`), only pytest runs.
    """
    raise typer.Exit(commands.run_tests(console, context.args))


@app.command(context_settings=commands.PASS_ON, add_help_option=False)
def demo(context: typer.Context) -> None:
    """Run the demo against the running stack: livelier traffic, or another history."""
    if "--help" in context.args:
        commands.enter_help(commands.DEMO, context.args)
    commands.enter_demo(commands.running(), context.args)


@app.command(context_settings=commands.PASS_ON, add_help_option=False)
def dbt(context: typer.Context) -> None:
    """Run dbt against the running stack's warehouse, such as `./giovang dbt build`."""
    if "--help" in context.args:
        commands.enter_help(commands.DBT, context.args)
    commands.enter_dbt(commands.running(), context.args)


@app.command(context_settings=commands.PASS_ON, add_help_option=False)
def audit(context: typer.Context) -> None:
    """Prove the running stack's audit trail: `./giovang audit verify [--since DATE] [--json]`."""
    if "--help" in context.args or not context.args:
        commands.enter_help(commands.AUDITOR, context.args or ["--help"])
    try:
        settings = commands.running()
    except StateError as error:
        # Its status 1 says that the trail is broken, which is another matter.
        errors.print(f"giovang: not verified: {error}", markup=False)
        raise typer.Exit(2) from error
    commands.enter_auditor(settings, context.args)


@app.command(context_settings=commands.PASS_ON, add_help_option=False)
def bench(context: typer.Context) -> None:
    """Measure: `./giovang bench NAME [--short] [--json]`; without a name it lists the benches."""
    commands.enter_bench(_settings(), context.args)


@app.command(context_settings=commands.PASS_ON, add_help_option=False)
def chaos(context: typer.Context) -> None:
    """Kill processes and servers under load: `./giovang chaos capture|streams [--kills N]`."""
    commands.enter_chaos(_settings(), context.args)


app.add_typer(capture.words, name="capture")
app.add_typer(processors.words, name="streams")
app.command("deadletter", context_settings=commands.PASS_ON, add_help_option=False)(
    processors.deadletter
)


environment_app = typer.Typer(help="The pinned Python environment.", no_args_is_help=True)
app.add_typer(environment_app, name="env")


@environment_app.command("lock")
def lock() -> None:
    """Compile requirements.txt anew from pyproject.toml, with hashes and no registry address."""
    commands.lock_environment(console)


def main() -> None:
    """Run the command line; what a person can mend becomes one sentence."""
    with _one_sentence():
        app(prog_name="./giovang")


@contextlib.contextmanager
def _one_sentence() -> Iterator[None]:
    try:
        yield
    except StartError as error:
        errors.print(f"giovang: {error}; everything was stopped again", markup=False)
        for line in error.lines:
            errors.print(f"    {line}", markup=False)
        log = StateFolder(StackSettings().state).log(error.service)
        errors.print(f"The whole log: {log}", markup=False)
        sys.exit(1)
    except ValidationError as error:
        for problem in error.errors():
            name = "GIOVANG_STACK_" + "_".join(map(str, problem["loc"])).upper()
            errors.print(f"giovang: {name}: {problem['msg']}", markup=False)
        sys.exit(2)
    except (
        AccountError,
        BrokerError,
        ClusterError,
        PortError,
        StateError,
        commands.CommandError,
    ) as error:
        errors.print(f"giovang: {error}", markup=False)
        sys.exit(1)
    except commands.CannotTellError as error:
        errors.print(f"giovang: cannot tell: {error}", markup=False)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output went away, as `giovang logs | head` does.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


def _settings(rate: float | None = None, seed: int | None = None) -> StackSettings:
    changes: dict[str, float] = {}
    if rate is not None:
        changes["demo_rate_per_minute"] = rate
    if seed is not None:
        changes["demo_seed"] = seed
    return StackSettings(**changes)  # type: ignore[arg-type]


def _snapshot(settings: StackSettings) -> Snapshot:
    folder = StateFolder(settings.state)
    if not folder.is_supervised():
        return stopped_snapshot(settings)
    known = folder.read_status()
    # The lock is taken a moment before the first status is written.
    if known.get("supervisor", {}).get("pid") != folder.supervisor_pid():
        known = stopped_snapshot(settings)
        known["supervisor"] = {"pid": folder.supervisor_pid(), "phase": "starting"}
    return known


def _show(settings: StackSettings, snapshot: Snapshot) -> None:
    console.print()
    console.print(view.table(snapshot))
    secrets_file = Path(StateFolder(settings.state).secrets)
    password = json.loads(secrets_file.read_text()).get("demo_password")
    view.addresses(console, snapshot, password)

"""Entry of the demo: `python -m infra.demo [history|traffic]`.

Without a sub-command it loads the history if there is none and then lets customers come until
Ctrl-C. Settings come from GIOVANG_DEMO_*; options win over them. A refusal or a missing setting
ends with one sentence and status 1 or 2; SIGTERM and Ctrl-C end cleanly with status 0.
"""

import asyncio
import logging
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from types import FrameType

import psycopg
import typer
from pydantic import ValidationError
from solders.keypair import Keypair

from infra import telemetry
from infra.demo.gateway import Gateway, Shop
from infra.demo.history import Period
from infra.demo.loader import HistoryRefusedError, Ledger
from infra.demo.progress import history_progress
from infra.demo.settings import DemoError, DemoSettings
from infra.demo.traffic import Traffic
from infra.demo.wallet import Wallets

API_TIMEOUT_S = 120.0

cli = typer.Typer(add_completion=False, no_args_is_help=False)
log = telemetry.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Wish:
    """What the command line asks for; None leaves it to the settings, or to what is stored."""

    seed: int | None = None
    days: int | None = None
    until: datetime | None = None
    pace_rows_per_s: int | None = None


_SEED = typer.Option(None, "--seed", help="Fixes shops, customers and history.")
_RATE = typer.Option(None, "--rate", min=0, help="Live payments a minute, on average.")
_DAYS = typer.Option(None, "--days", min=1, help="How many days of history, today included.")
_PACE = typer.Option(None, "--pace", min=0, help="Ledger rows a second at most; 0: no limit.")


@cli.callback(invoke_without_command=True)
def demo(
    context: typer.Context,
    seed: int | None = _SEED,
    rate: float | None = _RATE,
    days: int | None = _DAYS,
    pace: int | None = _PACE,
) -> None:
    """Shops with a year of history, and customers who really pay on the local network.

    Without a sub-command: history if there is none yet, then live traffic until Ctrl-C.
    """
    if context.invoked_subcommand is not None:
        return
    with _ending():
        settings = _settings()
        _load_history(settings, Wish(seed=seed, days=days, pace_rows_per_s=pace))
        asyncio.run(_live(settings, seed, rate))


@cli.command()
def history(
    seed: int | None = _SEED,
    days: int | None = _DAYS,
    until: str | None = typer.Option(None, "--until", help="End of history, ISO 8601, with zone."),
    pace: int | None = _PACE,
) -> None:
    """Load the history once; running it again finishes what was interrupted."""
    wish = Wish(seed=seed, days=days, until=_moment(until), pace_rows_per_s=pace)
    with _ending():
        _load_history(_settings(), wish)


@cli.command()
def traffic(seed: int | None = _SEED, rate: float | None = _RATE) -> None:
    """Let customers come and pay until Ctrl-C."""
    with _ending():
        asyncio.run(_live(_settings(), seed, rate))


def _load_history(settings: DemoSettings, wish: Wish) -> None:
    wanted = Period(
        seed=settings.seed if wish.seed is None else wish.seed,
        until=wish.until or datetime.now(UTC).replace(second=0, microsecond=0),
        days=wish.days or settings.days,
        payments_per_day=settings.payments_per_day,
    )
    # Before the merchants are registered, so that a refusal leaves nothing behind.
    _refuse_another(settings, wanted.seed, days=wish.days, until=wish.until)
    with _ledger(settings) as ledger:
        stored = ledger.stored_period()
        if stored is not None and ledger.finished():
            _say("the history is already there", until=stored.until.isoformat())
            return
    asyncio.run(_register(settings, wanted.seed))
    pace = settings.pace_rows_per_s if wish.pace_rows_per_s is None else wish.pace_rows_per_s
    with _ledger(settings) as ledger, history_progress() as show:
        outcome = ledger.load(ledger.prepare(wanted), pace_rows_per_s=pace, report=show)
    _say("the history is loaded", rows=outcome.rows, batches=outcome.batches)


def _refuse_another(
    settings: DemoSettings, seed: int, *, days: int | None = None, until: datetime | None = None
) -> None:
    """One ledger holds the shops of one seed and one history; what is asked for must be that."""
    with _ledger(settings) as ledger:
        stored = ledger.stored_period()
    if stored is None:
        return
    asked = {"seed": seed, "days": days, "until": until}
    there = {"seed": stored.seed, "days": stored.days, "until": stored.until}
    different = [name for name, value in asked.items() if value not in (None, there[name])]
    if different:
        raise HistoryRefusedError(
            f"this ledger already holds {stored.days} days of history until "
            f"{stored.until.isoformat()} from seed {stored.seed}; another "
            f"{' and '.join(different)} needs an empty one (./giovang reset)"
        )


async def _register(settings: DemoSettings, seed: int) -> tuple[Shop, ...]:
    async with _gateway(settings) as gateway:
        await gateway.wait_until_healthy(timeout_s=API_TIMEOUT_S)
        return await gateway.register(
            seed=seed,
            password=settings.password.get_secret_value(),
            state_dir=settings.state_dir,
        )


async def _live(settings: DemoSettings, wanted_seed: int | None, rate: float | None) -> None:
    seed = settings.seed if wanted_seed is None else wanted_seed
    _refuse_another(settings, seed)
    shops = await _register(settings, seed)
    guest = settings.payer_key
    async with _gateway(settings) as gateway, Wallets(settings.rpc_url) as wallets:
        simulator = Traffic(
            gateway=gateway,
            wallets=wallets,
            shops=shops,
            seed=seed,
            rate_per_minute=settings.rate_per_minute if rate is None else rate,
            state_dir=settings.state_dir,
            guest=None if guest is None else Keypair.from_base58_string(guest.get_secret_value()),
            report=typer.echo if sys.stdout.isatty() else _silent,
        )
        loop = asyncio.get_running_loop()
        for wanted in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(wanted, simulator.stop)
        telemetry.notify_ready("customers come")
        counts = await simulator.run()
        _say("no more customers", **{name.replace(" ", "_"): n for name, n in counts.items()})


def _ledger(settings: DemoSettings) -> Ledger:
    return Ledger(settings.ledger_url.get_secret_value())


def _gateway(settings: DemoSettings) -> Gateway:
    return Gateway(settings.api_url, admin_key=settings.admin_key.get_secret_value())


def _settings() -> DemoSettings:
    try:
        return DemoSettings()
    except ValidationError as error:
        names = ", ".join(
            f"GIOVANG_DEMO_{str(problem['loc'][0]).upper()}" for problem in error.errors()
        )
        raise SystemExit(f"missing or invalid settings: {names}") from None


def _moment(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise typer.BadParameter("--until is not an ISO 8601 moment") from error
    if moment.tzinfo is None or moment.second or moment.microsecond:
        raise typer.BadParameter("--until needs a time zone and full minutes")
    return moment.astimezone(UTC)


def _say(sentence: str, **facts: str | int) -> None:
    """Tell a person at the terminal, or the log."""
    if sys.stderr.isatty():
        details = ", ".join(f"{name} {value}" for name, value in facts.items())
        typer.echo(f"{sentence} ({details})" if details else sentence, err=True)
    else:
        log.info(sentence, **facts)


@contextmanager
def _ending() -> Iterator[None]:
    """Turn SIGTERM and Ctrl-C into a clean end, and a known trouble into one sentence."""
    telemetry.configure_logging("demo")
    for client in ("httpx", "httpx2"):
        logging.getLogger(client).setLevel(logging.WARNING)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    except KeyboardInterrupt:
        _say("the demo ends")
    except (DemoError, psycopg.Error) as error:
        sentence = str(error)
        if isinstance(error, psycopg.Error):
            # Never the detail, which quotes rows.
            sentence = f"the ledger database: {error.diag.message_primary or sentence}"
        if sys.stderr.isatty():
            typer.echo(sentence, err=True)
        else:
            log.error("the demo stops", reason=sentence)  # noqa: TRY400 - a sentence, no trace
        raise typer.Exit(1) from error


def _silent(_line: str) -> None:
    """Where nobody watches, the log and the supervisor's status line say enough."""


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    cli()

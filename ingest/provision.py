"""Make what capture stands on: the stream, the replication slot, the first offset.

Run before the first business write: `python -m ingest.provision`. Running it again changes nothing
and verifies everything; a difference from what is stated here is an error that names it. Whatever
held events once is never made anew in silence: `--accept-gap` does so, and says what is lost. What
the stream was never told, be it lost or from before capture, is noted as a gap (`ingest.gaps`), in
the unit of work that stores the new offset; the log names the command that closes it.
"""

import argparse
import asyncio
import json
import sys
import uuid
from dataclasses import dataclass
from typing import Final

import psycopg
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from psycopg import sql

from infra.telemetry import configure_logging, get_logger
from ingest import gaps, guardian, publisher, tables
from ingest.checkpoint import (
    Done,
    LogState,
    StreamState,
    WalStatus,
    lsn_text,
    offset_key,
    offset_value,
)
from ingest.columns import published_columns, verify_tables
from ingest.errors import IngestError, ProvisionRefused
from ingest.settings import IngestSettings
from ingest.stream import bring_forward, statements

SLOT_TIMEOUT_MS: Final = 60_000
"""A slot is made once every database transaction that runs at that moment has ended."""

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Plan:
    """What has to be made; `losses` says what making it costs, one sentence each.

    With `untold`, the stream will lack changes that committed after `told_to` (None: all of them).
    """

    stream: bool
    slot: bool
    offset: bool
    losses: tuple[str, ...]
    untold: bool = False
    told_to: int | None = None


def plan(slot: str, log_state: LogState, stream: StreamState | None) -> Plan:
    """Decide what is missing and what would be lost by making it. Pure."""
    losses = []
    untold = False
    last = None if stream is None or stream.last_id is None else stream.last_id.position
    had_events = stream is not None and stream.last_sequence > 0
    published = log_state.offset is not None and log_state.offset != log_state.origin
    lost = log_state.slot is not None and log_state.slot.wal_status is WalStatus.LOST
    no_slot = log_state.slot is None or lost
    told_to = log_state.offset if log_state.offset is not None else last
    ahead = log_state.slot is not None and not lost and log_state.slot.confirmed > (told_to or 0)
    shorter = stream is not None and stream.last_sequence < (log_state.offset_sequence or 0)
    if stream is None and published:
        losses.append(
            f"the stream is missing though events up to {lsn_text(log_state.offset or 0)} were "
            "published to it: a new one begins at the slot's place"
        )
        untold, told_to = True, None
    if no_slot and (had_events or log_state.offset is not None):
        state = "was invalidated" if lost else "is missing"
        losses.append(
            f"replication slot {slot} {state} though capture ran before: changes committed until "
            "a new one is made are captured by nobody"
        )
        untold = True
    elif ahead and log_state.offset is not None:
        losses.append(
            f"replication slot {slot} is ahead of the stored offset {lsn_text(log_state.offset)}: "
            "changes between are captured by nobody"
        )
        untold = True
    elif shorter and stream is not None and log_state.slot is not None:
        told_to = last
        untold = last is None or log_state.slot.confirmed > last
        losses.append(
            f"the stream ends at sequence {stream.last_sequence}, but JetStream acknowledged "
            f"{log_state.offset_sequence}: events are missing at its end; capture goes back to the "
            "slot's place and tells again what is after it"
        )
    elif log_state.offset is None and had_events:
        untold = ahead
        losses.append(
            "no offset is stored though the stream holds events: a new one begins at the slot's "
            "place, and what was published after it would be published again"
        )
    return Plan(
        stream=stream is None,
        slot=no_slot,
        offset=no_slot or log_state.offset is None or bool(losses),
        losses=tuple(losses),
        untold=untold,
        told_to=told_to if untold else None,
    )


async def provision(settings: IngestSettings, *, accept_gap: bool) -> None:
    """Make what is missing and verify the rest; raises `ProvisionRefused` naming differences."""
    client = await publisher.connect(settings.nats_url, "giovang provision")
    try:
        with guardian.open_database(settings) as database:
            await _provision(settings, database, client.jetstream(), accept_gap=accept_gap)
    finally:
        await client.close()


async def _provision(
    settings: IngestSettings,
    database: guardian.Database,
    jetstream: JetStreamContext,
    *,
    accept_gap: bool,
) -> None:
    verify_tables(settings.publication, published_columns(database, settings.publication))
    tables.make_tables(database, settings)
    state = guardian.log_state(database, settings)
    stream = await publisher.stream_state(jetstream, settings.stream)
    todo = plan(settings.slot, state, stream)
    if todo.losses and not accept_gap:
        raise ProvisionRefused(
            f"{'; '.join(todo.losses)}. Nothing was changed; `--accept-gap` accepts this, notes "
            "what is missing as a gap, and says which backfill closes it"
        )
    for loss in todo.losses:
        log.warning("gap accepted", loss=loss)
    if todo.slot:
        _make_slot(settings, database, replace=state.slot is not None)
    with database.transaction():
        if todo.offset:
            _store_first_offset(settings, database, 0 if stream is None else stream.last_sequence)
        state = guardian.log_state(database, settings)
        if state.offset is None:
            raise ProvisionRefused("the first offset was stored but cannot be read again")
        gap = _note_gap(settings, database, todo, state.offset)
    if gap is not None:
        log.warning("gap", gap=gap, close=f"python -m ingest.backfill start --gap {gap}")
    stated = statements(settings, state, state.offset)
    if todo.stream:
        await jetstream.add_stream(stated[-1].config)
    info = await publisher.stream_info(jetstream, settings.stream)
    if info is None:
        raise ProvisionRefused(f"stream {settings.stream} was made but cannot be found")
    for step in await bring_forward(jetstream, stated, info.config):
        log.info("stream brought forward", version=step.version, reason=step.reason)
    if todo.offset and stream is not None and stream.last_sequence == 0:
        # A stream that never held an event begins where the new slot does.
        await jetstream.update_stream(stated[-1].config)
    log.info(
        "capture is provisioned",
        stream=settings.stream,
        slot=settings.slot,
        offset=lsn_text(state.offset),
        made=[name for name in ("stream", "slot", "offset") if getattr(todo, name)],
    )


def _make_slot(settings: IngestSettings, database: guardian.Database, *, replace: bool) -> None:
    database.execute("SELECT set_config('statement_timeout', %s, false)", (str(SLOT_TIMEOUT_MS),))
    if replace:
        database.execute("SELECT pg_drop_replication_slot(%s)", (settings.slot,))
    try:
        database.execute(
            "SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (settings.slot,)
        )
    except psycopg.errors.QueryCanceled as error:
        raise ProvisionRefused(
            f"no replication slot within {SLOT_TIMEOUT_MS // 1000} s: a database transaction that "
            "was open then has not ended"
        ) from error


def _store_first_offset(
    settings: IngestSettings, database: guardian.Database, sequence: int
) -> None:
    """Store where slot and stream stand as the offset, so the engine never guesses a beginning."""
    slot = guardian.slot_state(database, settings.slot)
    if slot is None:
        raise ProvisionRefused(f"replication slot {settings.slot} was made but cannot be found")
    table = sql.Identifier(tables.SCHEMA, settings.offset_table)
    with database.transaction():
        # First, since it lets an offset be stored that is lower than one from before.
        database.execute(
            sql.SQL(
                "INSERT INTO {} (slot, began) VALUES (%s, %s) ON CONFLICT (slot) DO UPDATE "
                "SET began = EXCLUDED.began, furthest = NULL, made_at = clock_timestamp()"
            ).format(sql.Identifier(tables.SCHEMA, tables.ORIGIN_TABLE)),
            (settings.slot, slot.confirmed),
        )
        database.execute(sql.SQL("DELETE FROM {}").format(table))
        database.execute(
            sql.SQL("INSERT INTO {} VALUES (%s, %s, %s, clock_timestamp(), 1)").format(table),
            (
                str(uuid.uuid4()),
                offset_key(settings),
                json.dumps(offset_value(Done(slot.confirmed, sequence))),
            ),
        )


def _note_gap(
    settings: IngestSettings, database: guardian.Database, todo: Plan, until: int
) -> int | None:
    """Note what the stream was not told up to `until`; return the gap's number, None without one.

    Asked once the slot is there: rows that it does not tell are visible then.
    """
    reason = "; ".join(todo.losses) if todo.untold else None
    if todo.offset and not todo.losses and (held := gaps.tables_with_rows(database)):
        reason = f"{', '.join(held)} held rows already when the replication slot was made"
    if reason is None:
        return None
    return gaps.note_gap(database, settings.slot, todo.told_to, until, reason)


def main() -> int:
    """Provision by the environment's settings; 0 when all is as stated."""
    parser = argparse.ArgumentParser(prog="python -m ingest.provision", description=__doc__)
    parser.add_argument(
        "--accept-gap",
        action="store_true",
        help="make missing parts anew although changes between are lost to the stream",
    )
    arguments = parser.parse_args()
    configure_logging("provision")
    try:
        settings = IngestSettings()
        asyncio.run(provision(settings, accept_gap=arguments.accept_gap))
    except (IngestError, psycopg.Error, NatsError, ValueError) as error:
        log.error("not provisioned", reason=" ".join(str(error).split()))  # noqa: TRY400
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

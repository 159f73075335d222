"""`ingest.columns.NEEDED` is true: it is what the stream's readers need, no more and no less.

Each reader is given real-looking events with one column taken away. Where that changes what the
reader makes of it, the column must be on the list with that reader, and nowhere else.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from api.realtime.model import pushed_step
from ingest.columns import LIVE, NEEDED, RISK
from ingest.contract import ChangeEvent, Operation, Table, subject_for
from streams.contract import Table as Raw
from streams.realtime import push_for
from streams.risk.payments import payment_of
from streams.rows import PoisonEventError, row_for
from streams.targets import TARGETS
from tests.fixtures import ledger_stream as ledger

SOURCES = Path(__file__).parents[2] / "dbt" / "models" / "staging" / "_sources.yml"
RAW = {
    Table.PAYMENTS: ("payment_analytics", Raw.PAYMENT_ANALYTICS),
    Table.REFUNDS: ("refunds", Raw.REFUNDS),
    Table.PAYOUTS: ("payouts", Raw.PAYOUTS),
    Table.LEDGER_ENTRIES: ("ledger_entries", Raw.LEDGER_ENTRIES),
    Table.LEDGER_POSTINGS: ("ledger_postings", Raw.LEDGER_POSTINGS),
    Table.MERCHANTS: ("merchants", Raw.MERCHANTS),
}
LIVE_COLUMNS = {
    "exception_outcome": "accepted",
    "settled_minor": "20000",
    "is_escrow": True,
    "event_seq": 3,
    "expires_at": "2026-01-31T17:45:00.000000Z",
    "order_id": "A-1",
}


def rows(table: Table) -> list[dict[str, Any]]:
    """Return whole rows, such that each column a reader looks at matters in one of them."""
    if table is Table.MERCHANTS:
        return [ledger.merchant_row(1)]
    if table is Table.REFUNDS:
        row = ledger.refund_row(1, "completed", ledger.START)
        return [row | {"source": source} for source in ("payment", "excess")]
    if table is Table.PAYOUTS:
        return [ledger.payout_row(1, "requested", ledger.START, mode="live", revision=2)]
    if table is Table.LEDGER_ENTRIES:
        others = {"payout_id": "pyo_1", "refund_id": "rfd_1", "reverses_id": "ent_1"}
        return [ledger.entry_row(1, ledger.START, **others)]
    if table is Table.LEDGER_POSTINGS:
        return [ledger.posting_row(1, 5, ledger.START)]
    row = ledger.payment_row(1, "completed", ledger.START, **LIVE_COLUMNS)
    return [row | {"settled_minor": settled} for settled in ("20000", "0")]


def event(table: Table, row: dict[str, Any]) -> ChangeEvent:
    return ledger.change(table, row, position=7, ordinal=1, at=ledger.START)


def without(original: ChangeEvent, name: str) -> ChangeEvent:
    """Take a column away where it is: in the bytes, after key and subject were made."""
    found = ChangeEvent.from_bytes(original.to_bytes())
    assert found.after is not None
    del found.after[name]
    return found


def stored(table: Table, told: ChangeEvent) -> dict[str, Any] | str | None:
    """Return the raw row that the warehouse makes of an event."""
    _, raw = RAW[table]
    try:
        row = row_for(raw, told.subject, told.to_bytes())
    except PoisonEventError:
        return "poison"
    return None if row is None else dict(zip(TARGETS[raw].columns, row.values, strict=True))


def shown(told: ChangeEvent) -> object:
    """Return what the live page gets of an event."""
    try:
        push = push_for(told.subject, told.to_bytes())
        return None if push is None else pushed_step(push.text).message.text
    except (PoisonEventError, ValueError):
        return "poison"


def judged(told: ChangeEvent) -> object:
    """Return what the risk rules know of an event."""
    try:
        return payment_of(told.subject, told.to_bytes(), 1)
    except PoisonEventError:
        return "poison"


def readers_of(table: Table, name: str) -> set[str]:
    """Find by trial which readers make something else of a row without the column."""
    found = set()
    for row in rows(table):
        whole, told = event(table, row), without(event(table, row), name)
        if stored(table, whole) != stored(table, told):
            found.add("raw")
        if table is Table.PAYMENTS and shown(whole) != shown(told):
            found.add(LIVE)
        if table is Table.PAYMENTS and judged(whole) != judged(told):
            found.add(RISK)
    return found


@pytest.mark.parametrize("table", RAW)
def test_exactly_the_needed_columns_are_missed(table: Table) -> None:
    missed = {name: readers_of(table, name) for name in rows(table)[0]}
    listed = {
        name: {one if one in {LIVE, RISK} else one.partition(".")[0] for one in need.readers}
        & {LIVE, RISK, "raw"}
        for name, need in NEEDED[table].items()
    }
    assert {name: by for name, by in missed.items() if by} == {
        name: by for name, by in listed.items() if by
    }


@pytest.mark.parametrize(
    ("table", "name", "value"),
    [
        (Table.MERCHANTS, "id", "mer_9"),
        (Table.MERCHANTS, "name", "Quán khác"),
        (Table.MERCHANTS, "trade", "tea"),
        (Table.MERCHANTS, "timezone", "Asia/Bangkok"),
        (Table.MERCHANTS, "country", "TH"),
        (Table.PAYMENTS, "id", "pay_9"),
        (Table.PAYMENTS, "merchant_id", "mer_9"),
        (Table.PAYMENTS, "exception", "late"),
        (Table.PAYMENTS, "settled_minor", "7"),
        (Table.PAYMENTS, "asset", "USDT"),
        (Table.PAYMENTS, "asset_amount_minor", "99000000"),
        (Table.PAYMENTS, "fee_minor", "7"),
        (Table.PAYMENTS, "chain", "another"),
        (Table.PAYMENTS, "payer_address", "another"),
        (Table.PAYMENTS, "payer_country", "TH"),
        (Table.PAYMENTS, "status_at", "2026-01-31T18:00:00.000000Z"),
        (Table.REFUNDS, "id", "rfd_9"),
        (Table.REFUNDS, "merchant_id", "mer_9"),
        (Table.REFUNDS, "payment_id", "pay_9"),
        (Table.REFUNDS, "amount_minor", "7"),
        (Table.REFUNDS, "status_at", "2026-01-31T18:00:00.000000Z"),
        (Table.PAYOUTS, "id", "pyo_9"),
        (Table.PAYOUTS, "merchant_id", "mer_9"),
        (Table.PAYOUTS, "mode", "test"),
        (Table.PAYOUTS, "revision", 3),
        (Table.PAYOUTS, "asset", "USD"),
        (Table.PAYOUTS, "amount_minor", "7"),
        (Table.PAYOUTS, "status_at", "2026-01-31T18:00:00.000000Z"),
        (Table.LEDGER_ENTRIES, "id", "ent_9"),
        (Table.LEDGER_ENTRIES, "merchant_id", "mer_9"),
        (Table.LEDGER_ENTRIES, "kind", "reversal"),
        (Table.LEDGER_ENTRIES, "payment_id", "pay_9"),
        (Table.LEDGER_ENTRIES, "payout_id", "pyo_9"),
        (Table.LEDGER_ENTRIES, "refund_id", "rfd_9"),
        (Table.LEDGER_ENTRIES, "reverses_id", "ent_9"),
        (Table.LEDGER_ENTRIES, "created_at", "2026-01-31T18:00:00.000000Z"),
        (Table.LEDGER_POSTINGS, "entry_id", "ent_9"),
        (Table.LEDGER_POSTINGS, "seq", 9),
        (Table.LEDGER_POSTINGS, "merchant_id", "mer_9"),
        (Table.LEDGER_POSTINGS, "account_id", "acc_9"),
        (Table.LEDGER_POSTINGS, "asset", "USDC"),
        (Table.LEDGER_POSTINGS, "amount_minor", "-7"),
        (Table.LEDGER_POSTINGS, "created_at", "2026-01-31T18:00:00.000000Z"),
    ],
)
def test_a_column_reaches_the_raw_columns_that_it_is_listed_for(
    table: Table, name: str, value: str
) -> None:
    row = rows(table)[0]
    before, after = (
        stored(table, event(table, row)),
        stored(table, event(table, row | {name: value})),
    )
    assert isinstance(before, dict)
    assert isinstance(after, dict)
    changed = {f"raw.{RAW[table][0]}.{raw}" for raw in after if after[raw] != before[raw]}
    assert changed
    assert changed <= set(NEEDED[table][name].readers)


def test_dbt_names_the_same_ledger_columns() -> None:
    listed: dict[str, set[str]] = {}
    for table, needs in NEEDED.items():
        for name, need in needs.items():
            for reader in need.readers:
                if reader.startswith("raw."):
                    listed.setdefault(reader, set()).add(f"{table}.{name}")
    (source,) = yaml.safe_load(SOURCES.read_text(encoding="utf-8"))["sources"]
    named = {
        f"raw.{table['name']}.{column['name']}": set(column["config"]["meta"]["ledger"])
        for table in source["tables"]
        for column in table.get("columns", [])
        if "ledger" in column.get("config", {}).get("meta", {})
    }
    assert named == listed


@pytest.mark.parametrize("table", [table for table in RAW if table is not Table.MERCHANTS])
def test_what_is_told_of_a_deleted_row_is_listed_too(table: Table) -> None:
    """What is lost of it without a column; mode and terms of what is gone are not asked for."""
    row = rows(table)[0]
    gone = replace(
        event(table, row),
        operation=Operation.DELETE,
        subject=subject_for(table, Operation.DELETE),
        before=row,
        after=None,
    )

    def lost(told: ChangeEvent) -> object:
        try:
            found = row_for(Raw.DELETIONS, told.subject, told.to_bytes())
        except PoisonEventError:
            return "poison"
        return None if found is None else found.values

    missed = {
        name
        for name in row
        if lost(replace(gone, before={key: row[key] for key in row if key != name})) != lost(gone)
    }
    listed = {
        name
        for name, need in NEEDED[table].items()
        if any(reader.startswith(f"{Raw.DELETIONS}.") for reader in need.readers)
    }
    # Whose it was is told where it is known: of what never changes the log has the key alone.
    assert missed | {"merchant_id"} == listed


def test_dbt_names_every_column_the_warehouse_writes() -> None:
    (source,) = yaml.safe_load(SOURCES.read_text(encoding="utf-8"))["sources"]
    described = {
        table["name"]: {column["name"] for column in table.get("columns", [])}
        for table in source["tables"]
    }
    for table, target in TARGETS.items():
        written = described[table.value.removeprefix("raw.")]
        assert written == set(target.columns) | {"recorded_at"}, table

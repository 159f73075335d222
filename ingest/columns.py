"""The published tables: what their columns are, and what those who read the stream need of them.

`NEEDED` is the promise, as data: a test holds it against the stream's consumers and against the
columns that dbt reads. `differences` compares a database with it, before a migration
(`python -m ingest.check`) and while capture runs. A column nobody names here may come, change and
go; one that is named here may not, until its readers and this list have changed.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from psycopg import Connection
from psycopg.rows import TupleRow

from ingest.contract import MUTABLE_TABLES, Table
from ingest.errors import ProvisionRefused

MONEY_SUFFIX: Final = "_minor"
MOMENT_SUFFIX: Final = "_at"

_PUBLICATION_SQL: Final = """
    SELECT p.pubinsert AND p.pubupdate AND p.pubdelete,
           ARRAY(SELECT t.tablename::text FROM pg_publication_tables t
                 WHERE t.pubname = p.pubname AND t.rowfilter IS NOT NULL ORDER BY 1)
    FROM pg_publication p WHERE p.pubname = %s
"""
_COLUMNS_SQL: Final = """
    SELECT c.relname, c.relreplident = 'f', a.attname, a.atttypid::regtype::text
    FROM pg_publication_tables p
    JOIN pg_namespace n ON n.nspname = p.schemaname
    JOIN pg_class c ON c.relname = p.tablename AND c.relnamespace = n.oid
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        AND a.attname = ANY (p.attnames)
    WHERE p.pubname = %s
    ORDER BY c.relname, a.attnum
"""


class Family(StrEnum):
    """Kinds of columns that readers tell apart."""

    TEXT = "text"
    INTEGER = "integer"
    BOOLEAN = "boolean"
    MONEY = "money"
    MOMENT = "moment"


TYPES: Final[Mapping[Family, frozenset[str]]] = {
    Family.TEXT: frozenset({"text", "character varying", "character"}),
    Family.INTEGER: frozenset({"smallint", "integer", "bigint"}),
    Family.BOOLEAN: frozenset({"boolean"}),
    Family.MONEY: frozenset({"bigint", "numeric"}),
    Family.MOMENT: frozenset({"timestamp with time zone"}),
}
"""PostgreSQL's types of each family."""


class MaskWay(StrEnum):
    """How a column is masked before anything leaves the process."""

    HASH = "hash"
    REMOVE = "remove"


ANY_WAY: Final = frozenset(MaskWay)
NO_WAY: Final[frozenset[MaskWay]] = frozenset()


@dataclass(frozen=True, slots=True)
class Need:
    """What is needed of one column, and by whom: columns of `raw` that dbt reads, or processes.

    `masks` are the ways to mask it that its readers can live with.
    """

    family: Family
    readers: tuple[str, ...]
    masks: frozenset[MaskWay] = NO_WAY


PARTITION_KEY: Final = "capture, as partition key"
SUBJECT: Final = "capture, as word of the subject"
ROW_KEY: Final = "capture, to tell rows again"
LIVE: Final = "the live payment page"
RISK: Final = "the risk rules"

_RAW_PAYMENTS: Final = "raw.payment_analytics"
_RAW_REFUNDS: Final = "raw.refunds"
_RAW_MERCHANTS: Final = "raw.merchants"
_RAW_ENTRIES: Final = "raw.ledger_entries"
_RAW_POSTINGS: Final = "raw.ledger_postings"
_RAW_PAYOUTS: Final = "raw.payouts"
_DELETED: Final = "raw.deletions.row_id"
_DELETED_OF: Final = "raw.deletions.merchant_id"
_SETTLED: Final = (f"{_RAW_PAYMENTS}.amount_vnd", LIVE, RISK)
_REMOVABLE: Final = frozenset({MaskWay.REMOVE})
_HASHABLE: Final = frozenset({MaskWay.HASH})

NEEDED: Final[Mapping[Table, Mapping[str, Need]]] = {
    Table.MERCHANTS: {
        "id": Need(Family.TEXT, (ROW_KEY, PARTITION_KEY, f"{_RAW_MERCHANTS}.merchant_id")),
        "name": Need(Family.TEXT, (f"{_RAW_MERCHANTS}.name",), _HASHABLE),
        "trade": Need(Family.TEXT, (f"{_RAW_MERCHANTS}.trade",), _HASHABLE),
        "timezone": Need(Family.TEXT, (f"{_RAW_MERCHANTS}.timezone",)),
        "country": Need(Family.TEXT, (f"{_RAW_MERCHANTS}.country",), _REMOVABLE),
    },
    Table.PAYMENTS: {
        "id": Need(Family.TEXT, (ROW_KEY, f"{_RAW_PAYMENTS}.payment_id", _DELETED, LIVE, RISK)),
        "merchant_id": Need(
            Family.TEXT, (PARTITION_KEY, f"{_RAW_PAYMENTS}.merchant_id", _DELETED_OF, LIVE, RISK)
        ),
        "status": Need(Family.TEXT, (SUBJECT, f"{_RAW_PAYMENTS}.status", LIVE)),
        "exception": Need(Family.TEXT, (f"{_RAW_PAYMENTS}.exception", LIVE)),
        "exception_outcome": Need(Family.TEXT, (LIVE,)),
        "amount_minor": Need(Family.MONEY, _SETTLED),
        "settled_minor": Need(Family.MONEY, _SETTLED),
        "currency": Need(Family.TEXT, _SETTLED),
        "asset": Need(
            Family.TEXT,
            (
                f"{_RAW_PAYMENTS}.currency",
                f"{_RAW_PAYMENTS}.asset_amount",
                f"{_RAW_PAYMENTS}.amount_usd",
                LIVE,
            ),
        ),
        "asset_amount_minor": Need(
            Family.MONEY,
            (f"{_RAW_PAYMENTS}.asset_amount", f"{_RAW_PAYMENTS}.amount_usd", LIVE),
        ),
        "received_minor": Need(Family.MONEY, (LIVE,)),
        "fee_minor": Need(Family.MONEY, (f"{_RAW_PAYMENTS}.fee_vnd",)),
        "chain": Need(Family.TEXT, (f"{_RAW_PAYMENTS}.chain",)),
        "payer_address": Need(Family.TEXT, (f"{_RAW_PAYMENTS}.payer_address", RISK), ANY_WAY),
        "payer_country": Need(Family.TEXT, (f"{_RAW_PAYMENTS}.payer_country", RISK), _REMOVABLE),
        "is_escrow": Need(Family.BOOLEAN, (LIVE,)),
        "event_seq": Need(Family.INTEGER, (LIVE,)),
        "expires_at": Need(Family.MOMENT, (LIVE,)),
        "status_at": Need(Family.MOMENT, (f"{_RAW_PAYMENTS}.time", LIVE, RISK)),
        "updated_at": Need(Family.MOMENT, (LIVE,)),
    },
    Table.REFUNDS: {
        "id": Need(Family.TEXT, (ROW_KEY, f"{_RAW_REFUNDS}.refund_id", _DELETED)),
        "merchant_id": Need(
            Family.TEXT, (PARTITION_KEY, f"{_RAW_REFUNDS}.merchant_id", _DELETED_OF)
        ),
        "payment_id": Need(Family.TEXT, (f"{_RAW_REFUNDS}.payment_id",)),
        "status": Need(Family.TEXT, (SUBJECT, f"{_RAW_REFUNDS}.status")),
        "source": Need(Family.TEXT, (f"{_RAW_REFUNDS}.amount_vnd",)),
        "asset": Need(Family.TEXT, (f"{_RAW_REFUNDS}.amount_vnd",)),
        "amount_minor": Need(Family.MONEY, (f"{_RAW_REFUNDS}.amount_vnd",)),
        "status_at": Need(Family.MOMENT, (f"{_RAW_REFUNDS}.time",)),
    },
    Table.PAYOUTS: {
        "id": Need(Family.TEXT, (ROW_KEY, f"{_RAW_PAYOUTS}.payout_id", _DELETED)),
        "merchant_id": Need(
            Family.TEXT, (PARTITION_KEY, f"{_RAW_PAYOUTS}.merchant_id", _DELETED_OF)
        ),
        "mode": Need(Family.TEXT, (f"{_RAW_PAYOUTS}.mode",)),
        "status": Need(Family.TEXT, (SUBJECT, f"{_RAW_PAYOUTS}.status")),
        "revision": Need(Family.INTEGER, (f"{_RAW_PAYOUTS}.revision",)),
        "asset": Need(Family.TEXT, (f"{_RAW_PAYOUTS}.asset",)),
        "amount_minor": Need(Family.MONEY, (f"{_RAW_PAYOUTS}.amount_minor",)),
        "status_at": Need(Family.MOMENT, (f"{_RAW_PAYOUTS}.time",)),
    },
    Table.LEDGER_ENTRIES: {
        "id": Need(Family.TEXT, (ROW_KEY, f"{_RAW_ENTRIES}.entry_id", _DELETED)),
        "merchant_id": Need(
            Family.TEXT, (PARTITION_KEY, f"{_RAW_ENTRIES}.merchant_id", _DELETED_OF)
        ),
        "kind": Need(Family.TEXT, (f"{_RAW_ENTRIES}.kind",)),
        "payment_id": Need(Family.TEXT, (f"{_RAW_ENTRIES}.payment_id",)),
        "payout_id": Need(Family.TEXT, (f"{_RAW_ENTRIES}.payout_id",)),
        "refund_id": Need(Family.TEXT, (f"{_RAW_ENTRIES}.refund_id",)),
        "reverses_id": Need(Family.TEXT, (f"{_RAW_ENTRIES}.reverses_id",)),
        "created_at": Need(Family.MOMENT, (f"{_RAW_ENTRIES}.time",)),
    },
    Table.LEDGER_POSTINGS: {
        "entry_id": Need(Family.TEXT, (ROW_KEY, f"{_RAW_POSTINGS}.entry_id", _DELETED)),
        "seq": Need(Family.INTEGER, (ROW_KEY, f"{_RAW_POSTINGS}.seq", _DELETED)),
        "merchant_id": Need(
            Family.TEXT, (PARTITION_KEY, f"{_RAW_POSTINGS}.merchant_id", _DELETED_OF)
        ),
        "account_id": Need(Family.TEXT, (f"{_RAW_POSTINGS}.account_id",)),
        "asset": Need(Family.TEXT, (f"{_RAW_POSTINGS}.asset",)),
        "amount_minor": Need(Family.MONEY, (f"{_RAW_POSTINGS}.amount_minor",)),
        "created_at": Need(Family.MOMENT, (f"{_RAW_POSTINGS}.time",)),
    },
    Table.CAPTURE_HEARTBEAT: {},
    Table.CAPTURE_BACKFILL: {
        "run": Need(Family.INTEGER, (ROW_KEY,)),
        "table_name": Need(Family.TEXT, (ROW_KEY,)),
        "operation": Need(Family.TEXT, (ROW_KEY,)),
        "image": Need(Family.TEXT, (ROW_KEY,)),
    },
}


@dataclass(frozen=True, slots=True)
class Column:
    """One published column; `whole_before` is its table's REPLICA IDENTITY FULL."""

    table: str
    whole_before: bool
    name: str
    type: str


def published_columns(connection: Connection[TupleRow], publication: str) -> list[Column]:
    """Read the columns of every table in the publication.

    Raises `ProvisionRefused` where it is missing, or leaves out changes of its tables.
    """
    row = connection.execute(_PUBLICATION_SQL, (publication,)).fetchone()
    if row is None:
        raise ProvisionRefused(f"publication {publication} is missing: run the migrations first")
    everything, filtered = row
    if not everything or filtered:
        what = f"rows of {', '.join(filtered)}" if filtered else "insertions, updates or deletions"
        raise ProvisionRefused(f"publication {publication} leaves out {what}, lost to every reader")
    return [Column(*row) for row in connection.execute(_COLUMNS_SQL, (publication,))]


def verify_tables(publication: str, columns: Iterable[Column]) -> None:
    """Raise `ProvisionRefused` where the published tables are not as the stream needs them."""
    if found := differences(columns):
        raise ProvisionRefused(f"publication {publication}: {'; '.join(found)}")


def differences(columns: Iterable[Column]) -> list[str]:
    """Say, a sentence each, what of the published tables the envelope or a reader cannot take."""
    columns = list(columns)
    published = {column.table for column in columns}
    known = {table.value for table in Table}
    found = [
        f"{table} is not published, which {_readers(Table(table)) or 'capture'} would miss"
        for table in sorted(known - published)
    ]
    found += [f"{table} is unknown to ingest/contract.py" for table in sorted(published - known)]
    found += sorted(
        {
            f"{column.table} lacks REPLICA IDENTITY FULL, so capture would not know the row before "
            "a change"
            for column in columns
            if column.table in MUTABLE_TABLES and not column.whole_before
        }
    )
    found += [told for column in columns for told in _untellable(column)]
    for table in sorted(known & published):
        types = {column.name: column.type for column in columns if column.table == table}
        found += _unmet(Table(table), types)
    return found


def missing(table: str, name: str) -> str:
    """Say that a needed column is missing, and what that breaks."""
    readers = ", ".join(NEEDED[Table(table)][name].readers)
    return f"{table}.{name} is missing, which breaks {readers}"


def _readers(table: Table) -> str:
    readers = dict.fromkeys(
        reader.rpartition(".")[0] if reader.startswith("raw.") else reader
        for need in NEEDED[table].values()
        for reader in need.readers
        if reader not in {PARTITION_KEY, SUBJECT, ROW_KEY}
    )
    return ", ".join(readers)


def _unmet(table: Table, types: Mapping[str, str]) -> Iterable[str]:
    for name, need in NEEDED[table].items():
        kind = types.get(name)
        if kind is None:
            yield missing(table, name)
        elif kind not in TYPES[need.family]:
            yield (
                f"{table}.{name} is {kind} where {need.family} is needed, which breaks "
                f"{', '.join(need.readers)}"
            )


def _untellable(column: Column) -> Iterable[str]:
    """Say where the name of a column promises what its type is not: the envelope goes by names."""
    moment, money = column.name.endswith(MOMENT_SUFFIX), column.name.endswith(MONEY_SUFFIX)
    if column.type.startswith("timestamp"):
        if not moment or column.type not in TYPES[Family.MOMENT]:
            yield f"{column.table}.{column.name} must be timestamptz and end in {MOMENT_SUFFIX}"
    elif moment:
        yield f"{column.table}.{column.name} ends in {MOMENT_SUFFIX} but is {column.type}"
    if money and column.type not in TYPES[Family.MONEY]:
        yield f"{column.table}.{column.name} ends in {MONEY_SUFFIX} but is {column.type}"

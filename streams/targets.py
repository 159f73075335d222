"""Statements by which a batch's rows reach the warehouse's tables, one target a table.

Rows are copied into a temporary staging table and moved out of it by one statement; a row that is
already there stays as it is, so a replay changes nothing. What a backfill tells again counts only
where it is news: a state that is not known by what it is, a merchant of whom something is known
differently.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, LiteralString

from streams.contract import Table


@dataclass(frozen=True, slots=True)
class Target:
    """How rows get into one table.

    `columns` are in the order in which `streams.rows` gives the values. `move` takes what happened,
    `move_told_again` what a backfill tells; both leave the staging table empty. With `by_time` the
    latter is given the batch's span of time, so that only the chunks of the hypertable that it
    reaches are asked.
    """

    columns: tuple[LiteralString, ...]
    stage: LiteralString
    copy: LiteralString
    move: LiteralString
    move_told_again: LiteralString
    sweep: LiteralString
    by_time: bool = False


_PAYMENTS: Final = (
    "time, merchant_id, amount_vnd, amount_usd, currency, chain, payer_country, status, event_id, "
    "payment_id, exception, asset_amount, fee_vnd, payer_address, position, ordinal, committed_at"
)
_REFUNDS: Final = (
    "time, event_id, refund_id, payment_id, merchant_id, amount_vnd, status, position, ordinal, "
    "committed_at"
)
_ENTRIES: Final = (
    "time, event_id, entry_id, merchant_id, kind, payment_id, payout_id, refund_id, reverses_id, "
    "position, ordinal, committed_at"
)
_POSTINGS: Final = (
    "time, event_id, entry_id, seq, merchant_id, account_id, asset, amount_minor, position, "
    "ordinal, committed_at"
)
_PAYOUTS: Final = (
    "time, event_id, payout_id, merchant_id, mode, status, revision, asset, amount_minor, "
    "position, ordinal, committed_at"
)
_DELETIONS: Final = "event_id, table_name, row_id, merchant_id, position, ordinal, committed_at"
_MERCHANTS: Final = (
    "merchant_id, name, trade, timezone, country, deleted_at, event_id, position, ordinal, "
    "committed_at"
)

_EVENT_ONCE: Final = "ON CONFLICT (event_id, time) DO NOTHING"
# After the rows that happened, which may be what is told again.
_NEW_PAYMENTS: Final[LiteralString] = """
    SELECT DISTINCT ON (payment_id, status, time) *
    FROM staged_payment_analytics AS told
    WHERE NOT EXISTS (
        SELECT FROM raw.payment_analytics AS known
        WHERE known.payment_id = told.payment_id AND known.status = told.status
          AND known.time = told.time AND known.time BETWEEN %(first)s AND %(last)s)
    ORDER BY payment_id, status, time, position, ordinal
"""
_NEW_REFUNDS: Final[LiteralString] = """
    SELECT DISTINCT ON (refund_id, status, time) *
    FROM staged_refunds AS told
    WHERE NOT EXISTS (
        SELECT FROM raw.refunds AS known
        WHERE known.merchant_id = told.merchant_id AND known.refund_id = told.refund_id
          AND known.status = told.status
          AND known.time = told.time AND known.time BETWEEN %(first)s AND %(last)s)
    ORDER BY refund_id, status, time, position, ordinal
"""
# The newest of a batch, and only over an older one; recorded_at tells when it arrived.
_NEWEST_MERCHANTS: Final[LiteralString] = """
    SELECT DISTINCT ON (merchant_id) *
    FROM staged_merchants
    ORDER BY merchant_id, position DESC, ordinal DESC
"""
_MERCHANT_OVER_OLDER: Final[LiteralString] = """
    ON CONFLICT (merchant_id) DO UPDATE SET
        name = EXCLUDED.name, trade = EXCLUDED.trade, timezone = EXCLUDED.timezone,
        country = EXCLUDED.country, deleted_at = EXCLUDED.deleted_at,
        event_id = EXCLUDED.event_id, position = EXCLUDED.position,
        ordinal = EXCLUDED.ordinal, committed_at = EXCLUDED.committed_at, recorded_at = now()
    WHERE (known.position, known.ordinal) < (EXCLUDED.position, EXCLUDED.ordinal)
"""
_MERCHANT_WHERE_NEWS: Final[LiteralString] = (
    _MERCHANT_OVER_OLDER
    + """
      AND (known.name, known.trade, known.timezone, known.country, known.deleted_at)
          IS DISTINCT FROM (EXCLUDED.name, EXCLUDED.trade, EXCLUDED.timezone, EXCLUDED.country,
                            EXCLUDED.deleted_at)
    """
)


def _target(
    name: LiteralString,
    columns: LiteralString,
    *,
    conflict: LiteralString,
    rows: LiteralString | None = None,
    told_again: LiteralString | None = None,
    told_again_conflict: LiteralString | None = None,
    by_time: bool = False,
) -> Target:
    """Put a table's statements together; `told_again` are the rows of a backfill that are news."""
    staged = f"staged_{name}"
    insert = f"WITH moved AS (DELETE FROM {staged}) INSERT INTO raw.{name} AS known ({columns})"  # noqa: S608 - constants of this module
    every_row = f"SELECT * FROM {staged}"  # noqa: S608
    return Target(
        columns=tuple(columns.split(", ")),
        stage=f"CREATE TEMPORARY TABLE {staged} AS "  # noqa: S608
        f"SELECT {columns} FROM raw.{name} WITH NO DATA",
        copy=f"COPY {staged} FROM STDIN",
        move=f"{insert} {rows or every_row} {conflict}",
        move_told_again=f"{insert} {told_again or rows or every_row} "
        f"{told_again_conflict or conflict}",
        sweep=f"TRUNCATE {staged}",
        by_time=by_time,
    )


TARGETS: Final[Mapping[Table, Target]] = {
    Table.PAYMENT_ANALYTICS: _target(
        "payment_analytics",
        _PAYMENTS,
        conflict=_EVENT_ONCE,
        told_again=_NEW_PAYMENTS,
        by_time=True,
    ),
    Table.REFUNDS: _target(
        "refunds", _REFUNDS, conflict=_EVENT_ONCE, told_again=_NEW_REFUNDS, by_time=True
    ),
    # These are once by their event, and once by what they are, so whoever tells them again adds
    # nothing.
    Table.LEDGER_ENTRIES: _target("ledger_entries", _ENTRIES, conflict="ON CONFLICT DO NOTHING"),
    Table.LEDGER_POSTINGS: _target("ledger_postings", _POSTINGS, conflict="ON CONFLICT DO NOTHING"),
    Table.PAYOUTS: _target("payouts", _PAYOUTS, conflict="ON CONFLICT DO NOTHING"),
    Table.DELETIONS: _target("deletions", _DELETIONS, conflict="ON CONFLICT (event_id) DO NOTHING"),
    Table.MERCHANTS: _target(
        "merchants",
        _MERCHANTS,
        rows=_NEWEST_MERCHANTS,
        conflict=_MERCHANT_OVER_OLDER,
        told_again_conflict=_MERCHANT_WHERE_NEWS,
    ),
}

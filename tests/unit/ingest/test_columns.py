"""What readers need of published columns: the list is true, and differences are told by name."""

from dataclasses import replace

import pytest

from ingest.columns import NEEDED, TYPES, Column, Need, differences, verify_tables
from ingest.contract import MUTABLE_TABLES, STATUS_TABLES, Table, key_of
from ingest.errors import ProvisionRefused


def column(table: str, name: str, kind: str) -> Column:
    return Column(table=table, whole_before=True, name=name, type=kind)


PUBLISHED = [
    *(
        column(table.value, name, min(TYPES[need.family]))
        for table in Table
        for name, need in NEEDED[table].items()
    ),
    column("capture_heartbeat", "id", "integer"),
]


def test_what_readers_need_passes() -> None:
    assert differences(PUBLISHED) == []
    verify_tables("p", PUBLISHED)


def test_columns_nobody_needs_come_and_go() -> None:
    more = [
        column("payments", "loyalty_tier", "text"),
        column("payouts", "paid_at", "timestamp with time zone"),
        column("payouts", "cost_minor", "numeric"),
    ]
    assert differences([*PUBLISHED, *more]) == []


@pytest.mark.parametrize(
    ("table", "name"), [(table, name) for table in Table for name in NEEDED[table]]
)
def test_each_needed_column_is_missed_by_name(table: Table, name: str) -> None:
    rest = [known for known in PUBLISHED if (known.table, known.name) != (table, name)]
    readers = ", ".join(NEEDED[table][name].readers)
    assert differences(rest) == [f"{table}.{name} is missing, which breaks {readers}"]


def test_a_retyped_column_is_told_with_who_would_break() -> None:
    retyped = [
        replace(known, type="integer") if known.name == "payer_country" else known
        for known in PUBLISHED
    ]
    (told,) = differences(retyped)
    assert told.startswith("payments.payer_country is integer where text is needed, which breaks ")
    assert told.endswith(" raw.payment_analytics.payer_country, the risk rules")


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        (
            [known for known in PUBLISHED if known.table != "refunds"],
            "refunds is not published, which raw.refunds, raw.deletions would miss",
        ),
        (
            [known for known in PUBLISHED if known.table != "payments"],
            "raw.deletions, the live payment page, the risk rules would miss",
        ),
        ([*PUBLISHED, column("audit_logs", "id", "text")], "audit_logs is unknown"),
        (
            [replace(known, whole_before=known.table != "refunds") for known in PUBLISHED],
            "refunds lacks REPLICA IDENTITY FULL",
        ),
        ([*PUBLISHED, column("payouts", "seen", "timestamp with time zone")], "payouts.seen must"),
        (
            [*PUBLISHED, column("payouts", "seen_at", "timestamp without time zone")],
            "payouts.seen_at must",
        ),
        ([*PUBLISHED, column("payouts", "seen_at", "text")], "seen_at ends in _at but is text"),
        ([*PUBLISHED, column("payouts", "fee_minor", "real")], "fee_minor ends in _minor but is"),
    ],
)
def test_every_other_difference_is_told(columns: list[Column], told: str) -> None:
    found = differences(columns)
    assert len(found) == 1
    assert told in found[0]
    with pytest.raises(ProvisionRefused, match="publication p"):
        verify_tables("p", columns)


def test_the_list_has_what_keys_and_subjects_are_made_from() -> None:
    for table in set(Table) - {Table.CAPTURE_HEARTBEAT, Table.CAPTURE_BACKFILL}:
        assert key_of(table, dict.fromkeys(NEEDED[table], "x")) == "x"
        assert ("status" in NEEDED[table]) == (table in STATUS_TABLES)
    assert MUTABLE_TABLES >= STATUS_TABLES
    assert all(
        isinstance(need, Need) and need.readers for t in Table for need in NEEDED[t].values()
    )

"""Digests of the audit trail, and how a finding reads."""

import hashlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest

from api.audit.model import (
    NO_LINK,
    AuditRow,
    Finding,
    Flaw,
    Verification,
    chain_digest,
    row_digest,
)

ROW = AuditRow(
    id=42,
    event_time=datetime(2026, 3, 1, 12, 0, 0, 250_001, tzinfo=UTC),
    actor="key_1",
    action="payment.created",
    subject_type="payment",
    subject_id="pay_1",
    merchant_id="mer_1",
    request_id=None,
    before=None,
    after='{"name": "Phở"}',
)


def test_the_text_of_a_row_is_fixed() -> None:
    """Anyone can compute it again, with nothing of ours: that is the point of the digest."""
    text = (
        "giovang-audit-1,2:42,16:1772366400250001,5:key_1,15:payment.created,7:payment,5:pay_1,"
        '5:mer_1,-,-,17:{"name": "Phở"}'
    )
    assert row_digest(ROW) == hashlib.sha256(text.encode()).digest()


def test_the_same_moment_in_another_zone_is_the_same_row() -> None:
    hanoi = ROW.event_time.astimezone(timezone(timedelta(hours=7)))
    assert row_digest(replace(ROW, event_time=hanoi)) == row_digest(ROW)


@pytest.mark.parametrize(
    "other",
    [
        replace(ROW, id=43),
        replace(ROW, event_time=ROW.event_time + timedelta(microseconds=1)),
        replace(ROW, merchant_id=None),
        replace(ROW, request_id=""),
        replace(ROW, request_id="-"),
        replace(ROW, before=ROW.after, after=None),
        replace(ROW, actor="key_", action="1payment.created"),
        replace(ROW, actor="key_1,15:payment", action=".created"),
    ],
)
def test_no_other_row_has_the_digest(other: AuditRow) -> None:
    assert row_digest(other) != row_digest(ROW)


def test_a_link_depends_on_all_before_it() -> None:
    first = chain_digest(NO_LINK, row_digest(ROW))
    assert first != chain_digest(first, row_digest(ROW))
    assert chain_digest(first, row_digest(ROW)) != chain_digest(NO_LINK, row_digest(ROW))


def test_the_oldest_row_is_named_and_the_others_counted() -> None:
    found = Verification()
    assert found.intact
    found.note(Finding(Flaw.LINK_REMOVED, seq=9), times=3)
    found.note(Finding(Flaw.ROW_CHANGED, log_id=8, event_time=ROW.event_time, seq=8))
    found.note(Finding(Flaw.ROW_REMOVED, log_id=7, event_time=ROW.event_time, seq=10))
    assert found.first is not None
    assert (found.first.log_id, found.flaws, found.intact) == (7, 5, False)
    assert found.by_flaw == {"link_removed": 3, "row_changed": 1, "row_removed": 1}
    assert found.first.sentence() == (
        "audit row 7 of 2026-03-01 12:00:00.250001Z (link 10) was removed after it was sealed"
    )


def test_what_is_wrong_with_the_chain_itself_reads_so() -> None:
    assert Finding(Flaw.LINK_REMOVED, seq=3).sentence() == "link 3 was removed from the chain"
    unknown = Finding(Flaw.HEAD_UNKNOWN, digest="ab")
    assert unknown.sentence().startswith("the head ab stands nowhere in the chain")

"""Masks: what is told instead of a value, in every image, and what may not be masked."""

import copy
import json
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from ingest.columns import Column, MaskWay
from ingest.contract import EventId, Table
from ingest.envelope import EnvelopeWriter
from ingest.errors import EnvelopeInvalid, MaskRefused
from ingest.masking import Masks, masks
from ingest.settings import IngestSettings
from tests.fixtures.records import NOW_US, UNCHANGED, merchant, payment, record, refund, told_again

KEY = SecretStr("6b" * 32)
TYPES = {"metadata": "jsonb", "is_escrow": "boolean", "event_seq": "bigint", "fee_bps": "integer"}
ROWS = {Table.MERCHANTS: merchant(), Table.PAYMENTS: payment(), Table.REFUNDS: refund()}
COLUMNS = [
    Column(
        table,
        whole_before=True,
        name=name,
        type=TYPES.get(
            name,
            "bigint"
            if name.endswith("_minor")
            else "timestamp with time zone"
            if name.endswith("_at")
            else "text",
        ),
    )
    for table, row in ROWS.items()
    for name in row
] + [Column("capture_backfill", whole_before=False, name="image", type="text")]
PAYER = "5dAn7tcy9XPrJQxVgHqW"


def made(**wanted: str) -> Masks:
    """Return masks for columns written `table__column`."""
    named = {place.replace("__", "."): MaskWay(way) for place, way in wanted.items()}
    return masks(named, KEY, COLUMNS)


def told(made_masks: Masks, **parts: Any) -> tuple[dict[str, Any], bytes]:
    writer = EnvelopeWriter(UNCHANGED, lambda: NOW_US, made_masks)
    # The writer works in place, on what the engine's JSON gave it.
    message = writer.message(EventId(400, 1), copy.deepcopy(record(**parts)), ends=True)
    return json.loads(message.payload), message.payload


def test_a_hash_keeps_equality_and_nothing_else() -> None:
    found = made(payments__payer_address="hash", refunds__destination="hash")
    document, payload = told(
        found,
        op="u",
        before=payment(payer_address=PAYER),
        after=payment(payer_address=PAYER, status="completed"),
    )
    hashed = document["after"]["payer_address"]
    # As `printf 5dAn7tcy9XPrJQxVgHqW | openssl dgst -sha256 -mac HMAC -macopt hexkey:6b6b…` says.
    assert hashed == "masked-e6367ae45432bd259673cccbee653f018fe36e323de443727edb74eabcdcf67f"
    assert document["before"]["payer_address"] == hashed
    assert PAYER.encode() not in payload
    document, _ = told(found, table="refunds", after=refund(destination=PAYER))
    assert document["after"]["destination"] == hashed
    document, _ = told(found, after=payment(payer_address=None))
    assert document["after"]["payer_address"] is None


def test_another_key_is_another_hash() -> None:
    wanted = {"payments.payer_address": MaskWay.HASH}
    rows = [
        told(masks(wanted, SecretStr(key * 32), COLUMNS), after=payment(payer_address=PAYER))[0]
        for key in ("6b", "6c")
    ]
    assert rows[0]["after"]["payer_address"] != rows[1]["after"]["payer_address"]


def test_what_is_removed_is_null_also_in_deletions() -> None:
    found = made(payments__metadata="remove", payments__description="remove")
    document, payload = told(found, op="d", before=payment(metadata='{"mail": "lan@example.vn"}'))
    assert document["before"]["metadata"] is None
    assert document["before"]["description"] is None
    assert b"lan@" not in payload


@pytest.mark.parametrize("way", ["hash", "remove"])
def test_a_value_that_was_not_logged_is_masked_as_it_was_before(way: str) -> None:
    document, _ = told(
        made(payments__metadata=way),
        op="u",
        before=payment(),
        after=payment(status="pending", metadata=UNCHANGED),
    )
    assert document["after"]["metadata"] == document["before"]["metadata"]
    assert document["after"]["metadata"] != payment()["metadata"]


def test_rows_told_again_are_masked_as_streamed_ones() -> None:
    found = made(payments__payer_address="hash", payments__metadata="remove")
    row = payment(payer_address=PAYER, status="completed")
    streamed, _ = told(found, after=row)
    again, payload = told(
        found, table="capture_backfill", after=told_again("payments", "snapshot", row)
    )
    assert again["after"] == streamed["after"]
    assert PAYER.encode() not in payload
    # A deletion is told from the stream's own last image, masked already or not yet.
    for image in (streamed["after"], row):
        gone, _ = told(
            found, table="capture_backfill", after=told_again("payments", "delete", image)
        )
        assert gone["before"]["payer_address"] == streamed["after"]["payer_address"]
        assert gone["before"]["metadata"] is None


def test_a_masked_column_cannot_leave_under_another_name() -> None:
    row = refund(destination=PAYER)
    row["receiver"] = row.pop("destination")
    with pytest.raises(EnvelopeInvalid, match=r"refunds\.destination, which is missing"):
        told(made(refunds__destination="hash"), table="refunds", after=row)


@pytest.mark.parametrize(
    ("place", "way", "reason"),
    [
        ("audit_logs__row", "remove", "no published column"),
        ("payments__e_mail", "remove", "no published column"),
        ("capture_backfill__image", "hash", "no published column"),
        ("payments", "remove", "no published column"),
        ("payments__id", "hash", "payment_id"),
        ("payments__merchant_id", "remove", "partition key"),
        ("payments__status", "hash", "subject"),
        ("payments__amount_minor", "remove", "amount_vnd"),
        ("payments__asset", "hash", "raw.payment_analytics.currency"),
        ("payments__status_at", "remove", "raw.payment_analytics.time"),
        ("payments__is_escrow", "remove", "live payment page"),
        ("payments__payer_country", "hash", "remove is possible"),
        ("payments__completed_at", "hash", "only text"),
        ("merchants__name", "remove", "hash is possible"),
        ("merchants__fee_bps", "hash", "only text"),
    ],
)
def test_a_mask_that_breaks_a_reader_is_refused(place: str, way: str, reason: str) -> None:
    with pytest.raises(MaskRefused, match=reason):
        made(**{place: way})


@pytest.mark.parametrize("key", [None, SecretStr("6b" * 15), SecretStr("secret"), SecretStr("")])
def test_a_hash_without_a_good_key_is_refused(key: SecretStr | None) -> None:
    wanted = {"payments.payer_address": MaskWay.HASH}
    with pytest.raises(MaskRefused, match="GIOVANG_INGEST_MASK_KEY") as caught:
        masks(wanted, key, COLUMNS)
    assert "secret" not in str(caught.value)
    assert masks({"payments.payer_address": MaskWay.REMOVE}, None, COLUMNS)


def test_masks_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIOVANG_INGEST_DATABASE_URL", "postgresql://u@host/db")
    monkeypatch.setenv("GIOVANG_INGEST_NATS_URL", "nats://host")
    monkeypatch.setenv("GIOVANG_INGEST_MASK", '{"payments.payer_address": "hash"}')
    monkeypatch.setenv("GIOVANG_INGEST_MASK_KEY", "6b" * 32)
    settings = IngestSettings()
    assert masks(settings.mask, settings.mask_key, COLUMNS).keys() == {"payments"}
    assert "6b6b" not in repr(settings)
    monkeypatch.setenv("GIOVANG_INGEST_MASK", '{"payments.payer_address": "hide"}')
    with pytest.raises(ValidationError, match="mask"):
        IngestSettings()

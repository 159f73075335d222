"""How a payment is shown before PostgreSQL has said when it was made."""

import json
from datetime import UTC, datetime
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from api.payments.model import Payment
from api.payments.views import json_with_marks, present

UNDECIDED = datetime.min.replace(tzinfo=UTC)
MOMENTS = {"\x01": "2026-01-31T09:00:00.123456Z", "\x02": "2026-01-31T09:15:00.123456Z"}


def new_payment(text: str, metadata: dict[str, str]) -> Payment:
    return Payment(
        id="pay_01jz8w5k6h7m9n0p2q3r4s5t6v",
        merchant_id="mer_01jz8w5k6h7m9n0p2q3r4s5t6v",
        mode="test",
        status="created",
        exception=None,
        amount_minor=250000,
        currency="VND",
        asset="USDC",
        asset_amount_minor=9560230,
        received_minor=0,
        rate=Decimal(26150),
        rate_source="file",
        chain="solana",
        recipient="mvines9iiHiQTysrwkJjGf2gb9Ex9jXJX8ns3qwf2kN",
        mint="EPjFWdd5AufqSSqeM2qN1xzybapC8G4wEGGkZwyTDt1v",
        reference="82ZJ7nbGpixjeDCmEhUcmwXYfvurzAgGdtSMuHnUgyny",
        payer_address=None,
        payer_country="VN",
        description=text,
        order_id=text,
        metadata=metadata,
        fee_minor=0,
        created_at=UNDECIDED,
        expires_at=UNDECIDED,
        status_at=UNDECIDED,
        completed_at=None,
    )


# Also what people may not write, and what looks like a mark once it is JSON.
texts = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(
    ["\x01", "\x02", "\\u0001", '"\x01"', "0001-01-01T00:00:00Z"]
)


@given(texts, st.dictionaries(texts, texts, max_size=3))
def test_moments_take_the_place_of_marks_and_of_nothing_else(
    text: str, metadata: dict[str, str]
) -> None:
    payment = new_payment(text, metadata)
    view = present(payment, merchant_name="Phở", public_url="https://pay.vn")
    written = json_with_marks(view)
    for mark, moment in MOMENTS.items():
        assert written.count(mark) == 2
        written = written.replace(mark, moment)

    expected = json.loads(view.model_dump_json())
    created_at, expires_at = MOMENTS.values()
    expected |= {"created_at": created_at, "status_at": created_at, "expires_at": expires_at}
    expected["rate"]["expires_at"] = expires_at
    assert json.loads(written) == expected

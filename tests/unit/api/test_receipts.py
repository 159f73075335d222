"""Receipts read out of recorded `getTransaction` answers, and out of bent copies of them.

The recordings in tests/fixtures/chain come from the SPL Token program on the local network, paid by
the stock client: in jsonParsed and, of the first, in the plain encoding.
"""

import copy
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from api.chain import receipts
from api.chain.model import Receipt, TokenAccount, UnreadableTransaction
from api.chain.receipts import TOKEN_PROGRAM, account_keys, landed_of
from api.chain.solana_pay import token_account
from api.contract import USDC_MINT, USDT_MINT, Asset

FOLDER = Path(__file__).resolve().parents[2] / "fixtures" / "chain"
WALLET = "4SEtdejDuKe5JVDgFF9NXEix32YNSrzNSrPoTg13m1Nu"
PAYER = "39Lni1xCTnyTjLPWH1r4JxwGQwGMEPQU7K7wiFwZDTfC"
REFERENCE = "2PfJf5RgahhKSg4okXhYhFuS8V3F1A85gsXwQtAnXKd1"
OURS = TokenAccount(token_account(WALLET, USDC_MINT), WALLET, USDC_MINT, Asset.USDC)

Json = dict[str, Any]


def recorded(name: str) -> Json:
    answer: Json = json.loads((FOLDER / f"{name}.json").read_text())
    return answer


def receipt_of(answer: Json, account: TokenAccount) -> Receipt | None:
    return receipts.receipt_of(landed_of(answer), account)


@pytest.fixture
def first() -> Json:
    return recorded("transfer_that_creates_the_account")


def test_a_transfer_that_also_makes_our_account(first: Json) -> None:
    receipt = receipt_of(first, OURS)
    assert receipt is not None
    assert receipt.amount_minor == 9_560_230
    assert receipt.payer_address == PAYER
    assert REFERENCE in receipt.keys
    assert receipt.slot == first["slot"]
    assert receipt.block_time == datetime.fromtimestamp(first["blockTime"], UTC)
    assert receipt.signature == first["transaction"]["signatures"][0]


def test_received_is_the_difference_and_not_the_balance() -> None:
    receipt = receipt_of(recorded("transfer_without_reference"), OURS)
    assert receipt is not None
    assert receipt.amount_minor == 1_000_001
    assert REFERENCE not in receipt.keys


def test_the_plain_encoding_reads_the_same(first: Json) -> None:
    assert receipt_of(recorded("transfer_plain_encoding"), OURS) == receipt_of(first, OURS)


def load_from_table(answer: Json, *, inside: bool) -> None:
    """Bend the recording: our account and the reference come from an address look-up table.

    jsonParsed lists loaded keys after the static ones, marked; the plain encoding keeps them apart.
    """
    message, meta = answer["transaction"]["message"], answer["meta"]
    keys = account_keys(answer)
    loaded = {"writable": [OURS.address], "readonly": [REFERENCE]}
    static = [key for key in keys if key not in {OURS.address, REFERENCE}]
    order = [*static, OURS.address, REFERENCE]
    if inside:
        message["accountKeys"] = [
            {
                "pubkey": key,
                "signer": False,
                "writable": True,
                "source": "transaction" if key in static else "lookupTable",
            }
            for key in order
        ]
    else:
        message["accountKeys"] = static
        meta["loadedAddresses"] = loaded
    for balance in [*meta["preTokenBalances"], *meta["postTokenBalances"]]:
        balance["accountIndex"] = order.index(keys[balance["accountIndex"]])


@pytest.mark.parametrize(
    ("recording", "inside"),
    [("transfer_that_creates_the_account", True), ("transfer_plain_encoding", False)],
)
def test_keys_loaded_from_tables_count_after_the_static_ones(recording: str, inside: bool) -> None:
    answer = recorded(recording)
    load_from_table(answer, inside=inside)
    receipt = receipt_of(answer, OURS)
    assert receipt is not None
    assert receipt.amount_minor == 9_560_230
    assert receipt.keys[-2:] == (OURS.address, REFERENCE)
    assert len(receipt.keys) == len(set(receipt.keys))


def test_more_instructions_make_no_difference(first: Json) -> None:
    bent = copy.deepcopy(first)
    bent["transaction"]["message"]["instructions"].append(
        {"program": "spl-memo", "programId": "MemoSq4gqABAXKb96qnH8TysNcWxMyWCqXgDLGmfcHr"}
    )
    assert receipt_of(bent, OURS) == receipt_of(first, OURS)


def bend_failed(answer: Json) -> None:
    answer["meta"]["err"] = {"InstructionError": [1, {"Custom": 1}]}


def bend_nothing_received(answer: Json) -> None:
    answer["meta"]["preTokenBalances"] = answer["meta"]["postTokenBalances"]


def bend_sent_away(answer: Json) -> None:
    meta = answer["meta"]
    meta["preTokenBalances"] = copy.deepcopy(meta["postTokenBalances"])
    meta["postTokenBalances"][-1]["uiTokenAmount"]["amount"] = "1"


def bend_account_closed(answer: Json) -> None:
    answer["meta"]["postTokenBalances"].pop()


def bend_not_among_keys(answer: Json) -> None:
    for key in answer["transaction"]["message"]["accountKeys"]:
        if key["pubkey"] == OURS.address:
            key["pubkey"] = PAYER


@pytest.mark.parametrize(
    "bend",
    [
        bend_failed,
        bend_nothing_received,
        bend_sent_away,
        bend_account_closed,
        bend_not_among_keys,
    ],
)
def test_what_brought_nothing_is_no_receipt(first: Json, bend: Callable[[Json], None]) -> None:
    bend(first)
    assert receipt_of(first, OURS) is None


def bend_owner(answer: Json) -> None:
    answer["meta"]["postTokenBalances"][-1]["owner"] = PAYER


def bend_mint(answer: Json) -> None:
    answer["meta"]["postTokenBalances"][-1]["mint"] = USDT_MINT


def bend_amount(answer: Json) -> None:
    answer["meta"]["postTokenBalances"][-1]["uiTokenAmount"]["amount"] = "many"


def bend_no_meta(answer: Json) -> None:
    answer["meta"] = None


def bend_no_balances(answer: Json) -> None:
    del answer["meta"]["postTokenBalances"]


def bend_program(answer: Json) -> None:
    """Token-2022 at an address of ours: it looks the same but for the program."""
    for balance in answer["meta"]["postTokenBalances"]:
        assert balance["programId"] == TOKEN_PROGRAM
        balance["programId"] = "TokenzQdBNbLqP5VEhdkAS6EPFLC1PHnBqCXEpPxuEb"


@pytest.mark.parametrize(
    "bend", [bend_owner, bend_program, bend_mint, bend_amount, bend_no_meta, bend_no_balances]
)
def test_what_cannot_be_read_is_never_taken_for_nothing(
    first: Json, bend: Callable[[Json], None]
) -> None:
    bend(first)
    with pytest.raises(UnreadableTransaction):
        receipt_of(first, OURS)


def test_without_an_owner_who_gave_the_fee_payer_is_the_payer(first: Json) -> None:
    for balance in [*first["meta"]["preTokenBalances"], *first["meta"]["postTokenBalances"]]:
        if balance["owner"] == PAYER:
            del balance["owner"]
    receipt = receipt_of(first, OURS)
    assert receipt is not None
    assert receipt.payer_address == account_keys(first)[0]

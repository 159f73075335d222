"""Instructions take the validator's parsed form, and what cannot be parsed stays as it is."""

import struct
from typing import Any

import pytest
from solders.keypair import Keypair
from solders.message import Message
from solders.pubkey import Pubkey
from solders.system_program import (
    AllocateParams,
    CreateAccountParams,
    CreateAccountWithSeedParams,
    TransferParams,
    TransferWithSeedParams,
    allocate,
    create_account,
    create_account_with_seed,
    transfer,
    transfer_with_seed,
)
from spl.token import instructions as spl
from spl.token import models

from infra.localnet import base58
from infra.localnet.parsing import parse_instruction
from infra.localnet.tokens import ASSOCIATED_TOKEN_PROGRAM, TOKEN_PROGRAM

A, B, C, D = (Keypair.from_seed(bytes([index]) * 32).pubkey() for index in range(1, 5))
MEMO = Pubkey.from_string("MemoSq4gqABAXKb96qnH8TysNcWxMyWCqXgDLGmfcHr")


def parse(instruction: Any) -> dict[str, Any]:
    """Compile one instruction into a message and parse it back."""
    message = Message([instruction], A)
    (compiled,) = message.instructions
    return parse_instruction(
        message.account_keys,
        compiled.program_id_index,
        list(compiled.accounts),
        bytes(compiled.data),
        1,
    )


@pytest.mark.parametrize(
    ("instruction", "kind", "info"),
    [
        (
            transfer(TransferParams(from_pubkey=A, to_pubkey=B, lamports=7)),
            "transfer",
            {"source": str(A), "destination": str(B), "lamports": 7},
        ),
        (
            create_account(
                CreateAccountParams(
                    from_pubkey=A, to_pubkey=B, lamports=7, space=165, owner=TOKEN_PROGRAM
                )
            ),
            "createAccount",
            {
                "source": str(A),
                "newAccount": str(B),
                "lamports": 7,
                "space": 165,
                "owner": str(TOKEN_PROGRAM),
            },
        ),
        (
            create_account_with_seed(
                CreateAccountWithSeedParams(
                    from_pubkey=A, to_pubkey=B, base=A, seed="sạp", lamports=7, space=1, owner=C
                )
            ),
            "createAccountWithSeed",
            {
                "source": str(A),
                "newAccount": str(B),
                "base": str(A),
                "seed": "sạp",
                "lamports": 7,
                "space": 1,
                "owner": str(C),
            },
        ),
        (
            transfer_with_seed(
                TransferWithSeedParams(
                    from_pubkey=A,
                    from_base=B,
                    from_seed="s",
                    from_owner=C,
                    to_pubkey=D,
                    lamports=9,
                )
            ),
            "transferWithSeed",
            {
                "source": str(A),
                "sourceBase": str(B),
                "destination": str(D),
                "lamports": 9,
                "sourceSeed": "s",
                "sourceOwner": str(C),
            },
        ),
        (
            allocate(AllocateParams(pubkey=A, space=3)),
            "allocate",
            {"account": str(A), "space": 3},
        ),
    ],
)
def test_system_instructions(instruction: Any, kind: str, info: dict[str, Any]) -> None:
    parsed = parse(instruction)
    assert parsed["program"] == "system"
    assert parsed["stackHeight"] == 1
    assert parsed["parsed"] == {"type": kind, "info": info}


def checked(signers: list[Pubkey]) -> Any:
    return spl.transfer_checked(
        models.TransferCheckedParams(
            program_id=TOKEN_PROGRAM,
            source=A,
            mint=B,
            dest=C,
            owner=D,
            amount=1_500_000,
            decimals=6,
            signers=signers,
        )
    )


def test_token_transfer_names_its_authority() -> None:
    info = parse(checked([]))["parsed"]["info"]
    assert info["authority"] == str(D)
    assert info["tokenAmount"]["uiAmountString"] == "1.5"
    assert info["source"] == str(A)
    assert info["mint"] == str(B)
    assert info["destination"] == str(C)
    assert "signers" not in info


def test_accounts_behind_the_authority_become_signers() -> None:
    info = parse(checked([B]))["parsed"]["info"]
    assert "authority" not in info
    assert info["multisigAuthority"] == str(D)
    assert info["signers"] == [str(B)]


TOKEN_PARAMS = {"program_id": TOKEN_PROGRAM}


@pytest.mark.parametrize(
    ("instruction", "kind", "expected"),
    [
        (
            spl.mint_to(
                models.MintToParams(
                    **TOKEN_PARAMS, mint=B, dest=C, mint_authority=A, amount=2**64 - 1
                )
            ),
            "mintTo",
            {
                "mint": str(B),
                "account": str(C),
                "amount": "18446744073709551615",
                "mintAuthority": str(A),
            },
        ),
        (
            spl.burn(models.BurnParams(**TOKEN_PARAMS, account=B, mint=C, owner=A, amount=3)),
            "burn",
            {"account": str(B), "mint": str(C), "amount": "3", "authority": str(A)},
        ),
        (
            spl.approve(
                models.ApproveParams(**TOKEN_PARAMS, source=B, delegate=C, owner=A, amount=3)
            ),
            "approve",
            {"source": str(B), "delegate": str(C), "amount": "3", "owner": str(A)},
        ),
        (
            spl.revoke(models.RevokeParams(**TOKEN_PARAMS, account=B, owner=A)),
            "revoke",
            {"source": str(B), "owner": str(A)},
        ),
        (
            spl.close_account(
                models.CloseAccountParams(**TOKEN_PARAMS, account=B, dest=C, owner=A)
            ),
            "closeAccount",
            {"account": str(B), "destination": str(C), "owner": str(A)},
        ),
        (
            spl.freeze_account(
                models.FreezeAccountParams(**TOKEN_PARAMS, account=B, mint=C, authority=A)
            ),
            "freezeAccount",
            {"account": str(B), "mint": str(C), "freezeAuthority": str(A)},
        ),
        (
            spl.set_authority(
                models.SetAuthorityParams(
                    **TOKEN_PARAMS,
                    account=B,
                    authority=models.AuthorityType.ACCOUNT_OWNER,
                    current_authority=A,
                    new_authority=C,
                )
            ),
            "setAuthority",
            {
                "account": str(B),
                "authorityType": "accountOwner",
                "newAuthority": str(C),
                "authority": str(A),
            },
        ),
        (
            spl.initialize_mint2(
                models.InitializeMint2Params(
                    **TOKEN_PARAMS, decimals=6, mint=B, mint_authority=A, freeze_authority=None
                )
            ),
            "initializeMint2",
            {"mint": str(B), "decimals": 6, "mintAuthority": str(A)},
        ),
        (
            spl.initialize_mint2(
                models.InitializeMint2Params(
                    **TOKEN_PARAMS, decimals=6, mint=B, mint_authority=A, freeze_authority=C
                )
            ),
            "initializeMint2",
            {"mint": str(B), "decimals": 6, "mintAuthority": str(A), "freezeAuthority": str(C)},
        ),
    ],
)
def test_token_instructions(instruction: Any, kind: str, expected: dict[str, Any]) -> None:
    parsed = parse(instruction)
    assert parsed["program"] == "spl-token"
    assert parsed["parsed"] == {"type": kind, "info": expected}


def test_associated_token_account_instructions() -> None:
    parsed = parse(spl.create_idempotent_associated_token_account(A, B, C))
    assert parsed["program"] == "spl-associated-token-account"
    assert parsed["parsed"]["type"] == "createIdempotent"
    assert parsed["parsed"]["info"]["wallet"] == str(B)
    assert parsed["parsed"]["info"]["tokenProgram"] == str(TOKEN_PROGRAM)
    keys = [ASSOCIATED_TOKEN_PROGRAM, A, B, C, D, MEMO, TOKEN_PROGRAM]
    older = parse_instruction(keys, 0, [1, 2, 3, 4, 5, 6], b"", None)
    assert older["parsed"]["type"] == "create"


def test_memo_is_its_text() -> None:
    text = "đơn 42"
    parsed = parse_instruction([MEMO], 0, [], text.encode(), None)
    assert parsed == {
        "program": "spl-memo",
        "programId": str(MEMO),
        "parsed": text,
        "stackHeight": None,
    }


@pytest.mark.parametrize(
    ("program", "accounts", "data"),
    [
        (Pubkey.default(), [1, 2], struct.pack("<I", 99)),
        (Pubkey.default(), [1, 2], struct.pack("<IH", 2, 7)),
        (Pubkey.default(), [1], struct.pack("<IQ", 2, 7)),
        (Pubkey.default(), [1, 2], struct.pack("<IQ", 3, 2**63) + b"short"),
        (TOKEN_PROGRAM, [1, 2], b""),
        (TOKEN_PROGRAM, [1, 2], b"\x03\x01"),
        (TOKEN_PROGRAM, [1, 2], b"\x03" + bytes(8)),
        (TOKEN_PROGRAM, [1, 2], b"\xff" + bytes(8)),
        (TOKEN_PROGRAM, [], b"\x05"),
        (TOKEN_PROGRAM, [1], b"\x15\xff\xff"),
        (ASSOCIATED_TOKEN_PROGRAM, [1, 2, 1, 2, 1, 2], b"\x09"),
        (MEMO, [], b"\xff\xfe"),
        (D, [1], b"anything"),
    ],
)
def test_unparsable_is_shown_partially_decoded(
    program: Pubkey, accounts: list[int], data: bytes
) -> None:
    keys = [program, A, B]
    assert parse_instruction(keys, 0, accounts, data, 2) == {
        "programId": str(program),
        "accounts": [str(keys[index]) for index in accounts],
        "data": base58.encode(data),
        "stackHeight": 2,
    }

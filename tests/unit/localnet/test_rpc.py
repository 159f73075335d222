"""JSON-RPC envelopes, parameters and the words of errors."""

from typing import Any

import orjson
import pytest

from infra.localnet.errors import NetworkBrokenError, RpcError, describe
from infra.localnet.network import Commitment
from infra.localnet.parameters import Config, Parameters, read_pubkey, read_signature
from infra.localnet.rpc import MAX_BATCH, Dispatcher


def _fail(_params: Parameters) -> None:
    raise ZeroDivisionError


def _break(_params: Parameters) -> None:
    raise NetworkBrokenError


@pytest.fixture
def dispatcher() -> Dispatcher:
    return Dispatcher(
        {
            "echo": lambda params: params.values,
            "text": lambda params: params.text(0),
            "fail": _fail,
            "break": _break,
        }
    )


def ask(dispatcher: Dispatcher, request: Any) -> Any:
    answer = dispatcher.answer(request if isinstance(request, bytes) else orjson.dumps(request))
    return None if answer is None else orjson.loads(answer)


def call(method: str, *params: Any, **more: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": 1, "method": method, "params": list(params), **more}


def test_call_and_its_answer(dispatcher: Dispatcher) -> None:
    assert ask(dispatcher, call("echo", 1, "a", id="x")) == {
        "jsonrpc": "2.0",
        "result": [1, "a"],
        "id": "x",
    }
    bare = {"jsonrpc": "2.0", "id": 7, "method": "echo"}
    assert ask(dispatcher, bare)["result"] == []


@pytest.mark.parametrize(
    ("request_", "code", "answered_id"),
    [
        (b"{", -32700, None),
        (b"\xff", -32700, None),
        (1, -32600, None),
        ([], -32600, None),
        ({"id": 1, "method": "echo"}, -32600, 1),
        ({"jsonrpc": "1.0", "id": 1, "method": "echo"}, -32600, 1),
        ({"jsonrpc": "2.0", "id": 1}, -32600, 1),
        ({"jsonrpc": "2.0", "id": {}, "method": "echo"}, -32600, None),
        ({"jsonrpc": "2.0", "id": True, "method": "echo"}, -32600, None),
        (call("nothing"), -32601, 1),
        ({"jsonrpc": "2.0", "id": 1, "method": "echo", "params": {"a": 1}}, -32602, 1),
        (call("echo", *range(9)), -32602, 1),
        (call("text"), -32602, 1),
        (call("text", 5), -32602, 1),
        (call("fail"), -32603, 1),
        ([call("echo")] * (MAX_BATCH + 1), -32600, None),
    ],
)
def test_errors(dispatcher: Dispatcher, request_: Any, code: int, answered_id: Any) -> None:
    answer = ask(dispatcher, request_)
    assert answer["error"]["code"] == code
    assert answer["id"] == answered_id


def test_internal_error_tells_nothing_inside(dispatcher: Dispatcher) -> None:
    assert ask(dispatcher, call("fail"))["error"] == {"code": -32603, "message": "Internal error"}


def test_broken_network_is_not_swallowed(dispatcher: Dispatcher) -> None:
    with pytest.raises(NetworkBrokenError):
        dispatcher.answer(orjson.dumps(call("break")))


def test_batches_and_notifications(dispatcher: Dispatcher) -> None:
    notification = {"jsonrpc": "2.0", "method": "echo"}
    assert ask(dispatcher, notification) is None
    assert ask(dispatcher, {**notification, "method": "ping"}) is None
    assert ask(dispatcher, [notification, notification]) is None
    answers = ask(dispatcher, [call("echo", 1, id=1), notification, 5, call("none", id=3)])
    assert [answer["id"] for answer in answers] == [1, None, 3]
    assert answers[1]["error"]["code"] == -32600


@pytest.mark.parametrize("value", [-1, 2**64, 1.0, True, "1", None])
def test_integers_are_unsigned_64_bit(value: Any) -> None:
    with pytest.raises(RpcError) as caught:
        Parameters([value]).integer(0)
    assert caught.value.code == RpcError.INVALID_PARAMS


@pytest.mark.parametrize("text", ["", "0OIl", "1" * 31, "1" * 33, "é" * 44, "z" * 44])
def test_addresses_are_32_bytes_of_base58(text: str) -> None:
    with pytest.raises(RpcError, match=r"Invalid param: (Invalid|WrongSize)"):
        read_pubkey(text)


def test_signatures_are_64_bytes_of_base58() -> None:
    assert read_signature("1" * 64) == bytes(64)
    with pytest.raises(RpcError, match="WrongSize"):
        read_signature("1" * 63)


def test_commitments_have_a_default_and_old_names() -> None:
    assert Config({}).commitment() is Commitment.finalized
    assert Config({"commitment": "recent"}).commitment() is Commitment.processed
    assert Config({"commitment": "confirmed"}).commitment() is Commitment.confirmed
    for wrong in ("later", 5, ["confirmed"]):
        with pytest.raises(RpcError):
            Config({"commitment": wrong}).commitment()
    with pytest.raises(RpcError, match="below `confirmed`"):
        Config({"commitment": "processed"}).settled_commitment()


@pytest.mark.parametrize(
    ("err", "sentence"),
    [
        ("BlockhashNotFound", "Blockhash not found"),
        ("AlreadyProcessed", "This transaction has already been processed"),
        (
            {"InstructionError": [2, {"Custom": 26}]},
            "Error processing Instruction 2: custom program error: 0x1a",
        ),
        (
            {"InstructionError": [0, "MissingRequiredSignature"]},
            "Error processing Instruction 0: missing required signature for instruction",
        ),
        (
            {"InsufficientFundsForRent": {"account_index": 1}},
            "Transaction results in an account (1) with insufficient funds for rent",
        ),
        ({"DuplicateInstruction": 3}, "Transaction contains a duplicate instruction (3)"),
        ("SomethingNew", "SomethingNew"),
    ],
)
def test_runtime_errors_in_words(err: Any, sentence: str) -> None:
    assert describe(err).startswith(sentence)

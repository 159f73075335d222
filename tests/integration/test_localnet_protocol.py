"""Hop: bare HTTP and WebSocket to the local network: limits, CORS, bad input, clean ends."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from infra.localnet.server import MAX_BODY_BYTES, MAX_SOCKET_MESSAGE_BYTES
from infra.localnet.subscriptions import MAX_PER_SOCKET
from tests.fixtures.localnet import make_localnet
from tests.fixtures.services import CHECKOUT, LocalnetServer

DEADLINE_S = 30
SYSTEM_PROGRAM = "1" * 32


@pytest.fixture
def http(network: LocalnetServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=network.rpc_url, timeout=DEADLINE_S) as client:
        yield client


def call(http: httpx.Client, method: str, *params: Any) -> Any:
    request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": list(params)}
    reply = http.post("/", json=request)
    assert reply.status_code == 200
    return reply.json()


def test_batch_is_answered_in_order(http: httpx.Client) -> None:
    batch = [{"jsonrpc": "2.0", "id": index, "method": "getSlot"} for index in range(5)]
    batch.insert(2, {"jsonrpc": "2.0", "id": "x", "method": "unknown"})
    answers = http.post("/", json=batch).json()
    assert [answer["id"] for answer in answers] == [0, 1, "x", 2, 3, 4]
    assert answers[2]["error"]["code"] == -32601


def test_pages_of_other_origins_may_ask(http: httpx.Client) -> None:
    asked = http.options(
        "/",
        headers={
            "Origin": "http://shop.example",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "content-type,solana-client",
        },
    )
    assert asked.status_code == 200
    assert asked.headers["access-control-allow-origin"] == "*"
    assert "solana-client" in asked.headers["access-control-allow-headers"].lower()
    answered = http.post(
        "/",
        json={"jsonrpc": "2.0", "id": 1, "method": "getHealth"},
        headers={"Origin": "http://shop.example"},
    )
    assert answered.headers["access-control-allow-origin"] == "*"


def test_health_is_a_plain_word(http: httpx.Client) -> None:
    assert http.get("/health").text == "ok"


def test_oversized_and_foreign_bodies_are_refused(http: httpx.Client) -> None:
    headers = {"Content-Type": "application/json"}
    large = http.post("/", content=b" " * (MAX_BODY_BYTES + 1), headers=headers)
    assert large.status_code == 413
    assert http.post("/", content=b"a=1").status_code == 415
    broken = http.post("/", content=b"{", headers=headers)
    assert broken.json()["error"]["code"] == -32700


@pytest.mark.parametrize(
    ("method", "params", "code", "message"),
    [
        ("getBalance", ["no address"], -32602, "Invalid param: Invalid"),
        ("getBalance", [SYSTEM_PROGRAM, {"commitment": "soon"}], -32602, "unknown commitment"),
        ("getBalance", [SYSTEM_PROGRAM, {"minContextSlot": 2**60}], -32016, "Minimum context"),
        ("getBalance", [SYSTEM_PROGRAM, "finalized"], -32602, "must be an object"),
        ("getAccountInfo", [SYSTEM_PROGRAM, {"encoding": "base64+zstd"}], -32602, "encoding"),
        ("getBlockTime", [2**60], -32004, "Block not available"),
        ("getMultipleAccounts", [[SYSTEM_PROGRAM] * 101], -32602, "max 100"),
        ("getSignatureStatuses", [["1" * 64] * 257], -32602, "max 256"),
        ("getSignaturesForAddress", [SYSTEM_PROGRAM, {"limit": 1001}], -32602, "max 1000"),
        ("getSignaturesForAddress", [SYSTEM_PROGRAM, {"limit": 0}], -32602, "max 1000"),
        (
            "getSignaturesForAddress",
            [SYSTEM_PROGRAM, {"commitment": "processed"}],
            -32602,
            "below `confirmed`",
        ),
        ("getTransaction", ["1" * 64, {"encoding": "xml"}], -32602, "encoding"),
        ("getTokenAccountBalance", ["1" * 31 + "2"], -32602, "could not find account"),
        ("getTokenAccountBalance", [SYSTEM_PROGRAM], -32602, "not a Token account"),
        ("getTokenSupply", [SYSTEM_PROGRAM], -32602, "not a Token mint"),
        (
            "getTokenAccountsByOwner",
            [SYSTEM_PROGRAM, {"programId": SYSTEM_PROGRAM}],
            -32602,
            "unrecognized Token program id",
        ),
        (
            "getTokenAccountsByOwner",
            [SYSTEM_PROGRAM, {"mint": SYSTEM_PROGRAM}],
            -32602,
            "could not find mint",
        ),
        ("getTokenAccountsByOwner", [SYSTEM_PROGRAM, {}], -32602, "either mint or programId"),
        ("getProgramAccounts", [SYSTEM_PROGRAM, {"filters": [{"x": 1}]}], -32602, "filter"),
        (
            "getProgramAccounts",
            [SYSTEM_PROGRAM, {"filters": [{"dataSize": 1}] * 5}],
            -32602,
            "Too many filters",
        ),
        ("sendTransaction", ["AAAA", {"encoding": "base64"}], -32602, "failed to deserialize"),
        ("sendTransaction", ["AAAA", {"encoding": "hex"}], -32602, "encoding"),
        ("requestAirdrop", [SYSTEM_PROGRAM, -1], -32602, "unsigned 64-bit"),
        ("getFeeForMessage", ["!!"], -32602, "failed to deserialize"),
        ("getMinimumBalanceForRentExemption", [2**40], -32602, "10 MiB"),
        ("getInflationRate", [], -32601, "Method not found"),
    ],
)
def test_mistakes_are_named(
    http: httpx.Client, method: str, params: list[Any], code: int, message: str
) -> None:
    error = call(http, method, *params)["error"]
    assert error["code"] == code
    assert message in error["message"]


def test_unknown_things_are_null_not_errors(http: httpx.Client) -> None:
    unknown = "1" * 64
    assert call(http, "getTransaction", unknown)["result"] is None
    assert call(http, "getSignatureStatuses", [unknown])["result"]["value"] == [None]
    history = call(http, "getSignaturesForAddress", SYSTEM_PROGRAM, {"before": unknown})
    assert history["result"] == []


async def test_socket_answers_mistakes_and_limits_wishes(network: LocalnetServer) -> None:
    async with asyncio.timeout(DEADLINE_S), connect(network.ws_url) as socket_:

        async def ask(method: str, *params: Any) -> Any:
            request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": list(params)}
            await socket_.send(json.dumps(request))
            while True:
                answer = json.loads(await socket_.recv())
                if "id" in answer:
                    return answer

        await socket_.send("{")
        assert json.loads(await socket_.recv())["error"]["code"] == -32700
        await socket_.send(json.dumps({"jsonrpc": "2.0", "method": "ping"}))
        assert (await ask("getSlot"))["error"]["code"] == -32601
        assert (await ask("logsSubscribe", {"mentions": []}))["error"]["code"] == -32602
        assert (await ask("slotUnsubscribe", 5))["error"]["code"] == -32602
        number = (await ask("accountSubscribe", SYSTEM_PROGRAM))["result"]
        assert (await ask("slotUnsubscribe", number))["error"]["code"] == -32602
        assert (await ask("accountUnsubscribe", number))["result"] is True
        assert (await ask("accountUnsubscribe", number))["error"]["code"] == -32602
        for _ in range(MAX_PER_SOCKET):
            assert "result" in await ask("accountSubscribe", SYSTEM_PROGRAM)
        refused = await ask("accountSubscribe", SYSTEM_PROGRAM)
        assert "too many subscriptions" in refused["error"]["message"]


async def test_oversized_message_closes_only_its_socket(network: LocalnetServer) -> None:
    async with asyncio.timeout(DEADLINE_S):
        async with connect(network.ws_url) as greedy, connect(network.ws_url) as modest:
            with contextlib.suppress(ConnectionClosed):  # it may end while this is on its way
                await greedy.send(" " * (MAX_SOCKET_MESSAGE_BYTES + 1))
            with pytest.raises(ConnectionClosed) as caught:
                await greedy.recv()
            assert caught.value.rcvd is not None
            assert caught.value.rcvd.code == 1009
            subscribe = {"jsonrpc": "2.0", "id": 1, "method": "slotSubscribe"}
            await modest.send(json.dumps(subscribe))
            assert "result" in json.loads(await modest.recv())


def _run(folder: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    given = {f"GIOVANG_LOCALNET_{name.upper()}": value for name, value in settings.items()}
    return subprocess.run(
        [sys.executable, "-m", "infra.localnet"],
        cwd=CHECKOUT,
        env={**os.environ, "GIOVANG_LOCALNET_STATE_DIR": str(folder), **given},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


def test_taken_port_and_folder_are_named(network: LocalnetServer, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ended = _run(tmp_path / "other", port=port)
    assert ended.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in ended.stderr
    ended = _run(network.folder / "state", port="1")
    assert ended.returncode == 1
    assert "in use by another local network" in ended.stderr


def test_wrong_settings_are_named(tmp_path: Path) -> None:
    ended = _run(tmp_path, slot_ms="1", funded='["nobody"]')
    assert ended.returncode == 1
    assert "slot_ms" in ended.stderr
    assert "funded" in ended.stderr
    ended = _run(tmp_path, confirmed_slots="9", finalized_slots="8")
    assert ended.returncode == 1
    assert "finalized_slots must not be smaller" in ended.stderr


async def test_stops_cleanly_under_open_connections(tmp_path: Path) -> None:
    server = make_localnet(tmp_path / "own")
    server.start()
    process = server.process
    assert process is not None
    async with asyncio.timeout(DEADLINE_S), connect(server.ws_url) as socket_:
        await socket_.send(json.dumps({"jsonrpc": "2.0", "id": 1, "method": "slotSubscribe"}))
        await socket_.recv()
        with httpx.Client(base_url=server.rpc_url) as http:
            assert call(http, "getHealth")["result"] == "ok"
            process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(process.wait, 25) == 0
        await socket_.wait_closed()
    server.process = None
    assert not (tmp_path / "own" / "state" / "journal.sqlite-wal").exists()


def test_supervisor_is_told_that_it_serves_and_lives(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind(str(tmp_path / "notify"))
        supervisor.settimeout(DEADLINE_S)
        server = make_localnet(tmp_path / "own")
        server.env["NOTIFY_SOCKET"] = str(tmp_path / "notify")
        server.start()
        try:
            assert supervisor.recv(4096).startswith(b"READY=1\n")
            assert supervisor.recv(4096).startswith(b"WATCHDOG=1\nSTATUS=slot ")
        finally:
            server.stop()

"""Ports and state folders: what is chosen, and the sentence when it cannot be had."""

import re
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from infra.stack.credentials import load_or_create
from infra.stack.ports import PortError, Ports, choose_ports
from infra.stack.settings import StackSettings, default_state_dir
from infra.stack.state import StateError, StateFolder
from tests.fixtures.services import free_port

ALL_FREE = {f"{name}_port": 0 for name in Ports.__dataclass_fields__}


@pytest.fixture
def taken() -> Iterator[int]:
    """A loopback port that this process listens on; the one before it is free."""
    with socket.create_server(("127.0.0.1", free_port(span=2) + 1)) as server:
        yield server.getsockname()[1]


def test_a_taken_port_is_named_with_its_holder_and_its_setting(taken: int) -> None:
    with pytest.raises(PortError) as refusal:
        choose_ports(StackSettings.model_validate({**ALL_FREE, "redis_port": taken}))
    sentence = str(refusal.value)
    assert re.match(rf"port {taken} for redis is taken by .+ \(pid \d+\): ", sentence)
    assert "GIOVANG_STACK_REDIS_PORT" in sentence
    assert "GIOVANG_STACK_PORT_OFFSET" in sentence


def test_the_chain_needs_two_ports_in_a_row(taken: int) -> None:
    with pytest.raises(PortError, match=f"port {taken} for localnet is taken"):
        choose_ports(StackSettings.model_validate({**ALL_FREE, "localnet_port": taken - 1}))


def test_the_offset_moves_every_port_that_is_not_chosen_freely() -> None:
    base = free_port()
    ports = choose_ports(
        StackSettings.model_validate({**ALL_FREE, "api_port": base - 7, "port_offset": 7})
    )
    assert ports.api == base


def test_free_ports_are_all_different() -> None:
    chosen = choose_ports(StackSettings.model_validate(ALL_FREE)).as_json()
    assert len(set(chosen.values())) == len(chosen)
    assert chosen["localnet_ws"] == chosen["localnet"] + 1


def test_two_services_cannot_share_a_port() -> None:
    with pytest.raises(PortError, match="set for both ledger-db and nats"):
        choose_ports(
            StackSettings.model_validate({**ALL_FREE, "ledger_db_port": 23456, "nats_port": 23456})
        )


def test_a_port_beyond_the_range_is_refused() -> None:
    with pytest.raises(PortError, match="port 65536 for api is out of range"):
        choose_ports(
            StackSettings.model_validate({**ALL_FREE, "api_port": 65535, "port_offset": 1})
        )
    with pytest.raises(ValidationError, match="api_port"):
        StackSettings.model_validate({"api_port": 70000})


def test_state_lives_in_the_checkout_unless_others_cannot_enter_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infra.stack.settings.os.geteuid", lambda: 1000)
    assert default_state_dir(tmp_path) == tmp_path / ".giovang"
    monkeypatch.setattr("infra.stack.settings.os.geteuid", lambda: 0)
    closed = tmp_path / "home" / "giovang"
    closed.mkdir(parents=True)
    closed.parent.chmod(0o700)
    elsewhere = default_state_dir(closed)
    assert elsewhere.parent == Path("/var/lib/giovang")
    assert re.fullmatch(r"giovang-[0-9a-f]{8}", elsewhere.name)


def test_secrets_are_made_once_and_closed_to_others(tmp_path: Path) -> None:
    path = tmp_path / "secrets.json"
    first = load_or_create(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_or_create(path) == first
    assert first["giovang_api"] != first["giovang_owner"]
    assert re.fullmatch(r"[a-z]+-[a-z]+-[a-z]+-\d{4}", first["demo_password"])
    path.write_text(path.read_text().replace('"admin_key"', '"an_older_key"'))
    third = load_or_create(path)
    assert third["giovang_api"] == first["giovang_api"]
    assert third["admin_key"] != first["admin_key"]


def test_damaged_secrets_are_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "secrets.json"
    path.write_text("{")
    with pytest.raises(StateError, match="reset"):
        load_or_create(path)
    assert path.read_text() == "{"


def test_a_half_written_status_is_never_read(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path)
    folder.prepare(None)
    assert folder.read_status() == {}
    folder.write_status({"services": []})
    assert folder.read_status() == {"services": []}
    folder.status_file.write_text('{"services": [')
    assert folder.read_status() == {}

"""The services of the product as data: order, isolation, loopback, and what readiness means."""

import re
from pathlib import Path

import pytest

from infra.stack import services as definitions
from infra.stack.environment import Stack
from infra.stack.ports import Ports
from infra.stack.settings import StackSettings
from infra.stack.state import StateFolder
from infra.stack.units import Kind, Service, dependents, start_order

PORTS = Ports(
    api=20000,
    dashboards=20001,
    ledger_db=20002,
    analytics_db=20003,
    nats=20004,
    nats_monitoring=20005,
    capture_metrics=20009,
    warehouse_metrics=20010,
    realtime_metrics=20011,
    risk_metrics=20012,
    redis=20006,
    localnet=20007,
)
SERVERS = {"ledger-db", "analytics-db", "nats", "redis"}


@pytest.fixture
def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stack:
    """A described stack, as a normal user would start it."""
    monkeypatch.setattr(definitions, "service_account", lambda: None)
    tree = tmp_path / "postgres"
    program = tree / "lib" / "postgresql" / "17" / "bin" / "postgres"
    program.parent.mkdir(parents=True)
    program.touch()
    monkeypatch.setattr("infra.stack.brokers.redis_program", lambda _: "redis-server")
    settings = StackSettings.model_validate({"state_dir": tmp_path})
    StateFolder(tmp_path).prepare(None)
    return definitions.make_stack(settings, PORTS)


@pytest.fixture
def services(stack: Stack) -> dict[str, Service]:
    return {service.name: service for service in definitions.services(stack, demo=True)}


def test_no_business_row_is_written_before_capture_is_provided(
    services: dict[str, Service],
) -> None:
    order = [service.name for service in start_order(services.values())]
    writers = {"api", "watcher", "demo", "demo-history"}
    assert writers <= set(dependents(services.values(), "provision-capture"))
    assert order.index("migrate-ledger") < order.index("provision-capture")


def test_databases_end_after_everything_that_writes_to_them(services: dict[str, Service]) -> None:
    rooms = {"api", "watcher", "capture", "demo"}
    assert rooms <= set(dependents(services.values(), "ledger-db"))
    assert {"warehouse", "risk", "modeller", "dashboards"} <= set(
        dependents(services.values(), "analytics-db")
    )


def test_without_the_demo_there_is_none_of_it(stack: Stack) -> None:
    names = {service.name for service in definitions.services(stack, demo=False)}
    assert not {name for name in names if name.startswith("demo")}


def test_rooms_report_by_notification_and_servers_are_asked(services: dict[str, Service]) -> None:
    for service in services.values():
        if service.kind is Kind.SERVICE:
            asked = service.probe is not None
            assert asked == (service.name in {*SERVERS, "dashboards"}), service.name


def test_every_address_is_on_loopback(services: dict[str, Service]) -> None:
    for service in services.values():
        assert service.address is None or "127.0.0.1" in service.address
        for host in re.findall(r"://(?:[^@/]*@)?([\w.]+):\d+", " ".join(service.env.values())):
            assert host == "127.0.0.1", service.name


def test_no_secret_is_on_a_command_line_or_in_an_address(
    stack: Stack, services: dict[str, Service]
) -> None:
    public = {"session_public_key", "collection_wallet", "demo_payer"}
    closed = [text for name, text in stack.secrets.items() if name not in public]
    for service in services.values():
        shown = " ".join([*service.command, service.address or ""])
        assert not [text for text in closed if text in shown], service.name
    assert not [text for text in closed if text in str(stack.endpoints())]


def test_a_room_gets_its_own_role_only(stack: Stack, services: dict[str, Service]) -> None:
    roles = {
        "api": "giovang_api",
        "watcher": "giovang_watcher",
        "capture": "giovang_capture",
        "warehouse": "giovang_streams",
        "modeller": "giovang_dbt",
        "dashboards": "giovang_dashboards",
        "migrate-ledger": "giovang_owner",
        "migrate-warehouse": "giovang_warehouse_owner",
    }
    for name, role in roles.items():
        text = " ".join(services[name].env.values())
        held = {known for known in roles.values() if stack.secrets[known] in text}
        assert held == {role}, name


def test_each_worker_serves_its_metrics_where_the_stack_says(
    stack: Stack, services: dict[str, Service]
) -> None:
    ports = {
        name: services[name].env[variable]
        for name, variable in {
            "capture": "GIOVANG_INGEST_METRICS_PORT",
            "warehouse": "GIOVANG_STREAMS_METRICS_PORT",
            "realtime": "GIOVANG_STREAMS_METRICS_PORT",
            "risk": "GIOVANG_STREAMS_METRICS_PORT",
        }.items()
    }
    assert ports == {
        "capture": "20009",
        "warehouse": "20010",
        "realtime": "20011",
        "risk": "20012",
    }
    for name, port in ports.items():
        assert stack.endpoints()[f"{name}_metrics"] == f"http://127.0.0.1:{port}/metrics"


def test_secrets_are_never_shown_by_accident(stack: Stack, services: dict[str, Service]) -> None:
    shown = repr(stack) + repr(services) + repr(stack.ledger) + repr(stack.ledger.roles)
    assert not [name for name in ("giovang_api", "admin_key") if stack.secrets[name] in shown]

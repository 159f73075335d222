"""Which port each service listens on, and who holds one that is taken.

All ports are loopback's. A setting of 0 chooses a free port at each start, which is how several
stacks, and tests, run side by side without being told about each other.
"""

import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import psutil

from infra.stack.settings import StackSettings

LOOPBACK = "127.0.0.1"
CHOICES = 200


class PortError(Exception):
    """A port is taken or out of range; the message names the setting that moves it."""


@dataclass(frozen=True, slots=True)
class Ports:
    """The ports of one running stack; `localnet_ws` is always the one after `localnet`."""

    api: int
    dashboards: int
    ledger_db: int
    analytics_db: int
    nats: int
    nats_monitoring: int
    capture_metrics: int
    warehouse_metrics: int
    realtime_metrics: int
    risk_metrics: int
    redis: int
    localnet: int

    @property
    def localnet_ws(self) -> int:
        """WebSocket port of the local chain, where the stock clients look for it."""
        return self.localnet + 1

    def as_json(self) -> dict[str, int]:
        """All ports by name."""
        return {**asdict(self), "localnet_ws": self.localnet_ws}


def choose_ports(settings: StackSettings) -> Ports:
    """Resolve the settings to ports that are free now; PortError for one that is not."""
    wanted = {name: getattr(settings, f"{name}_port") for name in Ports.__dataclass_fields__}
    chosen: dict[str, int] = {}
    for name, port in wanted.items():
        if port == 0:
            continue
        moved = port + settings.port_offset
        if not 1 <= moved <= 65535 - _span(name):
            message = f"port {moved} for {_service(name)} is out of range: {_advice(name)}"
            raise PortError(message)
        chosen[name] = moved
    _check_distinct(chosen)
    for name, port in chosen.items():
        for number in range(port, port + _span(name)):
            if not is_free(number):
                raise PortError(taken_message(name, number))
    for name, port in wanted.items():
        if port == 0:
            chosen[name] = _free_port(_span(name), chosen)
    return Ports(**chosen)


def is_free(port: int) -> bool:
    """Whether a server could listen on this loopback port now."""
    with socket.socket() as trial:
        # As servers do: an old connection in TIME_WAIT is no obstacle, a listener is.
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((LOOPBACK, port))
            trial.listen(1)
        except OSError:
            return False
        return True


def taken_message(name: str, port: int) -> str:
    """One sentence that names a taken port, who holds it if known, and how to move ours."""
    holder = _holder(port)
    by = f" by {holder}" if holder else ""
    return f"port {port} for {_service(name)} is taken{by}: {_advice(name)}"


def _advice(name: str) -> str:
    setting = f"GIOVANG_STACK_{name.upper()}_PORT"
    return f"set {setting} to another port, or GIOVANG_STACK_PORT_OFFSET to move all of them"


def _service(name: str) -> str:
    return name.replace("_", "-")


def _span(name: str) -> int:
    return 2 if name == "localnet" else 1


def _check_distinct(chosen: Mapping[str, int]) -> None:
    holders: dict[int, str] = {}
    for name, port in chosen.items():
        for number in range(port, port + _span(name)):
            other = holders.setdefault(number, name)
            if other != name:
                message = (
                    f"port {number} is set for both {_service(other)} and {_service(name)}: "
                    + _advice(name)
                )
                raise PortError(message)


def _free_port(span: int, chosen: Mapping[str, int]) -> int:
    used = {number for name, port in chosen.items() for number in range(port, port + _span(name))}
    for _ in range(CHOICES):
        with socket.socket() as trial:
            trial.bind((LOOPBACK, 0))
            port: int = trial.getsockname()[1]
        numbers = range(port, port + span)
        if port + span <= 65536 and not used & set(numbers) and all(map(is_free, numbers)):
            return port
    message = "no free port found on loopback"
    raise PortError(message)


def _holder(port: int) -> str | None:
    try:
        for entry in psutil.net_connections(kind="tcp"):
            here = entry.laddr
            if entry.status == psutil.CONN_LISTEN and entry.pid and here and here.port == port:
                return f"{psutil.Process(entry.pid).name()} (pid {entry.pid})"
    except psutil.Error:
        return None
    return None

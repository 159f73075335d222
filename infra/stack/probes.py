"""Questions that tell whether a service serves: by TCP, HTTP, JSON-RPC, Redis words or SQL.

A probe answers True or False within its time-out and never raises for a service that is down: a
service that is not there yet is the ordinary case while starting.
"""

import json
import socket
import time
import urllib.request
from collections.abc import Callable

import psycopg

Probe = Callable[[], bool]

PROBE_TIMEOUT_S = 2.0
LOOPBACK = "127.0.0.1"


class NotReadyError(Exception):
    """Something did not become ready within its deadline."""


def tcp(port: int, host: str = LOOPBACK) -> Probe:
    """Ask whether something accepts connections on a port."""

    def ask() -> bool:
        try:
            with socket.create_connection((host, port), timeout=PROBE_TIMEOUT_S):
                return True
        except OSError:
            return False

    return ask


def http(url: str) -> Probe:
    """Ask whether a GET of `url` (loopback) answers with a 2xx status."""

    def ask() -> bool:
        try:
            with urllib.request.urlopen(url, timeout=PROBE_TIMEOUT_S) as reply:  # noqa: S310 - own loopback URL
                return bool(200 <= reply.status < 300)
        except (OSError, ValueError):
            return False

    return ask


def solana(url: str) -> Probe:
    """Ask a Solana JSON-RPC server getHealth."""
    question = urllib.request.Request(  # noqa: S310 - own loopback URL
        url,
        data=b'{"jsonrpc":"2.0","id":1,"method":"getHealth"}',
        headers={"Content-Type": "application/json"},
    )

    def ask() -> bool:
        try:
            with urllib.request.urlopen(question, timeout=PROBE_TIMEOUT_S) as reply:  # noqa: S310
                answer: object = json.load(reply)
        except (OSError, ValueError):
            return False
        return isinstance(answer, dict) and answer.get("result") == "ok"

    return ask


def redis(port: int, password: str | None = None, host: str = LOOPBACK) -> Probe:
    """Ask a Redis server PING."""
    login = f"AUTH {password}\r\n" if password else ""
    expected = b"+OK\r\n+PONG" if password else b"+PONG"

    def ask() -> bool:
        try:
            with socket.create_connection((host, port), timeout=PROBE_TIMEOUT_S) as channel:
                channel.settimeout(PROBE_TIMEOUT_S)
                channel.sendall(f"{login}PING\r\n".encode())
                answer = b""
                while len(answer) < len(expected):
                    piece = channel.recv(64)
                    if not piece:
                        return False
                    answer += piece
        except OSError:
            return False
        return answer.startswith(expected)

    return ask


def sql(url: str) -> Probe:
    """Ask a PostgreSQL server SELECT 1."""

    def ask() -> bool:
        try:
            with psycopg.connect(url, connect_timeout=2, autocommit=True) as connection:
                return bool(connection.execute("SELECT 1").fetchone() == (1,))
        except psycopg.Error:
            return False

    return ask


def wait_until(
    question: Probe,
    *,
    what: str,
    timeout_s: float,
    given_up: Callable[[], str | None] | None = None,
) -> None:
    """Ask until the answer is yes; raise NotReadyError at the deadline.

    `given_up` may name a reason to stop asking at once, such as "the process exited".
    """
    deadline = time.monotonic() + timeout_s
    pause_s = 0.01
    while not question():
        reason = given_up() if given_up else None
        if reason is not None:
            message = f"{what}: {reason}"
            raise NotReadyError(message)
        if time.monotonic() > deadline:
            message = f"{what}: not ready after {timeout_s:g} s"
            raise NotReadyError(message)
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.5, 0.2)

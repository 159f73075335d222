"""The listening end of the systemd notify protocol (sd_notify(3)) for one service.

Understands READY=1, WATCHDOG=1 and STATUS=…; other words are ignored, as the protocol asks. Only
the account that runs the service may write to its socket.
"""

import os
import socket
from dataclasses import dataclass
from pathlib import Path

from infra.stack.accounts import Account

DATAGRAM_LIMIT_BYTES = 4096
LONGEST_PATH_BYTES = 107  # sun_path of Linux holds 108 with its closing zero


@dataclass(frozen=True, slots=True)
class Notice:
    """What one datagram said."""

    ready: bool
    alive: bool
    status: str | None


def parse(datagram: bytes) -> Notice:
    """Read one datagram; bytes that are not text are replaced, lines that are not known ignored."""
    words = dict(
        line.partition("=")[::2] for line in datagram.decode(errors="replace").splitlines()
    )
    ready, alive = words.get("READY") == "1", words.get("WATCHDOG") == "1"
    return Notice(ready=ready, alive=ready or alive, status=words.get("STATUS"))


class NotifySocket:
    """A service's own socket; `drain` returns what arrived since the last call."""

    def __init__(self, path: Path, account: Account | None) -> None:
        self.path = path
        path.unlink(missing_ok=True)
        self._socket = socket.socket(
            socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        )
        self._socket.bind(str(path))
        path.chmod(0o600)
        if account is not None:
            account.give(path)

    def fileno(self) -> int:
        """Descriptor to watch for readability."""
        return self._socket.fileno()

    def drain(self) -> list[Notice]:
        """Read every waiting datagram."""
        notices = []
        while True:
            try:
                notices.append(parse(self._socket.recv(DATAGRAM_LIMIT_BYTES)))
            except BlockingIOError:
                return notices

    def close(self) -> None:
        """Close and remove the socket."""
        self._socket.close()
        self.path.unlink(missing_ok=True)


def fits(folder: Path, names: list[str]) -> bool:
    """Say whether a socket for each of `names` has a short enough path in `folder`."""
    longest = max((len(os.fsencode(name)) for name in names), default=0)
    return len(os.fsencode(folder)) + 1 + longest + len(".notify") <= LONGEST_PATH_BYTES

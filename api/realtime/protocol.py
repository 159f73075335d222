"""Uvicorn's WebSocket protocol, with a way to write one frame to thousands of sockets.

A server's frame is the same bytes for every socket, since it is neither masked nor, here,
compressed. So it is made once and written by a plain call where the transport takes more, instead
of being made and awaited for each socket; what cannot be written so goes the ordinary way. A socket
that is gone leaves no cycle of objects behind: with thousands of sockets, finding those stops the
process for a second or more.
"""

from typing import Final

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.http11 import Request

EXTENSION: Final = "giovang.frames"


class LiveProtocol(WebSocketsSansIOProtocol):
    """One WebSocket connection; its application finds it in the scope's extensions."""

    def handle_connect(self, event: Request) -> None:
        """Begin the handshake, and let the application write frames."""
        super().handle_connect(event)
        if not self.handshake_complete:
            # The application's task was made and has not run yet.
            self.scope["extensions"][EXTENSION] = self  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget what refers to itself."""
        super().connection_lost(exc)
        if self.handshake_initiated and hasattr(self, "scope"):
            self.scope["extensions"].pop(EXTENSION, None)
        # A generator that holds the object it belongs to.
        self.conn.parser.close()

    @property
    def takes_more(self) -> bool:
        """Whether a frame may be written now without waiting."""
        return (
            self.handshake_complete
            and self.writable.is_set()
            and not self.close_sent
            and not self.disconnected
            and not self.transport.is_closing()
        )

    def write_frame(self, frame: bytes) -> None:
        """Write a frame; `takes_more` was true just before."""
        self.transport.write(frame)

"""Messages on the control stream: a 16-bit length, then that many bytes.  What they mean is the endpoint's affair."""

from __future__ import annotations

from typing import Final

from tunnel.errors import PeerError

MAX_MESSAGE: Final = 16 * 1024  # bytes; a list of candidates is some hundred

MAX_BACKLOG: Final = 64 * 1024  # bytes waiting for the peer's credit; candidates and pongs are some hundred a minute


def frame(message: bytes) -> bytes:
    """Raises ValueError beyond MAX_MESSAGE."""
    if len(message) > MAX_MESSAGE:
        raise ValueError(f"a control message has at most {MAX_MESSAGE} bytes")
    return len(message).to_bytes(2, "big") + message


class ControlReader:
    """Cuts the control stream into its messages."""

    __slots__ = ("_pending",)

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The messages that `data` completes.  Raises PeerError on one that is too long."""
        pending = self._pending
        pending += data
        messages: list[bytes] = []
        position = 0
        while len(pending) - position >= 2:
            length = int.from_bytes(pending[position : position + 2], "big")
            if length > MAX_MESSAGE:
                raise PeerError("a control message is too long")
            if len(pending) - position - 2 < length:
                break
            messages.append(bytes(pending[position + 2 : position + 2 + length]))
            position += 2 + length
        del pending[:position]
        return messages

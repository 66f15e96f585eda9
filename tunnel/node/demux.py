"""The owner of a datagram: by its first byte, then by the receiver index or the relay channel in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from tunnel.rendezvous.messages import PUSH, RESPONSE
from tunnel.transport.crypto.challenge import CHALLENGE
from tunnel.transport.crypto.handshake import INIT
from tunnel.units import CHANNEL_BYTE

if TYPE_CHECKING:
    from tunnel.node.flow import Flow
    from tunnel.node.peering import Peering
    from tunnel.units import Address, Buffer

# First bytes, as in the table of docs/protocol.md.
LAST_STUN: Final = 0x03
SERVER_KINDS: Final = (RESPONSE, PUSH)
FIRST_HANDSHAKE: Final = INIT
LAST_HANDSHAKE: Final = CHALLENGE
LAST_TRANSPORT: Final = CHANNEL_BYTE - 1


class Demux:
    """Our receiver indices, each with its owner, and the channels on which somebody may introduce itself."""

    def __init__(self, entropy: Callable[[int], bytes]) -> None:
        self._entropy = entropy
        self.peerings: dict[int, Peering] = {}  # whose connection opens transport datagrams of that index
        self.handshakes: dict[int, Peering | Flow] = {}  # who has asked, and takes the response, or has answered, and the finish
        #: Who answers an XX init through that relay channel, or from that address where there is none.
        self.channels: dict[bytes | Address, Flow] = {}
        self.pending: set[int] = set()  # indices of answers to IK inits, until a first datagram under their keys
        #: Who takes a transport datagram that stands alone behind a handshake: what the other side thinks of our key.
        self.verdicts: dict[int, Callable[[Buffer], None]] = {}

    def new_index(self) -> int:
        """A receiver index that nobody of us answers to."""
        while True:
            index = int.from_bytes(self._entropy(4), "big")
            if index and index not in self.handshakes and index not in self.peerings and index not in self.pending:
                return index

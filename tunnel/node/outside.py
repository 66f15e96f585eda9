"""Whether a port is reached from outside, by strangers: another server is asked, from that very port, to write to it unasked.

Sans IO; one of these for each socket.  Its greeting tells how the other server sees us; then STUN asks it to answer from its
second port (RFC 5780 §4.4, CHANGE-REQUEST), from which a firewall that lets only answers in expects nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tunnel.errors import MalformedPacket
from tunnel.nat import stun
from tunnel.node.punching import QUESTION_SIZE
from tunnel.rendezvous import messages
from tunnel.units import Address, Buffer, Instant, Seconds

GREETINGS: Final = (0.0, 0.3, 1.0, 2.0)  # seconds after the start at which the server is greeted until it answers
QUESTIONS: Final = (0.0, 0.5, 1.2)  # after its answer, until it has written from its second port
PATIENCE: Final = Seconds(3.5)  # for each of the two


class Outside:
    """Hand in what the socket receives; the fields below say what was found out, in the end when `is_done`."""

    def __init__(self, server: Address, *, now: Instant, entropy: Callable[[int], bytes]) -> None:
        self.server = server
        self.seen: Address | None = None  # our address as the server sees it; None: it does not answer
        self.calendar: tuple[int, Instant] | None = None  # the server's, and when it was heard
        self.has_second = False  # the server has another port to write from
        self.is_reached = False  # what it wrote from there has come
        self.is_done = False
        self._entropy = entropy
        self._transaction = int.from_bytes(entropy(8), "big")
        self._question = b""
        self._begun = now
        self._sent = 0

    def handle_datagram(self, now: Instant, source: Address, data: Buffer) -> bool:
        """Whether it was an answer to us; everything else is left alone."""
        try:
            if len(data) and data[0] == messages.RESPONSE and source == self.server:
                response = messages.decode_response(data)
                if response.transaction != self._transaction or not isinstance(response.message, messages.Retry):
                    return False
                self._on_retry(now, response.message)
                return True
            if self._question and len(data) and data[0] == 1:  # the first byte of a binding response
                message = stun.decode(data)
                if message.transaction == self._question and message.type == stun.BINDING_RESPONSE:
                    # An older server answers from the port that was asked: that is no stranger.
                    self.is_reached = source != self.server
                    self.is_done = self.is_done or self.is_reached
                    return True
        except MalformedPacket:
            pass
        return False

    def handle_timeout(self, now: Instant) -> None:
        if now - self._begun >= PATIENCE:
            self.is_done = True

    def poll_transmit(self, now: Instant) -> bytes | None:
        """The next datagram for the server, if one is due."""
        times = QUESTIONS if self._question else GREETINGS
        if self.is_done or self._sent >= len(times) or now - self._begun < times[self._sent]:
            return None
        self._sent += 1
        if self._question:
            return stun.encode_binding_request(self._question, change_port=True, padding_to=QUESTION_SIZE)
        return messages.encode_request(self._transaction, bytes(messages.SESSION_SIZE), messages.Hello())

    def poll_timeout(self) -> Instant | None:
        if self.is_done:
            return None
        times = QUESTIONS if self._question else GREETINGS
        due = times[self._sent] if self._sent < len(times) else PATIENCE
        return Instant(self._begun + min(due, PATIENCE))

    def _on_retry(self, now: Instant, message: messages.Retry) -> None:
        if self.seen is not None:
            return
        self.seen = messages.unpack_address(message.you)
        if message.unix_time:
            self.calendar = (message.unix_time, now)
        self.has_second = bool(message.second_port)
        if not self.has_second:
            self.is_done = True
            return
        self._question = self._entropy(stun.TRANSACTION_LENGTH)
        self._begun, self._sent = now, 0

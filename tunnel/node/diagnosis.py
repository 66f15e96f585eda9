"""Behaviour discovery for people: asks a server what it sees of four sockets of ours, and tells what that shows.

Sans IO; one of these for each address family.  Mapping, ports and latency come from the server's own greeting, which is not
rationed; filtering and MTU need STUN (RFC 5780), of which an older server answers some ten questions in a row: seven are asked.
Source: RFC 5780 §4.3 to §4.5; for the race see docs/reach.md.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import pairwise
from typing import Final, NamedTuple

from tunnel.core.scope import may_be_second
from tunnel.errors import MalformedPacket
from tunnel.nat import stun
from tunnel.nat.behaviour import Filtering, Mapping, observe, observe_filtering
from tunnel.nat.report import Findings, Ports
from tunnel.node.punching import QUESTION_SIZE
from tunnel.rendezvous import messages
from tunnel.units import Address, Buffer, Instant, Seconds, SocketId

SOCKETS: Final = 4
GREETINGS: Final = (0.0, 0.2, 0.6, 1.4, 2.6)  # seconds after the start at which the server is greeted until it answers
PATIENCE: Final = Seconds(4.0)  # for the first answer
ATTEMPTS: Final = (0.0, 0.3, 0.8)  # of the questions after it
HAIRPIN_ATTEMPTS: Final = (0.0, 0.1, 0.3, 0.6)
RATIONED: Final = (0.0, 0.6)  # attempts of a question that counts against the STUN limit of an older server
ROUND: Final = Seconds(1.6)  # for all questions of a step
PORT_SPACING: Final = Seconds(0.01)  # between the sockets whose ports are compared
MAX_STEP: Final = 8  # between ports allocated one after the other
PADDED: Final = (1_500, 1_400, 1_280)  # bytes of IP packet that are tried
_HEADERS: Final = {False: 28, True: 48}  # bytes of IP and UDP
_SESSION: Final = bytes(messages.SESSION_SIZE)

A, B, C, D = (SocketId(number) for number in range(SOCKETS))


class _Question(NamedTuple):
    at: Instant
    socket_id: SocketId
    remote: Address
    datagram: bytes
    name: str


class Diagnosis:
    """Hand in what the four sockets receive; `findings` grows until `is_done`."""

    def __init__(
        self,
        *,
        server: Address,
        own: str,
        ports: tuple[int, ...],
        now: Instant,
        entropy: Callable[[int], bytes],
    ) -> None:
        """`own` is our address towards the server, `ports` the local ports of the sockets 0 to SOCKETS-1."""
        self.server = server
        self._own = own
        self._ports = ports
        self._entropy = entropy
        self._begun = now
        self._asked: list[_Question] = []  # not yet sent, by time
        self._out: deque[tuple[SocketId, Address, bytes]] = deque()
        self._names: dict[tuple[SocketId, bytes], tuple[str, Instant]] = {}  # by transaction: what was asked, and when last
        self._answers: dict[str, Address | None] = {}
        self._expected: set[str] = set()  # what this step asks
        self._ends = Instant(now + PATIENCE)
        self._step = 0
        self._round_trip: Seconds | None = None
        self._calendar: tuple[int, Instant] | None = None  # the server's, and when it was heard
        self._second: Address | None = None  # another port of the server
        self._elsewhere: Address | None = None  # another address of it
        self._mtu: int | None = None
        self._hairpin_asked = False
        self.is_done = False
        self._greet(now, A, server, "A", GREETINGS)

    # --- inputs and outputs

    def handle_datagram(self, now: Instant, socket_id: SocketId, data: Buffer) -> None:
        """Whatever one of our sockets received; rubbish is ignored."""
        try:
            if len(data) and data[0] == messages.RESPONSE:
                response = messages.decode_response(data)
                found = self._take(socket_id, response.transaction.to_bytes(8, "big"))
                if found is not None and isinstance(response.message, messages.Retry):
                    self._on_retry(now, *found, response.message)
            else:
                message = stun.decode(data)
                found = self._take(socket_id, message.transaction)
                if found is not None:
                    self._on_stun(now, found[0], message)
        except MalformedPacket:
            return
        self.handle_timeout(now)

    def handle_timeout(self, now: Instant) -> None:
        if self.is_done:
            return
        while self._asked and self._asked[0].at <= now:
            question = self._asked.pop(0)
            if question.name in self._answers:
                continue
            key = (question.socket_id, self._transaction(question.datagram))
            self._names[key] = (question.name, now)
            self._out.append((question.socket_id, question.remote, question.datagram))
        if now >= self._ends or self._is_step_answered():
            self._next_step(now)

    def poll_timeout(self) -> Instant | None:
        if self.is_done:
            return None
        return min(self._ends, self._asked[0].at) if self._asked else self._ends

    def poll_transmit(self) -> tuple[SocketId, Address, bytes] | None:
        return self._out.popleft() if self._out else None

    @property
    def findings(self) -> Findings:
        """The findings so far."""
        answers = self._answers
        seen = answers.get("A")
        from_port, from_address = self._filtering_answers()
        mapping = self._mapping()
        ports, step = self._port_behaviour()
        return Findings(
            is_ipv6=self.server.is_ipv6,
            own=self._own,
            server=self.server,
            round_trip=self._round_trip,
            seen=seen,
            mapping=mapping,
            filtering=observe_filtering(from_address, from_port) if from_address is not None else _half_seen(from_port),
            ports=ports,
            port_step=step,
            hairpins=("hairpin" in answers) if self._hairpin_asked else None,
            races=self._races(),
            mtu=self._mtu,
            second_port=None if self._second is None else self._second.port,
            calendar=self._calendar,
        )

    # --- the steps

    def _next_step(self, now: Instant) -> None:
        self._step += 1
        self._asked.clear()
        self._expected.clear()
        if self._step == 1 and "A" in self._answers:
            self._ask_much(now)
        elif self._step == 2 and "A" in self._answers:
            self._ask_rest(now)
        else:
            self.is_done = True

    def _ask_much(self, now: Instant) -> None:
        """Mapping, ports, filtering, size."""
        self._ends = Instant(now + ROUND)
        for number, (socket_id, name) in enumerate(((B, "B"), (C, "C"), (D, "D"))):
            self._greet(Instant(now + number * PORT_SPACING), socket_id, self.server, name, ATTEMPTS)
        behind = Instant(now + SOCKETS * PORT_SPACING)  # the ports of the sockets are compared: nothing may come between
        second = self._second
        if second is not None:
            self._greet(behind, A, Address(self.server.host, second.port), "other port", ATTEMPTS)
            self._stun(behind, D, "from port", RATIONED, change_port=True)
        for size in PADDED:
            self._stun(behind, B, f"size {size}", (0.0,), padding_to=size - _HEADERS[self.server.is_ipv6])

    def _ask_rest(self, now: Instant) -> None:
        """Ask what depends on earlier answers: the race, and the way back inside."""
        self._ends = Instant(now + ROUND)
        second, answers = self._elsewhere or self._second, self._answers
        if second is not None and self._mapping() is Mapping.ENDPOINT_INDEPENDENT:
            self._greet(now, D, second, "poked", ATTEMPTS)
        one, other = answers.get("B"), answers.get("C")
        if one is not None and other is not None and one.host != self._own:
            self._hairpin_asked = True
            for socket_id, target in ((B, other), (C, one)):
                transaction = self._entropy(stun.TRANSACTION_LENGTH)
                for receiver in (B, C):
                    self._names[receiver, transaction] = ("hairpin", now)
                datagram = stun.encode_binding_request(transaction)
                self._ask(now, socket_id, target, "hairpin", HAIRPIN_ATTEMPTS, datagram)

    def _is_step_answered(self) -> bool:
        """Everything that was asked has come.  What must not come (unasked for, by firewalls) is waited for to the end."""
        return self._expected <= self._answers.keys()

    # --- asking

    def _greet(self, now: Instant, socket_id: SocketId, remote: Address, name: str, attempts: tuple[float, ...]) -> None:
        for after in attempts:  # a transaction each: which one was answered tells the round trip
            transaction = int.from_bytes(self._entropy(8), "big")
            datagram = messages.encode_request(transaction, _SESSION, messages.Hello())
            self._ask(Instant(now + after), socket_id, remote, name, (0.0,), datagram)

    def _stun(
        self,
        now: Instant,
        socket_id: SocketId,
        name: str,
        attempts: tuple[float, ...],
        *,
        change_address: bool = False,
        change_port: bool = False,
        padding_to: int = QUESTION_SIZE,
    ) -> None:
        """A question as long as its answer, which a server never has to ration."""
        datagram = stun.encode_binding_request(
            self._entropy(stun.TRANSACTION_LENGTH), change_address=change_address, change_port=change_port, padding_to=padding_to
        )
        self._ask(now, socket_id, self.server, name, attempts, datagram)

    def _ask(
        self, now: Instant, socket_id: SocketId, remote: Address, name: str, attempts: tuple[float, ...], datagram: bytes
    ) -> None:
        self._expected.add(name)
        self._asked += (_Question(Instant(now + after), socket_id, remote, datagram, name) for after in attempts)
        self._asked.sort(key=lambda question: question.at)

    @staticmethod
    def _transaction(datagram: bytes) -> bytes:
        return datagram[2:10] if datagram[0] == messages.REQUEST else datagram[8:20]

    # --- answers

    def _take(self, socket_id: SocketId, transaction: bytes) -> tuple[str, Instant] | None:
        return self._names.get((socket_id, transaction))

    def _on_retry(self, now: Instant, name: str, asked_at: Instant, message: messages.Retry) -> None:
        if name in self._answers:
            return
        self._answers[name] = messages.unpack_address(message.you)
        if name == "A":
            self._round_trip = Seconds(now - asked_at)
            if message.unix_time:
                self._calendar = (message.unix_time, now)
            if message.second_port:
                host = messages.unpack_host(message.second_host) if message.second_host else self.server.host
                self._second = Address(host, message.second_port)

    def _on_stun(self, now: Instant, name: str, message: stun.StunMessage) -> None:
        if name == "hairpin":
            self._answers[name] = None
            return
        if message.type != stun.BINDING_RESPONSE:
            return
        self._answers[name] = message.mapped_address
        other = message.other_address
        if self._elsewhere is None and self._step == 1 and other is not None and may_be_second(self.server.host, other.host):
            self._elsewhere = other if other.host != self.server.host else None
            if self._elsewhere is not None:
                self._greet(now, A, other, "other address", ATTEMPTS)
                self._stun(now, D, "from address", RATIONED, change_address=True, change_port=True)
                self._ends = Instant(now + ROUND)
        if name.startswith("size "):
            self._mtu = max(self._mtu or 0, int(name[5:]))

    # --- what it means

    def _mapping(self) -> Mapping:
        answers = self._answers
        return observe(answers.get("A"), answers.get("other port"), answers.get("other address"))

    def _filtering_answers(self) -> tuple[bool | None, bool | None]:
        """(from another port, from another address); None: not asked, or not asked to the end."""
        if self._step < 2 or self._second is None:
            return None, None
        from_address = ("from address" in self._answers) if self._elsewhere is not None else None
        return "from port" in self._answers, from_address

    def _port_behaviour(self) -> tuple[Ports, int | None]:
        seen = [self._answers.get(name) for name in "ABCD"]
        outer = [address.port for address in seen if address is not None]
        if len(outer) < SOCKETS:
            return Ports.UNKNOWN, None
        if tuple(outer) == self._ports:
            return Ports.KEPT, 0
        steps = [after - before for before, after in pairwise(outer)]
        if all(0 < abs(step) <= MAX_STEP for step in steps) and len({step > 0 for step in steps}) == 1:
            return Ports.SEQUENTIAL, min(steps, key=abs)
        return Ports.RANDOM, None

    def _races(self) -> bool | None:
        """D was written to by a socket of the server that it had not written to.  Does that one see another port of it?"""
        poked, before = self._answers.get("poked"), self._answers.get("D")
        if poked is None or before is None:
            return None
        return poked != before


def _half_seen(from_port: bool | None) -> Filtering:
    """With one address of the server: a stranger's port is let in or not."""
    if from_port is None:
        return Filtering.UNKNOWN
    return Filtering.ENDPOINT_INDEPENDENT if from_port else Filtering.ADDRESS_AND_PORT_DEPENDENT

"""NAT traversal: the agent under a peer's offers, the port mapper under a router, `doctor` under a server; and who reads it."""

from __future__ import annotations

import contextlib
import random

from tests.fuzz.engine import Machine
from tests.fuzz.machines.decoders import ANSWER, DESCRIPTION, GATEWAY, OFFER, RESPONSES, SSDP
from tunnel.cli.doctor import table
from tunnel.control.messages import encode_line
from tunnel.errors import MalformedPacket
from tunnel.nat import stun, upnp
from tunnel.nat.agent import Agent
from tunnel.nat.budget import PROBE_BURST
from tunnel.nat.candidate import CandidateKind, Offer, decode_offer, encode_offer, is_allowed, make_candidate
from tunnel.nat.mapping_states import LookUpPort, MapPort, SearchRouter, UnmapPort
from tunnel.nat.portmap import PortMapper
from tunnel.nat.report import Findings, PortMapFindings, advise
from tunnel.nat.technique import PoolSocket
from tunnel.nat.techniques import Techniques
from tunnel.node.diagnosis import SOCKETS, Diagnosis
from tunnel.rendezvous import messages as m
from tunnel.shell.doctor import Examination
from tunnel.units import Address, Instant, Seconds, SocketId

OWN, PORT = "192.168.1.10", 40_000
PLACES = tuple(
    Address(host, 4_000 + number) for number, host in enumerate(("44.1.2.3", "44.1.2.4", "192.168.1.9", "2a00::5", "44.9.9.9"))
)


class _Agent:
    """Inputs: what happened, and an offer."""

    def __init__(self, seed: int) -> None:
        self.now, self.rng = 100.0, random.Random(seed)
        self.technique = Techniques(rng=self.rng)
        plain = {SocketId(0): False, SocketId(1): True}
        self.agent = Agent(
            controlling=bool(seed & 1), now=Instant(self.now), rng=self.rng, sockets=plain, technique=self.technique
        )
        self.checks = 0

    def feed(self, data: bytes) -> None:
        if len(data) < 2:
            return
        at, agent, place = Instant(self.now), self.agent, PLACES[data[1] % len(PLACES)]
        socket_id = SocketId(int(place.is_ipv6))
        match data[0] % 8:
            case 0 | 1 | 2:
                with contextlib.suppress(MalformedPacket):
                    agent.handle_offer(at, decode_offer(memoryview(data[2:])))
            case 3:
                agent.peer_reflexive(at, socket_id, place)
            case 4:
                agent.path_lost(at)
            case 5:
                agent.check_succeeded(at, socket_id, place, Seconds(0.1))
            case 6:
                agent.set_local(at, [make_candidate(CandidateKind.SERVER_REFLEXIVE, place, socket_id)])
            case _:
                agent.restart(at)
        self._run(data[1] / 40)

    def _run(self, seconds: float) -> None:
        end, agent, technique = self.now + seconds, self.agent, self.technique
        for _ in range(5_000):
            while (check := agent.poll_check(Instant(self.now))) is not None:
                assert is_allowed(check.remote)
                self.checks += 1
            wanted = technique.wanted_sockets
            technique.sockets_opened(Instant(self.now), tuple(PoolSocket(SocketId(9 + n), 40_000 + n) for n in range(wanted)))
            while (measure := technique.poll_measure(Instant(self.now))) is not None:
                technique.measured(Instant(self.now), measure, PLACES[0])
                agent.refine_mapping(Instant(self.now))
            while (offer := agent.poll_offer()) is not None:
                assert isinstance(offer, Offer | bytes)
            deadline = agent.poll_timeout()
            if deadline is None or deadline > end:
                self.now = end
                return
            self.now = max(self.now + 1e-6, deadline)
        raise AssertionError("busy for ever")

    def end(self) -> None:
        assert self.checks <= 600 + PROBE_BURST + 1_200 + 45 * (self.now - 100.0)
        assert agent_words(self.agent)


def agent_words(agent: Agent) -> str:
    return agent.why_relayed + agent.stats.state.value


def agent_corpus() -> list[bytes]:
    offer = encode_offer(OFFER)
    return [bytes((n % 3, 4 * n)) + offer for n in range(12)] + [
        bytes((what, n)) for what in range(3, 8) for n in (0, 1, 3, 20, 200)
    ]


class _Router:
    """Inputs: seconds, what it is, and a datagram or an answer over HTTP."""

    def __init__(self, seed: int) -> None:
        self.now = 50.0
        self.mapper = PortMapper(
            own=OWN, port=PORT, now=Instant(self.now), rng=random.Random(seed), entropy=lambda size: b"n" * size
        )

    def feed(self, data: bytes) -> None:
        if len(data) < 2:
            return
        self.now += data[1] ** 2 / 40
        mapper, at, rest = self.mapper, Instant(self.now), data[2:]
        mapper.handle_timeout(at)
        for _ in range(9):
            if mapper.poll_transmit(at) is None:
                break
        else:
            raise AssertionError("the mapper never runs dry")
        task = mapper.poll_upnp(at)
        if data[0] % 4 < 2:
            mapper.handle_datagram(at, rest)
        elif isinstance(task, SearchRouter):
            try:
                place = upnp.decode_search_answer(rest)
                upnp.decode_description(rest, place)
                mapper.upnp_found(at)
            except MalformedPacket as error:
                if data[0] & 4:
                    mapper.upnp_found(at)
                else:
                    mapper.upnp_failed(at, 0, str(error))
        elif isinstance(task, MapPort):
            self._answer(at, task, rest)
        elif isinstance(task, LookUpPort):
            try:
                entry = upnp.decode_entry(upnp.HttpAnswer(200, rest))
            except MalformedPacket:
                entry = None
            mapper.upnp_looked_up(at, Address("44.128.0.1", task.external_port), entry)
        elif isinstance(task, UnmapPort):
            mapper.upnp_removed(at, task.external_port)
        mapping = mapper.mapping
        assert mapping is None or (mapping.external.port and mapping.expires_at > self.now)
        deadline = mapper.poll_timeout()
        assert deadline is None or deadline < self.now + 200_000

    def _answer(self, at: Instant, task: MapPort, rest: bytes) -> None:
        reader = upnp.Exchange(GATEWAY, upnp.Place(80, "/"))
        try:
            reader.feed(rest)
            answer = reader.answer()
            code = upnp.decode_error(answer)
            if code:
                self.mapper.upnp_failed(at, code, f"refused with error {code}")
            else:
                self.mapper.upnp_mapped(at, Address(upnp.decode_external(answer), task.external_port), task.lifetime)
        except MalformedPacket as error:
            self.mapper.upnp_failed(at, 0, str(error))

    def end(self) -> None:
        assert len(self.mapper.drops) <= 4
        assert self.mapper.trouble.isprintable()


def router_corpus() -> list[bytes]:
    word, host = (7).to_bytes(4, "big"), bytes((44, 128, 0, 1))
    mapped = PORT.to_bytes(2, "big") * 2
    nat_pmp = [b"\0\x80\0\0" + word + host, b"\0\x81\0\0" + word + mapped + b"\0\0\x0e\x10", b"\0\x81\0\4" + word + mapped[:2]]
    tail = b"n" * 12 + b"\x11\0\0\0" + mapped + bytes(10) + b"\xff\xff" + host
    answers = [
        b"\2\x80\0\0" + bytes(4) + word + bytes(12),
        b"\2\x81\0\0\0\0\x0e\x10" + word + bytes(12) + tail,
        b"\2\x81\0\2" + bytes(20),
    ]
    http = [
        b"\2\0" + SSDP,
        b"\6\0" + SSDP + DESCRIPTION,
        b"\2\0" + ANSWER,
        b"\2\3HTTP/1.1 500 x\r\n\r\n<errorCode>718</errorCode>",
    ]
    return [bytes((0, n)) + each for n in (0, 2, 40, 250) for each in (*nat_pmp, *answers)] + http * 4


class _Doctor:
    """Inputs: seconds, which question is answered, and the answer; then all that is said to a person."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rounds = 0
        self._begin()

    def _begin(self) -> None:
        self.now = 10.0
        self.server = Address("3fff::1", 24_531) if self.rounds & 1 else Address("192.88.99.1", 24_531)
        own = "3fff::9" if self.rounds & 1 else OWN
        entropy = random.Random(self.seed + self.rounds).randbytes
        ports = tuple(range(4_000, 4_000 + SOCKETS))
        self.diagnosis = Diagnosis(server=self.server, own=own, ports=ports, now=Instant(self.now), entropy=entropy)
        self.asked: list[tuple[SocketId, bytes]] = []

    def feed(self, data: bytes) -> None:
        if len(data) < 2:
            return
        self.now += data[1] ** 2 / 60_000
        at, diagnosis, rest = Instant(self.now), self.diagnosis, data[2:]
        diagnosis.handle_timeout(at)
        for _ in range(500):
            ready = diagnosis.poll_transmit()
            if ready is None:
                break
            self.asked = [*self.asked[-40:], (ready[0], ready[2])]
        if self.asked:
            socket_id, question = self.asked[data[1] % len(self.asked)]
            if question[0] == m.REQUEST and data[0] % 3:
                rest = m._RESPONSE_HEAD.pack(m.RESPONSE, m.VERSION, int.from_bytes(question[2:10], "big")) + rest
            elif data[0] % 3:
                rest = rest[:4].ljust(4, b"\0") + stun.MAGIC_COOKIE.to_bytes(4, "big") + question[8:20] + rest[20:]
            diagnosis.handle_datagram(at, socket_id, rest)
        self._say()
        if diagnosis.is_done:
            self.rounds += 1
            self._begin()

    def _say(self) -> None:
        found = self.diagnosis.findings
        other = Findings(is_ipv6=not found.is_ipv6, own=None, server=None)
        four, six = (other, found) if found.is_ipv6 else (found, other)
        whole = Examination(server="rv.example.net", ipv4=four, ipv6=six, portmap=PortMapFindings(trouble="none"))
        assert all(line.isprintable() for line in (*table(whole), *whole.sentences()))
        encode_line(whole.to_dict())
        for kind in ("relay", "direct"):
            advise(kind, "", found.mapping.name.lower().replace("_", "-"), "unknown")

    def end(self) -> None:
        pass


def doctor_corpus() -> list[bytes]:
    retry = [bytes((1, n)) + m._encoder.encode(each) for n in range(0, 40, 3) for each in RESPONSES[:2]]
    question = stun.decode(stun.encode_binding_request(bytes(12)))
    answer = stun.encode_binding_response(question, Address("44.1.2.3", 4_001), other_address=Address("192.88.99.2", 3_478))
    told = [bytes((1, n)) + answer for n in range(0, 40, 3)]
    return retry + told + [b"\0\1" + answer, b"\0\x30", b"\0\x90"]


MACHINES = [
    Machine("agent", agent_corpus, _Agent, length=200),
    Machine("router", router_corpus, _Router, length=500),
    Machine("doctor", doctor_corpus, _Doctor, length=300),
]

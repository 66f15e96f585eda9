"""Any bytes to the decoders of the NAT room: a value or MalformedPacket, nothing else; what is written is read back."""

from __future__ import annotations

import contextlib
import ipaddress
import random

import aioice.stun
from hypothesis import given, settings
from hypothesis import strategies as st

from tunnel.errors import MalformedPacket
from tunnel.nat import stun
from tunnel.nat.agent import Agent
from tunnel.nat.behaviour import Mapping
from tunnel.nat.budget import PROBE_BURST
from tunnel.nat.candidate import (
    MAX_CANDIDATES,
    Candidate,
    CandidateKind,
    Offer,
    canonical,
    decode_candidates,
    decode_offer,
    encode_candidates,
    encode_offer,
    is_allowed,
)
from tunnel.nat.hints import MAX_HINTS, MAX_PREDICTED, MAX_STEP, OpenPool, PortRange, PredictedPorts
from tunnel.nat.technique import PoolSocket
from tunnel.nat.techniques import Techniques
from tunnel.units import Address, Instant, SocketId

hosts = st.ip_addresses().map(lambda address: canonical(str(address)))
addresses = st.builds(Address, hosts, st.integers(0, 0xFFFF))
transactions = st.binary(min_size=12, max_size=12)
candidates = st.builds(
    Candidate, st.sampled_from(CandidateKind), addresses, st.just(SocketId(0)), st.integers(min_value=0, max_value=2**32 - 1)
)
predictions = st.builds(
    PredictedPorts,
    st.ip_addresses(v=4).map(str),
    st.integers(0, 0xFFFF),
    st.integers(-MAX_STEP, MAX_STEP).filter(bool),
    st.integers(1, MAX_PREDICTED),
)
ranges = st.builds(PortRange, st.integers(0, 0x7FFF), st.integers(1, 0x8000), st.integers(0, 0xFFFF))
hints = st.lists(predictions | ranges | st.builds(OpenPool, st.integers(0, 0xFFFF)), max_size=MAX_HINTS).map(tuple)
offers = st.builds(
    Offer,
    st.integers(0, 2**32 - 1),
    st.lists(candidates, max_size=MAX_CANDIDATES).map(tuple),
    st.sampled_from(Mapping),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    hints,
)


@st.composite
def stun_shaped(draw: st.DrawFn) -> bytes:
    """Right header, random attributes: gets past the first look."""
    body = b""
    for _ in range(draw(st.integers(0, 5))):
        kind = draw(st.sampled_from([1, 3, 9, 0x20, 0x26, 0x8028, 0x802B, 0x802C]) | st.integers(0, 0xFFFF))
        value = draw(st.binary(max_size=24))
        length = draw(st.just(len(value)) | st.integers(0, 40))
        body += kind.to_bytes(2, "big") + length.to_bytes(2, "big") + value + bytes(-len(value) % 4)
    cookie = draw(st.sampled_from([stun.MAGIC_COOKIE, 0]))
    kind = draw(st.sampled_from([1, 0x101, 0x111, 0x11]))
    return kind.to_bytes(2, "big") + len(body).to_bytes(2, "big") + cookie.to_bytes(4, "big") + draw(transactions) + body


@given(st.binary(max_size=80) | stun_shaped())
@settings(max_examples=400)
def test_stun_decode_gives_a_message_or_malformed_packet(data: bytes) -> None:
    try:
        message = stun.decode(memoryview(data))
    except MalformedPacket:
        return
    for name in ("mapped_address", "other_address", "response_origin", "change_request", "unknown_required"):
        with contextlib.suppress(MalformedPacket):
            getattr(message, name)
    answer = stun.encode_binding_response(message, Address("192.0.2.1", 7))
    assert stun.decode(answer).mapped_address == Address("192.0.2.1", 7)


@given(stun_shaped())
@settings(max_examples=300)
def test_what_the_oracle_reads_we_read_alike(data: bytes) -> None:
    try:
        theirs = aioice.stun.parse_message(data)
    except Exception:  # the oracle raises several kinds
        return
    try:
        ours = stun.decode(data)
    except MalformedPacket:
        return  # we are stricter: lengths beyond the end, a FINGERPRINT that is not last
    assert ours.transaction == theirs.transaction_id
    kinds = data.count(b"\x00\x20")
    if "XOR-MAPPED-ADDRESS" in theirs.attributes and kinds == 1 and not ours.is_rfc3489:
        host, port = theirs.attributes["XOR-MAPPED-ADDRESS"]
        assert ours.mapped_address == Address(canonical(host), port)


@given(transactions, addresses, st.booleans())
def test_stun_addresses_come_back(transaction: bytes, address: Address, fingerprint: bool) -> None:
    request = stun.decode(stun.encode_binding_request(transaction, fingerprint=fingerprint))
    encoded = stun.encode_binding_response(request, address, other_address=address, fingerprint=fingerprint)
    answer = stun.decode(encoded)
    assert answer.mapped_address == answer.other_address == address
    assert aioice.stun.parse_message(encoded).attributes["XOR-MAPPED-ADDRESS"] == tuple(address)


@given(st.binary(max_size=300))
@settings(max_examples=400)
def test_candidate_decoders_give_a_value_or_malformed_packet(data: bytes) -> None:
    for decode in (decode_candidates, decode_offer):
        with contextlib.suppress(MalformedPacket):
            decode(memoryview(data))


@given(offers)
def test_offers_come_back(offer: Offer) -> None:
    assert decode_offer(encode_offer(offer)) == offer
    assert decode_candidates(encode_candidates(offer.candidates)) == offer.candidates


@given(st.text(max_size=50) | st.ip_addresses().map(str), st.integers(-10, 70_000), st.booleans())
@settings(max_examples=300)
def test_is_allowed_never_raises_and_never_lets_loopback_or_multicast_through(host: str, port: int, same_machine: bool) -> None:
    if is_allowed(Address(host, port), same_machine):
        address = ipaddress.ip_address(canonical(host))
        assert not address.is_multicast
        assert not address.is_unspecified
        assert same_machine or not address.is_loopback
        assert 0 < port < 65_536


@given(st.lists(st.tuples(st.sampled_from("oorsptd"), offers, addresses, st.floats(0, 20)), max_size=40))
@settings(max_examples=60, deadline=None)
def test_no_sequence_of_offers_and_events_breaks_the_agent(steps: list[tuple[str, Offer, Address, float]]) -> None:
    now = 100.0
    rng = random.Random(0)
    technique = Techniques(rng=rng)
    plain = {SocketId(0): False, SocketId(1): True}
    agent = Agent(controlling=True, now=Instant(now), rng=rng, sockets=plain, technique=technique)
    spent, wanted = 0, 0
    for what, offer, address, pause in steps:
        at, socket_id = Instant(now), SocketId(int(address.is_ipv6))
        match what:
            case "o":
                agent.handle_offer(at, offer)
            case "r":
                agent.peer_reflexive(at, socket_id, address)
            case "s":
                agent.set_local(at, offer.candidates)
            case "p":
                agent.path_lost(at)
            case "d":
                agent.check_succeeded(at, socket_id, address, 0.1)  # type: ignore[arg-type]
            case _:
                agent.restart(at)
        end = now + pause
        for _ in range(20_000):  # two NATs with blocks of ports may try 8,000 in such a pause
            while (check := agent.poll_check(Instant(now))) is not None:
                assert is_allowed(check.remote)
                spent += 1
            if wanted != technique.wanted_sockets:
                wanted = technique.wanted_sockets
                technique.sockets_opened(Instant(now), tuple(PoolSocket(SocketId(9 + n), 40_000 + n) for n in range(wanted)))
            while (measure := technique.poll_measure(Instant(now))) is not None:
                technique.measured(Instant(now), measure, address)
                agent.refine_mapping(Instant(now))
            while agent.poll_offer() is not None:
                pass
            deadline = agent.poll_timeout()
            if deadline is None or deadline > end:
                break
            now = max(now + 1e-6, deadline)
        else:
            raise AssertionError("busy for ever")
        now = end
    assert spent <= 600 + PROBE_BURST + 1200 + 45 * (now - 100.0)

"""Datagrams that a server, or a paired peer, aims at somebody who has nothing to do with it."""

from __future__ import annotations

import ipaddress
import re
import struct
from collections.abc import Callable

import pytest

from tests.adversary.reproduction.people import Cast, Person
from tests.adversary.reproduction.wire import RESPONSE
from tests.sim.link import Link
from tunnel.units import Address

IN_THE_LAN, ON_THE_INTERNET = "192.168.1.1", "198.51.100.9"
A_FEW = 300  # checks of a host that has sent nothing, within an hour
AN_ATTEMPT = 2_400  # probes of random ports there
REFILLED = 1.2  # the part of an hour that a test takes gives so much of it again
OFFER = 1  # kind of a message of the control stream
SERVER_REFLEXIVE = 2


def masked(host: str) -> bytes:
    """As in a body of the rendezvous protocol."""
    return bytes(byte ^ 0xA5 for byte in ipaddress.IPv4Address(host).packed)


def naming(real: str, victim: Address) -> Callable[[bytes], bytes]:
    """A server that tells whoever is seen at `real` that it is seen at the victim."""
    place = re.compile(re.escape(masked(real)) + b"..", re.DOTALL)
    lie = masked(victim.host) + bytes(byte ^ 0xA5 for byte in victim.port.to_bytes(2, "big"))

    def disguise(datagram: bytes) -> bytes:
        return place.sub(lambda _: lie, datagram) if datagram[0] == RESPONSE else datagram

    return disguise


def cut_off(cast: Cast, hosts: set[str]) -> None:
    """What goes there does not arrive."""
    cast.world.filter = lambda _sender, destination, _datagram: destination.host not in hosts


def sent_to(person: Person, hosts: set[str]) -> dict[Address, int]:
    return {place: count for place, count in person.sent.items() if place.host in hosts}


@pytest.mark.parametrize(("victim", "most"), [(IN_THE_LAN, 0), (ON_THE_INTERNET, A_FEW + AN_ATTEMPT)])
def test_a_server_that_lies_about_an_address_aims_few_datagrams_at_it_and_none_in_a_lan(victim: str, most: int) -> None:
    with Cast("friend", kinds={"home": "sym"}) as cast:
        friend = cast.people["friend"]
        cast.server.disguise = naming(cast.public("home"), Address(victim, 45_000))
        for person in cast.people.values():
            person.end()
            person.boot()
            person.meet(cast.server)
        cast.home.listen()
        cast.world.run(1.0)
        cut_off(cast, {victim})
        friend.connect(cast.home)
        cast.world.run(600.0)
    sent = sent_to(friend, {victim})
    count = sum(sent.values())
    assert count <= most * REFILLED, f"{count} datagrams to {len(sent)} ports of {victim}"


def naming_another(victim: Address) -> Callable[[bytes], bytes]:
    """A server whose answers to STUN say that the victim is another address of its own (OTHER-ADDRESS, RFC 5780 §7.4)."""
    head = b"\x80\x2c\x00\x08\x00\x01"
    lie = head + victim.port.to_bytes(2, "big") + ipaddress.IPv4Address(victim.host).packed

    def disguise(datagram: bytes) -> bytes:
        if datagram[:2] != b"\x01\x01":
            return datagram
        at = datagram.find(head)
        return datagram if at < 0 else datagram[:at] + lie + datagram[at + len(lie) :]

    return disguise


def test_a_server_on_the_internet_sends_nobody_with_questions_into_a_lan() -> None:
    with Cast("friend") as cast:
        cast.server.disguise = naming_another(Address(IN_THE_LAN, 5_351))
        friend = cast.people["friend"]
        for one, other in ((friend, cast.home), (cast.home, friend)):
            cast.world.set_link(one.host, other.host, Link(loss=1.0))  # so that they go on trying
        cut_off(cast, {IN_THE_LAN})
        friend.connect(cast.home)
        cast.world.run(60.0)
    sent = {name: sum(sent_to(person, {IN_THE_LAN}).values()) for name, person in cast.people.items()}
    assert not any(sent.values()), f"questions to {IN_THE_LAN}: {sent}"


def offer(generation: int, places: list[Address]) -> bytes:
    """docs/protocol.md, chapter 7: flags, mapping, generation, candidates."""
    body = struct.pack(">BBIB", 0x02, 1, generation, len(places))
    for number, place in enumerate(places):
        host = ipaddress.ip_address(place.host).packed
        body += struct.pack(">BB", SERVER_REFLEXIVE, len(host)) + host + struct.pack(">HI", place.port, number)
    return bytes((OFFER,)) + body


def lie_for(cast: Cast, seconds: int, places: Callable[[int], list[Address]]) -> None:
    """The evil peer names them, two offers a second.  Nothing but the relay leads from one to the other."""
    evil = cast.people["evil"]
    connection = evil.connect(cast.home)
    for number in range(2 * seconds):
        connection.send_control(offer(1_000 + number, places(number)))
        cast.world.touch(evil.host)
        cast.world.run(0.5)


def test_a_peer_cannot_have_ports_and_addresses_checked_where_that_does_harm() -> None:
    reflectors = {Address(ON_THE_INTERNET, port) for port in (19, 53, 123, 161, 389, 1_900, 11_211)}
    places = [*sorted(reflectors), Address("169.254.1.1", 40_000), Address("169.254.169.254", 40_000)]
    hosts = {place.host for place in places}
    with Cast("evil") as cast:
        cut_off(cast, hosts)
        lie_for(cast, 20, lambda _: places)
    sent = sent_to(cast.home, hosts)
    assert not sent, f"{sum(sent.values())} checks of {', '.join(sorted(map(str, sent)))}"


def test_a_peer_that_names_ever_new_ports_of_a_third_party_has_few_of_them_checked() -> None:
    with Cast("evil") as cast:
        cut_off(cast, {ON_THE_INTERNET})
        lie_for(cast, 60, lambda number: [Address(ON_THE_INTERNET, 2_000 + 16 * number + n) for n in range(16)])
    sent = sent_to(cast.home, {ON_THE_INTERNET})
    count = sum(sent.values())
    assert 0 < count <= A_FEW * REFILLED, f"{count} checks of {len(sent)} ports"

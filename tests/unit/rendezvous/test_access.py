"""The operator's access list: who is let in, and what it costs to keep the others out."""

from __future__ import annotations

import ipaddress
import random

import pytest

from tests.unit.rendezvous.world import World, entropy_of
from tunnel.core.prefixes import prefixes
from tunnel.rendezvous import access, messages
from tunnel.rendezvous.access import MAX_KNOWN, PROOF_BURST, PROOF_RATE, PROOF_WORK, AccessList, Gate
from tunnel.rendezvous.limits import ServerConfig
from tunnel.rendezvous.messages import RefusalCode
from tunnel.units import Address, Instant

TOKENS = [b"token number %d" % number for number in range(1_000)]
STRANGER = Address("198.18.66.66", 6000)


class Counted:
    """How many MACs were made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        made = messages.access_proof

        def counting(token: bytes, part: bytes) -> bytes:
            self.count += 1
            return made(token, part)

        monkeypatch.setattr(messages, "access_proof", counting)

    def taken(self) -> int:
        count, self.count = self.count, 0
        return count


def knock(world: World, source: Address, token: bytes, cookies: dict[Address, bytes], session: bytes = b"s" * 16) -> int:
    """0, or why not."""
    if source not in cookies:
        cookies[source] = world.cookie(source)
    (answer,) = world.ask(source, messages.Join(0, (b"r" * 16,)), session=session, cookie=cookies[source], access_token=token)
    return answer.code if isinstance(answer, messages.Refused) else 0


def test_a_thousand_prefixes_admit_whom_each_by_itself_would() -> None:
    rng = random.Random(1)
    networks: list[access.Network] = [
        ipaddress.ip_network(text) for text in ("0.0.0.0/1", "3fff::/20", "198.18.0.0/32", "::/128")
    ]
    networks += [ipaddress.IPv4Network((rng.getrandbits(32) >> 12 << 12, 20)) for _ in range(500)]
    networks += [ipaddress.IPv6Network((rng.getrandbits(128) >> 84 << 84, 44)) for _ in range(500)]
    listed = AccessList(tuple(networks))
    for _ in range(2_000):
        near = rng.choice(networks)
        number = int(near.network_address) ^ rng.getrandbits(rng.choice((4, 90)) if near.version == 6 else rng.choice((4, 14)))
        host = ipaddress.IPv6Address(number) if near.version == 6 else ipaddress.IPv4Address(number)
        expected = any(host in network for network in networks if network.version == host.version)
        assert listed.allows_host(str(host)) is expected


def test_who_was_let_in_once_costs_one_mac_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(config=ServerConfig(access=AccessList(tokens=tuple(TOKENS))))
    cookies: dict[Address, bytes] = {}
    counted = Counted(monkeypatch)
    assert knock(world, STRANGER, TOKENS[-1], cookies) == 0
    assert counted.taken() <= len(TOKENS) + 2
    for _ in range(50):
        assert knock(world, STRANGER, TOKENS[-1], cookies) == 0
    assert counted.taken() == 2 * 50  # the client's own, and one
    moved, neighbour = Address("198.18.7.7", 1), Address(STRANGER.host, 7000)
    assert knock(world, moved, TOKENS[-1], cookies) == 0
    assert knock(world, neighbour, TOKENS[-1], cookies, b"n" * 16) == 0
    assert counted.taken() <= 6


def test_wrong_proofs_cost_a_bounded_number_of_macs_for_an_address_and_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(config=ServerConfig(access=AccessList(tokens=tuple(TOKENS))))
    cookies: dict[Address, bytes] = {}
    counted = Counted(monkeypatch)
    codes = [knock(world, STRANGER, b"a wrong token, no less", cookies) for _ in range(100)]
    assert codes == [RefusalCode.DENIED] * PROOF_BURST + [RefusalCode.SLOW_DOWN] * (100 - PROOF_BURST)
    assert counted.taken() <= (PROOF_BURST + 1) * len(TOKENS) + 200
    world.now = Instant(world.now + 2.01 / PROOF_RATE)
    codes = [knock(world, STRANGER, b"a wrong token, no less", cookies) for _ in range(5)]
    assert codes == [RefusalCode.DENIED] * 2 + [RefusalCode.SLOW_DOWN] * 3
    counted.taken()
    began = world.now
    for number in range(600):  # many addresses, for two seconds
        world.now = Instant(world.now + 1 / 300)
        knock(
            world,
            Address(f"198.{20 + number % 20}.{number}.1" if number < 256 else f"198.{50 + number % 99}.1.1", 9),
            b"wrong again, and long",
            cookies,
        )
    assert counted.taken() <= PROOF_WORK * (1 + world.now - began) + 1_200


def test_a_flood_of_wrong_proofs_keeps_nobody_out_who_was_let_in_and_newcomers_come_back_by_themselves() -> None:
    world = World(config=ServerConfig(access=AccessList(tokens=tuple(TOKENS))))
    known = world.host("known", access_token=TOKENS[7])
    known.client.listen(world.now, [b"k" * 16])
    world.run(1)
    cookies: dict[Address, bytes] = {}
    for number in range(200):
        knock(world, Address(f"198.{20 + number}.1.1", 9), b"a wrong token, no less", cookies)
    newcomer = world.host("newcomer", access_token=TOKENS[8])
    newcomer.client.listen(world.now, [b"n" * 16])
    assert world.server.drops["server_proof_rate"] > 0
    world.run(10)
    assert {b"k" * 16, b"n" * 16} <= set(world.server.registry.rooms)


def test_so_many_are_remembered_as_let_in_and_the_one_longest_unused_goes() -> None:
    gate = Gate(AccessList(tokens=(TOKENS[0],)), entropy_of(1))

    def comes(number: int) -> bool | None:
        """A session from an address of its own, each a second after the last."""
        message = messages.Join(0, (b"r" * 16,))
        data = messages.encode_request(1, number.to_bytes(16, "big"), message, access_token=TOKENS[0])
        host = f"198.{18 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"
        return gate.admits(Instant(1000.0 + number), host, prefixes(host), messages.decode_request(data))

    assert all(comes(number) for number in range(MAX_KNOWN // 2))  # each is two: a session and an address
    assert len(gate._known) == MAX_KNOWN
    assert comes(0)
    assert all(comes(number) for number in range(MAX_KNOWN // 2, MAX_KNOWN - 1))
    assert len(gate._known) == MAX_KNOWN
    assert [number for number in range(MAX_KNOWN) if number.to_bytes(16, "big") in gate._known] == [
        0,
        *range(MAX_KNOWN // 2, MAX_KNOWN - 1),
    ]

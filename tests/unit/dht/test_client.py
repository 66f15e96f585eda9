from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tests.sim.dht import Client, Node, World, cone, packed, scattered, sequential
from tunnel.dht.bencode import Value, encode_value
from tunnel.dht.client import ENTRY_ATTEMPTS, MAX_PENDING, DhtClient
from tunnel.dht.diagnosis import MAX_LOOKUPS, PATIENCE, WANTED, Diagnosis
from tunnel.dht.ids import is_bound
from tunnel.dht.ledger import MAX_UNANSWERED
from tunnel.dht.lookup import MAX_ASKED
from tunnel.units import Address, Instant


def diagnose(world: World, external: Callable[[Address], Address], entries: int = 3) -> tuple[Diagnosis, Client]:
    entry = [each.address for each in list(world.nodes.values())[:entries]]
    part = Diagnosis(is_ipv6=world.is_ipv6, entry=entry, entropy=random.Random(11).randbytes, now=world.now)
    home = Client(world, part, external)
    assert world.run(lambda: part.is_done, PATIENCE + 1.0, home)
    return part, home


@pytest.mark.parametrize("is_ipv6", [False, True])
def test_one_port_for_all_is_told_in_half_a_second(is_ipv6: bool) -> None:
    world = World(is_ipv6=is_ipv6)
    world.add_nodes(300)
    external = cone("3fff:999::7" if is_ipv6 else "198.18.0.7")
    part, home = diagnose(world, external)
    assert part.views.seen == external(Address("", 0))
    assert part.views.varies is False
    assert len(part.views) >= WANTED
    assert world.now < 1.0
    assert home.sent < 40


def test_ports_one_after_the_other_and_ports_by_chance_are_told() -> None:
    world = World()
    world.add_nodes(300)
    part, _ = diagnose(world, sequential(step=2))
    assert (part.views.varies, part.views.step) == (True, 2)
    part, _ = diagnose(world, scattered())
    assert (part.views.varies, part.views.step) == (True, None)


def test_an_entry_node_that_is_lost_once_is_asked_again() -> None:
    world = World(loss=1.0)
    world.add_nodes(300)
    world.at(0.4, lambda: setattr(world, "loss", 0.0))
    part, _ = diagnose(world, cone())
    assert part.views.varies is False


def test_where_nobody_answers_it_ends() -> None:
    world = World()
    for each in world.add_nodes(3):
        each.is_dead = True
    part, home = diagnose(world, cone())
    assert part.round_trip is None
    assert home.sent == 3 * ENTRY_ATTEMPTS
    assert world.now <= PATIENCE


def test_a_third_of_dead_nodes_and_loss_cost_seconds_and_no_answer() -> None:
    world = World(loss=0.05, delay=0.06)
    for number, each in enumerate(world.add_nodes(300)):
        each.is_dead = number % 3 == 2
    part, _ = diagnose(world, cone())
    assert part.views.varies is False
    assert len(part.views) >= 8


def test_nodes_that_do_not_tell_where_they_see_us_are_no_views() -> None:
    world = World()
    for number, each in enumerate(world.add_nodes(300)):
        each.echoes = number % 2 == 0
    part, _ = diagnose(world, cone())
    assert part.views.varies is False
    assert len(part.views) >= 8


def test_our_id_fits_our_address_once_nodes_have_told_it() -> None:
    world = World()
    world.add_nodes(300)
    part = DhtClient(is_ipv6=False, entry=list(world.nodes)[:4], entropy=random.Random(2).randbytes, now=world.now)
    home = Client(world, part, cone())
    part.look_up(world.now, bytes(20))
    world.run(lambda: part.is_idle, 10.0, home)
    assert is_bound(part.id, "198.18.0.7")


def victim(world: World, node: Node, question: dict[bytes, Value], source: Address) -> dict[bytes, Value]:
    """Tells of nothing but one stranger, at ever other ports, and always closer to what is sought."""
    arguments = question[b"a"]
    assert isinstance(arguments, dict)
    target = arguments[b"target"]
    assert isinstance(target, bytes)
    told = [
        target[:-2] + world.rng.randbytes(2) + packed(Address("45.9.9.9", world.rng.randrange(1_024, 65_536))) for _ in range(100)
    ]
    answer: dict[bytes, Value] = {b"id": node.id, b"nodes": b"".join(told)}
    return {b"t": question[b"t"], b"y": b"r", b"ip": packed(source), b"r": answer}


def test_nobody_can_aim_us_at_a_stranger() -> None:
    world = World()
    for each in world.add_nodes(300):
        each.lie = victim
    _, home = diagnose(world, cone())
    assert 0 < world.sent["45.9.9.9"] <= MAX_UNANSWERED
    assert home.sent < MAX_ASKED


def test_answers_that_were_not_asked_for_change_nothing() -> None:
    world = World()
    (node,) = world.add_nodes(1)
    part = DhtClient(is_ipv6=False, entry=[node.address], entropy=random.Random(2).randbytes, now=world.now)
    ready = part.poll_transmit()
    assert ready is not None
    transaction = ready[1][ready[1].index(b"1:t4:") + 5 :][:4]
    answer: Value = {b"t": transaction, b"y": b"r", b"r": {b"id": node.id}, b"ip": packed(Address("198.18.0.7", 4_000))}
    part.handle_datagram(world.now, Address(node.address.host, 6_882), encode_value(answer))
    assert part.drops["DHT answer from another address"] == 1
    stranger: Value = {b"t": b"zzzz", b"y": b"r", b"r": {b"id": node.id}}
    part.handle_datagram(world.now, node.address, encode_value(stranger))
    assert part.drops["DHT answer to no question"] == 1
    part.handle_datagram(world.now, node.address, b"d1:ad")
    assert part.drops["DHT message malformed"] == 1
    part.handle_datagram(world.now, node.address, encode_value({b"t": b"a", b"y": b"q", b"q": b"ping", b"a": {b"id": node.id}}))
    assert part.drops["DHT question"] == 1
    assert part.poll_transmit() is None  # nothing of that was answered
    assert part.round_trip is None
    part.handle_datagram(world.now, node.address, encode_value(answer))
    assert part.round_trip is not None


def test_the_questions_that_wait_have_an_end() -> None:
    entry = [Address(f"44.{number >> 8}.{number & 255}.1", 6_881) for number in range(2 * MAX_PENDING)]
    part = DhtClient(is_ipv6=False, entry=entry, entropy=random.Random(2).randbytes, now=Instant(0.0))
    count = 0
    while part.poll_transmit() is not None:
        count += 1
    assert count == 2 * MAX_PENDING
    part.handle_timeout(Instant(100.0))
    assert part.poll_timeout() is not None  # those that are still waited for, and no others, are asked again
    count = 0
    while part.poll_transmit() is not None:
        count += 1
    assert count == MAX_PENDING


def test_a_node_that_refuses_is_left_alone() -> None:
    world = World()
    for number, each in enumerate(world.add_nodes(300)):
        if number > 5:
            each.lie = lambda _w, _n, question, _s: {b"t": question[b"t"], b"y": b"e", b"e": [202, b"no"]}
    part, home = diagnose(world, cone())
    assert part.views.varies is not True
    assert home.sent < 2 * MAX_ASKED


def test_where_no_node_tells_where_it_sees_us_the_look_ends() -> None:
    world = World()
    for each in world.add_nodes(300):
        each.echoes = False
    part, home = diagnose(world, cone())
    assert part.views.seen is None
    assert home.sent <= MAX_LOOKUPS * MAX_ASKED
    assert world.now < PATIENCE


def test_whoever_was_asked_nothing_is_not_even_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message of 4,000 bytes takes milliseconds to read."""
    world = World()
    (node,) = world.add_nodes(1)
    part = DhtClient(is_ipv6=False, entry=[node.address], entropy=random.Random(2).randbytes, now=world.now)
    read = []
    monkeypatch.setattr("tunnel.dht.krpc.decode_value", lambda data: read.append(data) or {})
    part.handle_datagram(world.now, Address("203.0.113.5", 6_881), b"d1:al" + b"i0e" * 1_300 + b"ee")
    assert read == []
    assert part.drops["DHT answer from another address"] == 1
    part.handle_datagram(world.now, node.address, b"d1:al" + b"i0e" * 1_300 + b"ee")
    assert len(read) == 1
    part.handle_timeout(Instant(100.0))  # asked again, for the last times ...
    part.handle_timeout(Instant(200.0))
    part.handle_timeout(Instant(300.0))
    part.handle_timeout(Instant(400.0))
    part.handle_datagram(world.now, node.address, b"d1:ade")  # ... and now nothing is waited for
    assert len(read) == 1

"""One infohash: announced, read back, announced again."""

from __future__ import annotations

import random

from tests.sim.dht import Client, Home, World, cone
from tunnel.dht.appointment import QUESTION_INTERVAL
from tunnel.dht.client import DhtClient
from tunnel.dht.ids import ID_SIZE, bound_id
from tunnel.dht.krpc import MAX_TOKEN, NodeInfo, Reply
from tunnel.dht.lookup import CLOSEST
from tunnel.dht.route import MAX_MAILBOXES
from tunnel.dht.stretch import COST, HOUR, Stretch, hours_to_try, secret_of
from tunnel.dht.table import BUCKET, BUCKET_BITS, MAX_SILENCES, Table
from tunnel.dht.topic import ENOUGH_HOLDERS, MAX_AGAIN, MAX_HOLDERS, RENEW_INTERVAL, TOKEN_LIFETIME, Topic
from tunnel.units import Address, Instant

ROOM = bytes(range(16))


class Party(Client):
    """A client of the DHT with one topic, which is polled as a route does."""

    def __init__(self, world: World, seed: int = 3) -> None:
        part = DhtClient(is_ipv6=False, entry=list(world.nodes)[:3], entropy=random.Random(seed).randbytes, now=world.now)
        super().__init__(world, part, cone())
        self.found: list[Address] = []
        self.topic = Topic(part, bytes(ID_SIZE), world.now, found=lambda _now, peer, _node: self.found.append(peer))
        world.at(QUESTION_INTERVAL, self._poll)

    def _poll(self) -> None:
        self.topic.poll(self.world.now)
        self.world.at(QUESTION_INTERVAL, self._poll)


def party(nodes: int = 300) -> tuple[World, Party]:
    world = World()
    world.add_nodes(nodes)
    return world, Party(world)


def holding(world: World) -> int:
    """How many of the closest nodes hold our address."""
    return sum(bytes(ID_SIZE) in each.peers for each in world.closest(bytes(ID_SIZE), CLOSEST))


def test_the_closest_nodes_hold_our_address_and_it_is_read_back() -> None:
    world, ours = party()
    world.run(lambda: False, 12.0, ours)
    assert holding(world) == CLOSEST
    assert ours.topic.holders == CLOSEST
    assert ours.found == []  # our own is nobody's


def test_nodes_that_forget_are_told_again_with_a_fresh_token() -> None:
    world, ours = party()
    world.run(lambda: False, 12.0, ours)
    for each in world.nodes.values():
        each.peers.clear()
    world.run(lambda: holding(world) == CLOSEST, 60.0, ours)
    assert holding(world) == CLOSEST


def test_it_is_announced_again_before_nodes_forget() -> None:
    world, ours = party()
    world.run(lambda: False, RENEW_INTERVAL - 60.0, ours)
    for each in world.nodes.values():
        each.peers.clear()
    world.run(lambda: False, 120.0, ours)
    assert holding(world) == CLOSEST


def test_a_node_that_keeps_nothing_is_told_a_few_times() -> None:
    world, ours = party()
    for each in world.nodes.values():
        each.drops_announcements = True
    asked: list[bytes] = []
    ask = world.ask

    def count(source: Address, target: Address, data: bytes, answer: object) -> None:
        asked.extend([data] if b"announce_peer" in data else [])
        ask(source, target, data, answer)  # type: ignore[arg-type]

    world.ask = count  # type: ignore[method-assign]
    world.run(lambda: False, 60.0, ours)
    assert ours.topic.holders < ENOUGH_HOLDERS
    assert 0 < len(asked) <= 7 * MAX_AGAIN * CLOSEST  # in each whole lookup, of which there is one in ten seconds


def test_another_external_port_is_announced_at_once() -> None:
    world, ours = party()
    world.run(lambda: False, 12.0, ours)
    ours.external = cone(port=41_000)
    world.run(lambda: False, 30.0, ours)
    node = world.closest(bytes(ID_SIZE), 1)[0]
    assert any(peer.endswith((41_000).to_bytes(2, "big")) for peer in node.peers[bytes(ID_SIZE)])


def test_the_nodes_of_a_topic_have_an_end() -> None:
    world, ours = party()
    rng = random.Random(5)
    for number in range(4 * MAX_HOLDERS):
        host = f"46.{number}.1.1"
        node = NodeInfo(bound_id(host, rng.randbytes), Address(host, 6_881))
        ours.topic.answered(world.now, node, Reply(transaction=b"", id=node.id, token=b"t"))
    assert len(ours.topic._holders) == MAX_HOLDERS


def test_an_old_token_is_not_used() -> None:
    world, ours = party()
    world.run(lambda: False, 12.0, ours)
    holder = ours.topic._closest()[0]
    holder.kept = frozenset()
    holder.told.clear()
    before = len(ours.part._out)
    ours.topic._announce(Instant(world.now + TOKEN_LIFETIME), holder)
    assert len(ours.part._out) == before
    holder.token_at = world.now
    holder.told.clear()
    ours.topic._announce(Instant(world.now + 60.0), holder)
    assert len(ours.part._out) == before + 1


def test_a_long_token_is_none() -> None:
    from tests.unit.dht.test_krpc import reply
    from tunnel.dht.bencode import encode_value
    from tunnel.dht.krpc import decode_message

    for size, expected in ((MAX_TOKEN, MAX_TOKEN), (MAX_TOKEN + 1, 0)):
        message = decode_message(encode_value(reply(token=bytes(size))))
        assert isinstance(message, Reply)
        assert len(message.token) == expected


def test_a_table_has_an_end_and_a_node_that_is_silent_goes() -> None:
    table, rng = Table(), random.Random(5)
    nodes = [NodeInfo(rng.randbytes(ID_SIZE), Address(f"44.{number >> 8}.{number & 255}.1", 6_881)) for number in range(2_000)]
    for each in nodes:
        table.answered(each)
    assert len(table) == BUCKET << BUCKET_BITS
    (first,) = table.closest(nodes[0].id, 1)
    for _ in range(MAX_SILENCES):
        table.silent(first)
    assert table.closest(nodes[0].id, 1) != [first]


def test_mailboxes_have_an_end() -> None:
    world = World()
    world.add_nodes(50)
    home = Home(world, cone(), seed=1)
    home.part.allocate(world.now)
    world.run(lambda: bool(home.part._appointments), 5.0, home)
    appointment = next(iter(home.part._appointments.values()))
    for number in range(2 * MAX_MAILBOXES):
        home.part._open_mailbox(number.to_bytes(16, "big"), appointment, (0, Address("44.1.1.1", 4_000)))
    assert len(home.part._mailboxes) == MAX_MAILBOXES


def test_the_slow_hash_is_of_number_and_hour() -> None:
    quick = Stretch(12_345_678, 7, cost=16)
    assert len({secret_of(quick), secret_of(quick._replace(hour=8)), secret_of(quick._replace(number=12_345_679))}) == 3
    assert Stretch(1, 1).cost == COST
    assert hours_to_try(5 * HOUR + HOUR / 2) == [5]

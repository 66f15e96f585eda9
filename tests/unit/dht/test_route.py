"""Two homes meet in a DHT in virtual time, as codes and rooms have it."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable

import pytest

from tests.sim.dht import Home, Node, World, cone, packed, scattered, sequential
from tunnel.dht.bencode import Value
from tunnel.dht.meeting import MAX_CHECKS
from tunnel.dht.route import CODE_LIFETIME, NO_PATH_AFTER, NOBODY_AFTER, DhtRoute
from tunnel.dht.stretch import BORDER, HOUR, hours_to_try
from tunnel.rendezvous.client import Client as RendezvousClient
from tunnel.rendezvous.events import NO_PATH
from tunnel.rendezvous.messages import (
    Allocated,
    Claim,
    ClaimAccepted,
    ClaimReceived,
    Introduced,
    Posted,
    RefusalCode,
    Refused,
)
from tunnel.units import Address, Instant, PathKey, SocketId

ROOM = bytes(range(16))
NAT = Callable[[Address], Address]


def world(nodes: int = 400, *, delay: float = 0.01, loss: float = 0.0, seed: int = 1) -> World:
    found = World(seed=seed, delay=delay, loss=loss)
    found.add_nodes(nodes)
    return found


def offered(at: World, external: NAT = cone(), seed: int = 21) -> tuple[Home, int]:  # noqa: B008
    """A home that shows a code, a while ago."""
    home = Home(at, external, seed=seed)
    home.part.allocate(at.now)
    assert at.run(lambda: bool(home.heard(Allocated)), 5.0, home)
    at.run(lambda: False, 5.0, home)
    (allocated,) = home.heard(Allocated)
    assert allocated.expires_s == CODE_LIFETIME
    return home, allocated.nameplate


def claimed(at: World, home: Home, number: int, external: NAT, seed: int = 22, seconds: float = 40.0) -> tuple[Home, float]:
    """Another home that claims it; and how long that took."""
    friend = Home(at, external, seed=seed)
    begun = at.now
    friend.part.claim(at.now, number, b"hello")
    at.run(lambda: bool(home.heard(ClaimReceived) or friend.heard(Refused)), seconds, home, friend)
    return friend, at.now - begun


def test_a_claim_comes_through_and_is_answered() -> None:
    at = world()
    home, number = offered(at)
    friend, seconds = claimed(at, home, number, cone("198.18.0.9", 50_000))
    ((claim, _, channel, _),) = home.told(ClaimReceived)
    assert isinstance(claim, ClaimReceived)
    assert channel is not None
    assert channel.path_key is not None
    assert claim.body == b"hello"
    assert claim.nameplate == number
    assert channel.path_key == PathKey(SocketId(0), Address("198.18.0.9", 50_000))
    assert home.part.carries(channel, channel.path_key)
    assert seconds < 4.0
    home.part.post(at.now, claim.mailbox, b"answer")
    at.run(lambda: bool(friend.heard(Posted)), 5.0, home, friend)
    ((accepted, request, way, _),) = friend.told(ClaimAccepted)
    assert isinstance(accepted, ClaimAccepted)
    assert isinstance(request, Claim)
    assert way is not None
    assert (accepted.mailbox, request.nameplate, way.side) == (claim.mailbox, number, 1)
    assert friend.heard(Posted) == [Posted(claim.mailbox, b"answer")]


@pytest.mark.parametrize(("ours", "theirs"), [(cone(), sequential()), (sequential(), cone("198.18.0.9", 50_000))])
def test_a_router_that_gives_out_ports_in_order_is_met_at_the_next(ours: NAT, theirs: NAT) -> None:
    at = world()
    home, number = offered(at, ours)
    claimed(at, home, number, theirs)
    assert home.heard(ClaimReceived)


@pytest.mark.parametrize(
    ("ours", "theirs", "words"),
    [
        (cone(), scattered(), "the router here uses a new port"),
        (scattered(), cone("198.18.0.7", 50_000), "the other side's router uses a new port"),
        (scattered(), scattered("198.18.0.10", 6), "both routers use a new port"),
    ],
)
def test_ports_by_chance_are_told_in_a_sentence_within_fifteen_seconds(ours: NAT, theirs: NAT, words: str) -> None:
    at = world()
    home, number = offered(at, ours)
    friend, seconds = claimed(at, home, number, theirs)
    (refused,) = friend.heard(Refused)
    assert refused.code == NO_PATH
    assert words in refused.text
    assert NO_PATH_AFTER <= seconds <= 15.0


def test_a_code_that_lasts_is_found_in_the_next_hour_too() -> None:
    at = world()
    home, number = offered(at)
    at.now = Instant(at.now + HOUR)
    home.part.renew(at.now, number)
    at.run(lambda: False, 5.0, home)
    assert len(home.heard(Allocated)) == 1
    claimed(at, home, number, cone("198.18.0.9", 50_000))
    assert home.heard(ClaimReceived)
    at.now = Instant(at.now + BORDER)
    home.part.handle_timeout(at.now)
    assert len(home.part._appointments) == 1


def test_nobody_under_a_code_is_told() -> None:
    at = world()
    friend = Home(at, cone(), seed=22)
    friend.part.claim(at.now, 12_345_678, b"hello")
    assert at.run(lambda: bool(friend.heard(Refused)), 40.0, friend)
    assert friend.heard(Refused)[0].code == RefusalCode.UNKNOWN_NAMEPLATE
    assert at.now == pytest.approx(NOBODY_AFTER, abs=1.0)


def test_a_code_that_is_over_takes_no_claim_but_carries_what_was_begun() -> None:
    at = world()
    home, number = offered(at)
    friend, _ = claimed(at, home, number, cone("198.18.0.9", 50_000))
    home.part.release(at.now, number)
    (claim,) = home.heard(ClaimReceived)
    home.part.post(at.now, claim.mailbox, b"answer")
    at.run(lambda: bool(friend.heard(Posted)), 5.0, home, friend)
    assert friend.heard(Posted)
    late, _ = claimed(at, home, number, cone("198.18.0.11", 50_001), seed=31, seconds=15.0)
    assert home.heard(ClaimReceived) == [claim]
    assert not late.heard(Posted)


@pytest.mark.parametrize("listener_first", [True, False])
def test_remembered_peers_meet_in_their_room(listener_first: bool) -> None:
    at = world()
    home, friend = Home(at, cone(), seed=21), Home(at, cone("198.18.0.9", 50_000), seed=22)
    first, second = (home, friend) if listener_first else (friend, home)

    def begin(each: Home) -> None:
        if each is home:
            home.part.listen(at.now, [ROOM])
        else:
            friend.part.dial(at.now, [ROOM])

    begin(first)
    at.run(lambda: False, 10.0, home, friend)
    begin(second)
    begun = at.now
    assert at.run(lambda: bool(friend.heard(Introduced)), 20.0, home, friend)
    assert at.now - begun < 8.0
    ((introduced, _, channel, _),) = friend.told(Introduced)
    assert isinstance(introduced, Introduced)
    assert channel is not None
    assert channel.path_key is not None
    assert introduced.room == ROOM
    assert channel.path_key.remote == Address("198.18.0.7", 40_000)


def test_a_meeting_that_is_dialed_again_is_introduced_again() -> None:
    at = world()
    home, friend = Home(at, cone(), seed=21), Home(at, cone("198.18.0.9", 50_000), seed=22)
    home.part.listen(at.now, [ROOM])
    friend.part.dial(at.now, [ROOM])
    at.run(lambda: bool(friend.heard(Introduced)), 20.0, home, friend)
    friend.part.dial(at.now, [ROOM])
    assert at.run(lambda: len(friend.heard(Introduced)) == 2, 5.0, home, friend)


def test_what_a_room_costs_while_it_waits() -> None:
    """Under 3 MB an hour, headers and answers counted."""
    at = world()
    home = Home(at, cone(), seed=21)
    home.part.listen(at.now, [ROOM])
    at.run(lambda: False, 60.0, home)
    before = home.bytes
    at.run(lambda: False, 900.0, home)
    assert home.bytes - before < 3_000_000 / 4


def test_many_rooms_cost_no_more_than_two() -> None:
    at = world()
    home = Home(at, cone(), seed=21)
    home.part.listen(at.now, [bytes((number,)) * 16 for number in range(10)])
    at.run(lambda: False, 60.0, home)
    before = home.bytes
    at.run(lambda: False, 300.0, home)
    assert home.bytes - before < 3_000_000 / 12


@pytest.mark.parametrize("delay", [0.01, 0.06])
def test_a_third_of_the_nodes_dead_and_loss_cost_seconds(delay: float) -> None:
    at = world(delay=delay, loss=0.03)
    for number, each in enumerate(at.nodes.values()):
        each.is_dead = number % 3 == 2
    home, number = offered(at)
    _, seconds = claimed(at, home, number, cone("198.18.0.9", 50_000))
    assert home.heard(ClaimReceived)
    assert seconds < 20.0


def test_nodes_that_say_yes_and_keep_nothing_are_no_harm() -> None:
    at = world()
    for number, each in enumerate(at.nodes.values()):
        each.drops_announcements = number % 2 == 0
    home, number = offered(at)
    claimed(at, home, number, cone("198.18.0.9", 50_000))
    assert home.heard(ClaimReceived)


def liar(at: World, node: Node, question: dict[bytes, Value], source: Address) -> dict[bytes, Value] | None:
    """Tells of a hundred strangers under whatever it is asked for, and of nobody else."""
    if question[b"q"] != b"get_peers":
        return None
    peers: list[Value] = [packed(Address(f"45.{at.rng.randrange(256)}.9.9", at.rng.randrange(1_024, 65_536))) for _ in range(100)]
    answer: dict[bytes, Value] = {b"id": node.id, b"token": b"x", b"values": peers}
    return {b"t": question[b"t"], b"y": b"r", b"ip": packed(source), b"r": answer}


def deceiver(at: World, node: Node, question: dict[bytes, Value], source: Address) -> dict[bytes, Value] | None:
    """Tells of strangers, of nodes that are closer than any and are not there, and of a port of ours that is not ours."""
    if question[b"q"] == b"announce_peer":
        return None
    arguments = question[b"a"]
    assert isinstance(arguments, dict)
    target = arguments.get(b"target", arguments.get(b"info_hash"))
    assert isinstance(target, bytes)
    rng = at.rng
    hosts = (f"45.{rng.randrange(256)}.{rng.randrange(256)}.9" for _ in range(60))
    nodes = b"".join(target[:18] + rng.randbytes(2) + packed(Address(host, 6_881)) for host in hosts)
    found = liar(at, node, question, source) or {b"t": question[b"t"], b"y": b"r", b"r": {b"id": node.id}}
    answer = found[b"r"]
    assert isinstance(answer, dict)
    answer[b"nodes"] = nodes
    return found | {b"ip": packed(Address(source.host, rng.randrange(1_024, 65_536)))}


@pytest.mark.parametrize("seed", range(1, 6))
def test_an_honest_pair_meets_where_half_of_the_closest_nodes_lie_about_everything(seed: int) -> None:
    at = world(2_000, seed=seed)
    home, number = offered(at)
    info_hash = next(iter(home.part._appointments.values())).meeting.keys.info_hash
    for count, each in enumerate(at.closest(info_hash, 24)):
        each.lie = deceiver if count % 2 else None
    at.run(lambda: False, 30.0, home)
    _, seconds = claimed(at, home, number, cone("198.18.0.9", 50_000))
    assert home.heard(ClaimReceived)
    assert seconds < 15.0


def test_an_honest_pair_meets_where_half_of_the_closest_nodes_lie() -> None:
    at = world()
    home, number = offered(at)
    info_hash = next(iter(home.part._appointments.values())).meeting.keys.info_hash
    for count, each in enumerate(at.closest(info_hash, 16)):
        each.lie = liar if count % 2 else None
    claimed(at, home, number, cone("198.18.0.9", 50_000))
    assert home.heard(ClaimReceived)
    strangers = {host: count for host, count in at.sent.items() if host.endswith(".9.9")}
    assert strangers
    assert max(strangers.values()) <= 2 * MAX_CHECKS  # from each of the two


def test_sybils_next_to_the_infohash_take_half_of_the_places() -> None:
    at = world()
    home, number = offered(at)
    info_hash = next(iter(home.part._appointments.values())).meeting.keys.info_hash
    rng = random.Random(9)
    for each in at.add_nodes(60, make_id=lambda _host: info_hash[:16] + rng.randbytes(4)):
        each.lie = liar
    claimed(at, home, number, cone("198.18.0.9", 50_000))
    assert home.heard(ClaimReceived)


def test_a_victim_that_everybody_names_gets_few_datagrams() -> None:
    at = world()

    def aim(each: World, node: Node, question: dict[bytes, Value], source: Address) -> dict[bytes, Value] | None:
        found = liar(each, node, question, source)
        if found is not None:
            answer = found[b"r"]
            assert isinstance(answer, dict)
            answer[b"values"] = [packed(Address("45.9.9.9", each.rng.randrange(1_024, 65_536))) for _ in range(40)]
        return found

    for each in at.nodes.values():
        each.lie = aim
    home = Home(at, cone(), seed=21)
    home.part.listen(at.now, [ROOM])
    at.run(lambda: False, 100.0, home)
    assert 0 < at.sent["45.9.9.9"] <= MAX_CHECKS


def test_what_is_not_authentic_is_not_answered() -> None:
    at = world()
    home, _ = offered(at)
    tag = next(iter(home.part._appointments.values())).meeting.keys.tag
    sent = home.sent
    for datagram in (b"\x50", b"\x50\x81" + tag + bytes(32), b"\x50\x81" + bytes(40), b"\x50\x82" + tag + bytes(600)):
        home.hand_in(Address("203.0.113.5", 4_000), datagram)
        home.flush()
    assert home.sent == sent
    assert home.part.drops["meeting datagram not authentic"] == 1
    assert home.part.drops["meeting datagram for nobody"] == 1
    assert home.part.drops["meeting datagram malformed"] == 2


def test_near_an_hours_border_both_hours_are_tried() -> None:
    assert hours_to_try(10 * HOUR + HOUR / 2) == [10]
    assert hours_to_try(10 * HOUR + BORDER - 1) == [10, 9]
    assert hours_to_try(11 * HOUR - BORDER) == [10, 11]


#: What only whoever talks to a server has to do with.
OF_A_SERVER = {"fallback_down", "fallback_up", "is_server", "move", "session", "uses_fallback"}


def test_a_route_has_the_face_of_a_client() -> None:
    """Verb by verb with the same parameters: flows do not know by which they meet."""
    for name, verb in inspect.getmembers(RendezvousClient):
        if name.startswith("_") or name in OF_A_SERVER:
            continue
        ours = getattr(DhtRoute, name, None)
        assert ours is not None, name
        if callable(verb):
            assert list(inspect.signature(ours).parameters) == list(inspect.signature(verb).parameters), name


def test_both_sides_may_begin_anew_again_and_again() -> None:
    """Nodes go on telling of the ports that they had before, for the better part of an hour."""
    at = world()
    took = []
    for number in range(8):
        home = Home(at, cone(port=40_000 + 100 * number), seed=30 + number)
        friend = Home(at, cone("198.18.0.9", 50_000 + 100 * number), seed=60 + number)
        home.part.listen(at.now, [ROOM])
        friend.part.dial(at.now, [ROOM])
        begun = at.now
        at.run(lambda: bool(friend.heard(Introduced)), 30.0, home, friend)  # noqa: B023
        took.append(round(at.now - begun, 1))
        for each in (home, friend):
            each.part.close(at.now)
            at.homes.remove(each)
    assert max(took) < 10.0, took

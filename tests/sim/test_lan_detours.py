"""Members that carry for two others which meet in no other way: who is asked, what they see, and what follows when they leave."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from tests.sim.lan import MemberNode, Party
from tests.sim.link import Link
from tests.sim.nat import SITES
from tests.sim.peers import FIRST
from tunnel.node.carrying import CARRIED_BURST, MAX_CARRIED
from tunnel.node.peering import Peering
from tunnel.room.core import messages
from tunnel.room.core.detours import PAIRS_OF_ONE, REACH_INTERVAL, RELAYED_FOR, RELEASED_AFTER
from tunnel.transport.connection.connection import Connection
from tunnel.transport.connection.events import PathKind, StreamReadable
from tunnel.units import Address, Instant, PathKey, Seconds, SocketId

HARD = "sym"  # two such meet only where somebody relays


class Trio:
    """A room with two homes that meet in no direct way (anna, ben), and members without any wall (the others)."""

    def __init__(self, party: Party, *carriers: str, plain: tuple[str, ...] = (), to_server: float | None = None) -> None:
        """`to_server`: seconds from anybody to the server, and back."""
        self.party = party
        party.open()
        self.anna, self.ben = party.friend("anna", kind=HARD), party.friend("ben", kind=HARD)
        self.others = {name: party.friend(name, kind="open", carries=name in carriers) for name in (*carriers, *plain)}
        if to_server is not None:
            for each in party.everybody:
                for link in ((each.host, party.server.host), (party.server.host, each.host)):
                    party.world.set_link(*link, Link(delay=Seconds(to_server)))
        for each in party.friends:
            each.claim(party.creator.code)
        party.world.run_until(lambda: party.is_whole() and self.is_near(), 60)

    def is_near(self) -> bool:
        """Both reach the others directly."""
        return all(
            connection(one, other).current_path.kind is PathKind.DIRECT
            for one in (self.anna, self.ben)
            for other in self.others.values()
        )

    @property
    def pair(self) -> Connection:
        return connection(self.anna, self.ben)

    def is_met(self) -> bool:
        return "ben" in self.anna.online and "anna" in self.ben.online

    def is_carried_by(self, name: str) -> bool:
        """Both sides send by way of that member."""
        pairs = self.others[name].endpoint.carrying.pairs
        return self.is_met() and all(
            connection(*two).current_path.key.prefix in pairs for two in ((self.anna, self.ben), (self.ben, self.anna))
        )

    def who_carries(self) -> str:
        """Wait until somebody does; its name."""
        self.party.world.run_until(lambda: any(map(self.is_carried_by, self.others)), 60)
        return next(filter(self.is_carried_by, self.others))

    def silence_server(self) -> None:
        self.party.server.kill()

    def say(self, text: bytes) -> None:
        """From anna to ben, on a stream; it has to arrive."""
        stream = self.pair.open_stream()
        assert self.pair.stream_write(stream, text) == len(text)
        self.party.world.touch(self.anna.host)
        peering = self.ben.members.peering(self.anna.static)
        assert peering is not None
        heard = bytearray()

        def has_arrived() -> bool:
            found = [each for each in self.ben.told if getattr(each, "peering", None) is peering]
            for event in found:
                inner = getattr(event, "event", None)
                if isinstance(inner, StreamReadable) and inner.stream_id == stream:
                    for chunk in connection(self.ben, self.anna).stream_read(stream):
                        heard.extend(chunk)
            return bytes(heard) == text

        self.party.world.run_until(has_arrived, 30)


def connection(one: MemberNode, other: MemberNode) -> Connection:
    peering = one.members._contacts[other.static].peering
    assert peering is not None
    assert peering.connection is not None
    return peering.connection


def test_two_that_meet_in_no_other_way_are_carried_by_a_member_that_allows_it() -> None:
    with Party(kind="open") as party:
        three = Trio(party, "cleo")
        assert three.pair.current_path.kind is PathKind.RELAY
        three.silence_server()
        party.world.run_until(lambda: three.is_carried_by("cleo"), 60)
        three.say(b"by way of cleo")
        peering = three.anna.members.peering(three.ben.static)
        assert peering is not None
        assert peering.why_relayed(party.world.now).endswith("it goes by way of cleo")
        party.world.run(120.0)
        assert three.is_carried_by("cleo")
        assert party.creator.endpoint.carrying.bytes == 0


def test_nobody_carries_who_was_not_told_to() -> None:
    with Party(kind="open") as party:
        three = Trio(party, plain=("cleo",))
        three.silence_server()
        party.world.run(90.0)
        assert not three.is_met()
        assert not three.others["cleo"].endpoint.carrying.pairs
        assert "cleo" in three.anna.online


def test_the_handshake_of_two_that_never_met_goes_by_way_of_a_member(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their server leads them to each other, and relays nothing of theirs."""
    with Party(kind="open") as party:
        server = party.server
        take = server.handle_datagrams
        shut: set[str] = set()

        def handle(now: Instant, socket_id: SocketId, remote: Address, buffer: memoryview, stride: int) -> None:
            if remote.host not in shut or buffer[0] < 0xC0:
                take(now, socket_id, remote, buffer, stride)

        monkeypatch.setattr(server, "handle_datagrams", handle)
        party.open()
        anna, cleo = party.friend("anna", kind=HARD), party.friend("cleo", kind="open", carries=True)
        for each in party.friends:
            each.claim(party.creator.code)
        party.world.run_until(lambda: party.is_whole() and all(_is_direct(anna, each) for each in (cleo, party.creator)), 60)
        shut.add(next(iter(anna.host.realm.gateways.values())).box.host)
        ben = party.friend("ben", kind=HARD)
        ben.claim(party.creator.code)
        party.world.run_until(lambda: "ben" in anna.online and "anna" in ben.online, 60)
        [channel] = cleo.endpoint.carrying.pairs
        assert connection(anna, ben).current_path.key.prefix == channel


def _is_direct(one: MemberNode, other: MemberNode) -> bool:
    return connection(one, other).current_path.kind is PathKind.DIRECT


def test_whoever_carries_sees_what_two_others_have_sealed_and_nothing_of_it() -> None:
    secret = b"nobody but ben shall read this" * 20
    with Party(kind="open") as party:
        three = Trio(party, "cleo")
        three.silence_server()
        party.world.run_until(lambda: three.is_carried_by("cleo"), 60)
        cleo = three.others["cleo"]
        seen: list[bytes] = []
        take = cleo.endpoint.handle_batch

        def handle(now: Instant, socket_id: SocketId, remote: Address, buffer: memoryview, stride: int, ecn: int = 0) -> bool:
            seen.append(bytes(buffer))
            return take(now, socket_id, remote, buffer, stride, ecn)

        cleo.endpoint.handle_batch = handle  # type: ignore[method-assign]
        three.say(secret)
        carried = [data for data in seen if data[:8] in cleo.endpoint.carrying.pairs]
        assert sum(map(len, carried)) > len(secret)
        assert not any(secret[:16] in data for data in seen)
        indices = {index for two in ((three.anna, three.ben), (three.ben, three.anna)) for index in connection(*two).indices()}
        assert not indices & set(cleo.endpoint._context.demux.peerings)


def test_what_a_carrier_changes_is_dropped() -> None:
    with Party(kind="open") as party:
        three = Trio(party, "cleo")
        three.silence_server()
        party.world.run_until(lambda: three.is_carried_by("cleo"), 60)
        carrying = three.others["cleo"].endpoint.carrying
        poll = carrying.poll_transmit
        spoiled = 0

        def worse() -> Any:
            nonlocal spoiled
            burst = poll()
            if burst is None or spoiled >= 10:
                return burst
            spoiled += 1
            data = bytearray(burst.buffer)
            data[-1] ^= 1
            return burst._replace(buffer=memoryview(data))

        carrying.poll_transmit = worse  # type: ignore[method-assign]
        three.say(b"as it was said" * 50)
        assert spoiled == 10
        assert three.pair.drops.total() + connection(three.ben, three.anna).drops.total() >= 10


def nearer(message: messages.RoomMessage) -> messages.RoomMessage:
    return messages.Reach(tuple((host, 0) for host, _ in message.links)) if isinstance(message, messages.Reach) else message


def test_the_nearest_to_both_is_asked_whatever_another_one_says_of_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """dora says that she is next to everybody; that she is far from the one who asks is seen by that one."""
    with Party(kind="open") as party:
        three = Trio(party, "cleo", "dora")
        dora = three.others["dora"]
        for one, way in ((three.anna, 0.090), (three.ben, 0.040)):
            for link in ((one.host, dora.host), (dora.host, one.host)):
                party.world.set_link(*link, Link(delay=Seconds(way)))
        tell = dora.room.say
        monkeypatch.setattr(dora.room, "say", lambda static, message: tell(static, nearer(message)))
        party.world.run(20.0)
        three.silence_server()
        assert three.who_carries() == "cleo"
        assert three.pair.current_path.smoothed_rtt < 0.060


def test_a_slow_relay_is_left_for_a_member_that_is_clearly_nearer() -> None:
    with Party(kind="open") as party:
        three = Trio(party, "cleo", to_server=0.150)
        took = party.world.run_until(lambda: three.is_carried_by("cleo"), 120)
        assert took >= RELAYED_FOR / 2
        assert three.pair.current_path.smoothed_rtt < 0.2


def test_a_relay_that_is_about_as_fast_is_kept() -> None:
    with Party(kind="open") as party:
        three = Trio(party, "cleo")
        party.world.run(120.0)
        assert three.is_met()
        assert not three.others["cleo"].endpoint.carrying.pairs


@pytest.mark.parametrize("is_killed", [False, True])
def test_when_the_one_who_carries_leaves_another_one_takes_over(is_killed: bool) -> None:
    with Party(kind="open") as party:
        three = Trio(party, "cleo", "dora")
        three.silence_server()
        first = three.who_carries()
        second = "dora" if first == "cleo" else "cleo"
        party.world.run(10.0)
        begun = party.world.now
        if is_killed:
            three.others[first].kill()
            stream = three.pair.open_stream()
            three.pair.stream_write(stream, bytes(1000))  # something is under way, as in a game
            party.world.touch(three.anna.host)
        else:
            three.others[first].quit()
        party.world.run_until(lambda: three.is_carried_by(second), 60)
        assert party.world.now - begun < 15.0
        three.say(b"by way of the other one")


def test_a_pair_that_has_a_direct_path_gives_its_channel_back() -> None:
    with Party(kind="open") as party:
        three = Trio(party, "cleo")
        three.silence_server()
        party.world.run_until(lambda: three.is_carried_by("cleo"), 60)
        for node in (three.anna, three.ben):
            box = next(iter(node.host.realm.gateways.values())).box
            box.behaviour = SITES["full"][0]  # another router, a kinder one
            party.world.flush_mappings(node.host.realm)
        party.world.run(60.0)  # until all links go on
        cleo = three.others["cleo"]
        for one, other in ((three.anna, three.ben), (three.ben, three.anna)):
            where = connection(cleo, other).current_path.key.remote
            connection(one, other).challenge(party.world.now, PathKey(FIRST, where), PathKind.DIRECT)
            party.world.touch(one.host)
        party.world.run_until(lambda: three.is_met() and three.pair.current_path.kind is PathKind.DIRECT, 60)
        party.world.run(RELEASED_AFTER + 10.0)
        assert not three.others["cleo"].endpoint.carrying.pairs
        assert three.is_met()
        assert three.pair.current_path.kind is PathKind.DIRECT


def test_a_member_carries_for_so_many_pairs_of_one_and_no_more() -> None:
    with Party(kind="open") as party:
        three = Trio(party, "cleo")
        cleo = three.others["cleo"]
        office = cleo.members.detours
        carrying, now = cleo.endpoint.carrying, party.world.now
        for number in range(PAIRS_OF_ONE):
            assert carrying.open(now, three.anna.static, bytes((number,)) * 32) is not None
        host = three.ben.room.me.host  # type: ignore[union-attr]
        office._on_carry(now, three.anna.static, host, is_wanted=True)
        assert carrying.of(three.anna.static, three.ben.static) is None
        assert cleo.room.drops["members that we do not carry for"] == 1
        for number in range(MAX_CARRIED):
            carrying.open(now, bytes((number, 1)) * 16, bytes((number, 2)) * 16)
        assert len(carrying.pairs) == MAX_CARRIED
        assert carrying.open(now, three.ben.static, three.anna.static) is None


def test_whom_a_carrier_reaches_is_told_when_it_changes_and_not_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with Party(kind="open") as party:
        three = Trio(party, "cleo", plain=("dora",))
        cleo, told = three.others["cleo"], []
        say = cleo.room.say

        def listen(static: bytes, message: messages.RoomMessage) -> None:
            if isinstance(message, messages.Reach) and static == three.anna.static:
                told.append((party.world.now, {host for host, _ in message.links}))
            say(static, message)

        monkeypatch.setattr(cleo.room, "say", listen)
        party.world.run(60.0)
        told.clear()
        party.world.run(60.0)
        assert told == []
        three.others["dora"].quit()
        party.world.run(REACH_INTERVAL + 2.0)
        party.friend("late", kind="open").claim(party.creator.code)
        party.world.run(30.0)
        assert len(told) >= 2
        assert all(after[0] - before[0] >= REACH_INTERVAL for before, after in itertools.pairwise(told))


def test_a_channel_that_nobody_asked_for_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with Party(kind="open") as party:
        three = Trio(party, plain=("cleo",))
        cleo = three.others["cleo"]
        asker, other = (three.anna, three.ben) if three.anna.room.dials(three.ben.static) else (three.ben, three.anna)
        before = set(connection(asker, other).paths)
        assert other.room.me is not None
        cleo.room.say(asker.static, messages.Carried(other.room.me.host, b"\xff" * 8))
        cleo.hear(party.world.now)
        party.world.touch(cleo.host)
        party.world.run(5.0)
        assert asker.room.drops["channel that nobody asked for"] == 1
        assert set(connection(asker, other).paths) == before


def test_what_is_carried_has_a_rate_and_comes_from_nobody_else() -> None:
    with Party(kind="open") as party:
        three = Trio(party, "cleo")
        three.silence_server()
        party.world.run_until(lambda: three.is_carried_by("cleo"), 60)
        cleo = three.others["cleo"]
        carrying, endpoint, now = cleo.endpoint.carrying, cleo.endpoint, party.world.now
        [pair] = carrying.pairs.values()
        anna: Peering | None = cleo.members.peering(three.anna.static)
        assert anna is not None
        assert anna.connection is not None
        key: PathKey = anna.connection.current_path.key
        data = memoryview(pair.channel + bytes(1_192))
        before = carrying.bytes
        endpoint.handle_batch(now, key.socket_id, Address("3.3.3.3", 33), data, len(data))
        assert endpoint.drops["carried from elsewhere"] == 1
        assert carrying.bytes == before
        for _ in range(3 * CARRIED_BURST // len(data)):
            endpoint.handle_batch(now, key.socket_id, key.remote, data, len(data))
            while carrying.poll_transmit() is not None:
                pass
        assert endpoint.drops["carried over the rate"] > 0
        assert carrying.bytes - before <= CARRIED_BURST

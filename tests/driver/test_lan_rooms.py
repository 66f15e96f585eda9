"""tunnel.lan over real loopback sockets, with an interface that has no kernel behind it."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

import tunnel
from tests.driver.lan import FakeInterface, Player, until
from tests.driver.meeting import a_server
from tunnel.errors import AlreadyRunningError, ConfigurationError, PairingError, PermissionDeniedError
from tunnel.node.peering import CONTROL_ROOM
from tunnel.pairing.code import parse_code
from tunnel.ports.bench import measure
from tunnel.ports.open import Open, encode, read_message
from tunnel.room.core.room import Room
from tunnel.room.core.roster import Member, Roster
from tunnel.room.interface import MAX_SUBNETS, NAMES_INTERVAL, SUBNET_REFILL, Plane, interface_config
from tunnel.shell.events import CodeReady, Listening, MemberReport, Trouble
from tunnel.shell.stream import StreamCode
from tunnel.state.home import Home
from tunnel.state.peers import Peer
from tunnel.state.rooms import Rooms
from tunnel.units import Buffer, Instant

LIMIT = 40


def people(tmp_path: Path, server: str | None, *names: str) -> list[Player]:
    return [Player(tmp_path / name, server, name) for name in names]


async def test_three_meet_by_one_code_get_addresses_and_names_and_see_each_other_go(tmp_path: Path) -> None:
    with trio.fail_after(LIMIT):
        async with a_server() as server:
            anna, ben, cleo = people(tmp_path, server, "Anna", "ben", "cleo")
            async with tunnel.lan.create("Game Night", **anna.options) as room:
                assert room.name == "game-night"
                code = await anna.code()
                assert len(parse_code(code).password.split("-")) == 3
                async with tunnel.lan.join(code, **ben.options) as second:
                    async with tunnel.lan.join(code, **cleo.options) as third:
                        await ben.member("cleo", "online")
                        await cleo.member("ben", "online")
                        await anna.member("cleo", "online")
                        for each in (room, second, third):
                            assert [member.name for member in each.members()] == ["anna", "ben", "cleo"]
                            assert all(member.is_online for member in each.members())
                        roster = room.roster
                        me = next(member for member in third.members() if member.is_me)
                        assert me.name == "cleo"
                        config = cleo.interface.configs[-1]
                        assert config.ipv4 == (me.address, 24)
                        assert config.ipv6 == ((me.ipv6, 64), ("fe80::7074:0:0:3", 64))
                        assert config.mac == "02:70:74:00:00:03"
                        assert set(cleo.interface.names) == {"anna", "ben", "cleo"}
                        assert cleo.interface.names["anna"] == [roster.ipv4(roster.creator), roster.ipv6(roster.creator)]
                        third.plane.interface.device.errors["EINVAL"] += 2
                        status = third.status()
                        assert status["drops"]["interface"] == {"EINVAL": 2}
                        assert status["room"] == "game-night"
                        assert len(status["members"]) == 3
                    await anna.member("cleo", "removed")  # it did not keep the room
                    await ben.member("cleo", "removed")
                    await until(lambda: "cleo" not in ben.interface.names)
                assert cleo.interface.is_closed
    assert not (tmp_path / "Anna" / "peers.json").exists()
    assert not list((tmp_path / "ben" / "rooms").iterdir())


async def test_packets_cross_from_one_interface_to_the_other_and_broadcasts_reach_all(tmp_path: Path) -> None:
    with trio.fail_after(LIMIT):
        async with a_server() as server:
            anna, ben, cleo = people(tmp_path, server, "anna", "ben", "cleo")
            async with (
                tunnel.lan.create(**anna.options) as room,
                tunnel.lan.join(await anna.code(), **ben.options),
                tunnel.lan.join(await anna.code(), **cleo.options),
            ):
                await ben.member("cleo", "online")
                await cleo.member("ben", "online")
                addresses = {member.name: bytes(map(int, member.address.split("."))) for member in room.members()}

                def frame(source: bytes, destination: bytes, payload: bytes) -> bytes:
                    udp = struct.pack("!HHHH", 5, 5, 8 + len(payload), 0) + payload
                    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0, source, destination)
                    total = sum(struct.unpack("!10H", head))
                    check = ~(total + (total >> 16)) & 0xFFFF
                    head = head[:10] + struct.pack("!H", check) + head[12:]
                    return bytes(10) + bytes(12) + b"\x08\x00" + head + udp

                async def arrives(player: Player, payload: bytes) -> None:
                    await until(lambda: any(bytes(each).endswith(payload) for each in player.interface.device.written))

                assert ben.interface.device.send_from_host(frame(addresses["ben"], addresses["cleo"], b"to cleo"))
                await arrives(cleo, b"to cleo")
                assert ben.interface.device.send_from_host(frame(addresses["ben"], b"\xff" * 4, b"to all"))
                await arrives(cleo, b"to all")
                await arrives(anna, b"to all")
                assert not any(bytes(each).endswith(b"to cleo") for each in anna.interface.device.written)


async def test_a_kept_room_is_the_same_after_a_restart_of_everybody_and_needs_no_code(tmp_path: Path) -> None:
    with trio.fail_after(LIMIT):
        async with a_server() as server:
            anna, ben = people(tmp_path, server, "anna", "ben")
            async with tunnel.lan.create("game", keep=True, **anna.options) as room:
                async with tunnel.lan.join(await anna.code(), keep=True, **ben.options):
                    pass
                before = room.roster
            assert Rooms(Home(tmp_path / "ben")).names() == ["game"]
            ben.options["server"] = None
            async with (
                tunnel.lan.create("game", **anna.options) as room,
                tunnel.lan.join(room="game", **ben.options) as second,
            ):
                assert room.roster == second.roster == before
                await anna.member("ben", "online")
                with pytest.raises(AlreadyRunningError):
                    async with tunnel.lan.join(room="game", **ben.options):
                        pass
            with pytest.raises(ConfigurationError, match="is yours"):
                async with tunnel.lan.join(room="game", **anna.options):
                    pass
            with pytest.raises(ConfigurationError, match="You are a member of a room game"):
                async with tunnel.lan.create("game", **ben.options):
                    pass


async def test_a_removed_member_is_told_and_its_kept_room_is_forgotten(tmp_path: Path) -> None:
    with trio.fail_after(LIMIT):
        async with a_server() as server:
            anna, ben = people(tmp_path, server, "anna", "ben")
            async with tunnel.lan.create("game", **anna.options) as room:
                first = await anna.code()
                async with tunnel.lan.join(first, keep=True, **ben.options) as second:
                    with pytest.raises(ConfigurationError, match="No member is called"):
                        room.remove("zoe")
                    assert room.remove("ben") == "ben"
                    with pytest.raises(PermissionDeniedError, match="removed"):
                        await second.run()
                await anna.member("ben", "removed")
                await anna.wait(lambda event: isinstance(event, CodeReady) and event.code != first)
                with pytest.raises(PairingError):
                    async with tunnel.lan.join(first, **ben.options):
                        pass
    assert Rooms(Home(tmp_path / "ben")).names() == []


async def test_a_member_reaches_no_port_by_its_connection_and_may_measure_it(tmp_path: Path) -> None:
    with trio.fail_after(LIMIT):
        async with a_server() as server:
            anna, ben = people(tmp_path, server, "anna", "ben")
            async with (
                tunnel.lan.create(**anna.options) as room,
                tunnel.lan.join(await anna.code(), **ben.options) as second,
            ):
                await anna.member("ben", "online")
                for side in (room, second):
                    (link,) = side.links
                    assert not link.grants
                    stream = await link.open_stream(encode(Open("tcp", 22)))
                    with pytest.raises(tunnel.StreamResetError) as refusal:
                        await read_message(stream)
                    assert refusal.value.code == StreamCode.DENIED
                    assert await link.ping() > 0
                results = []

                async def say(result: dict[str, Any]) -> None:
                    results.append(result)

                await measure(room.links[0], 0.1, say)
                assert {"rtt", "stream", "datagrams"} <= {result["what"] for result in results}


async def test_what_one_members_message_makes_us_raise_ends_its_link_and_nobody_elses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with trio.fail_after(LIMIT):
        async with a_server() as server:
            anna, ben, cleo = people(tmp_path, server, "anna", "ben", "cleo")
            async with (
                tunnel.lan.create(**anna.options) as room,
                tunnel.lan.join(await anna.code(), **ben.options) as second,
                tunnel.lan.join(await anna.code(), **cleo.options),
            ):
                await cleo.member("ben", "online")
                await ben.member("cleo", "online")
                handle_message = Room.handle_message
                statics = {member.name: member.static for member in room.roster.members}

                def with_a_fault(self: Room, now: Instant, static: bytes, body: Buffer) -> None:
                    if static == statics["ben"] and self.static == statics["anna"]:
                        raise KeyError("of a bug")
                    handle_message(self, now, static, body)

                monkeypatch.setattr(Room, "handle_message", with_a_fault)
                bens, cleos = (next(each.link for each in room.members() if each.name == name) for name in ("ben", "cleo"))
                second.links[0]._peering.send_message(CONTROL_ROOM, b"anything")
                second.driver.flush()
                await until(lambda: bens is not None and bens.close_reason is not None)
                monkeypatch.undo()
                assert cleos is not None
                assert cleos.close_reason is None
                assert second.roster == room.roster
                await until(lambda: all(member.is_online for member in room.members()))  # it dials again
                told = [each.message for each in anna.heard if isinstance(each, Trouble)]
                assert [text for text in told if "fault" in text and "ben" in text]
                assert len(told) == 1

                def fall(*_: object) -> None:
                    raise RuntimeError

                monkeypatch.setattr(room, "_report", fall)
                room.remove("ben")  # the event of its removal meets the fault
                await cleo.member("ben", "removed")
                assert room.driver.faults.counts["room"]
                assert [member.name for member in room.members()] == ["anna", "cleo"]


async def test_a_wrong_code_is_told_to_both(tmp_path: Path) -> None:
    with trio.fail_after(LIMIT):
        async with a_server() as server:
            anna, ben = people(tmp_path, server, "anna", "ben")
            async with tunnel.lan.create(**anna.options):
                code = await anna.code()
                wrong = f"{code.partition('-')[0]}-zoo-zoo-zone"
                with pytest.raises(PairingError, match="wrong"):
                    async with tunnel.lan.join(wrong, **ben.options):
                        pass
                trouble = await anna.wait(lambda event: isinstance(event, Trouble) and event.code == "wrong_code")
                assert "4 more" in trouble.message  # type: ignore[union-attr]
                async with tunnel.lan.join(code, **ben.options):
                    pass
    assert [interface.is_closed for interface in ben.interfaces] == [True, True]


async def test_a_remembered_peer_that_is_invited_joins_by_name(tmp_path: Path) -> None:
    with trio.fail_after(LIMIT):
        async with a_server() as server:
            anna, ben = people(tmp_path, server, "anna", "ben")
            homes = {name: Home(tmp_path / name) for name in ("anna", "ben")}
            statics = {name: public_of(home) for name, home in homes.items()}
            for name, other in (("anna", "ben"), ("ben", "anna")):
                homes[name].save_peer(Peer(name=other, static=statics[other], psk=bytes(32), server=server))
            ben.options["server"] = None
            async with (
                tunnel.lan.create(to=["ben"], **anna.options),
                tunnel.lan.join(peer="anna", keep=True, **ben.options) as second,
            ):
                assert [member.name for member in second.members()] == ["anna", "ben"]
            with pytest.raises(ConfigurationError, match="No peer called"):
                async with tunnel.lan.create(to=["zoe"], **anna.options):
                    pass


async def test_whoever_waits_for_an_invitation_is_told_what_is_missing(tmp_path: Path) -> None:
    with trio.fail_after(LIMIT):
        async with a_server() as server:
            (ben,) = people(tmp_path, server, "ben")
            Home(tmp_path / "ben").save_peer(Peer(name="anna", static=b"\x09" + bytes(31), psk=bytes(32), server=server))
            async with trio.open_nursery() as nursery:

                async def wait() -> None:
                    async with tunnel.lan.join(peer="anna", **ben.options):
                        raise AssertionError("there is no room")

                nursery.start_soon(wait)
                event = await ben.wait(lambda event: isinstance(event, Trouble) and event.code == "peer_absent")
                assert "lan create --to" in event.message  # type: ignore[union-attr]
                nursery.cancel_scope.cancel()
    assert ben.interface.is_closed


def public_of(home: Home) -> bytes:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    return X25519PrivateKey.from_private_bytes(home.identity()).public_key().public_bytes_raw()


async def test_without_a_server_the_creator_runs_one_at_which_members_meet_each_other_too(tmp_path: Path) -> None:
    with trio.fail_after(LIMIT):
        anna, ben, cleo = people(tmp_path, None, "anna", "ben", "cleo")
        async with tunnel.lan.create("game", keep=True, **anna.options) as room:
            listening = await anna.wait(lambda event: isinstance(event, Listening))
            assert isinstance(listening, Listening)
            assert listening.embedded
            for player in (ben, cleo):
                player.options["server"] = listening.bind
            code = await anna.code()
            async with tunnel.lan.join(code, **ben.options), tunnel.lan.join(code, **cleo.options):
                await ben.member("cleo", "online")
            server = room.server
        async with tunnel.lan.create("game", **anna.options) as room:
            assert room.server == server
            assert room.is_embedded


async def test_a_member_whose_own_network_is_the_rooms_looks_again_what_its_interface_may_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether or not the creator chooses another subnet: this one never does."""
    monkeypatch.setattr("tunnel.room.verbs.ROUTES_INTERVAL", 0.05)
    monkeypatch.setattr("tunnel.room.core.creator.Creator.renumber", lambda *_: None)
    with trio.fail_after(LIMIT):
        async with a_server() as server:
            anna, ben = people(tmp_path, server, "anna", "ben")
            async with tunnel.lan.create(**anna.options), tunnel.lan.join(await anna.code(), **ben.options) as second:
                count = len(ben.interface.configs)
                ben.routes = [f"{second.members()[1].address.rpartition('.')[0]}.0/24"]
                await until(lambda: len(ben.interface.configs) > count)
                ben.routes = []
                await until(lambda: len(ben.interface.configs) > count + 1)


async def test_a_clash_with_a_members_network_renumbers_every_interface(tmp_path: Path) -> None:
    with trio.fail_after(LIMIT):
        async with a_server() as server:
            anna, ben, cleo = people(tmp_path, server, "anna", "ben", "cleo")
            async with (
                tunnel.lan.create(**anna.options) as room,
                tunnel.lan.join(await anna.code(), **ben.options),
            ):
                before = next(member.address for member in room.members() if member.is_me)
                cleo.routes = [f"{before.rpartition('.')[0]}.0/24"]
                async with tunnel.lan.join(await anna.code(), **cleo.options):
                    await ben.wait(
                        lambda event: (
                            isinstance(event, MemberReport)
                            and event.peer == "anna"
                            and event.state == "online"
                            and event.address != before
                        )
                    )
                    await until(lambda: ben.interface.configs[-1].ipv4 == (room.members()[1].address, 24))


async def test_an_interface_that_is_refused_costs_no_code_and_no_trouble(tmp_path: Path) -> None:
    with trio.fail_after(LIMIT):
        async with a_server() as server:
            anna, ben = people(tmp_path, server, "anna", "ben")

            async def refuse(_config: object) -> None:
                raise ConfigurationError("needs privilege")

            async with tunnel.lan.create(**anna.options):
                code = await anna.code()
                with pytest.raises(ConfigurationError, match="needs privilege"):
                    async with tunnel.lan.join(code, **{**ben.options, "interface": refuse}):
                        pass
                async with tunnel.lan.join(code, **ben.options):
                    pass
                assert not [event for event in anna.heard if isinstance(event, Trouble)]


async def test_join_wants_exactly_one_way_in(tmp_path: Path) -> None:
    (anna,) = people(tmp_path, None, "anna")
    both: dict[str, Any] = {"code": "731-zoo-zoo-zoo", "peer": "x"}
    for ways in ({}, both):
        with pytest.raises(ConfigurationError, match="one of the three"):
            async with tunnel.lan.join(**ways, **anna.options):
                pass
    with pytest.raises(ConfigurationError, match="No room called"):
        async with tunnel.lan.join(room="game", **anna.options):
            pass
    with pytest.raises(ConfigurationError, match="No server is configured"):
        async with tunnel.lan.join("731-zoo-zoo-zoo", **anna.options):
            pass


async def test_a_room_that_changes_its_addresses_all_the_time_does_not_keep_the_machine_busy(autojump_clock: object) -> None:
    mine, other = Member(bytes(32), "ben", 2), Member(b"a" * 32, "anna", 1)
    roster = Roster(
        room=bytes(32), version=1, epoch=1, name="lan", subnet=bytes((10, 1, 0, 0)), ula=b"\xfd" + bytes(7), commitment=bytes(32),
        members=(other, mine),
    )  # fmt: skip
    interface = FakeInterface(interface_config(None, None))
    said: list[str] = []
    plane = Plane(interface, lambda: Instant(trio.current_time()), said.append)

    def subnets() -> list[object]:
        return [config.ipv4[0] for config in interface.configs if config.ipv4 is not None]

    async with trio.open_nursery() as nursery:
        nursery.start_soon(plane.run)
        for number in range(200):
            plane.set_roster(msgspec.structs.replace(roster, subnet=bytes((10, 2, number, 0))), mine)
            await trio.sleep(0.2)
        assert len(subnets()) == MAX_SUBNETS + 1  # the first is no change
        assert len(said) == 1
        assert "again and again" in said[0]
        plane.look_again()  # this machine has joined a network: what it has now is looked at, without another subnet
        await trio.sleep(2.0)
        assert len(subnets()) == MAX_SUBNETS + 2
        assert subnets()[-1] == subnets()[-2]
        assert subnets()[-1] != "10.2.199.2"
        await trio.sleep(SUBNET_REFILL)
        assert subnets()[-1] == "10.2.199.2"
        assert len(said) == 1
        nursery.cancel_scope.cancel()


async def test_names_that_another_program_took_away_are_there_again_after_a_minute(autojump_clock: object) -> None:
    """As whatever manages /etc/hosts for its owner does: it writes the file as it knows it."""
    mine, other = Member(bytes(32), "ben", 2), Member(b"a" * 32, "anna", 1)
    roster = Roster(
        room=bytes(32), version=1, epoch=1, name="lan", subnet=bytes((10, 1, 0, 0)), ula=b"\xfd" + bytes(7), commitment=bytes(32),
        members=(other, mine),
    )  # fmt: skip
    interface = FakeInterface(interface_config(None, None))
    plane = Plane(interface, lambda: Instant(trio.current_time()), lambda _text: None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(plane.run)
        plane.set_roster(roster, mine)
        for _ in range(3):
            await trio.sleep(5.0)
            assert set(interface.names) == {"anna", "ben"}
            interface.names = {}
            await trio.sleep(NAMES_INTERVAL)
        assert len(interface.configs) == 2  # the first, and the roster's: nothing else is done again
        nursery.cancel_scope.cancel()


async def test_what_the_machine_would_not_do_is_told_once_and_again_when_it_comes_back(autojump_clock: object) -> None:
    mine, other = Member(bytes(32), "ben", 2), Member(b"a" * 32, "anna", 1)
    roster = Roster(
        room=bytes(32), version=1, epoch=1, name="lan", subnet=bytes((10, 1, 0, 0)), ula=b"\xfd" + bytes(7), commitment=bytes(32),
        members=(other, mine),
    )  # fmt: skip

    class Grumbling(FakeInterface):
        async def renumber(self, config: object) -> list[str]:
            return list(self.facts)

        async def set_names(self, names: object) -> None:
            if self.refuses:
                raise ConfigurationError("hosts is read-only.")

    interface = Grumbling(interface_config(None, None))
    interface.facts, interface.refuses, interface.shut = ["IPv6 is off."], True, "A firewall."
    said: list[str] = []
    plane = Plane(interface, lambda: Instant(trio.current_time()), said.append)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(plane.run)
        for number in range(3):
            plane.set_roster(
                msgspec.structs.replace(roster, members=(other, msgspec.structs.replace(mine, name=f"b{number}"))), mine
            )
            plane.look_again()
            await trio.sleep(5.0)
        assert said == ["IPv6 is off.", "hosts is read-only.", "A firewall."]
        interface.facts, interface.refuses, interface.shut = [], False, None
        plane.look_again()
        await trio.sleep(5.0)
        interface.facts, interface.refuses, interface.shut = ["IPv6 is off."], True, "A firewall."
        plane.look_again()
        await trio.sleep(5.0)
        assert said == ["IPv6 is off.", "hosts is read-only.", "A firewall."] * 2
        nursery.cancel_scope.cancel()

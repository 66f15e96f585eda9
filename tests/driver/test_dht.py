"""The doctor asks nodes of the DHT over real sockets, on addresses of the loopback network that count as different ones."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

import tunnel
from tests.driver.meeting import Heard
from tests.sim.dht import Node, World, packed
from tests.unit.dht.test_route import deceiver
from tunnel.dht.bencode import Value, decode_value, encode_value
from tunnel.dht.ledger import MAX_UNANSWERED
from tunnel.dht.lookup import CLOSEST
from tunnel.dht.meeting import MAX_CHECKS
from tunnel.dht.stretch import Stretch
from tunnel.errors import ConfigurationError, ServerUnreachableError
from tunnel.events import Trouble
from tunnel.faults import Faults
from tunnel.nat.behaviour import Mapping
from tunnel.nat.report import Findings, PortMapFindings, Ports
from tunnel.server_spec import DHT, MAX_ENTRY, split_entry
from tunnel.settings import load
from tunnel.shell.dht import DhtExamination, examine_dht, find_entry
from tunnel.shell.dht_door import MAX_HASHES, NOTICE, DhtDoor
from tunnel.state.config_file import read_config
from tunnel.state.home import Home
from tunnel.units import Address, Instant, Seconds

PATIENCE = 45.0
NODES = 10
Lie = Callable[[World, Node, dict[bytes, Value], Address], "dict[bytes, Value] | None"]


@asynccontextmanager
async def a_dht(nodes: int = NODES, *, lies: Sequence[Lie] = ()) -> AsyncIterator[list[Address]]:
    """Real sockets before the nodes of the simulated DHT, of which the last ones lie."""
    world = World()
    sockets = []
    for number in range(nodes):
        sock = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)
        await sock.bind((f"127.{10 + number}.0.1", 0))
        sockets.append(sock)
        world.add_node(Address(*sock.getsockname()))

    async def serve(node: Node, sock: trio.socket.SocketType) -> None:
        while True:
            data, source = await sock.recvfrom(2_048)
            question = decode_value(data)
            assert isinstance(question, dict)
            place = Address(*source[:2])
            lie = node.lie(world, node, question, place) if node.lie is not None else None
            await sock.sendto(encode_value(world.reply(node, question, place) if lie is None else lie), source)

    for node, lie in zip(reversed(world.nodes.values()), lies, strict=False):
        node.lie = lie
    try:
        async with trio.open_nursery() as nursery:
            for node, sock in zip(list(world.nodes.values()), sockets, strict=True):
                nursery.start_soon(serve, node, sock)
            yield list(world.nodes)
            nursery.cancel_scope.cancel()
    finally:
        for sock in sockets:
            sock.close()


async def test_the_doctor_asks_nodes_that_it_heard_of() -> None:
    async with a_dht(CLOSEST) as addresses:
        with trio.fail_after(PATIENCE):
            found = await examine_dht(f"{addresses[0]}, {addresses[1]}", portmap=False)
    assert found.is_reached
    assert found.views == (CLOSEST, 0)
    assert found.ipv4.mapping is Mapping.ENDPOINT_INDEPENDENT
    assert found.to_dict()["views"] == {"ipv4": CLOSEST, "ipv6": 0}
    assert any(f"Nodes in {CLOSEST} networks were asked." in sentence for sentence in found.sentences())


async def test_entry_nodes_without_an_address_are_passed_over_and_none_at_all_is_said() -> None:
    with trio.fail_after(PATIENCE):
        assert await find_entry("nowhere.invalid:6881, 127.0.0.1:7") == [Address("127.0.0.1", 7)]
        with pytest.raises(ServerUnreachableError, match=r"dht_bootstrap"):
            await find_entry("nowhere.invalid:6881")


def test_entry_nodes_are_a_text_or_a_list_and_not_too_many() -> None:
    assert load({"dht_bootstrap": ["a.example:1", "b.example"]}, {}).dht_bootstrap == "a.example:1,b.example"
    assert load(read_config(b'dht_bootstrap = ["a.example:1"]', "config.toml"), {}).dht_bootstrap == "a.example:1"
    assert split_entry("a.example:1, [3fff::1]:2,b.example", "x") == [("a.example", 1), ("3fff::1", 2), ("b.example", 6881)]
    for wrong in ("", ",", "a b", ",".join(["a.example"] * (MAX_ENTRY + 1))):
        with pytest.raises(ConfigurationError):
            split_entry(wrong, "dht_bootstrap")
    with pytest.raises(ConfigurationError):
        load({"dht_bootstrap": ["a.example", 7]}, {})


def seen(mapping: Mapping, ports: Ports = Ports.UNKNOWN, *, own: str = "192.168.1.7", is_ipv6: bool = False) -> Findings:
    return Findings(
        is_ipv6=is_ipv6, own=own, server=Address("44.1.1.1", 6_881), round_trip=Seconds(0.05), mapping=mapping, ports=ports,
        seen=None if mapping is Mapping.UNKNOWN else Address("198.18.0.7", 4_000),
    )  # fmt: skip


NOBODY = Findings(is_ipv6=False, own="192.168.1.7", server=Address("44.1.1.1", 6_881))
NO_IPV6 = Findings(is_ipv6=True)


@pytest.mark.parametrize(
    ("ipv4", "words"),
    [
        (seen(Mapping.ENDPOINT_INDEPENDENT), ["Direct paths to nearly every peer", "one port for all destinations"]),
        (seen(Mapping.ENDPOINT_INDEPENDENT, own="198.18.0.7"), ["Direct paths to nearly every peer", "has a public address"]),
        (seen(Mapping.DEPENDENT, Ports.SEQUENTIAL), ["the next port is foretold", "one after the other"]),
        (seen(Mapping.DEPENDENT, Ports.RANDOM), ["lets strangers in, and the DHT has no relay", "by chance"]),
        (seen(Mapping.UNKNOWN), ["too few of them say where", "Fewer than 3 nodes"]),
        (NOBODY, ["No node of the DHT answers", "No node of the DHT answers over IPv4"]),
        (Findings(is_ipv6=False, own="192.168.1.7"), ["No node of the DHT answers", "has an IPv4 address"]),
    ],
)
def test_what_the_nodes_show_is_said_in_sentences(ipv4: Findings, words: list[str]) -> None:
    found = DhtExamination(server=DHT, ipv4=ipv4, ipv6=NO_IPV6, portmap=None, views=(9, 0))
    summary, sentence = found.sentences()[:2]
    assert (words[0] in summary, words[1] in sentence) == (True, True), found.sentences()
    assert "server" not in sentence


def test_a_mapped_port_is_better_than_any_mapping() -> None:
    mapped = PortMapFindings(protocol="pcp", external=Address("198.18.0.7", 4_000), is_public=True)
    found = DhtExamination(server=DHT, ipv4=seen(Mapping.DEPENDENT), ipv6=NO_IPV6, portmap=mapped, views=(9, 0))
    assert found.summary == "Direct paths to nearly every peer: the router maps a port."


async def test_slow_hashes_are_computed_one_at_a_time_and_beside_everything_else() -> None:
    running, most = 0, 0

    class Core:
        def has_server(self, _name: str) -> bool:
            return False

        def add_client(self, *_rest: object) -> None:
            pass

        def touch(self, _now: Instant) -> None:
            pass

    def slow(order: Stretch) -> bytes:
        nonlocal running, most
        running += 1
        most = max(most, running)
        time.sleep(0.05)
        running -= 1
        return bytes(32)

    door = DhtDoor(
        Core(), {}, "127.0.0.1:6881", clock=lambda: Instant(0.0), flush=lambda: None, faults=Faults(), stretch=slow  # type: ignore[arg-type]
    )  # fmt: skip
    async with trio.open_nursery() as nursery:
        door.start(nursery)
        with trio.fail_after(PATIENCE):
            await door.open()
            route = door._route
            assert route is not None
            route.claim(Instant(0.0), 12_345_678, b"")
            for _ in range(3):
                route.allocate(Instant(0.0))
    assert most == MAX_HASHES


async def test_two_programs_meet_by_a_code_and_again_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with a_dht() as addresses:
        monkeypatch.setenv("PTUNNEL_DHT_BOOTSTRAP", f"{addresses[0]},{addresses[1]}")
        heard, told = Heard(), Heard()
        with trio.fail_after(PATIENCE):
            async with tunnel.expose("22", server=DHT, home=tmp_path / "home", name="home", on_event=heard):
                for code in (await heard.code(), None):
                    async with tunnel.connect(code, server=DHT, home=tmp_path / "friend", name="friend", on_event=told) as link:
                        await link.ping()
                        assert link.status().kind == "direct"
                said = [each.message for each in told if isinstance(each, Trouble) and each.code == "strangers"]
                assert said == [NOTICE] * 2
                with pytest.raises(ConfigurationError, match=r"no relay without a server"):
                    async with tunnel.connect(server=DHT, home=tmp_path / "friend", path="relay"):
                        pass


VICTIM = "127.99.0.1"


def aiming_at(ports: Sequence[int]) -> Lie:
    """Whoever is sought is the victim, and all nodes that are closer are, too."""

    def lie(_at: World, node: Node, question: dict[bytes, Value], source: Address) -> dict[bytes, Value]:
        arguments = question[b"a"]
        assert isinstance(arguments, dict)
        target = arguments.get(b"target", arguments.get(b"info_hash"))
        assert isinstance(target, bytes)
        places = [packed(Address(VICTIM, port)) for port in ports]
        nodes = b"".join(target[:18] + each[4:6] + each for each in places)
        answer: dict[bytes, Value] = {b"id": node.id, b"token": b"x", b"values": list(places), b"nodes": nodes}
        return {b"t": question[b"t"], b"y": b"r", b"ip": packed(source), b"r": answer}

    return lie


def huge(_at: World, node: Node, question: dict[bytes, Value], _source: Address) -> dict[bytes, Value]:
    return {b"t": question[b"t"], b"y": b"r", b"r": {b"id": node.id, b"nodes": bytes(26 * 2_000)}}


def with_tokens(at: World, node: Node, question: dict[bytes, Value], source: Address) -> dict[bytes, Value] | None:
    """A token that would have us send a kilobyte."""
    if question[b"q"] != b"get_peers":
        return None
    reply = at.reply(node, question, source)
    answer = reply[b"r"]
    assert isinstance(answer, dict)
    answer[b"token"] = at.rng.randbytes(1_000)
    return reply


async def test_two_programs_meet_though_half_of_the_nodes_lie_and_nobody_is_aimed_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aimed = 0
    victims = []
    for _ in range(40):
        victims.append(trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM))
        await victims[-1].bind((VICTIM, 0))

    async def count(victim: trio.socket.SocketType) -> None:
        nonlocal aimed
        while True:
            await victim.recv(2_048)
            aimed += 1

    aiming = aiming_at([each.getsockname()[1] for each in victims])
    lies = (aiming, deceiver, huge, with_tokens, aiming, deceiver)
    async with a_dht(2 * len(lies), lies=lies) as addresses, trio.open_nursery() as nursery:
        monkeypatch.setenv("PTUNNEL_DHT_BOOTSTRAP", f"{addresses[0]},{addresses[1]},{addresses[-1]}")
        for each in victims:
            nursery.start_soon(count, each)
        heard = Heard()
        with trio.fail_after(PATIENCE):
            async with tunnel.expose("22", server=DHT, home=tmp_path / "home", name="home", on_event=heard):
                for code in (await heard.code(), None):
                    async with tunnel.connect(code, server=DHT, home=tmp_path / "friend", name="friend") as link:
                        await link.ping()
        nursery.cancel_scope.cancel()
    for each in victims:
        each.close()
    assert 0 < aimed <= 3 * (MAX_CHECKS + MAX_UNANSWERED)  # one after the other there were three programs


async def test_nodes_that_answered_lead_into_the_dht_when_those_that_everybody_begins_at_are_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_dht() as addresses:
        monkeypatch.setenv("PTUNNEL_DHT_BOOTSTRAP", f"{addresses[0]},{addresses[1]}")
        heard = Heard()
        with trio.fail_after(PATIENCE):
            async with (
                tunnel.expose("22", server=DHT, home=tmp_path / "home", name="home", on_event=heard),
                tunnel.connect(await heard.code(), server=DHT, home=tmp_path / "friend", name="friend") as link,
            ):
                await link.ping()
            for each in ("home", "friend"):
                assert {node.address for node in Home(tmp_path / each).nodes()} <= set(addresses)
                assert Home(tmp_path / each).nodes()
            monkeypatch.setenv("PTUNNEL_DHT_BOOTSTRAP", "nowhere.invalid:6881")
            async with tunnel.expose(server=DHT, home=tmp_path / "home"), tunnel.connect(home=tmp_path / "friend") as link:
                await link.ping()

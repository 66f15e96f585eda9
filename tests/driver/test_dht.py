"""The doctor asks nodes of the DHT over real sockets, on addresses of the loopback network that count as different ones."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from tests.sim.dht import packed
from tunnel.dht.bencode import Value, decode_value, encode_value
from tunnel.dht.ids import ID_SIZE
from tunnel.errors import ConfigurationError, ServerUnreachableError
from tunnel.nat.behaviour import Mapping
from tunnel.nat.report import Findings, PortMapFindings, Ports
from tunnel.server_spec import DHT, MAX_ENTRY, split_entry
from tunnel.settings import load
from tunnel.shell.dht import DhtExamination, examine_dht, find_entry
from tunnel.shell.servers import Servers
from tunnel.state.config_file import read_config
from tunnel.units import Address, Seconds

PATIENCE = 45.0
NODES = 10


@asynccontextmanager
async def a_dht(nodes: int = NODES) -> AsyncIterator[list[Address]]:
    """Each node knows all others."""
    sockets = []
    for number in range(nodes):
        sock = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)
        await sock.bind((f"127.{10 + number}.0.1", 0))
        sockets.append(sock)
    addresses = [Address(*sock.getsockname()) for sock in sockets]
    ids = [bytes([16 * number]) * ID_SIZE for number in range(nodes)]
    known = b"".join(node_id + packed(address) for node_id, address in zip(ids, addresses, strict=True))

    async def serve(number: int) -> None:
        while True:
            data, source = await sockets[number].recvfrom(2_048)
            question = decode_value(data)
            assert isinstance(question, dict)
            answer: dict[bytes, Value] = {b"id": ids[number], b"nodes": known}
            reply: dict[bytes, Value] = {b"t": question[b"t"], b"y": b"r", b"r": answer, b"ip": packed(Address(*source[:2]))}
            await sockets[number].sendto(encode_value(reply), source)

    async with trio.open_nursery() as nursery:
        for number in range(nodes):
            nursery.start_soon(serve, number)
        yield addresses
        nursery.cancel_scope.cancel()
    for sock in sockets:
        sock.close()


async def test_the_doctor_asks_nodes_that_it_heard_of() -> None:
    async with a_dht() as addresses:
        with trio.fail_after(PATIENCE):
            found = await examine_dht(f"{addresses[0]}, {addresses[1]}", portmap=False)
    assert found.is_reached
    assert found.views == (NODES, 0)
    assert found.ipv4.mapping is Mapping.ENDPOINT_INDEPENDENT
    assert found.to_dict()["views"] == {"ipv4": NODES, "ipv6": 0}
    assert any(f"Nodes in {NODES} networks were asked." in sentence for sentence in found.sentences())


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


async def test_peers_are_not_met_over_the_dht() -> None:
    class Core:
        def has_server(self, _name: str) -> bool:
            return False

    servers = Servers.__new__(Servers)
    servers._core = Core()  # type: ignore[assignment]
    with pytest.raises(ConfigurationError, match=r"name a server"):
        await servers.add(DHT)

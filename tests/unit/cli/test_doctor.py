"""What the doctor says and whom it asks, without a network."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from tunnel.cli.doctor import choose_server, table
from tunnel.cli.main import group
from tunnel.errors import ConfigurationError
from tunnel.nat.behaviour import Filtering, Mapping, explain_view
from tunnel.nat.report import Findings, NetworkKind, PortMapFindings, Ports, describe, describe_portmap
from tunnel.shell.doctor import Examination, advise
from tunnel.state.home import Home
from tunnel.units import Address, Seconds

Remember = Callable[..., object]

SERVER = Address("198.51.100.1", 24_531)
EASY = Findings(
    is_ipv6=False,
    own="192.168.1.2",
    server=SERVER,
    round_trip=Seconds(0.02),
    seen=Address("203.0.113.7", 41_641),
    mapping=Mapping.ENDPOINT_INDEPENDENT,
    filtering=Filtering.ADDRESS_AND_PORT_DEPENDENT,
    ports=Ports.KEPT,
    hairpins=False,
    mtu=1_500,
)
NO_IPV6 = Findings(is_ipv6=True)


def examination(ipv4: Findings = EASY, ipv6: Findings = NO_IPV6, portmap: PortMapFindings | None = None) -> Examination:
    return Examination(server="rv.example.net", ipv4=ipv4, ipv6=ipv6, portmap=portmap)


def test_every_kind_has_its_sentences() -> None:
    for kind in NetworkKind:
        for is_ipv6 in (False, True):
            found = Findings(is_ipv6=is_ipv6, own="192.168.1.2", server=SERVER)
            assert all(sentence.endswith(".") for sentence in describe(found)), kind


def test_the_table_has_a_column_a_family() -> None:
    lines = table(examination())
    assert lines[0].split() == ["IPv4", "IPv6"]
    assert any("endpoint-independent" in line for line in lines)
    assert any(line.startswith("network") and line.split()[1:] == ["nat", "none"] for line in lines)
    assert not any(line.startswith("port mapping") for line in lines)


def test_what_is_found_is_json() -> None:
    found = json.loads(json.dumps(examination().to_dict()))
    assert found["ipv4"]["kind"] == "nat"
    assert found["ipv4"]["seen"] == "203.0.113.7:41641"
    assert found["summary"] == found["sentences"][0]


def test_a_mapped_port_is_good_news_unless_the_provider_translates_too() -> None:
    good = PortMapFindings(protocol="PCP", external=Address("203.0.113.7", 41_641), is_public=True)
    assert "the router maps a port" in examination(portmap=good).summary
    assert "provider" in describe_portmap(PortMapFindings(protocol="PCP", external=Address("100.64.0.7", 1), is_public=False))


def test_a_second_port_that_is_closed_is_no_observation_of_the_router() -> None:
    unknown = replace(EASY, mapping=Mapping.UNKNOWN, second_port=24_532)
    assert unknown.kind is NetworkKind.NAT_UNKNOWN
    text = " ".join(examination(unknown).sentences())
    assert "UDP 24532" in text
    assert "open it" in text
    assert "one port for all" not in text
    assert "nearly every" not in text


@pytest.mark.parametrize(
    ("own", "seen", "kind", "said"),
    [
        ("192.168.1.2", "10.0.0.1", NetworkKind.PROXIED, "sees this computer as 10.0.0.1"),
        ("192.168.1.10", "192.168.1.10", NetworkKind.INSIDE, "runs in this computer's own network"),
    ],
)
def test_a_server_that_cannot_see_us_is_not_believed(own: str, seen: str, kind: NetworkKind, said: str) -> None:
    """A proxy or a container's network before it; or it stands in our own home, where the router's own address leads back."""
    found = replace(EASY, own=own, seen=Address(seen, 41_641), mapping=Mapping.ADDRESS_AND_PORT_DEPENDENT)
    assert found.kind is kind
    text = " ".join(examination(found).sentences())
    assert said in text
    assert "public address" not in text
    assert "new random port" not in text
    assert "nearly every" not in text


@pytest.mark.parametrize("is_own", [False, True])
def test_the_reason_of_a_pair_whose_server_is_blind_stands_alone(is_own: bool) -> None:
    sentences = advise("relay", explain_view("10.0.0.1", is_own), "unknown", "endpoint-independent")
    assert len(sentences) == 1


@pytest.mark.parametrize(
    ("ours", "theirs", "hint"),
    [
        ("address-and-port-dependent", "address-and-port-dependent", "either router"),
        ("address-and-port-dependent", "endpoint-independent", "at this router"),
        ("endpoint-independent", "address-dependent", "the peer's router"),
        ("endpoint-independent", "endpoint-independent", "firewall"),
        ("unknown", "unknown", "firewall"),
    ],
)
def test_a_relayed_pair_gets_a_reason_and_a_remedy(ours: str, theirs: str, hint: str) -> None:
    why, remedy = advise("relay", "because", ours, theirs)
    assert why == "The path is relayed: because." or (hint == "either router" and "both routers" in why)
    assert hint in remedy


def test_a_direct_pair_and_one_that_was_told_to_be_relayed() -> None:
    assert advise("direct", "", "", "", "birthday") == ["The path is direct, found by guessing ports: nothing needs to change."]
    assert "--path auto" in advise("relay", "the path was set to relay", "", "")[1]


def test_without_any_server_the_doctor_asks_for_one() -> None:
    shown = CliRunner().invoke(group, ["doctor"], prog_name="ptunnel")
    problem = shown.exception
    while isinstance(problem, BaseExceptionGroup):
        problem = problem.exceptions[0]
    assert isinstance(problem, ConfigurationError)
    assert "--server" in str(problem)


def test_the_server_asked_is_the_given_one_or_the_peers(home: Path, remember: Remember) -> None:
    remember("home", server="peers.example.net")
    state = Home(home)
    assert choose_server(state, None, "given.example.net") == "given.example.net"
    assert choose_server(state, "home", None) == "peers.example.net"
    assert choose_server(state, None, None) == "peers.example.net"

"""Machines with several addresses: an answer leaves from the one that was asked."""

from __future__ import annotations

import socket

import pytest

from tests.netns.lab import Kind, Lab, Site
from tests.netns.programs import Pair, Ptunnel, UdpEcho, start_server
from tests.netns.site import eventually

PORT = 24_531
WAIT_S = 40.0


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_a_server_without_options_is_met_at_each_of_its_addresses(lab: Lab, family: str) -> None:
    """`ptunnel serve` as the README has it, on a host whose second address is the one that people know."""
    home, friend = lab.add_site("home", "prc", ipv6=True), lab.add_site("friend", "prc", ipv6=True)
    second6 = lab.server.address6.rpartition(":")[0] + ":99"
    lab.server.host.ip(f"addr add {second6}/64 dev eth0 nodad")
    server = Ptunnel(lab, lab.server.host, "serve", "serve")
    server.wait_event("listening")
    first, second = (lab.server.address, lab.second_address) if family == "ipv4" else (lab.server.address6, second6)
    near, far = (f"[{first}]:{PORT}", f"[{second}]:{PORT}") if family == "ipv6" else (f"{first}:{PORT}", f"{second}:{PORT}")
    exposer = Ptunnel(lab, home.host, "expose", "expose", "8000", "--server", far)
    code = exposer.wait_event("code")["code"]
    words = ("connect", "--server", near, "--forward", "8000", "--path", "relay")
    friend_end = Ptunnel(lab, friend.host, "connect", *words, PTUNNEL_CODE=code)
    friend_end.wait_event("paired")
    assert friend_end.wait_event("path")["kind"] == "relay"
    doctor = Ptunnel(lab, friend.host, "doctor", "doctor", "--server", far)
    eventually("the doctor's findings", lambda: any(event["event"] == "doctor" for event in doctor.collect()), 30)


def meet(lab: Lab, home: Site, friend: Site, server: str) -> Ptunnel:
    """Expose at home and connect from the friend's, by a server that is written like this; the connecting one."""
    exposer = Ptunnel(lab, home.host, "expose", "expose", "8000", "--server", server)
    code = exposer.wait_event("code", WAIT_S)["code"]
    connector = Ptunnel(lab, friend.host, "connect", "connect", "--forward", "8000", "--server", server, PTUNNEL_CODE=code)
    connector.wait_event("paired", WAIT_S)
    return connector


@pytest.mark.parametrize("far", ["prc", "sym"])
def test_a_server_in_a_cloud_with_a_private_address_introduces_peers(lab: Lab, far: Kind) -> None:
    """Its provider translates one public address to it, so it knows only the private one."""
    home, friend, cloud = lab.add_site("home", "prc"), lab.add_site("friend", far), lab.add_site("cloud", "prc")
    assert cloud.gateway is not None
    cloud.gateway.nft(
        "table ip cloud { chain inwards { type nat hook prerouting priority dstnat; policy accept; "
        f'iifname "wan" dnat to {cloud.address}; }}; }}'
    )
    Ptunnel(lab, cloud.host, "serve", "serve").wait_event("listening")
    meet(lab, home, friend, cloud.wan).wait_event("path", WAIT_S, kind="direct")


def test_a_name_whose_ipv6_address_leads_nowhere_is_served_by_the_other(lab: Lab) -> None:
    home, friend = lab.add_site("home", "prc", ipv6=True), lab.add_site("friend", "prc", ipv6=True)
    nowhere = lab.server.address6.rpartition(":")[0] + ":dead"
    lab.core.nft(f"add rule inet hole forward ip6 daddr {nowhere} drop")
    for site in (home, friend):
        site.host.be_a_machine(site.name, lab.folder / f"etc-{site.name}")
        with (lab.folder / f"etc-{site.name}" / "hosts").open("a", encoding="ascii") as hosts:
            hosts.write(f"{nowhere}\trv.example.net\n{lab.server.address}\trv.example.net\n")
    Ptunnel(lab, lab.server.host, "serve", "serve").wait_event("listening")
    meet(lab, home, friend, "rv.example.net").wait_event("path", WAIT_S, kind="direct")


def test_a_peer_with_two_public_addresses_is_met(lab: Lab) -> None:
    """What is sent to the second is answered from there, whichever the default route prefers."""
    home, friend = lab.add_site("home", "open"), lab.add_site("friend", "prc")
    home.host.ip(f"addr add 192.88.99.{8 * home.index + 2}/32 dev eth0")
    Ptunnel(lab, lab.server.host, "serve", "serve").wait_event("listening")
    meet(lab, home, friend, lab.server.address).wait_event("path", WAIT_S, kind="direct")


def test_a_udp_forward_on_all_addresses_answers_from_the_one_that_was_asked(lab: Lab) -> None:
    """Of both families; the client is bound to one address of the host and asks at the other, as over two uplinks."""
    home, friend = lab.add_site("home", "prc"), lab.add_site("friend", "prc", ipv6=True)
    start_server(lab)
    UdpEcho(lab, home.host, 7007)
    for address in ("10.77.0.7/24", "10.77.0.8/24", "fd77::7/64", "fd77::8/64"):
        friend.host.ip(f"addr add {address} dev lo{' nodad' if ':' in address else ''}")
    Pair(lab, home, friend, expose=["7007/udp"], forward=["*:5300:7007/udp"])
    for family, near, far in ((socket.AF_INET, "10.77.0.7", "10.77.0.8"), (socket.AF_INET6, "fd77::7", "fd77::8")):
        with friend.host.socket(family, socket.SOCK_DGRAM) as client:
            client.settimeout(10)
            client.bind((near, 0))
            for asked in (far, near, far):
                client.sendto(asked.encode(), (asked, 5300))
                data, answered = client.recvfrom(100)
                assert (data, answered[:2]) == (asked.encode(), (asked, 5300))

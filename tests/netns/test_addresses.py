"""Machines with several addresses: an answer leaves from the one that was asked."""

from __future__ import annotations

import pytest

from tests.netns.lab import Lab
from tests.netns.programs import Ptunnel
from tests.netns.site import eventually

PORT = 24_531


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

"""`ptunnel serve --check --from SERVER` behind real firewalls and NATs: which ports strangers reach, and what helps."""

from __future__ import annotations

import json

import pytest

from tests.netns.lab import Kind, Lab
from tests.netns.programs import SERVER_PORT, Ptunnel, ptunnel, server_address, start_server

DROP = (
    "table inet provider { chain input { type filter hook input priority 0; policy accept; "
    "ct state established,related accept; udp dport %s drop; }; }"
)


def outside(lab: Lab, name: str, *words: str, code: int) -> list[tuple[str, str]]:
    site = lab.sites[name]
    listen = ("--listen", f"{site.address}:{SERVER_PORT}")
    done = ptunnel(site.host, lab.folder / name, "serve", "--check", *listen, "--from", server_address(lab), *words, "--json")
    assert done.returncode == code, (done.stdout, done.stderr)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return [(each["state"], each["message"]) for each in found if each["what"] == "outside"]


@pytest.mark.parametrize(
    ("kind", "code", "word"),
    [("open", 0, "is reached from outside"), ("fw", 2, "the firewall, here or at the provider"), ("prc", 2, "the router before")],
)
def test_a_host_is_told_whether_strangers_reach_it(lab: Lab, kind: Kind, code: int, word: str) -> None:
    lab.add_site("home", kind)
    start_server(lab)
    found = outside(lab, "home", code=code)
    assert len(found) == 2
    assert all(word in message for _, message in found), found


def test_a_port_that_the_machine_itself_drops_is_told_before_the_server_runs_and_while_it_does(lab: Lab) -> None:
    site = lab.add_site("home", "open")
    start_server(lab)
    site.host.nft(DROP % (SERVER_PORT + 1))
    states = [state for state, _ in outside(lab, "home", code=2)]
    assert states == ["ok", "failed"], "the second port alone is closed"
    words = ("serve", "--listen", f"{site.address}:{SERVER_PORT}")
    server = Ptunnel(lab, site.host, "served", *words, home=lab.folder / "home")
    server.wait_event("listening")
    found = outside(lab, "home", code=2)
    assert [state for state, _ in found] == ["ok", "failed"]
    assert str(SERVER_PORT + 1) in found[1][1]

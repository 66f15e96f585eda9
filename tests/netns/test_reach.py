"""Direct paths between real routers, one test for each technique.  Direct is what the core's byte counters say."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest

from tests.netns.lab import Kind, Lab, eventually
from tests.netns.programs import SERVER_PORT, Pair, Ptunnel, environment, http_server, ptunnel, server_address, start_server

CALLER = """
import json, os, sys, trio, tunnel

async def main():
    held, direct = [], 0
    for number in range(100):
        code = os.environ["PTUNNEL_CODE"] if number == 0 else None
        with trio.fail_after(20):
            async with tunnel.connect(code, server=sys.argv[1], home=os.environ["PTUNNEL_HOME"]) as link:
                # Most leave before the search has begun, some in its midst with hundreds of sockets, some with a path.
                with trio.move_on_after(8.0 if number == 0 else 1.2 if number % 10 == 0 else 0.05):
                    await link.wait_direct()
                direct += link.is_direct
        held.append(len(os.listdir("/proc/self/fd")))
    print(json.dumps({"held": held, "direct": direct}))

trio.run(main)
"""


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def meet(lab: Lab, home: Kind, friend: Kind, tmp_path: Path, *, patience: float = 15.0) -> tuple[Pair, float]:
    """Pair two sites and wait for the direct path; returns the seconds from the pairing until then."""
    sites = lab.add_site("home", home), lab.add_site("friend", friend)
    start_server(lab)
    (tmp_path / "page").write_text("hello", encoding="utf-8")
    http_server(lab, sites[0].host, tmp_path)
    pair = Pair(lab, *sites, expose=["8000"], forward=["8000"])
    begun = time.monotonic()
    assert fetch(pair) == "hello"  # over the relay meanwhile
    pair.wait_direct(patience)
    return pair, time.monotonic() - begun


def fetch(pair: Pair) -> str:
    return pair.friend.host.run("curl", "-sS", "--max-time", "5", "http://127.0.0.1:8000/page", check=False).stdout


def goes_direct(pair: Pair) -> None:
    before = pair.went_direct()
    for _ in range(5):
        assert fetch(pair) == "hello"
    assert pair.went_direct() - before > 5 * 300


@pytest.mark.parametrize(("home", "friend"), [("sym", "prc"), ("prc", "sym"), ("sym", "prcrace")])
def test_a_random_mapping_and_a_port_filter_meet_by_birthday(lab: Lab, tmp_path: Path, home: Kind, friend: Kind) -> None:
    pair, took = meet(lab, home, friend, tmp_path)
    goes_direct(pair)
    assert took < 15.0
    # The pool is closed: what is left is what there was, and the socket or two that carry the path.
    hard = pair.exposer if home == "sym" else pair.connector
    eventually("the pool is closed", lambda: descriptors(hard.pid) < 40)


@pytest.mark.parametrize(("home", "friend"), [("sym", "open"), ("fw", "sym")])
def test_a_random_mapping_and_no_port_filter_meet_at_once(lab: Lab, tmp_path: Path, home: Kind, friend: Kind) -> None:
    pair, took = meet(lab, home, friend, tmp_path)
    goes_direct(pair)
    if "open" in (home, friend):
        assert took < 5.0


@pytest.mark.time_limit(240)
def test_a_hundred_attempts_in_one_process_leak_no_descriptor(lab: Lab) -> None:
    home, friend = lab.add_site("home", "prc"), lab.add_site("friend", "sym")
    start_server(lab)
    exposer = Ptunnel(lab, home.host, "expose", "expose", "8000", "--server", server_address(lab))
    code = exposer.wait_event("code")["code"]
    before = descriptors(exposer.pid)
    words = [sys.executable, "-c", CALLER, server_address(lab)]
    done = friend.host.run(*words, env=environment(lab.folder / "caller", PTUNNEL_CODE=code), timeout=220)
    told = json.loads(done.stdout)
    held = told["held"]
    assert len(held) == 100
    assert told["direct"] >= 1
    assert held[-1] <= held[0] + 1, held
    assert max(held) <= held[0] + 1, held
    eventually("the exposing side holds no more than before", lambda: descriptors(exposer.pid) <= before + 2, 40)


def test_two_random_mappings_are_relayed_and_the_reason_is_said(lab: Lab, tmp_path: Path) -> None:
    home, friend = lab.add_site("home", "sym"), lab.add_site("friend", "sym")
    start_server(lab)
    (tmp_path / "page").write_text("hello", encoding="utf-8")
    http_server(lab, home.host, tmp_path)
    pair = Pair(lab, home, friend, expose=["8000"], forward=["8000"])
    assert fetch(pair) == "hello"
    event = eventually(
        "the reason",
        lambda: [e for e in pair.connector.collect() if e["event"] == "path" and "new port for every" in e.get("why", "")],
        20,
    )
    assert event[0]["kind"] == "relay"
    status = ptunnel(friend.host, pair.connector.home, "status", "--json")
    assert "both routers" in status.stdout
    assert descriptors(pair.connector.pid) < 40


@pytest.mark.parametrize(("home", "friend"), [("prc", "prc"), ("sym", "open"), ("full", "restricted")])
def test_a_server_whose_second_port_is_shut_serves_as_well(lab: Lab, tmp_path: Path, home: Kind, friend: Kind) -> None:
    """It is easily forgotten in a firewall; what it is good for is to tell how a router chooses its ports."""
    lab.server.host.nft(
        "table inet guard { chain input { type filter hook input priority 0; policy accept; "
        f"udp dport {SERVER_PORT + 1} drop; tcp dport {SERVER_PORT + 1} drop; }}; }}"
    )
    pair, _ = meet(lab, home, friend, tmp_path)
    goes_direct(pair)
    told = ptunnel(pair.friend.host, pair.connector.home, "doctor", "--server", server_address(lab)).stdout
    assert ("not known" in told) == (friend != "open"), told  # there is no router then, of which anything could be known
    assert "one port for all destinations" not in told

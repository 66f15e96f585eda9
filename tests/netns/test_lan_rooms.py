"""Rooms between real machines: who is in, who has left, what is kept, and a command whose only network is a room."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest

from tests.netns.kernel import Namespace, python_module
from tests.netns.lab import Lab, Site, eventually
from tests.netns.programs import Program, Ptunnel, environment, ptunnel, server_address, start_server


def machine(lab: Lab, name: str, kind: str = "prc") -> Site:
    """A home with one computer, which has an /etc of its own."""
    site = lab.add_site(name, kind)  # type: ignore[arg-type]
    site.host.be_a_machine(name, lab.folder / f"etc-{name}")
    return site


def lan(lab: Lab, site: Site, *words: str, code: str = "", **more: str) -> Ptunnel:
    """`more` is its environment."""
    if code:
        more["PTUNNEL_CODE"] = code
    home = lab.folder / f"home-{site.name}"
    return Ptunnel(lab, site.host, f"lan-{site.name}", "lan", *words, "--server", server_address(lab), home=home, **more)


def reaches(space: Namespace, address: str, *words: str) -> bool:
    return space.run("ping", "-q", "-c", "1", "-W", "1", *words, address, check=False).returncode == 0


def addresses(space: Namespace) -> str:
    return space.run("ip", "-json", "address").stdout


def hosts(lab: Lab, name: str) -> str:
    return (lab.folder / f"etc-{name}" / "hosts").read_text()


def code_of(creator: Ptunnel, after: int = 0) -> str:
    return str(creator.wait_event("code", after=after)["code"])


def test_four_are_in_one_subnet_by_name_and_address_until_they_leave(lab: Lab) -> None:
    start_server(lab)
    sites = [machine(lab, name) for name in ("anna", "ben", "cleo", "dora")]
    before = {site.name: (addresses(site.host), hosts(lab, site.name)) for site in sites}
    creator = lan(lab, sites[0], "create", "--name", "game")
    code = code_of(creator)
    programs = [creator, *(lan(lab, site, "join", code=code) for site in sites[1:])]
    for program in programs:
        for site in sites:
            program.wait_event("member", 30, peer=site.name, state="online")
    found = {event["peer"]: event for event in creator.collect() if event["event"] == "member"}
    for site in sites:
        for other in sites:
            if site is not other:
                for address in (found[other.name]["address"], found[other.name]["ipv6"], f"{other.name}.ptunnel"):
                    eventually(f"{site.name} reaches {address}", lambda s=site, a=address: reaches(s.host, a), 15)
    programs[1].wait_event("member", 20, peer="cleo", kind="direct")
    status = ptunnel(sites[1].host, programs[1].home, "status", "--json")
    (answer,) = [json.loads(line) for line in status.stdout.splitlines()]
    assert (answer["role"], answer["room"], len(answer["links"])) == ("lan", "game", 3)
    listed = ptunnel(sites[0].host, creator.home, "lan", "list", "--json")
    (room,) = [json.loads(line) for line in listed.stdout.splitlines()]
    assert (room["room"], room["role"], room["kept"], room["pid"]) == ("game", "creator", False, creator.pid)
    programs[3].process.terminate()
    assert programs[3].process.wait(20) == 0
    programs[0].wait_event("member", 10, peer="dora", state="removed")
    programs[2].process.kill()  # as a crash would
    programs[2].process.wait()
    programs[1].wait_event("member", 30, peer="cleo", state="offline")
    for program in programs[:2]:
        program.process.terminate()
        assert program.process.wait(20) == 0
    for site in sites:
        if site.name != "cleo":  # its hosts file is cleaned by the keeper, which sees the crash
            assert (addresses(site.host), hosts(lab, site.name)) == before[site.name]
    eventually("what the crash left behind is gone", lambda: (addresses(sites[2].host), hosts(lab, "cleo")) == before["cleo"], 5)


def test_a_removed_member_is_out_within_a_second_and_gets_its_own_exit_code(lab: Lab) -> None:
    """The second itself is held in tests/sim/test_lan.py."""
    start_server(lab)
    anna, ben, cleo = (machine(lab, name) for name in ("anna", "ben", "cleo"))
    creator = lan(lab, anna, "create")
    joined = [lan(lab, site, "join", code=code_of(creator)) for site in (ben, cleo)]
    for program in joined:
        program.wait_event("member", 30, peer="anna", state="online")
    joined[1].wait_event("member", 30, peer="ben", state="online")
    address = joined[1].wait_event("member", peer="ben")["address"]
    eventually("cleo reaches ben", lambda: reaches(cleo.host, address), 10)
    done = ptunnel(anna.host, creator.home, "lan", "remove", "zoe", "--json")
    assert done.returncode == 2
    assert "No member is called" in done.stdout
    done = ptunnel(anna.host, creator.home, "lan", "remove", "ben", "--json")
    said = json.loads(done.stdout)
    assert said.pop("time")
    assert said == {"event": "removed", "room": "lan", "peer": "ben"}
    assert joined[0].process.wait(20) == 6
    joined[1].wait_event("member", 20, peer="ben", state="removed")
    assert not reaches(cleo.host, address)
    assert len([event for event in creator.collect() if event["event"] == "code"]) == 2


def test_a_kept_room_is_opened_and_joined_again_without_a_code(lab: Lab) -> None:
    start_server(lab)
    anna, ben = machine(lab, "anna"), machine(lab, "ben", "sym")
    creator = lan(lab, anna, "create", "--name", "game", "--keep")
    member = lan(lab, ben, "join", "--keep", code=code_of(creator))
    first = member.wait_event("member", 30, peer="anna", state="online")
    for program in (creator, member):
        program.process.terminate()
        assert program.process.wait(20) == 0
    again = Ptunnel(lab, ben.host, "again", "lan", "join", "game", home=member.home)  # the server is remembered too
    lan(lab, anna, "create", "--name", "game", "--keep")
    second = again.wait_event("member", 40, peer="anna", state="online")
    assert second["address"] == first["address"]
    eventually("ben reaches anna", lambda: reaches(ben.host, first["address"]), 10)
    forget = ptunnel(ben.host, member.home, "lan", "forget", "game", "--json")
    assert forget.returncode == 8  # it runs


def test_without_privilege_a_command_runs_in_the_room_and_lan_says_what_to_do(lab: Lab) -> None:
    start_server(lab)
    anna, ben = machine(lab, "anna"), machine(lab, "ben")
    creator = lan(lab, anna, "create")
    code = code_of(creator)
    home = lab.folder / "home-exec"
    words = ["exec", "--server", server_address(lab), "--as", "ben", "--"]
    script = "ping -q -c 3 -W 2 anna.ptunnel >&2 && ip -o -4 address >&2; cat /etc/hostname; exit 7"
    done = ptunnel(ben.host, home, *words, "sh", "-c", script, PTUNNEL_CODE=code)
    assert (done.returncode, done.stdout.strip()) == (7, "ben"), done.stderr
    assert "3 received" in done.stderr
    assert "eth0" not in done.stderr
    done = ptunnel(ben.host, home, *words, "no-such-command", PTUNNEL_CODE=code)
    assert done.returncode == 127, done.stderr


def test_a_room_of_a_hostile_creator_takes_no_network_behind_a_members_router(lab: Lab) -> None:
    """A member of an office, whose servers are in another network of it; the room is made to be just that one."""
    start_server(lab)
    mallory, ben = machine(lab, "mallory", "open"), machine(lab, "ben")
    server, subnet = "192.168.77.5", "192.168.77.0/24"  # ben's own is 192.168.11.0/24
    way = ["ip", "-json", "route", "get", server]
    before = ben.host.run(*way).stdout
    assert "eth0" in before
    creator = lan(lab, mallory, "create", module="tests.netns.hostile", HOSTILE_SUBNET=subnet)
    code = code_of(creator)
    member = lan(lab, ben, "join", code=code)
    online = member.wait_event("member", 30, peer="mallory", state="online")
    assert online["address"] == "192.168.77.1"
    refused = member.wait_event("warning", 30, code="interface")["message"]
    assert f"{subnet} lies in 192.168.0.0/16" in refused
    assert ben.host.run(*way).stdout == before
    eventually("the room is there by IPv6", lambda: reaches(ben.host, online["ipv6"]), 15)
    eventually("it has a name by IPv6", lambda: f"{online['ipv6']}\tmallory.ptunnel" in hosts(lab, "ben"), 15)
    assert online["address"] not in hosts(lab, "ben")
    member.interrupt()
    member.wait(10)
    # A person who knows better may have it.
    member = lan(lab, ben, "join", "--any-subnet", code=code)
    member.wait_event("member", 30, peer="mallory", state="online")
    eventually("the network leads into the room", lambda: "ptunnel" in ben.host.run(*way).stdout, 15)


def test_neither_the_command_nor_a_keeper_inherits_the_code(lab: Lab) -> None:
    start_server(lab)
    anna, ben = machine(lab, "anna"), machine(lab, "ben")
    creator = lan(lab, anna, "create", PTUNNEL_ACCESS_TOKEN="a-secret")
    code = code_of(creator)
    keepers = [
        pid for pid in children(creator.process.pid) if b"tunnel.doors.tun.keeper" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    assert len(keepers) == 1
    assert b"a-secret" not in Path(f"/proc/{keepers[0]}/environ").read_bytes()
    home = lab.folder / "home-exec"
    words = ["exec", "--server", server_address(lab), "--"]
    done = ptunnel(ben.host, home, *words, "env", PTUNNEL_CODE=code, PTUNNEL_ACCESS_TOKEN="a-secret")
    assert done.returncode == 0, done.stderr
    assert "PTUNNEL_HOME" in done.stdout
    assert code not in done.stdout
    assert "a-secret" not in done.stdout
    given = ptunnel(ben.host, home, "exec", "--server", server_address(lab), "--room", code, "--", "true")
    assert given.returncode == 0, given.stderr
    assert "type it when asked" in given.stderr
    assert "type it when asked" not in done.stderr


def test_no_thread_keeps_a_privilege_once_the_interface_is_open(lab: Lab) -> None:
    start_server(lab)
    creator = lan(lab, machine(lab, "anna"), "create")
    code_of(creator)
    tasks = list(Path(f"/proc/{creator.process.pid}/task").iterdir())
    assert len(tasks) > 1  # that of what is said, at least
    for task in tasks:
        lines = dict(line.split(":\t") for line in (task / "status").read_text().splitlines() if line.startswith("Cap"))
        assert {lines[each] for each in ("CapEff", "CapPrm", "CapInh", "CapAmb", "CapBnd")} == {f"{0:016x}"}, task
    assert not [event for event in creator.collect() if "privileges" in str(event.get("message"))]


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_signal_reaches_the_command_and_its_end_is_ours(lab: Lab) -> None:
    start_server(lab)
    anna, ben = machine(lab, "anna"), machine(lab, "ben")
    creator = lan(lab, anna, "create")
    words = ["exec", "--server", server_address(lab), "--", "sh", "-c", "echo up; exec sleep 100"]
    program = Program(
        lab, ben.host, "exec", python_module("tunnel", *words),
        env=environment(lab.folder / "home-exec", PTUNNEL_CODE=code_of(creator)),
    )  # fmt: skip
    eventually("the command runs", lambda: "up" in program.said(), 30)
    program.process.send_signal(signal.SIGINT)  # as from a terminal, where it is for the command: here that got none
    program.process.terminate()
    assert program.process.wait(20) == 128 + signal.SIGTERM
    creator.wait_event("member", 10, state="removed")
    assert "interrupted" not in program.said()


def test_no_code_is_spent_where_no_interface_may_be_made(lab: Lab) -> None:
    start_server(lab)
    anna, ben = machine(lab, "anna"), machine(lab, "ben")
    creator = lan(lab, anna, "create")
    code = code_of(creator)
    words = [*bare(), "lan", "join", "--server", server_address(lab), "--json"]
    environment = {"PTUNNEL_HOME": str(lab.folder / "home-bare"), "PTUNNEL_CODE": code, "PTUNNEL_PORTMAP": "off"}
    done: subprocess.CompletedProcess[str] = ben.host.run(*words, check=False, env=environment)
    assert done.returncode == 2
    assert "sudo" in done.stdout
    lan(lab, ben, "join", code=code).wait_event("member", 30, peer="anna", state="online")


def bare() -> list[str]:
    """`ptunnel` without any capability."""
    import sys

    return ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all", sys.executable, "-m", "tunnel"]


@pytest.mark.time_limit(180)
def test_a_router_that_forwards_no_port_and_no_server_still_do_for_one_lan(lab: Lab) -> None:
    home = lab.add_site("home", "prc", hosts=2)
    for space, name in zip(home.hosts, ("anna", "ben"), strict=True):
        space.be_a_machine(name, lab.folder / f"etc-{name}")
    creator = Ptunnel(lab, home.hosts[0], "creator", "lan", "create", home=lab.folder / "home-anna")
    listening = creator.wait_event("listening", 15)
    assert listening["bind"]
    member = Ptunnel(
        lab, home.hosts[1], "member", "lan", "join", "--server", listening["bind"],
        home=lab.folder / "home-ben", PTUNNEL_CODE=code_of(creator),
    )  # fmt: skip
    found = member.wait_event("member", 30, peer="anna", state="online")
    eventually("ben reaches anna", lambda: reaches(home.hosts[1], found["address"]), 10)
    eventually("anna has a name", lambda: hosts(lab, "ben").count("anna.ptunnel") == 2, 10)

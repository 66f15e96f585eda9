"""`ptunnel up` with rooms on real interfaces, for which it has no privilege any more once they are open."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.netns.lab import Lab, eventually
from tests.netns.programs import Ptunnel, ptunnel, start_server
from tests.netns.test_lan_rooms import addresses, code_of, hosts, lan, machine, reaches


def configure(home: Path, *rooms: str) -> None:
    text = "".join(f'[[room]]\nname = "{room}"\n' for room in rooms)
    (home / "ptunnel" / "config.toml").write_text(text, encoding="utf-8")


def rooms_of(program: Ptunnel, space: Any) -> dict[str, dict[str, Any]]:
    [status] = [json.loads(line) for line in ptunnel(space, program.home, "status", "--json").stdout.splitlines()]
    return {room["room"]: room for room in status["rooms"]}


def capabilities(pid: int) -> set[str]:
    lines = [path.read_text().splitlines() for path in Path(f"/proc/{pid}/task").glob("*/status")]
    return {line.split()[1] for thread in lines for line in thread if line.startswith("CapPrm:")}


def test_rooms_are_entered_left_and_entered_again_by_a_process_without_privileges(lab: Lab) -> None:
    start_server(lab)
    anna, ben = machine(lab, "anna"), machine(lab, "ben")
    creators = [lan(lab, anna, "create", "--name", name, "--keep") for name in ("game", "work")]
    members = []
    for creator in creators:
        members.append(lan(lab, ben, "join", "--keep", code=code_of(creator)))
        members[-1].wait_event("member", 30, peer="anna", state="online")
    for program in (*members, *creators):
        program.process.terminate()
        assert program.process.wait(20) == 0
    before = addresses(anna.host), hosts(lab, "anna")
    configure(creators[0].home, "game", "work", "lost")
    configure(members[0].home, "game", "work")
    annas = Ptunnel(lab, anna.host, "up-anna", "up", home=creators[0].home)
    bens = Ptunnel(lab, ben.host, "up-ben", "up", home=members[0].home)
    for room in ("game", "work"):
        for program, other in ((annas, "ben"), (bens, "anna")):
            program.wait_event("member", 40, peer=other, state="online", room=room)
    assert "No room called 'lost' is remembered" in annas.wait_event("warning", 20, code="not_entered")["message"]
    assert capabilities(annas.pid) == {"0" * 16}
    there = {name: room["members"][1]["address"] for name, room in rooms_of(annas, anna.host).items() if not room["why"]}
    assert sorted(there) == ["game", "work"]
    for room, address in there.items():
        eventually(f"anna reaches ben in {room}", lambda a=address: reaches(anna.host, a), 15)

    configure(annas.home, "game")
    assert ptunnel(anna.host, annas.home, "reload", "--json").returncode == 0
    bens.wait_event("member", 30, peer="anna", state="offline", room="work")
    assert not reaches(anna.host, there["work"])
    assert reaches(anna.host, there["game"])
    seen = len(bens.collect())
    configure(annas.home, "work", "game")
    assert ptunnel(anna.host, annas.home, "reload", "--json").returncode == 0
    bens.wait_event("member", 40, after=seen, peer="anna", state="online", room="work")
    for room, address in there.items():
        eventually(f"anna reaches ben in {room} again", lambda a=address: reaches(anna.host, a), 15)
    listed = ptunnel(anna.host, annas.home, "lan", "list", "--json").stdout.splitlines()
    assert {room["room"]: room["pid"] for room in map(json.loads, listed)} == {"game": annas.pid, "work": annas.pid}
    for program in (annas, bens):
        program.process.terminate()
        assert program.process.wait(20) == 0
    assert (addresses(anna.host), hosts(lab, "anna")) == before

"""Several servers in a list, and a link that is relayed by them: how long it is silent when the one that carries it goes.

`python -m tests.netns.fleet [KILLS] [drain]` prints the silences of so many kills (or orderly ends) of the carrying server.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.netns.lab import Lab, Site, eventually
from tests.netns.programs import SERVER_PORT, Pair, Program, Ptunnel, ptunnel
from tests.netns.recovery import DELAY, ECHO, ECHO_PORT, Talk

STANDING = 90.0  # seconds until a server that has returned stands by at the latest
LOCAL_PORT = 7777


class Fleet:
    """Three servers, two homes with a relayed link by way of them, and a talk over it."""

    def __init__(self, lab: Lab, count: int = 3) -> None:
        self.lab = lab
        self.sites = {
            site.address: site for site in (lab.server, *(lab.add_site(f"server{n}", "open") for n in range(2, count + 1)))
        }
        self.programs = {address: self.start(site) for address, site in self.sites.items()}
        self.home = lab.add_site("home", "prc", delay=DELAY)
        self.friend = lab.add_site("friend", "prc", delay=DELAY)
        echo = Program(lab, self.home.host, "echo", [sys.executable, "-c", ECHO % ECHO_PORT])
        echo.wait_said("echoing")
        self.pair = Pair(
            lab,
            self.home,
            self.friend,
            expose=[str(ECHO_PORT)],
            forward=[f"{LOCAL_PORT}:{ECHO_PORT}"],
            path="relay",
            server=",".join(self.sites),
        )
        self.wait_standing()
        self.talk = Talk(lab, self.friend.host, LOCAL_PORT)
        time.sleep(1.0)

    def start(self, site: Site) -> Ptunnel:
        server = Ptunnel(self.lab, site.host, f"serve-{site.name}", "serve", "--listen", f"{site.address}:{SERVER_PORT}")
        server.wait_event("listening")
        return server

    def relays(self, of: str = "friend") -> list[dict[str, Any]]:
        """As `status` has them."""
        site, program = (self.home, self.pair.exposer) if of == "home" else (self.friend, self.pair.connector)
        said = ptunnel(site.host, program.home, "status", "--json").stdout.splitlines()
        links = [link for line in said for link in json.loads(line).get("links", [])]
        return links[0]["relays"] if links else []

    def address(self, role: str, of: str = "friend") -> str:
        """Of the server that carries or stands by there, or nothing."""
        found = [each["server"] for each in self.relays(of) if each["role"] == role]
        return found[0].rpartition(":")[0] if found else ""

    def wait_standing(self) -> None:
        """Until a second server stands by on both sides."""
        eventually(
            "a server stands by", lambda: self.address("stands_by") and self.address("stands_by", "home"), STANDING, step=0.5
        )

    def lose_carrier(self, *, is_drained: bool = False) -> float:
        """Seconds of silence after the carrying server is killed, or ended in good order; then it is started again."""
        carrier = self.address("carries")
        program = self.programs[carrier]
        since = time.monotonic()
        if is_drained:
            program.interrupt()
        else:
            program.kill()
        self.talk.wait_flowing(since)
        time.sleep(0.5)
        silence = self.talk.silence(since)
        assert self.address("carries") != carrier
        if is_drained:
            program.wait(20)
        self.programs[carrier] = self.start(self.sites[carrier])
        return silence


def main() -> None:
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    is_drained = "drain" in sys.argv
    figures: list[float] = []
    with tempfile.TemporaryDirectory() as folder, Lab(Path(folder)) as lab:
        fleet = Fleet(lab)
        for _ in range(kills):
            fleet.wait_standing()
            figures.append(fleet.lose_carrier(is_drained=is_drained))
            print(f"{figures[-1] * 1000:.0f} ms", flush=True)
        fleet.talk.finish()
    what = "orderly ends" if is_drained else "kills"
    print(
        f"{kills} {what}: median {statistics.median(figures) * 1000:.0f} ms, longest {max(figures) * 1000:.0f} ms, nothing lost"
    )


if __name__ == "__main__":
    main()

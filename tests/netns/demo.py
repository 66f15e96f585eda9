"""What `scripts/demo` shows: the whole main job on one computer, on one screen."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from tests.netns.kernel import LabError
from tests.netns.lab import Lab, Site, eventually
from tests.netns.programs import Ptunnel, Sshd, checksum, http_server, random_file, server_address, start_server

PICTURE = """\
ptunnel: two homes behind NATs and a small public server, all inside this computer

   home {home:<28}                {friend:>28} friend
        |                                                                |
   NAT {home_wan:<15} ------------- "internet" -------------- NAT {friend_wan:<15}
                                      |
                      server {server}
"""
FILE_SIZE = 20_000_000


class Screen:
    """Lines with the time since the start."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def step(self, text: str, *more: str) -> None:
        print(f"{time.monotonic() - self._start:5.1f} s  {text}", flush=True)
        for line in more:
            self.note(line)

    def note(self, text: str) -> None:
        print(f"         {text}", flush=True)


def megabytes(count: float) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def show_first_probes(screen: Screen, home: Site, friend: Site) -> None:
    screen.note("The NATs' own counters (nft) of UDP that came from the other NAT:")
    thrown = False
    for site, other in ((home, friend), (friend, home)):
        away, let_in = site.seen_from(other)
        thrown = thrown or away > 0
        first = f"threw away the first {'one' if away == 1 else away}, unasked for inside," if away else "threw none away,"
        screen.note(f"  {site.name + chr(39) + 's NAT':<13} {first} and let in {let_in}")
    if thrown:
        screen.note("A probe that comes too early dies, but it opens its own NAT on the way out: the answer gets in.")
    else:
        screen.note("This time the first probes crossed on the way, so both NATs were open already.")


def run(folder: Path) -> None:
    screen = Screen()
    with Lab(folder, hops=0) as lab:
        home, friend = lab.add_site("home", "prc"), lab.add_site("friend", "prc")
        home.watch(friend)
        friend.watch(home)
        places = {"home": home.address, "friend": friend.address, "home_wan": home.wan, "friend_wan": friend.wan}
        print(PICTURE.format(**places, server=server_address(lab)))
        digest = random_file(folder / "film.bin", FILE_SIZE)
        http_server(lab, home.host, folder)
        sshd = Sshd(lab, home.host)

        server = start_server(lab)
        screen.step("server$ ptunnel serve")
        where = lab.server.address
        exposer = Ptunnel(lab, home.host, "expose", "expose", "8000", "2022", "--server", where, "--name", "home")
        code = exposer.wait_event("code")["code"]
        screen.step(f"home$   ptunnel expose 8000 2022 --server {where}", f"code {code}")
        words = ["connect", "--server", where, "--forward", "8000", "--forward", "2222:2022", "--name", "friend"]
        connector = Ptunnel(lab, friend.host, "connect", *words, PTUNNEL_CODE=code)
        paired = connector.wait_event("paired")
        screen.step(f"friend$ ptunnel {' '.join(words[:-2])}", f'paired with "{paired["peer"]}", key {paired["fingerprint"]}')
        connector.wait_event("forward")
        path = connector.wait_event("path", kind="direct")
        relayed_before = lab.udp_bytes_both_ways(friend, lab.server)
        screen.step(f"direct path to {path['remote']}, round trip {path['rtt_s'] * 1000:.1f} ms")
        show_first_probes(screen, home, friend)

        started = time.monotonic()
        friend.host.run("curl", "-sS", "--fail", "-o", folder / "fetched.bin", "http://127.0.0.1:8000/film.bin", timeout=60)
        took = time.monotonic() - started
        if checksum(folder / "fetched.bin") != digest:
            raise LabError("the file that came is not the one that was sent")
        screen.step(
            "friend$ curl http://127.0.0.1:8000/film.bin",
            f"{megabytes(FILE_SIZE)} in {took:.2f} s, SHA-256 equal ({digest[:16]}...)",
        )
        done = sshd.ssh(friend.host, 2222, "ip -4 -o addr show dev eth0 | awk '{print \"logged in at\", $4}'")
        if done.returncode:
            raise LabError(f"ssh failed: {done.stderr}")
        screen.step("friend$ ssh -p 2222 visitor@127.0.0.1", done.stdout.strip())
        direct = lab.udp_bytes_both_ways(home, friend)
        relayed = lab.udp_bytes_both_ways(friend, lab.server) - relayed_before
        screen.note(f"The core counted {megabytes(direct)} of UDP between the two NATs, {megabytes(relayed)} over the server.")
        server.kill()
        done = sshd.ssh(friend.host, 2222, "echo still here")
        if done.stdout != "still here\n":
            raise LabError(f"ssh without the server failed: {done.stderr}")
        screen.step("The server is killed; a new ssh through the same path: still here")
        connector.interrupt()
        connector.wait(5)
        eventually("the exposer hears of it", lambda: "closed" in exposer.kinds())
        screen.step("Ctrl-C at friend; home knows.  All of it is gone now.")


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="ptunnel-demo-", ignore_cleanup_errors=True) as folder:
        try:
            run(Path(folder))
        except (LabError, OSError) as problem:
            print(f"scripts/demo: {problem}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

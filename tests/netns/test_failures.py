"""What breaks under a running tunnel, and what a person is told about a wrong command."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

from tests.netns.kernel import python_module
from tests.netns.lab import Lab, Site
from tests.netns.programs import (
    Pair,
    Ptunnel,
    Sshd,
    checksum,
    environment,
    http_server,
    ptunnel,
    random_file,
    server_address,
    start_server,
)

MB = 1_000_000
RATE = 40 * MB  # bit/s of the homes' links where a transfer must last some seconds


def two_homes(lab: Lab, **shape: float) -> tuple[Site, Site]:
    return lab.add_site("home", "prc", **shape), lab.add_site("friend", "prc", **shape)  # type: ignore[arg-type]


class Copy:
    """An scp in the background, with a record of when how much had come."""

    def __init__(self, lab: Lab, friend: Site, sshd: Sshd, tmp_path: Path, size: int) -> None:
        self.digest = random_file(tmp_path / "given", size)
        self.target = tmp_path / "taken"
        self.size = size
        self.marks: list[tuple[float, int]] = []
        self._process = friend.host.popen(
            sshd.scp_words(2222, sshd.remote(tmp_path / "given"), str(self.target)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        lab.on_close(self._end)
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while self._process.poll() is None:
            try:
                self.marks.append((time.monotonic(), self.target.stat().st_size))
            except OSError:
                self.marks.append((time.monotonic(), 0))
            time.sleep(0.02)

    def _end(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._thread.join(5)

    def wait_for(self, share: float, timeout: float = 20) -> None:
        """Until this share of the file has come."""
        end = time.monotonic() + timeout
        while not self.marks or self.marks[-1][1] < share * self.size:
            assert self._process.poll() is None, f"scp ended early: {self._process.communicate()[0]}"
            assert time.monotonic() < end, f"only {self.marks[-1:]} came within {timeout} s"
            time.sleep(0.01)

    def finish(self, timeout: float) -> None:
        said, _ = self._process.communicate(timeout=timeout)
        assert self._process.returncode == 0, said
        assert checksum(self.target) == self.digest

    def longest_silence(self, since: float) -> float:
        """Seconds from `since` on in which nothing came, at most."""
        longest, last_at, last_size = 0.0, since, -1
        for at, size in self.marks:
            if at < since:
                last_size = size
            elif size != last_size:
                longest = max(longest, at - last_at)
                last_at, last_size = at, size
        return longest


def test_the_server_dies_mid_transfer_and_the_copy_completes(lab: Lab, tmp_path: Path) -> None:
    """The half second of silence that is promised is held in tests/sim/test_staying_up.py."""
    home, friend = two_homes(lab, rate=RATE)
    server = start_server(lab)
    sshd = Sshd(lab, home.host)
    pair = Pair(lab, home, friend, expose=[str(sshd.port)], forward=[f"2222:{sshd.port}"])
    pair.wait_direct()
    copy = Copy(lab, friend, sshd, tmp_path, 20 * MB)
    copy.wait_for(0.2)
    server.kill()
    killed_at = time.monotonic()
    copy.finish(30)
    assert copy.longest_silence(killed_at) < 3
    assert sshd.ssh(friend.host, 2222, "echo through").stdout == "through\n"


def test_the_relay_dies_and_comes_back_and_the_copy_completes(lab: Lab, tmp_path: Path) -> None:
    home, friend = two_homes(lab, rate=RATE)
    server = start_server(lab)
    sshd = Sshd(lab, home.host)
    Pair(lab, home, friend, expose=[str(sshd.port)], forward=[f"2222:{sshd.port}"], path="relay")
    copy = Copy(lab, friend, sshd, tmp_path, 15 * MB)
    copy.wait_for(0.2)
    server.kill()
    time.sleep(2)
    start_server(lab)
    restarted_at = time.monotonic()
    copy.finish(60)
    assert copy.longest_silence(restarted_at) < 10


def test_the_relay_dies_under_a_fresh_pair_and_a_direct_path_is_found(lab: Lab) -> None:
    """The server goes the moment the forward stands: what the two said to each other meanwhile is enough."""
    home, friend = two_homes(lab)
    server = start_server(lab)
    sshd = Sshd(lab, home.host)
    pair = Pair(lab, home, friend, expose=[str(sshd.port)], forward=[f"2222:{sshd.port}"])
    pair.wait_direct()
    server.kill()
    assert sshd.ssh(friend.host, 2222, "echo through").stdout == "through\n"


@pytest.mark.parametrize("way", ["to the friend", "to the home"])
def test_a_one_way_black_hole_mid_copy_is_left_for_the_relay(lab: Lab, tmp_path: Path, way: str) -> None:
    """The two seconds of silence that are promised are held in tests/sim/test_staying_up.py."""
    home, friend = two_homes(lab, rate=RATE, delay=0.01)
    start_server(lab)
    sshd = Sshd(lab, home.host)
    pair = Pair(lab, home, friend, expose=[str(sshd.port)], forward=[f"2222:{sshd.port}"])
    pair.wait_direct()
    copy = Copy(lab, friend, sshd, tmp_path, 25 * MB)
    copy.wait_for(0.2)
    relayed = pair.went_relayed()
    # Whose datagrams vanish is who must notice, although what comes in says that all is well.
    if way == "to the friend":
        loser = pair.exposer
        lab.black_hole(home, friend)
    else:
        loser = pair.connector
        lab.black_hole(friend, home)
    hole_at = time.monotonic()
    seen = len(loser.collect())
    loser.wait_event("path", 20, after=seen, kind="relay")
    copy.finish(60)
    assert copy.longest_silence(hole_at) < 5
    if way == "to the friend":
        assert pair.went_relayed() - relayed > 5 * MB  # the other way only the acknowledgements take the relay
    # And back again, once the hole is closed.
    seen = len(loser.collect())
    lab.heal()
    loser.wait_event("path", 90, after=seen, kind="direct")


@pytest.mark.parametrize("side", ["home", "friend", "both"])
def test_a_router_that_forgets_its_mappings_is_survived(lab: Lab, tmp_path: Path, side: str) -> None:
    home, friend = two_homes(lab, rate=RATE)
    start_server(lab)
    sshd = Sshd(lab, home.host)
    pair = Pair(lab, home, friend, expose=[str(sshd.port)], forward=[f"2222:{sshd.port}"])
    pair.wait_direct()
    copy = Copy(lab, friend, sshd, tmp_path, 15 * MB)
    copy.wait_for(0.2)
    for site in (home, friend):
        if side in (site.name, "both"):
            site.forget_mappings()
    forgotten_at = time.monotonic()
    copy.finish(40)
    assert copy.longest_silence(forgotten_at) < 5


@pytest.mark.time_limit(150)
def test_a_short_mapping_life_is_kept_alive(lab: Lab) -> None:
    """That the next use costs no time is held in tests/sim/test_idle.py."""
    home, friend = lab.add_site("home", "prc", mapping_life=20), lab.add_site("friend", "prc", mapping_life=20)
    start_server(lab)
    sshd = Sshd(lab, home.host)
    pair = Pair(lab, home, friend, expose=[str(sshd.port)], forward=[f"2222:{sshd.port}"])
    pair.wait_direct()
    time.sleep(45)
    before = len(pair.connector.collect())
    started = time.monotonic()
    assert sshd.ssh(friend.host, 2222, "echo through").stdout == "through\n"
    assert time.monotonic() - started < 5
    assert [event for event in pair.connector.collect()[before:] if event["event"] == "path"] == []


@pytest.mark.parametrize("who", ["connector", "exposer"])
def test_ctrl_c_ends_both_sides_of_the_link_at_once(lab: Lab, who: str) -> None:
    """The second that is promised is held in tests/driver/test_promises.py."""
    home, friend = two_homes(lab)
    start_server(lab)
    pair = Pair(lab, home, friend, expose=["8000"], forward=["8000"])
    pair.wait_direct()
    one, other = (pair.connector, pair.exposer) if who == "connector" else (pair.exposer, pair.connector)
    started = time.monotonic()
    one.interrupt()
    assert one.wait(20) == 130
    assert time.monotonic() - started < 5
    other.wait_event("closed", 20)
    assert time.monotonic() - started < 5, "long before a silence would show it"
    assert "Traceback" not in one.said() + other.said()


def test_a_friend_that_crashes_does_not_hurt_the_next_one(lab: Lab, tmp_path: Path) -> None:
    home, friend = two_homes(lab)
    start_server(lab)
    (tmp_path / "page").write_text("hello", encoding="utf-8")
    http_server(lab, home.host, tmp_path)
    pair = Pair(lab, home, friend, expose=["8000", "--keep"], forward=["8000"])
    pair.connector.kill()
    again = Ptunnel(lab, friend.host, "again", "connect", "home", "--forward", "8000", home=pair.connector.home)
    again.wait_event("forward", 10)
    assert friend.host.run("curl", "-sS", "--max-time", "5", "http://127.0.0.1:8000/page").stdout == "hello"


def test_an_exposer_that_crashes_and_returns_is_found_again(lab: Lab, tmp_path: Path) -> None:
    home, friend = two_homes(lab)
    start_server(lab)
    (tmp_path / "page").write_text("hello", encoding="utf-8")
    http_server(lab, home.host, tmp_path)
    pair = Pair(lab, home, friend, expose=["8000"], forward=["8000"])
    pair.wait_direct()
    pair.exposer.kill()
    Ptunnel(lab, home.host, "back", "expose", home=pair.exposer.home)
    end = time.monotonic() + 60
    while True:
        done = friend.host.run("curl", "-sS", "--max-time", "5", "http://127.0.0.1:8000/page", check=False)
        if done.stdout == "hello":
            break
        assert time.monotonic() < end, pair.connector.trouble("the forward did not heal")
        time.sleep(0.5)


# ---------------------------------------------------------------- wrong commands


def sentence(done: subprocess.CompletedProcess[str]) -> str:
    """What was said; it must be there, short, and no traceback."""
    said = done.stderr.strip()
    assert said, done
    assert "Traceback" not in said
    assert "This is a bug" not in said, said
    assert len(said.splitlines()) <= 4, said
    return said


WRONG_COMMANDS = [
    (["connect", "--forward", "99999"], 2),
    (["connect", "--forward", "0"], 2),
    (["connect", "--forward", "-5"], 2),
    (["connect", "--forward", "8000/icmp"], 2),
    (["connect", "--forward", "5000-4000"], 2),
    (["connect", "--forward", "5000-5010:22"], 2),
    (["connect", "--forward", "http://x"], 2),
    (["connect", "--forward", ""], 2),
    (["connect", "--forward", "8000", "--forward", "8000:1"], 2),
    (["connect", "nobody", "--forward", "8000"], 2),
    (["connect", "123-nosuchword-zebra", "--forward", "8000", "--server", "127.0.0.1"], 2),
    (["connect", "123-zebra", "--forward", "8000", "--server", "127.0.0.1"], 2),
    (["connect", "--forward", "8000"], 2),  # nobody is remembered, no code, no terminal
    (["connect", "123-zebra-zoo", "--forward", "8000"], 2),  # no server
    (["connect", "--stdio", "70000"], 2),
    (["expose", "70000"], 2),
    (["expose", "22/sctp"], 2),
    (["expose", "nas=:80"], 2),
    (["expose"], 2),  # nobody is remembered
    (["expose", "22", "--to", "nobody"], 2),
    (["expose", "22", "--server", "host:port:port"], 2),
    (["expose", "22", "--server", "no.such.host.invalid"], 3),
    (["serve", "--listen", "no.such.host.invalid"], 2),
    (["serve", "--listen", "127.0.0.1:99999"], 2),
    (["serve", "--listen", "192.0.2.77:24531"], 2),  # not an address of this machine
    (["peers", "forget", "nobody"], 2),
    (["peers", "rename", "nobody", "somebody"], 2),
    (["ping", "nobody"], 5),
    (["explode"], 2),
    (["connect", "--path", "sideways"], 2),
]


@pytest.mark.parametrize(("words", "code"), WRONG_COMMANDS, ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_a_wrong_command_gets_a_sentence_and_its_exit_code(tmp_path: Path, words: list[str], code: int) -> None:
    done = subprocess.run(
        python_module("tunnel", *words),
        env=environment(tmp_path / "home"),
        capture_output=True,
        text=True,
        timeout=40,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    sentence(done)
    assert done.returncode == code, done.stderr


def test_ports_in_use(lab: Lab) -> None:
    home, _ = two_homes(lab)
    taken = home.host.socket(socket.AF_INET, socket.SOCK_STREAM)
    taken.bind(("127.0.0.1", 8000))
    taken.listen()
    words = ["connect", "123-zebra-zoo", "--server", server_address(lab), "--forward"]
    done = ptunnel(home.host, lab.folder / "h", *words, "8000")
    assert done.returncode == 2
    assert "8000" in sentence(done)
    taken.close()
    server = start_server(lab)
    second = ptunnel(lab.server.host, lab.folder / "h2", "serve", "--listen", server_address(lab))
    assert second.returncode == 2
    assert "24531" in sentence(second)
    assert server.process.poll() is None


def test_a_server_that_is_not_there_and_one_that_is_none(lab: Lab) -> None:
    home, _ = two_homes(lab)
    silent = lab.server.host.socket()
    silent.bind((lab.server.address, 24531))
    for address in (server_address(lab), f"{lab.server.address}:9"):  # nobody answers; nobody listens
        done = ptunnel(home.host, lab.folder / "h", "expose", "22", "--server", address, timeout=40)
        assert done.returncode == 3, done.stderr
        assert all(part in sentence(done) for part in address.split(":"))
    silent.close()


def test_a_host_without_a_network_says_so(lab: Lab, tmp_path: Path) -> None:
    home, _ = two_homes(lab)
    home.host.ip("route flush default")
    done = ptunnel(home.host, lab.folder / "h", "expose", "22", "--server", server_address(lab), timeout=40)
    assert done.returncode == 3, done.stderr
    sentence(done)


@pytest.mark.parametrize("what", ["damaged peers", "future version", "damaged identity", "a file in its place"])
def test_an_unusable_state_directory_is_named_and_left_as_it_is(lab: Lab, tmp_path: Path, what: str) -> None:
    home, friend = two_homes(lab)
    state = lab.folder / "state"
    if what == "a file in its place":
        state.mkdir()
        (state / "ptunnel").write_text("not a directory", encoding="utf-8")
    else:
        start_server(lab)
        pair = Pair(lab, home, friend, expose=["8000"], forward=["8000"])
        pair.connector.interrupt()
        pair.connector.wait(20)
        state = pair.connector.home
        files = sorted(path for path in (state / "ptunnel").rglob("*") if path.is_file() and "lock" not in path.name)
        wanted = "identity" if "identity" in what else "peer"
        (file,) = [path for path in files if wanted in path.as_posix().removeprefix(state.as_posix())][:1]
        text = file.read_bytes()
        if what == "future version":
            document = json.loads(text)
            document["version"] = 999
            file.write_text(json.dumps(document), encoding="utf-8")
        else:
            file.write_bytes(text[: len(text) // 2] + b"\x00{{{")
        before = file.read_bytes()
    done = ptunnel(friend.host, state, "connect", "home", "--forward", "8000", "--timeout", "5")
    assert done.returncode == 7, done.stderr
    assert str(state) in sentence(done)
    if what != "a file in its place":
        assert file.read_bytes() == before


def test_a_state_directory_of_somebody_else(tmp_path: Path) -> None:
    """As an ordinary user, whose directory it is not."""
    if os.environ.get("PTUNNEL_LAB") == "user" or shutil.which("setpriv") is None:
        return  # only one user id exists in here
    os.chmod(tmp_path, 0o755)
    for folder in tmp_path.parents:
        if folder.owner() == "root" and folder.stat().st_mode & 0o005 != 0o005 and len(folder.parts) > 2:
            folder.chmod(0o755)
    state = tmp_path / "ptunnel"
    state.mkdir(mode=0o700)
    env = {**environment(tmp_path), "PTUNNEL_HOME": str(state)}
    code = "import sys; sys.argv = ['ptunnel', 'peers']; from tunnel.cli.main import main; main()"
    probe = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    python = python_module("tunnel")[0]
    if subprocess.run(
        [*probe, python, "-c", "import tunnel, click"], env=env, capture_output=True, timeout=20, check=False
    ).returncode:
        return  # this interpreter is in a folder that others may not read
    done = subprocess.run([*probe, python, "-c", code], env=env, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 7, done.stderr
    sentence(done)


def test_too_many_files_are_shed_and_the_rest_lives_on(lab: Lab, tmp_path: Path) -> None:
    home, friend = two_homes(lab)
    start_server(lab)
    (tmp_path / "page").write_text("hello", encoding="utf-8")
    http_server(lab, home.host, tmp_path)
    exposer = Ptunnel(lab, home.host, "expose", "expose", "8000", "--server", server_address(lab))
    code = exposer.wait_event("code")["code"]
    words = python_module("tunnel", "connect", "--server", server_address(lab), "--forward", "8000", "--json")
    limited = friend.host.popen(
        ["prlimit", "--nofile=60:60", "--", *words],
        env=environment(lab.folder / "limited", PTUNNEL_CODE=code),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert limited.stdout is not None
    for line in limited.stdout:
        if '"forward"' in line:
            break
    socks = []
    for _ in range(150):
        sock = friend.host.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.settimeout(3)
        try:
            sock.connect(("127.0.0.1", 8000))
        except OSError:
            sock.close()
            break
        socks.append(sock)
    time.sleep(0.5)
    assert limited.poll() is None
    for sock in socks:
        sock.close()
    time.sleep(0.5)
    assert friend.host.run("curl", "-sS", "--max-time", "10", "http://127.0.0.1:8000/page", check=False).stdout == "hello"
    limited.terminate()
    said, _ = limited.communicate(timeout=5)
    assert "Traceback" not in said


def test_direct_against_relay_is_an_error(lab: Lab) -> None:
    home, friend = two_homes(lab)
    start_server(lab)
    exposer = Ptunnel(lab, home.host, "expose", "expose", "8000", "--server", server_address(lab), "--path", "relay")
    code = exposer.wait_event("code")["code"]
    done = ptunnel(
        friend.host, lab.folder / "h", "connect", "--server", server_address(lab), "--path", "direct", "--forward", "8000",
        "--timeout", "15", PTUNNEL_CODE=code,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    sentence(done)

"""Codes, remembered peers, grants, and what stands on the wire meanwhile."""

from __future__ import annotations

import base64
import json
import re
import shutil
import time
from pathlib import Path

from tests.netns.lab import Lab, Site, eventually
from tests.netns.programs import (
    Capture,
    Pair,
    Ptunnel,
    checksum,
    http_server,
    ptunnel,
    random_file,
    server_address,
    start_server,
)
from tunnel.state.home import Home


def two_homes(lab: Lab) -> tuple[Site, Site]:
    return lab.add_site("home", "prc"), lab.add_site("friend", "prc")


def fetch(site: Site, port: int = 8000, seconds: int = 10) -> str:
    return site.host.run("curl", "-sS", "--max-time", str(seconds), f"http://127.0.0.1:{port}/page", check=False).stdout


def expose(lab: Lab, site: Site, *words: str, name: str = "expose", home: Path | None = None) -> Ptunnel:
    return Ptunnel(lab, site.host, name, "expose", *words, "--server", server_address(lab), home=home)


def connect(lab: Lab, site: Site, *words: str, name: str = "connect", home: Path | None = None, code: str = "") -> Ptunnel:
    more = {"PTUNNEL_CODE": code} if code else {}
    return Ptunnel(lab, site.host, name, "connect", *words, "--server", server_address(lab), home=home, **more)


def wrong(code: str) -> str:
    nameplate, one, two = code.split("-")
    return f"{nameplate}-{'zebra' if one != 'zebra' else 'abandon'}-{two}"


def test_a_code_is_of_words_and_works_once(lab: Lab) -> None:
    home, friend = two_homes(lab)
    start_server(lab)
    exposer = expose(lab, home, "8000", "--keep")
    event = exposer.wait_event("code")
    code = event["code"]
    assert re.fullmatch(r"\d{3,}-[a-z]+-[a-z]+", code)
    assert 500 < event["expires_s"] <= 600
    first = connect(lab, friend, "--forward", "8000", code=code)
    first.wait_event("paired")
    again = ptunnel(
        friend.host, lab.folder / "another", "connect", "--server", server_address(lab), "--forward", "8001:8000", "--json",
        PTUNNEL_CODE=code,
    )  # fmt: skip
    assert again.returncode == 4, again.stderr
    assert json.loads(again.stdout.splitlines()[-1])["event"] == "error"


def test_a_wrong_code_spends_it_and_both_are_told(lab: Lab, tmp_path: Path) -> None:
    home, friend = two_homes(lab)
    start_server(lab)
    (tmp_path / "page").write_text("hello", encoding="utf-8")
    http_server(lab, home.host, tmp_path)
    exposer = expose(lab, home, "8000")
    code = exposer.wait_event("code")["code"]
    guess = connect(lab, friend, "--forward", "8000", name="guess", code=wrong(code))
    assert guess.wait(15) == 4
    errors = [event for event in guess.collect() if event["event"] == "error"]
    assert errors
    assert not re.search(rf"\b{code.split('-')[1]}\b", str([event["message"] for event in errors]))
    exposer.wait_event("warning", 10)
    codes = eventually("a fresh code", lambda: [event["code"] for event in exposer.collect() if event["event"] == "code"][1:])
    assert codes[0] != code
    fresh = codes[0]
    # The right words come too late now: that code is dead.
    late = connect(lab, friend, "--forward", "8000", name="late", code=code)
    assert late.wait(15) == 4
    good = connect(lab, friend, "--forward", "8000", name="good", code=fresh)
    good.wait_event("forward")
    assert fetch(friend) == "hello"


def test_a_code_that_nobody_allocated(lab: Lab) -> None:
    _, friend = two_homes(lab)
    start_server(lab)
    done = ptunnel(
        friend.host,
        lab.folder / "h",
        "connect",
        "--server",
        server_address(lab),
        "--forward",
        "8000",
        PTUNNEL_CODE="999-zebra-zoo",
    )
    assert done.returncode == 4
    assert "Traceback" not in done.stderr
    assert done.stderr.strip()


def test_two_friends_at_once(lab: Lab, tmp_path: Path) -> None:
    home, friend = two_homes(lab)
    other = lab.add_site("other", "fw")
    start_server(lab)
    (tmp_path / "page").write_text("hello", encoding="utf-8")
    http_server(lab, home.host, tmp_path)
    exposer = expose(lab, home, "8000", "--keep")
    one = connect(lab, friend, "--forward", "8000", name="one", code=exposer.wait_event("code")["code"])
    one.wait_event("forward")
    fresh = eventually("a second code", lambda: [event for event in exposer.collect() if event["event"] == "code"][1:])
    two = connect(lab, other, "--forward", "8000", name="two", code=fresh[0]["code"])
    two.wait_event("forward")
    assert fetch(friend) == "hello"
    assert fetch(other) == "hello"
    assert one.process.poll() is None
    names = {event["peer"] for event in exposer.collect() if event["event"] == "paired"}
    assert len(names) == 2  # both introduced themselves by the same host name; neither replaced the other


def test_next_week_no_code_is_needed(lab: Lab, tmp_path: Path) -> None:
    home, friend = two_homes(lab)
    server = start_server(lab)
    (tmp_path / "page").write_text("hello", encoding="utf-8")
    http_server(lab, home.host, tmp_path)
    pair = Pair(lab, home, friend, expose=["8000"], forward=["8000"])
    pair.connector.interrupt()
    pair.connector.wait(20)
    pair.exposer.interrupt()
    pair.exposer.wait(20)
    server.interrupt()
    server.wait(20)
    start_server(lab)
    # Neither side names the server: it is remembered with the peer.
    exposer = Ptunnel(lab, home.host, "expose-again", "expose", home=pair.exposer.home)
    for number, words in enumerate((["home"], [])):
        connector = Ptunnel(lab, friend.host, f"again{number}", "connect", *words, "--forward", "8000", home=pair.connector.home)
        connector.wait_event("forward")
        assert fetch(friend) == "hello"
        connector.wait_event("path", 20, kind="direct")
        connector.interrupt()
        connector.wait(20)
        ways = Home(pair.connector.home / "ptunnel").ways()
        assert [way.host for way in ways] == [home.wan]  # what worked is remembered, for this network and peer
    assert exposer.process.poll() is None
    assert "code" not in exposer.kinds()


def test_peers_are_listed_renamed_and_forgotten_at_once(lab: Lab, tmp_path: Path) -> None:
    """The second that is promised is held in tests/driver/test_promises.py."""
    home, friend = two_homes(lab)
    start_server(lab)
    (tmp_path / "page").write_text("hello", encoding="utf-8")
    http_server(lab, home.host, tmp_path)
    pair = Pair(lab, home, friend, expose=["8000", "--keep"], forward=["8000"])
    assert fetch(friend) == "hello"
    state = pair.exposer.home
    name = pair.exposer.wait_event("paired")["peer"]
    assert name in ptunnel(home.host, state, "peers").stdout
    assert ptunnel(home.host, state, "peers", "rename", name, "jo").returncode == 0
    listed = ptunnel(home.host, state, "peers", "list", "--json").stdout
    assert "jo" in listed
    assert "8000" in listed
    assert ptunnel(home.host, state, "peers", "forget", "stranger").returncode == 2
    done = ptunnel(home.host, state, "peers", "forget", "jo")
    assert done.returncode == 0, done.stderr
    started = time.monotonic()
    pair.connector.wait_event("closed", 20)
    assert time.monotonic() - started < 5
    assert fetch(friend, seconds=2) == ""
    assert pair.connector.wait(20) == 6
    again = ptunnel(friend.host, pair.connector.home, "connect", "home", "--forward", "8000", "--timeout", "5", timeout=20)
    assert again.returncode in (5, 6)


def test_a_second_exposer_of_the_same_home_says_so_and_exits(lab: Lab) -> None:
    home, _ = two_homes(lab)
    start_server(lab)
    first = expose(lab, home, "8000")
    first.wait_event("code")
    second = ptunnel(home.host, first.home, "expose", "8001", "--server", server_address(lab))
    assert second.returncode == 8
    assert "Traceback" not in second.stderr
    assert first.process.poll() is None


def test_a_changed_key_is_refused(lab: Lab, tmp_path: Path) -> None:
    """Somebody with the home's pairing secrets but another static key is not the home."""
    home, friend = two_homes(lab)
    start_server(lab)
    (tmp_path / "page").write_text("hello", encoding="utf-8")
    http_server(lab, home.host, tmp_path)
    pair = Pair(lab, home, friend, expose=["8000"], forward=["8000"])
    pair.connector.interrupt()
    pair.connector.wait(20)
    pair.exposer.interrupt()
    pair.exposer.wait(20)
    # Another home's identity beside this one's peers.
    stranger = lab.folder / "stranger"
    expose(lab, home, "8000", name="stranger", home=stranger).wait_event("code")
    real, other = pair.exposer.home / "ptunnel", stranger / "ptunnel"
    identity = next(path for path in real.iterdir() if "identity" in path.name)
    shutil.copy(other / identity.name, identity)
    impostor = Ptunnel(lab, home.host, "impostor", "expose", "--server", server_address(lab), home=pair.exposer.home)
    connector = connect(lab, friend, "home", "--forward", "8000", "--timeout", "15", name="again", home=pair.connector.home)
    assert connector.wait(25) == 5
    events = connector.collect()
    messages = [event["message"] for event in events if event["event"] == "error"]
    assert any("key" in message and "forget home" in message for message in messages), events
    assert "forward" not in connector.kinds()
    assert impostor.process.poll() is None


def test_status_ping_and_check(lab: Lab) -> None:
    home, friend = two_homes(lab)
    start_server(lab)
    pair = Pair(lab, home, friend, expose=["8000"], forward=["8000"])
    state = pair.connector.home
    waited = ptunnel(friend.host, state, "ping", "home", "--until-direct", "--limit", "10", timeout=20)
    assert waited.returncode == 0, waited.stderr
    assert ptunnel(friend.host, state, "status", "--check", "direct").returncode == 0
    status = json.loads(ptunnel(friend.host, state, "status", "--json").stdout.splitlines()[0])
    assert "direct" in json.dumps(status)
    pair.connector.interrupt()
    pair.connector.wait(20)
    assert ptunnel(friend.host, state, "status", "--check", "direct").returncode != 0


def test_the_wire_shows_nothing(lab: Lab, tmp_path: Path) -> None:
    """No plaintext, static key, name or code word, on neither home's line nor at the server."""
    home, friend = two_homes(lab)
    captures = []
    for site, device in ((home, "wan"), (friend, "wan")):
        assert site.gateway is not None
        captures.append(Capture(lab, site.gateway, device))
    captures.append(Capture(lab, lab.server.host, "eth0"))
    start_server(lab)
    marker = b"the-quick-brown-fox-marks-this-file"
    (tmp_path / "page").write_bytes(marker * 20_000)
    random_file(tmp_path / "noise", 1000)
    http_server(lab, home.host, tmp_path)
    exposer = expose(lab, home, "8000", "--name", "quetzalcoatl")
    code = exposer.wait_event("code")["code"]
    connector = connect(lab, friend, "--forward", "8000", "--name", "huitzilopochtli", code=code)
    connector.wait_event("forward")
    assert fetch(friend).startswith(marker.decode())
    connector.wait_event("path", 10, kind="direct")
    assert fetch(friend).startswith(marker.decode())
    for program in (connector, exposer):
        program.interrupt()
        program.wait(20)
    again = expose(lab, home, name="again", home=exposer.home)
    once_more = connect(lab, friend, "quetzalcoatl", "--forward", "8000", name="once-more", home=connector.home)
    once_more.wait_event("forward")
    assert fetch(friend).startswith(marker.decode())
    assert again.process.poll() is None
    seen = [capture.bytes() for capture in captures]
    assert min(len(data) for data in seen) > 10_000
    _, first_word, second_word = code.split("-")
    secrets = {
        "plaintext": marker[:16],
        "request": b"GET /page",
        "name of the exposer": b"quetzalcoatl",
        "name of the connector": b"huitzilopochtli",
        "code": code.encode(),
        "words": f"{first_word}-{second_word}".encode(),
        "one word": first_word.encode() if len(first_word) > 4 else second_word.encode(),
    }
    for state in (exposer.home, connector.home):
        private, public = static_keys(state)
        for what, key in (("private", private), ("public", public)):
            secrets[f"{what} key of {state.name}"] = key
            secrets[f"{what} key of {state.name} in hex"] = key.hex().encode()
            secrets[f"{what} key of {state.name} in base64"] = base64.b64encode(key).rstrip(b"=")
    assert len(secrets["one word"]) > 4 or secrets.pop("one word")
    found = [f"{what} at {number}" for number, data in enumerate(seen) for what, secret in secrets.items() if secret in data]
    assert found == []
    assert checksum(tmp_path / "page")


def static_keys(state: Path) -> tuple[bytes, bytes]:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    from tunnel.state.home import Home

    private = Home(state / "ptunnel").identity()
    return private, X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def test_no_secret_is_left_readable_or_said(lab: Lab) -> None:
    """Files are 0600, folders 0700, and neither output nor /proc/PID/cmdline of either side holds the code."""
    home, friend = two_homes(lab)
    start_server(lab)
    pair = Pair(lab, home, friend, expose=["8000"], forward=["8000"])
    for state in (pair.exposer.home, pair.connector.home):
        for path in (state / "ptunnel").rglob("*"):
            mode = path.lstat().st_mode & 0o777
            assert mode & 0o077 == 0, f"{path} {mode:o}"
    words = pair.code.split("-", 1)[1]
    assert words not in Path(f"/proc/{pair.connector.pid}/cmdline").read_text(encoding="utf-8")
    assert words not in pair.connector.said() + json.dumps(pair.connector.collect())

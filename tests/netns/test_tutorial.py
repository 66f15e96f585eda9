"""The tutorials do what they say: their commands are run as they stand there, in the order in which they stand there."""

from __future__ import annotations

import os
import re
import subprocess

import pytest

from tests.netns.kernel import ROOT


def shape(transcript: str) -> set[str]:
    """Its lines, without figures and without the reason why a path is relayed, which changes while it is looked into."""
    return {re.sub(r"\d[\d.]*", "0", line.partition(" ms: ")[0]) for line in transcript.splitlines()}


def walk(page: str, seconds: int) -> tuple[str, list[str], dict[str, str]]:
    """The page, its commands in blocks, and what each block printed, by its number."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    script = "\n".join(["set -m", *(f"echo '=== {number}'\n{block}" for number, block in enumerate(blocks))])
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PTUNNEL_", "COV"))}
    done = subprocess.run(  # SIGKILL: unshare heeds no other signal, and takes what runs in its PID namespace with it
        ["timeout", "--signal=KILL", str(seconds), ROOT / "scripts" / "tutorial-world", "shell", "-c", script],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds + 10,
        check=False,
    )
    pieces = re.split(r"^=== (\d+)\n", done.stdout, flags=re.MULTILINE)
    said = dict(zip(pieces[1::2], pieces[2::2], strict=True))
    assert len(said) == len(blocks), done.stdout[-4000:]
    return text, blocks, said


def test_every_command_of_the_tutorial_runs_and_shows_what_the_text_says() -> None:
    text, blocks, said = walk("tutorial.md", 100)
    (punching,) = [said[str(number)] for number, block in enumerate(blocks) if "reset counters" in block]
    (hard,) = [said[str(number)] for number, block in enumerate(blocks) if "fully-random" in block and "tutorial-client" in block]
    (counters,) = [said[str(number)] for number, block in enumerate(blocks) if "grep packets" in block]
    received = re.findall(r"RECEIVES \S+  '(.*?)'", punching)
    # On a busy machine Ada may be the first to write; whoever is, that message is the one thrown away.
    first, other = re.findall(r"sends +\S+ +'message 1 from (\w+)'", punching)
    assert f"message 1 from {first}" not in received, punching
    assert {f"message 1 from {other}", f"message 2 from {first}"} <= set(received), punching
    assert re.search(rf"router-{other[0]}\s+packets 1 ", counters), counters
    assert "sends" in hard
    assert "RECEIVES" not in hard

    (connected,) = [number for number, block in enumerate(blocks) if "ptunnel connect --forward" in block]
    shown = re.findall(r"^```text\n(.*?)^```", text.split(blocks[connected], 1)[1], re.MULTILINE | re.DOTALL)[0]
    assert shape(shown) <= shape(said[str(connected)]), said[str(connected)]

    everything = "".join(said.values())
    assert everything.count("Hello from the other side.") == 2, everything[-4000:]
    assert re.search(r"^  ada  direct  udp 192\.88\.99\.2:", everything, re.MULTILINE), everything[-4000:]
    assert re.search(r"^  ada  relay  udp 192\.88\.99\.1:24531", everything, re.MULTILINE), everything[-4000:]


@pytest.mark.time_limit(240)
def test_the_lesson_without_a_server_shows_what_it_says() -> None:
    _, blocks, said = walk("tutorial-dht.md", 200)

    def of(words: str) -> str:
        (found,) = [said[str(number)] for number, block in enumerate(blocks) if words in block]
        return found

    assert "c0 58 63 02 13 88" in of("4:ping")
    punching = of("tutorial-dht-client ada")
    received = re.findall(r"RECEIVES \S+  '(.*?)'", punching)
    first, other = re.findall(r"sends +\S+ +'message 1 from (\w+)'", punching)
    assert f"message 1 from {first}" not in received, punching
    assert {f"message 1 from {other}", f"message 2 from {first}"} <= set(received), punching
    assert re.search(r"ada  is at    192\.88\.99\.2:5000  says the node 44\.", punching), punching
    assert re.search(r"^44\.\d+\.7\.1 keeps .*192\.88\.99\.2:5000", of('"$spy"'), re.MULTILINE), of('"$spy"')
    assert "The router uses one port for all destinations" in of("ptunnel doctor")
    connected = of("wait_for 'ada shares'")
    assert "Hello from the other side." in connected
    assert re.search(r"^  ada  direct  udp 192\.88\.99\.2:", connected, re.MULTILINE), connected
    assert "Hello from the other side." in of("bora ptunnel connect ada")
    assert "use a new port for every destination" in of("fully-random")

"""The tutorial does what it says: its commands are run as they stand there, in the order in which they stand there."""

from __future__ import annotations

import os
import re
import subprocess

from tests.netns.kernel import ROOT


def shape(transcript: str) -> set[str]:
    """Its lines, without figures and without the reason why a path is relayed, which changes while it is looked into."""
    return {re.sub(r"\d[\d.]*", "0", line.partition(" ms: ")[0]) for line in transcript.splitlines()}


def test_every_command_of_the_tutorial_runs_and_shows_what_the_text_says() -> None:
    text = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    script = "\n".join(["set -m", *(f"echo '=== {number}'\n{block}" for number, block in enumerate(blocks))])
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PTUNNEL_", "COV"))}
    done = subprocess.run(  # SIGKILL: unshare heeds no other signal, and takes what runs in its PID namespace with it
        ["timeout", "--signal=KILL", "100", ROOT / "scripts" / "tutorial-world", "shell", "-c", script],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=110,
        check=False,
    )
    pieces = re.split(r"^=== (\d+)\n", done.stdout, flags=re.MULTILINE)
    said = dict(zip(pieces[1::2], pieces[2::2], strict=True))
    assert len(said) == len(blocks), done.stdout[-4000:]

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

    everything = done.stdout
    assert everything.count("Hello from the other side.") == 2, everything[-4000:]
    assert re.search(r"^  ada  direct  udp 192\.88\.99\.2:", everything, re.MULTILINE), everything[-4000:]
    assert re.search(r"^  ada  relay  udp 192\.88\.99\.1:24531", everything, re.MULTILINE), everything[-4000:]

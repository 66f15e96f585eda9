"""Commands that answer a question: a terminal that was stopped, a pipe that is closed, a full disk, an early Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.driver.programs import PATIENCE_S, Lab, pair
from tests.driver.test_speech import start, wait_voices

#: Each answers on standard output while a connect of this home runs.
ANSWERS = {
    "peers": ("peers",),
    "peers json": ("peers", "--json"),
    "lan list": ("lan", "list", "--json"),
    "status": ("status",),
    "status json": ("status", "--json"),
    "check": ("status", "--check", "direct", "--wait", "20"),
    "ping": ("ping", "home", "--count", "2", "--interval", "0.1"),
    "bench": ("bench", "home", "--time", "0.1"),
    "doctor": ("doctor", "home", "--tls-port", "off"),
    "help": ("help", "connect"),
    "man": ("man",),
}
SILENT = {"lan list"}  # no room is kept, and none runs
ENDLESS = 3 * PATIENCE_S  # seconds, for programs that all start at once


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """One whose connect runs."""
    lab = Lab(tmp_path)
    pair(lab)
    yield lab.connector
    lab.close()


@pytest.fixture
def begin(home: Path) -> Iterator[Callable[..., dict[str, subprocess.Popen[bytes]]]]:
    """Starts all of them at once."""
    begun: list[subprocess.Popen[bytes]] = []

    def start_all(**streams: Any) -> dict[str, subprocess.Popen[bytes]]:
        found = {name: start(home, *words, **streams) for name, words in ANSWERS.items()}
        begun.extend(found.values())
        return found

    yield start_all
    for process in begun:
        if process.poll() is None:
            process.kill()
        process.communicate()


class Terminal:
    """A program at a terminal of its own; what it says is read from `primary`."""

    def __init__(self, home: Path, words: tuple[str, ...], *, is_stopped: bool) -> None:
        self.primary, self.secondary = pty.openpty()
        if is_stopped:
            termios.tcflow(self.secondary, termios.TCOOFF)
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), self.secondary)
        self.process = start(home, *words, start_new_session=True, **streams)

    def go_on(self) -> None:
        termios.tcflow(self.secondary, termios.TCOON)

    def read(self) -> bytes:
        """All that it says until it ends."""
        said = bytearray()

        def take() -> None:
            with contextlib.suppress(OSError):
                while True:
                    said.extend(os.read(self.primary, 65_536))

        reader = threading.Thread(target=take, daemon=True)
        reader.start()
        self.process.wait(ENDLESS)
        os.close(self.secondary)  # the reader has what there was, and then an error
        reader.join(PATIENCE_S)
        return bytes(said)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for descriptor in (self.primary, self.secondary):
            with contextlib.suppress(OSError):
                os.close(descriptor)


@pytest.fixture
def at_terminals(home: Path) -> Iterator[dict[str, Terminal]]:
    """Every one, at a terminal that takes nothing."""
    found = {name: Terminal(home, words, is_stopped=True) for name, words in ANSWERS.items()}
    yield found
    for each in found.values():
        each.close()


@pytest.mark.time_limit(240)
def test_an_answer_at_a_stopped_terminal_is_there_when_that_goes_on(at_terminals: dict[str, Terminal]) -> None:
    """Ctrl-S, and Ctrl-Q some time later: the command has waited, and nothing of what it says is missing."""
    time.sleep(5.0)  # more than a command that carries something waits with its last words; none must end meanwhile
    assert {name for name, each in at_terminals.items() if each.process.poll() is not None} <= SILENT
    for name, each in at_terminals.items():
        each.go_on()
        said = each.read()
        assert (name, each.process.returncode) == (name, 0), said
        assert b"Traceback" not in said
        assert b"missing here" not in said
        assert b"home" in said or name in SILENT | {"help", "man"}, (name, said)


@pytest.mark.time_limit(240)
def test_whoever_waits_at_a_stopped_terminal_can_be_ended(home: Path) -> None:
    """From elsewhere, as Ctrl-C would let the terminal go on."""
    for name in ("status", "ping", "doctor"):
        each = Terminal(home, ANSWERS[name], is_stopped=True)
        try:
            wait_voices(each.process)
            each.process.send_signal(signal.SIGINT)
            assert (name, each.process.wait(ENDLESS)) == (name, 130)
        finally:
            each.close()


@pytest.mark.time_limit(240)
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_pipe_that_is_closed_is_no_failure(begin: Callable[..., dict[str, subprocess.Popen[bytes]]], stream: str) -> None:
    """`ptunnel status | head -0`."""
    reader, writer = os.pipe()
    os.close(reader)
    running = begin(**({"stdout": writer, "stderr": subprocess.PIPE} if stream == "stdout" else {"stderr": writer}))
    os.close(writer)
    for name, process in running.items():
        _out, said = process.communicate(timeout=ENDLESS)
        assert (name, process.returncode) == (name, 0), said
        assert b"Traceback" not in (said or b"")
        assert b"bug" not in (said or b"")


@pytest.mark.time_limit(240)
def test_a_full_disk_is_a_failure_of_what_was_asked_for_and_of_nothing_else(
    begin: Callable[..., dict[str, subprocess.Popen[bytes]]],
) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    lost = begin(stdout=full, stderr=subprocess.PIPE)
    kept = begin(stderr=full)
    for name, process in lost.items():
        _out, said = process.communicate(timeout=ENDLESS)
        assert (name, process.returncode) == (name, 0 if name in SILENT else 1), said
        sentences = [line for line in said.splitlines() if line.startswith(b"ptunnel: ")]
        assert len(sentences) == (name not in SILENT)
        assert all(b"No space left on device" in line for line in sentences)
        assert b"Traceback" not in said
    for name, process in kept.items():
        assert (name, process.wait(ENDLESS)) == (name, 0)
    os.close(full)


@pytest.mark.parametrize("entry", ["-m tunnel", "console script"])
def test_a_ctrl_c_before_the_program_has_begun_is_no_traceback(tmp_path: Path, entry: str) -> None:
    """The first fifty milliseconds go into imports, one of which meets it here."""
    begin = "import runpy; runpy.run_module('tunnel', run_name='__main__')"
    if entry == "console script":
        begin = "from tunnel.__main__ import main; main()"
    script = (
        "import sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'click': raise KeyboardInterrupt\n"
        f"sys.meta_path.insert(0, Finder())\n{begin}\n"
    )
    environment = {**os.environ, "PTUNNEL_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, timeout=ENDLESS, check=False)
    assert (done.returncode, done.stderr, done.stdout) == (130, b"", b"")


@pytest.mark.parametrize("words", [("--help",), ("help", "connect"), ("help", "expose"), ("help", "lan"), ("help", "exec")])
def test_help_in_a_pipe_has_no_character_that_nobody_types(tmp_path: Path, words: tuple[str, ...]) -> None:
    process = start(tmp_path, *words, stdout=subprocess.PIPE)
    shown, _err = process.communicate(timeout=ENDLESS)
    assert process.returncode == 0
    assert [character for character in shown.decode() if ord(character) < 32 and character != "\n"] == []

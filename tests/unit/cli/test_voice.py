"""Standard output and error that hold up nobody: full pipes, full disks, readers that leave, descriptors that are closed."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tunnel.cli import render, voice
from tunnel.cli.main import report
from tunnel.cli.voice import LAST_WORDS, MAX_HELD, Voice
from tunnel.errors import UnreachableError


class Pipe:
    """A pipe whose writing end is a Voice's."""

    def __init__(self, *, is_asked_for: bool = False) -> None:
        self.reader, self.writer = os.pipe()
        self.voice = Voice(self.writer, is_asked_for=is_asked_for)

    def fill(self) -> int:
        """Until nothing more goes in; how much does."""
        os.set_blocking(self.writer, False)
        size = 0
        try:
            while True:
                size += os.write(self.writer, b"x" * 4096)
        except BlockingIOError:
            os.set_blocking(self.writer, True)
        return size

    def read(self, size: int) -> bytes:
        found = b""
        while len(found) < size and (data := os.read(self.reader, size - len(found))):
            found += data
        return found

    def read_until(self, end: bytes) -> bytes:
        found = b""
        while not found.endswith(end) and (data := os.read(self.reader, 65_536)):
            found += data
        return found


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    os.close(made.reader)  # a thread that waits for a reader ends its write


def test_a_reader_that_stands_still_holds_up_nobody_and_hears_the_newest_and_what_is_missing(pipe: Pipe) -> None:
    full = pipe.fill()
    pipe.voice.hurry()
    line = "y" * 99 + "\n"
    pipe.voice.write("being written\n")
    while pipe.voice._waiting:
        os.sched_yield()  # until the thread has it
    count = 3 * MAX_HELD // len(line)
    for number in range(count):
        pipe.voice.write(f"{number:<99}\n")
    assert not pipe.voice.is_idle
    assert pipe.read(full) == b"x" * full
    text = pipe.read_until(f"{count - 1:<99}\n".encode()).decode()
    *head, notice, first = text.split("\n")[:3]
    assert head == ["being written"]
    missing = int(first)
    assert notice + "\n" == voice.notice_of_loss(missing)
    assert len(text) <= MAX_HELD + 500
    pipe.voice.finish()
    assert pipe.voice.is_idle


def test_the_end_waits_for_a_reader_as_long_as_it_reads(pipe: Pipe) -> None:
    full = pipe.fill()
    pipe.voice.hurry()
    pipe.voice.write("last words\n")
    pipe.voice.finish(0.05)
    assert not pipe.voice.is_idle
    reading = threading.Thread(target=pipe.read, args=(full,))
    reading.start()
    pipe.voice.finish(20.0)
    reading.join()
    assert pipe.voice.is_idle
    assert pipe.read_until(b"words\n") == b"last words\n"


def test_a_reader_that_leaves_ends_who_was_asked_and_nobody_else() -> None:
    for is_asked_for in (True, False):
        pipe = Pipe(is_asked_for=is_asked_for)
        gone = threading.Event()
        pipe.voice.on_broken = gone.set
        pipe.voice.hurry()
        os.close(pipe.reader)
        pipe.voice.write("to nobody\n")
        pipe.voice.finish()
        assert gone.wait(20 if is_asked_for else 0) is is_asked_for
        if is_asked_for:
            with pytest.raises(BrokenPipeError):
                pipe.voice.write("again\n")
        else:
            pipe.voice.write("again\n")
        os.close(pipe.writer)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_full_disk_is_no_failure_and_costs_what_was_said_meanwhile(tmp_path: Path) -> None:
    descriptor = os.open("/dev/full", os.O_WRONLY)
    log = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    made = Voice(descriptor)
    made.write("before a command runs for long, too\n")
    made.hurry()
    made.write("lost\n")
    made.finish()
    os.dup2(log, descriptor)
    made.write("and on\n")
    made.finish()
    assert (tmp_path / "log").read_text() == voice.notice_of_loss(1) + "and on\n"
    os.close(descriptor)
    os.close(log)


def test_what_is_asked_for_fails_as_ever_before_a_command_runs_for_long() -> None:
    descriptor = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(OSError, match="No space"):
        Voice(descriptor, is_asked_for=True).write("a list")
    os.close(descriptor)


def test_events_that_are_missing_are_an_event(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", pipe.voice)
    render.Output(is_json=True)
    told = json.loads(pipe.voice.tell_loss(3))
    assert (told["event"], told["code"], told["count"]) == ("warning", "events_lost", 3)


@pytest.mark.parametrize("locale", ["C.UTF-8", "C", "tr_TR.ISO-8859-9", "en_US.ISO-8859-1"])
def test_any_name_can_be_told_in_any_locale(locale: str) -> None:
    """JSON stays JSON; a sentence shows what the locale cannot as its number."""
    script = (
        "from tunnel.cli import voice, render\n"
        "import click, sys\n"
        "voice.install()\n"
        "click.echo(render.json_line({'event': 'peer', 'name': 'さくら and Ali\\u2019nin evi'}))\n"
        "click.echo('さくら', err=True)\n"
    )
    encoding = "iso8859-9" if "8859" in locale else "utf-8"
    preferred = f"import locale; locale.getpreferredencoding = lambda do=True: {encoding!r}\n"
    done = subprocess.run([sys.executable, "-c", preferred + script], capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.decode())["name"] == "さくら and Ali\u2019nin evi"
    assert done.stderr.decode() == ("さくら\n" if encoding == "utf-8" else "\\u3055\\u304f\\u3089\n")


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_descriptors_that_were_closed_lead_nowhere(closed: tuple[int, ...], tmp_path: Path) -> None:
    """As from launchers, `2>&-` and pythonw: no socket of ours becomes a standard stream, and nothing fails."""
    script = (
        "import os, socket, sys\n"
        "from tunnel.cli import voice\n"
        "voice.install()\n"
        "assert socket.socket().fileno() > 2\n"
        "sys.stdin.read(); print('data'); print('words', file=sys.stderr)\n"
        f"open({str(tmp_path / 'done')!r}, 'w').close()\n"
    )
    redirections = " ".join(f"{number}>&-" if number else "0<&-" for number in closed)
    subprocess.run(
        ["sh", "-c", f'exec "$0" -c "$1" {redirections}', sys.executable, script],
        timeout=60,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert (tmp_path / "done").exists()


def test_an_answer_is_kept_whole_and_waited_for_by_a_command_that_was_run_for_it(pipe: Pipe) -> None:
    """`ptunnel status --json` into a pipe that is read later, or at a terminal that was stopped: nothing of it is given up."""
    full = pipe.fill()
    pipe.voice.hurry(is_answer=True)
    lines = [f"{number:<99}\n" for number in range(2 * MAX_HELD // 100)]
    for line in lines:
        pipe.voice.write(line)
    ending = threading.Thread(target=pipe.voice.finish)
    ending.start()
    ending.join(2 * LAST_WORDS)
    assert ending.is_alive(), "it waits for longer than a command's last words are waited for"
    assert pipe.read(full) == b"x" * full
    assert pipe.read(100 * len(lines)) == "".join(lines).encode()
    ending.join(20.0)
    assert not ending.is_alive()


def test_an_answer_that_cannot_be_written_is_a_failure_and_what_is_said_beside_it_is_none() -> None:
    for is_asked_for in (True, False):
        descriptor = os.open("/dev/full", os.O_WRONLY)
        made, broken = Voice(descriptor, is_asked_for=is_asked_for), threading.Event()
        made.on_broken = broken.set
        made.hurry(is_answer=True)
        made.write("an answer\n")
        made.finish()
        assert (made.failure is not None) is broken.wait(20 if is_asked_for else 0) is is_asked_for
        os.close(descriptor)


def test_why_a_command_failed_comes_below_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of `doctor MEMBER` while the member is away: else it is somewhere above the table, off the screen."""
    answer, errors = Pipe(is_asked_for=True), Pipe()
    full = answer.fill()
    answer.voice.hurry(is_answer=True)
    errors.voice.hurry(is_answer=True)
    monkeypatch.setattr(sys, "stdout", answer.voice)
    monkeypatch.setattr(sys, "stderr", errors.voice)
    answer.voice.write("the answer\n")
    thread = threading.Thread(target=report, args=(UnreachableError("anna is away."),))
    thread.start()
    assert not select.select([errors.reader], [], [], 0.1)[0]  # the answer waits for its reader still
    read = answer.read(full + len("the answer\n"))
    assert read.endswith(b"the answer\n")
    thread.join(20.0)
    assert errors.read_until(b".\n") == b"ptunnel: anna is away.\n"
    for pipe in (answer, errors):
        os.close(pipe.reader)


@pytest.mark.parametrize(("instruction", "wanted"), [("bash_source", "_ptunnel_completion() {"), ("bash_complete", "plain,join")])
def test_the_shell_is_answered_by_the_program_as_it_runs(tmp_path: Path, instruction: str, wanted: str) -> None:
    """What completes a word comes in bytes."""
    environment = {"_PTUNNEL_COMPLETE": instruction, "COMP_WORDS": "ptunnel lan jo", "COMP_CWORD": "2"}
    program = "import sys; from tunnel.cli.main import main; sys.argv[0] = 'ptunnel'; main()"
    shown = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **environment, "PTUNNEL_HOME": str(tmp_path)}, capture_output=True,
        text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (shown.returncode, shown.stderr) == (0, "")
    assert wanted in shown.stdout

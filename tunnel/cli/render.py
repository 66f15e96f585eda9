"""How a command speaks: JSON objects on stdout, sentences on stderr, and on a terminal a live status below them."""

from __future__ import annotations

import datetime
import json
import logging
import os
import re
import shutil
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, TextIO

import click

from tunnel.cli import json_log
from tunnel.cli.voice import Voice
from tunnel.faults import Faults

if TYPE_CHECKING:
    import trio
    from rich.console import Console, RenderableType
    from rich.live import Live

REFRESH_S: Final = 1.0  # seconds between two looks at the links
AGE_SHOWN: Final = 5.0  # seconds since a round trip was measured, from which on it is said
LARGEST: Final = 1e18  # of a figure that is shown
DEFAULT_WIDTH: Final = 80  # columns of a terminal that does not say
UNKNOWN: Final = "?"  # is shown for what is no figure
#: Numbers of a link that are said in words of their own, or are for programs only.
SAID: Final = frozenset(
    ("sent_bytes", "received_bytes", "packets_sent", "packets_received", "packets_lost", "streams", "mtu", "rtt_s", "rtt_age_s")
)
HANGING: Final = 4  # columns by which what goes on of a row stands further in than its beginning
SPIN_S: Final = 0.1  # seconds between two pictures of the spinner
LONG_WAIT: Final = 4.0  # seconds of waiting without a word, after which it is said that this goes on, and what can be looked at

#: What stays on one line of a screen, with the space behind it: a word, or a command in quotes.
WORD: Final = re.compile(r"([^ ']*'(?:sudo )?(?:/[^ ']*/)?ptunnel [^']*'[^ ]*|[^ ]*) ")

#: A line of the live status: its text, and whether it stands for something awaited, which gets a spinner.
Line = tuple[str, bool]


def is_terminal(stream: TextIO | None) -> bool:
    """One that can show something live."""
    try:
        return stream is not None and stream.isatty() and os.environ.get("TERM", "dumb") not in ("", "dumb")
    except ValueError:
        return False


def is_in_front() -> bool:
    """Whether this process may draw on its terminal: in the background it would draw over what the person types."""
    try:
        return os.tcgetpgrp(sys.stderr.fileno()) == os.getpgrp()
    except (OSError, ValueError, AttributeError):  # no terminal of ours, or no such thing on this system
        return True


def json_line(event: Mapping[str, Any]) -> str:
    """One object of the machine interface: `event` first, `time` last (UTC, ISO 8601).  It is UTF-8 in any locale."""
    now = json_log.stamp(time.time())
    is_utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    return json.dumps({**event, "time": now}, ensure_ascii=not is_utf8)


def _notice_of_loss(lines: int) -> str:
    text = f"{lines} events are missing here, as nobody read them"
    return json_line({"event": "warning", "code": "events_lost", "message": text, "count": lines}) + "\n"


class Output:
    """One for each command that runs for a while."""

    def __init__(
        self, *, is_json: bool = False, is_quiet: bool = False, may_be_live: bool = True, events_to: TextIO | None = None
    ) -> None:
        """`events_to`: where the events of --json go, when standard output is a program's own."""
        self._events_to = events_to
        self.is_json = is_json
        self.is_quiet = is_quiet
        self.is_live = may_be_live and not is_json and not is_quiet and is_terminal(sys.stderr)
        self._live: Live | None = None
        self._console: Console | None = None
        self._last = ""
        self._is_running = False
        self._is_covered = False  # plain lines stand where the live status was
        self._awaited = ""  # what is waited for
        self._advice = ""  # what a person can look at meanwhile
        self._waits_since = 0.0
        self._is_wait_told = False
        self._wait_changed: trio.Event | None = None
        self._lines: Callable[[], Sequence[Line]] | None = None
        stream = events_to or sys.stdout
        if is_json and isinstance(stream, Voice):
            stream.tell_loss = _notice_of_loss
        self.faults = Faults(self.warn)

    @property
    def shows_live(self) -> bool:
        """Whether the live status stands on the screen now.  In the background plain lines say what happens."""
        return self.is_live and is_in_front()

    def emit(self, event: Mapping[str, Any]) -> None:
        """One event of the machine interface.  Nothing without --json."""
        if self.is_json:
            stream = self._events_to or sys.stdout
            stream.write(json_line(event) + "\n")
            stream.flush()

    def say(self, text: str = "", **facts: Any) -> None:
        """For a person; nothing with --json or --stdio.  `facts` go beside it with --log-json: what, who, why."""
        if json_log.is_on() or not (self.is_json or self.is_quiet):
            self._print(text, **facts)

    def log(self, text: str, **facts: Any) -> None:
        """The same, with the time."""
        if json_log.is_on() or not (self.is_json or self.is_quiet):
            self._print(text, stamp(), **facts)

    def warn(self, text: str, code: str = "", **facts: Any) -> None:
        """For a person, with --stdio too, and with the time once the command runs.  What was said last is not said again.

        With `code` it is a `warning` of --json, too.
        """
        self._is_wait_told = True
        if (json_log.is_on() or not self.is_json) and text != self._last:
            when = stamp() if self._is_running and not self.is_quiet else ""
            self._print(text, when, **{"level": logging.WARNING, "what": code or "warning", **facts})
        if code:
            self.emit({"event": "warning", "code": code, "message": text})

    def _print(self, text: str, when: str = "", **facts: Any) -> None:
        self._last = text
        if json_log.is_on():
            json_log.say(text, **facts)
            return
        line = f"{when}  {text}" if when else text
        if self._live is not None and self._console is not None and not self._is_covered and is_in_front():
            shown = "\n".join(folded(line, self._console.width))
            self._console.print(shown, markup=False, highlight=False, soft_wrap=True, emoji=False)
        else:
            self._is_covered = True
            tell(line)

    # -- waiting

    def wait_for(self, what: str, advice: str = "") -> None:
        """Something is waited for, as in `Connecting to 'home'`; "": no longer.

        A long wait is spoken of, once, with `advice`: what a person can look at meanwhile.
        """
        if what == self._awaited:
            return
        import trio

        self._awaited, self._advice, self._waits_since, self._is_wait_told = what, advice, trio.current_time(), False
        if self._wait_changed is not None:
            self._wait_changed.set()

    def waiting_line(self, otherwise: str = "") -> Line:
        """The line of the live status for what is waited for, or else for `otherwise`."""
        more = ""
        if self._awaited:
            import trio

            seconds = trio.current_time() - self._waits_since
            more = f"{short_duration(seconds)} " if seconds >= LONG_WAIT else ""
        return (f"{self._awaited or otherwise} ... {more}(Ctrl-C ends it)", True)

    async def _speak_of_waits(self) -> None:
        """Where no live status shows them, and as JSON."""
        import trio

        while True:
            self._wait_changed = trio.Event()
            if self._awaited and not self._is_wait_told:
                with trio.move_on_at(self._waits_since + LONG_WAIT) as limit:
                    await self._wait_changed.wait()
                if limit.cancelled_caught and not self._is_wait_told:
                    text = f"{self._awaited}: still trying (Ctrl-C ends it). {self._advice}".rstrip()
                    self._is_wait_told = True
                    self.emit({"event": "warning", "code": "takes_long", "message": text})
                    if self._advice or not self.shows_live:
                        self.warn(text, what="takes_long")
            else:
                await self._wait_changed.wait()

    @asynccontextmanager
    async def live(self, lines: Callable[[], Sequence[Line]]) -> AsyncIterator[None]:
        """While the block runs, show `lines()` below everything else, on a terminal."""
        import trio

        self._lines = lines
        self._is_running = True
        problem: BaseException | None = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._speak_of_waits)
                if self.is_live:
                    nursery.start_soon(self._refresh)
                try:
                    yield
                except trio.Cancelled:
                    raise
                except BaseException as error:  # passed on as it is: the nursery would wrap it in a group
                    problem = error
                nursery.cancel_scope.cancel()
        finally:
            self._is_running = False
            self.clear()
        if problem is not None:
            raise problem

    async def _refresh(self) -> None:
        import trio

        while self._lines is not None:
            current: Sequence[Line] = ()
            with self.faults.wall("screen", "kept the status from being shown", OSError):
                current = self._lines()
                if _may_draw():
                    self._draw(current)
            await trio.sleep(SPIN_S if any(spins for _, spins in current) else REFRESH_S)

    def _draw(self, lines: Sequence[Line]) -> None:
        """A picture begins anew below plain lines that were said in the background."""
        from rich.console import Console
        from rich.live import Live

        if self._live is None or self._is_covered:
            self._is_covered = False
            self._console = Console(stderr=True, highlight=False)
            self._live = Live(
                console=self._console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False, transient=True
            )
            self._live.start()
            self._console.show_cursor(True)  # a command that is stopped (Ctrl-Z) leaves it visible
        self._live.update(_picture(lines), refresh=True)

    def clear(self) -> None:
        """Take the picture away and draw no other one: what it shows ends with the command, and is not so any more."""
        self._lines = None
        live, self._live = self._live, None
        if live is not None and is_in_front():
            live.transient = not self._is_covered  # else what was said in its place would go
            live.stop()


def _may_draw() -> bool:
    """A picture that nobody takes is not drawn, nor one over the shell's prompt."""
    return is_in_front() and (not isinstance(sys.stderr, Voice) or sys.stderr.is_idle)


_spinner: Any = None


def _picture(lines: Sequence[Line]) -> RenderableType:
    from rich.console import Group
    from rich.spinner import Spinner
    from rich.text import Text

    global _spinner
    if _spinner is None:
        _spinner = Spinner("dots")
    parts: list[RenderableType] = []
    for text, spins in lines:
        shown = Text(text, no_wrap=True, overflow="ellipsis")
        shown.highlight_regex(r"(?<!\S)direct(?=,|  |$)", "green")
        shown.highlight_regex(r"(?<!\S)relay(?=,|  |$)", "yellow")
        if spins:
            _spinner.update(text=shown)
            parts.append(_spinner)
        else:
            parts.append(shown)
    return Group(*parts)


# -- words and figures


def folded(text: str, width: int) -> list[str]:
    """The lines of `text` on a screen of `width` columns, broken between words.  A command behind its label gets a line of
    its own; one longer than the screen stays whole, as it is to be copied, and so does one in quotes."""
    from rich.cells import cell_len

    found: list[str] = []
    for line in text.split("\n"):
        label, gap, command = line.strip().partition("   ")
        if cell_len(line) <= width or line.startswith("  "):
            found.append(line)
        elif gap and cell_len(label) <= width:
            found += [label, f"  {command.strip()}"]
        else:
            found += _filled(line, width)
    return found


def hanging(row: str, width: int) -> list[str]:
    """The lines of a row of figures and words, of which all but the first stand further in."""
    inner = len(row) - len(row.lstrip())
    return [row] if len(row) <= width else _filled(row, width, " " * min(inner + HANGING, width // 4))


def _filled(line: str, width: int, indent: str = "") -> list[str]:
    """As many words in each line as there is room for."""
    from rich.cells import cell_len

    found: list[str] = []
    first, *words = WORD.findall(f"{line} ")
    row = first
    for word in words:
        if cell_len(row) + 1 + cell_len(word) > width and row.strip():
            found.append(row.rstrip())
            row = indent + word
        else:
            row = f"{row} {word}"
    return [*found, row]


def tell(text: str, *, is_answer: bool = False, **facts: Any) -> None:
    """Say it on standard error (an answer on standard output): on a terminal broken between words, not where its edge is."""
    if json_log.is_on() and not is_answer:
        json_log.say(text, **facts)
        return
    if is_terminal(sys.stdout if is_answer else sys.stderr):
        text = "\n".join(folded(text, screen_width()))
    click.echo(text, err=not is_answer)


def put_row(row: str) -> None:
    """A row of figures and words that were asked for."""
    click.echo("\n".join(hanging(row, screen_width())) if is_terminal(sys.stdout) else row)


class FoldedLines(logging.Formatter):
    """Of a log that goes to a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(folded(super().format(record), screen_width()))


def short_path(status: Mapping[str, Any]) -> str:
    """`direct, 23 ms  up 113 B/s  down 0 B/s`: what the live status has room for; `ptunnel status` shows the rest."""
    if is_silent(status):
        return f"waiting for {status['peer']}"
    if not status.get("kind"):
        return "looking for a path"
    how = ", ".join(filter(None, (str(status["kind"]), round_trip(status))))
    return f"{how}  up {rate(status.get('send_rate', 0))}  down {rate(status.get('receive_rate', 0))}"


def is_silent(status: Mapping[str, Any]) -> bool:
    """The link stands, and nothing gets through to the peer.  An older process does not say."""
    return bool(status.get("kind")) and status.get("reachable") is False


def live_lines(texts: Iterable[str]) -> list[Line]:
    """Lines of the live status that fit on the screen, broken between words where they have to be."""
    width = screen_width()
    return [(line, False) for text in texts for line in folded(text, width)]


def screen_width() -> int:
    """Columns of the terminal."""
    return shutil.get_terminal_size().columns or DEFAULT_WIDTH


def stamp() -> str:
    """The local time."""
    return datetime.datetime.now().astimezone().strftime(time_format())


def time_format() -> str:
    """Of what is said with its time: `23:09:12` on a terminal, and with the date in a log."""
    return "%H:%M:%S" if is_terminal(sys.stderr) else "%Y-%m-%d %H:%M:%S"


def path_line(status: Mapping[str, Any]) -> str:
    """`direct  udp 198.51.100.7:41641  rtt 23 ms  mtu 1472`; `status` is a path event or a link's status."""
    if is_silent(status):
        return f"waiting for {status['peer']}"
    if not status.get("kind"):
        return "looking for a path"
    parts = [str(status["kind"]), f"udp {status['remote']}"]
    if status.get("rtt_s"):
        parts.append(f"rtt {round_trip(status)}")
    if status.get("mtu"):
        parts.append(f"mtu {status['mtu']}")
    return "  ".join(parts)


def number(value: object) -> float | None:
    """Return a number that can be calculated with and shown; None for anything else that another process says."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < LARGEST:
        return None
    return float(value)


def traffic(status: Mapping[str, Any]) -> str:
    """Loss, rates and streams of a link's status, and by its name every number that this says in no other way."""
    sent, lost = number(status.get("packets_sent")), number(status.get("packets_lost"))
    loss = 100 * lost / sent if sent and lost else 0.0
    streams = status.get("streams", 0)
    others = [
        f"  {name.replace('_', ' ')} {value}"
        for name, value in status.items()
        if name not in SAID and type(value) is int and number(value)
    ]
    return (
        f"loss {loss:.1f} %  up {rate(status.get('send_rate', 0))}  down {rate(status.get('receive_rate', 0))}"
        f"  {streams} stream{'' if streams == 1 else 's'}{''.join(others)}"
    )


def milliseconds(seconds: float | None) -> str:
    if (seconds := number(seconds)) is None:
        return UNKNOWN
    return f"{seconds * 1000:.1f} ms" if seconds < 0.01 else f"{seconds * 1000:.0f} ms"


def round_trip(status: Mapping[str, Any]) -> str:
    """`23 ms`, and on an idle link `23 ms (12 s ago)`; nothing before it was measured."""
    if not status.get("rtt_s"):
        return ""
    age = number(status.get("rtt_age_s")) or 0.0
    return milliseconds(status["rtt_s"]) + (f" ({short_duration(age)} ago)" if age >= AGE_SHOWN else "")


def short_duration(seconds: float) -> str:
    """`12 s`, `3 min`, `2 h`: for tables, rounded down."""
    if number(seconds) is None:
        return UNKNOWN
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds // 60:.0f} min" if seconds < 7200 else f"{seconds // 3600:.0f} h"


def rate(bytes_per_second: float) -> str:
    return f"{size(bytes_per_second)}/s"


def size(count: float) -> str:
    if number(count) is None:
        return UNKNOWN
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def duration(seconds: float) -> str:
    """`10 minutes`, `an hour`: for people, rounded."""
    if number(seconds) is None:
        return UNKNOWN
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} minutes"
    hours = round(seconds / 3600)
    return f"{hours} hours" if hours < 48 else f"{round(seconds / 86400)} days"


def listing(things: Iterable[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    words = list(things)
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else "nothing"


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of text, aligned; the first is the heading."""
    from rich.cells import cell_len

    widths = [max(cell_len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]

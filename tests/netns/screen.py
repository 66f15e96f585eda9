"""A screen that nobody sits at: an X server whose picture the test reads, and a mouse and a keyboard that the test moves."""

from __future__ import annotations

import os
import select
import struct
import subprocess
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.netns.kernel import LabError, Namespace
from tests.netns.lab import Lab, eventually
from tests.netns.programs import START_S, Program, environment

WIDTH, HEIGHT = 640, 480
XWD_FIELDS = 25  # X11/XWDFile.h: all of 32 bits, big-endian
COLOUR_SIZE = 12  # bytes of one entry of the colour map after it

Box = tuple[int, int, int, int]
"""Left, top, right, bottom; the latter two are outside."""


class Screen:
    """Use `shown` around what happens on it: the picture is kept if that fails."""

    def __init__(self, lab: Lab, space: Namespace, name: str) -> None:
        self.lab = lab
        self.space = space
        self.name = name
        self._folder = lab.folder / f"screen-{name}"
        self._folder.mkdir()
        size = f"{WIDTH}x{HEIGHT}x24"
        self._server = Program(
            lab,
            space,
            f"xvfb-{name}",
            ["Xvfb", "-displayfd", "1", "-screen", "0", size, "-fbdir", self._folder, "-nolisten", "tcp", "-noreset"],
            stdout=subprocess.PIPE,
        )
        answers = self._server.process.stdout
        assert answers is not None
        if not select.select([answers], [], [], START_S)[0]:
            raise self._server.trouble("no display")
        self.display = ":" + answers.readline().strip()
        if self.display == ":":
            raise self._server.trouble("no display")

    def environment(self, home: Path) -> dict[str, str]:
        """What a game on this screen sees: no sound, drawing by one thread of the processor."""
        return environment(
            home,
            DISPLAY=self.display,
            SDL_VIDEODRIVER="x11",
            SDL_AUDIODRIVER="dummy",
            LIBGL_ALWAYS_SOFTWARE="1",
            LP_NUM_THREADS="1",
            NO_AT_BRIDGE="1",
            XDG_RUNTIME_DIR=str(home),
        )

    # ------------------------------------------------------------ seeing

    def _rows(self, box: Box) -> Iterator[bytes]:
        """Blue, green, red and a byte of nothing for each pixel, a row at a time."""
        picture = (self._folder / "Xvfb_screen0").read_bytes()
        fields = struct.unpack_from(f">{XWD_FIELDS}I", picture)
        start, per_line = fields[0] + fields[19] * COLOUR_SIZE, fields[12]
        left, top, right, bottom = box
        for row in range(top, bottom):
            yield picture[start + row * per_line + left * 4 : start + row * per_line + right * 4]

    def count(self, box: Box, wanted: Callable[[int, int, int], bool]) -> int:
        """Pixels in the box whose red, green and blue are wanted."""
        return sum(wanted(row[i + 2], row[i + 1], row[i]) for row in self._rows(box) for i in range(0, len(row), 4))

    def save(self, path: Path) -> None:
        """The whole picture, as a PNG (RFC 2083)."""
        lines = bytearray()
        for row in self._rows((0, 0, WIDTH, HEIGHT)):
            lines.append(0)
            for i in range(0, len(row), 4):
                lines += bytes((row[i + 2], row[i + 1], row[i]))

        def chunk(kind: bytes, data: bytes) -> bytes:
            return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

        header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 8, 2, 0, 0, 0)
        path.write_bytes(
            b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
        )

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Keep the picture if what happens inside fails; with PTUNNEL_SCREENSHOTS, a folder, also if all is well."""
        kept = os.environ.get("PTUNNEL_SCREENSHOTS")
        folder = Path(kept or Path(tempfile.gettempdir()) / "ptunnel-screenshots")
        path = folder / f"{self.name}.png"
        try:
            yield
        except BaseException as error:
            folder.mkdir(parents=True, exist_ok=True)
            self.save(path)
            error.add_note(f"the screen at that moment: {path}")
            raise
        if kept:
            folder.mkdir(parents=True, exist_ok=True)
            self.save(path)

    # ------------------------------------------------------------ doing

    def _xdotool(self, *words: str, check: bool = True) -> str:
        done = self.space.run("xdotool", *words, env=environment(self._folder / "home", DISPLAY=self.display), check=check)
        return done.stdout

    def click(self, x: int, y: int, times: int = 1) -> None:
        self._xdotool("mousemove", str(x), str(y))
        self._xdotool("click", "--repeat", str(times), "--delay", "60", "1")

    def press(self, *keys: str) -> None:
        self._xdotool("key", "--delay", "100", *keys)

    def focus(self, title: str) -> None:
        """Give the keyboard to the window of that title, once it is there; no window manager does."""
        found = eventually(
            f"a window {title}", lambda: self._xdotool("search", "--onlyvisible", "--name", title, check=False).split(), START_S
        )
        self._xdotool("windowfocus", found[-1])


def until(what: str, done: Callable[[], object], act: Callable[[], object], *, every: float = 3.0, timeout: float = 80.0) -> None:
    """Do `act`, again every so many seconds, until `done` is true; for clicks that come before a window is ready for them."""
    tries = max(1, round(timeout / every))
    for left in reversed(range(tries)):
        act()
        try:
            eventually(what, done, every)
        except LabError:
            if left == 0:
                raise LabError(f"not within {timeout} s: {what}") from None
        else:
            return

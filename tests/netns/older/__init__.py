"""ptunnel as it was when it was first given to others, kept to be met by what it is today.

The archive holds `tunnel/` of commit 6c8f646 and nothing else; it runs on the packages of today's environment.
"""

from __future__ import annotations

import tarfile
from pathlib import Path

from tests.netns.kernel import Namespace
from tests.netns.lab import Lab
from tests.netns.programs import Event, Ptunnel

ARCHIVE = Path(__file__).with_name("tunnel-6c8f646.tar.xz")


class OlderPtunnel(Ptunnel):
    """`ptunnel ... --json` of that version.  Its lines are not held to docs/json.md, which is of today."""

    def __init__(self, lab: Lab, space: Namespace, name: str, *words: str, home: Path | None = None, **more: str) -> None:
        tree = lab.folder / "older"
        if not tree.is_dir():
            with tarfile.open(ARCHIVE) as archive:
                archive.extractall(tree, filter="data")
        super().__init__(lab, space, name, *words, home=home, PYTHONPATH=str(tree), PYTHONSAFEPATH="1", **more)

    def collect(self) -> list[Event]:
        self.problems.clear()
        return super().collect()

"""A home of its own for each test."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tunnel.state.home import Home


@pytest.fixture
def home() -> Iterator[Home]:
    """Not under tmp_path, whose length may be too much for a Unix socket."""
    with tempfile.TemporaryDirectory(prefix="pt") as folder:
        yield Home(Path(folder) / "state" / "ptunnel")


# -- psks that came after the pairing

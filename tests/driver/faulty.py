"""What fails where nobody expects it."""

from __future__ import annotations

from typing import Any

QUICK = 0.02  # seconds for what waits a while after a fault


class Fault(Exception):
    """Nobody expects it."""


def fails(*_arguments: Any, **_named: Any) -> Any:
    raise Fault("in a test")

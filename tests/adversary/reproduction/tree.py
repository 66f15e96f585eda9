"""The version under trial, put in the place of the one around these tests before anything of it is imported."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

OURS: Final = Path(__file__).resolve().parents[3]
TREE: Final = Path(os.environ.get("PTUNNEL_TREE") or OURS).resolve()
IS_OURS: Final = TREE == OURS


def choose() -> None:
    """Import `tunnel` from TREE.  Raises ImportError where another one was imported before."""
    if IS_OURS:
        return
    sys.path.insert(0, str(TREE))
    import tunnel

    if not Path(tunnel.__file__).resolve().is_relative_to(TREE):
        raise ImportError(f"{tunnel.__file__} is not of PTUNNEL_TREE ({TREE}): run the tests of this folder alone")


def environment(**more: str) -> dict[str, str]:
    """For a process of that version."""
    return {**os.environ, "PYTHONPATH": str(TREE), "PYTHONDONTWRITEBYTECODE": "1", **more}

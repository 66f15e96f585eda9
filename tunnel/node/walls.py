"""Where an exception that nobody foresaw ends: with what it met, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType


class Wall:
    """`with` it around what handles something of one source: `fell` is told of any exception, which goes no further."""

    __slots__ = ("_fell",)

    def __init__(self, fell: Callable[[Exception], None]) -> None:
        self._fell = fell

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None) -> bool:
        if not isinstance(error, Exception):
            return False
        self._fell(error)
        return True

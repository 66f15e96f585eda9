"""Modules that others import and few commands use: they are read when somebody first looks into them."""

from __future__ import annotations

import sys
from importlib.util import find_spec, module_from_spec
from threading import RLock
from types import ModuleType
from typing import Any, Final

#: trio imports both, for TLS and for names that are not ASCII.
LATER: Final = ("ssl", "idna")

_lock: Final = RLock()
_unread: Final[set[ModuleType]] = set()


class _Later(ModuleType):
    """importlib.util.LazyLoader reads a module as soon as it is imported a second time, as that looks at its __spec__."""

    def __getattr__(self, name: str) -> Any:
        with _lock:  # another thread waits until all of it is there
            if self in _unread:
                _unread.remove(self)
                assert self.__spec__ is not None and self.__spec__.loader is not None  # noqa: PT018
                self.__spec__.loader.exec_module(self)
                self.__class__ = ModuleType  # type: ignore[assignment]  # by now it is like any other
        try:
            return self.__dict__[name]
        except KeyError:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}") from None


def put_off(*names: str) -> None:
    """Call it before anything imports them.  One that is loaded already, or not there, stays as it is."""
    for name in names:
        spec = None if name in sys.modules else find_spec(name)
        if spec is not None and spec.loader is not None:
            module = sys.modules[name] = module_from_spec(spec)
            module.__class__ = _Later
            _unread.add(module)

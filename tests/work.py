"""How much work something is, counted: the same on every machine and at every load, unlike time."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any


def instructions(action: Callable[..., object]) -> int:
    """How many instructions of the Python interpreter `action` takes, in all functions that it calls.

    One takes 10 to 20 ns, with what it calls in C.  Work that grows inside a call into C is not seen.
    """
    collects = gc.isenabled()
    gc.disable()  # whoever listens to the collector is not part of the action
    try:
        return _monitored(action) if sys.version_info >= (3, 12) else _traced(action)
    finally:
        if collects:
            gc.enable()


def _traced(action: Callable[..., object]) -> int:
    count = 0

    def within(frame: FrameType, event: str, _argument: Any) -> Any:
        nonlocal count
        if event == "opcode":
            count += 1
        return within

    def enter(frame: FrameType, _event: str, _argument: Any) -> Any:
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        return within

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        action()
    finally:
        sys.settrace(before)
    return count


def _monitored(action: Callable[..., object]) -> int:
    """By PEP 669: from 3.12 on, opcodes are traced only in code that was traced before."""
    monitoring: Any = vars(sys)["monitoring"]
    tool, count = 4, 0  # a number that the page of sys.monitoring has left free

    def executed(_code: object, _offset: int) -> None:
        nonlocal count
        count += 1

    monitoring.use_tool_id(tool, __name__)
    monitoring.register_callback(tool, monitoring.events.INSTRUCTION, executed)
    monitoring.set_events(tool, monitoring.events.INSTRUCTION)
    try:
        action()
    finally:
        monitoring.set_events(tool, 0)
        monitoring.free_tool_id(tool)
    return count

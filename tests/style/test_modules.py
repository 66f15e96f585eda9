"""How a module of ptunnel looks: its length, what it may call, tables that are total."""

from __future__ import annotations

import ast
import enum
import importlib
import re
from collections.abc import Mapping

from tests.style.source import ROOT, constants, modules, reads
from tests.style.test_imports import SANS_IO, folder_of

MAX_LINES = 500
"""Lines of a module at which it is split, or says why not: a docstring line that begins with `Long because`."""


def test_modules_are_short_or_say_why_not() -> None:
    wrong = [
        f"{module.relative}: {len(module.text.splitlines())} lines"
        for module in modules()
        if len(module.text.splitlines()) > MAX_LINES
        and "\nLong because" not in (ast.get_docstring(module.tree) or "")
        and not module.relative.endswith("/words.py")  # a table of words
    ]
    assert wrong == []


def test_modules_of_tests_are_short_too() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in (ROOT / "tests").rglob("*.py")}
    assert [f"{path.relative_to(ROOT)}: {lines} lines" for path, lines in lengths.items() if lines > MAX_LINES] == []


def test_every_module_says_what_it_is() -> None:
    wrong = [module.relative for module in modules() if module.text.strip() and not ast.get_docstring(module.tree)]
    assert wrong == []


def test_docstrings_begin_with_what_a_thing_is_or_does() -> None:
    """Not with "What ..." or "Who ...", which has to be read twice."""
    wrong = [
        f"{module.relative}: {docstring.splitlines()[0]}"
        for module in modules()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and re.match("(What|Who|Whom|Whose) ", docstring := ast.get_docstring(node) or "")
    ]
    assert wrong == []


def test_the_core_draws_no_keys_by_itself() -> None:
    """X25519PrivateKey.generate() and its like ask the system for chance; the core is handed it."""
    wrong = [
        f"{module.relative}:{node.lineno}"
        for module in modules()
        if folder_of(module.name) in SANS_IO
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Attribute) and node.attr in {"generate", "generate_key", "urandom"}
    ]
    assert wrong == []


def test_every_constant_is_read() -> None:
    """By the product, or by a test that holds the product to it."""
    used = reads()
    idle = {
        name: f"{module.relative}:{line}: {name}"
        for module in modules()
        for name, line in constants(module).items()
        if (module.name, name) not in used and ("*", name) not in used
    }
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py"))
    reading = r"^(?! *(?:from|import) )(?! *{0},?$).*\b{0}\b"
    assert [place for name, place in idle.items() if not re.search(reading.format(name), tests, re.MULTILINE)] == []


def test_asserts_state_no_facts_about_input() -> None:
    """`python -O` drops asserts, so none may stand in a decoder: functions named decode_* or parse_*."""
    wrong = [
        f"{module.relative}:{inner.lineno}"
        for module in modules()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef) and node.name.startswith(("decode_", "parse_"))
        for inner in ast.walk(node)
        if isinstance(inner, ast.Assert)
    ]
    assert wrong == []


def test_transition_tables_are_total() -> None:
    for module in modules():
        if "TRANSITIONS" not in module.text:
            continue
        table = getattr(importlib.import_module(module.name), "TRANSITIONS", None)
        if not isinstance(table, Mapping):
            continue
        states = {type(state) for state in table}
        assert len(states) == 1, f"{module.relative}: keys of more than one type"
        (state_type,) = states
        assert issubclass(state_type, enum.Enum)
        assert set(table) == set(state_type), f"{module.relative}: states without a row"
        for row in table.values():
            assert set(row.values()) <= set(state_type)


def test_sequence_numbers_are_taken_by_one_function_only() -> None:
    """They are nonces: whoever counted for himself could seal two packets under one."""
    counters = {"next_number", "sent_packets", "packets_sent", "sent_bytes"}
    writers = {
        (module.relative, function.name)
        for module in modules()
        if module.name.startswith(("tunnel.transport.connection", "tunnel.transport.crypto"))
        for function in ast.walk(module.tree)
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Attribute) and target.attr in counters
    }
    assert {name for _, name in writers} == {"__init__", "take_numbers"}, writers
    assert [where for where, name in writers if name == "take_numbers"] == ["tunnel/transport/connection/shared.py"]


def test_one_packet_is_sealed_in_one_place_and_bursts_in_three() -> None:
    callers = {
        function.name
        for module in modules()
        for function in ast.walk(module.tree)
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Attribute) and node.attr == "take_numbers"
    }
    assert callers == {"seal", "_stream_burst", "_datagram_burst", "seal_segments"}

"""docs/json.md has every event, field and code that the product knows, and no others."""

from __future__ import annotations

import ast
import dataclasses
import re
from typing import Any, get_args

import pytest

from tests.schema import PAGE, Schema, schema
from tests.style.source import modules
from tunnel.cli.main import REFERENCE, TABLE
from tunnel.node.events import Problem
from tunnel.shell import events
from tunnel.shell.link import LinkStatus

#: One of each event of the library, with whatever may be missing, and without.
SAMPLES: list[events.Event] = [
    events.Listening(bind="192.0.2.1:24531", embedded=True, public="198.51.100.7:24531"),
    events.Listening(bind="nowhere"),
    events.CodeReady(code="731-crossover-clockwork", expires_s=599.7),
    events.CodeReady(code="731-crossover-clockwork-garden", expires_s=None),
    events.Paired(peer="home", fingerprint="SHA256:abc"),
    events.Serving(peer="home", grants=("tcp/22",)),
    events.PathReport(kind="relay", remote="192.0.2.1:24531", rtt_s=0.02, mtu=1200, why="", peer="home"),
    events.MemberReport(peer="ben", address="10.77.1.2", ipv6="fd12::2", state="online", kind="direct"),
    events.MemberReport(peer="anna", address="10.77.1.1", ipv6="fd12::1", state="online", is_me=True),
    events.Closed(reason="the exposing side has ended", peer="home"),
    events.Trouble(code="wrong_code", message="The code was wrong."),
]
#: Said between processes alone, on the control socket.
INNER = {"done", "closing", "looked", "view"}


def literals(pattern: str) -> set[str]:
    text = "".join(module.text for module in modules() if module.name != "tunnel.control.messages")
    return set(re.findall(pattern, text))


def test_every_event_class_is_sampled() -> None:
    assert {type(each) for each in SAMPLES} == set(get_args(events.Event))


@pytest.mark.parametrize("event", SAMPLES, ids=lambda event: type(event).__name__)
def test_events_of_the_library_are_as_the_page_says(event: events.Event) -> None:
    assert schema().problems(event.to_dict(), is_line=False) == []


def test_every_event_that_is_printed_is_on_the_page_and_the_other_way_round() -> None:
    printed = literals(r'"event": "(\w+)"') | {"error"}
    assert printed - INNER == set(schema().events)


def test_every_event_is_named_by_the_help() -> None:
    assert set(schema().events) <= set(re.findall(r"\w+", REFERENCE))


def test_a_link_has_the_fields_of_its_status() -> None:
    assert sorted(schema().objects["link"].types) == sorted(each.name for each in dataclasses.fields(LinkStatus))


def test_every_code_of_a_warning_is_on_the_page() -> None:
    codes = {each.value for each in Problem}
    codes |= literals(r'Trouble\(code="(\w+)"') | literals(r'_trouble\("(\w+)"')
    codes |= literals(r'"event": "warning", "code": "(\w+)"') | literals(r'\.warn\([^()]+, "(\w+)"\)')
    assert codes <= set(schema().warnings)


def test_the_codes_of_errors_and_their_exit_codes_are_those_of_the_command_line() -> None:
    assert schema().errors == {name: str(code) for _kind, code, name in TABLE if name != "interrupted"}


def test_every_field_has_a_type_that_is_known() -> None:
    page = schema()
    for shape in [*page.events.values(), *page.objects.values()]:
        assert shape.types
        for kind in shape.types.values():
            for each in kind.removeprefix("array of ").replace("map of ", "").split(" or "):
                known = {"string", "integer", "number", "boolean", "null", "object", *page.objects}
                assert each in known or re.fullmatch(r'"[\w-]+"', each), kind
    assert len(page.objects) == len(re.findall(r"^### \w", PAGE.read_text(encoding="utf-8"), re.MULTILINE))


GOOD: dict[str, Any] = {"event": "ping", "peer": "a", "n": 1, "rtt_s": 0.1, "kind": "direct", "remote": "192.0.2.1:7"}
TIME = {"time": "2027-01-31T20:15:02.125Z"}


@pytest.mark.parametrize(
    ("event", "word"),
    [
        ({**GOOD, **TIME}, ""),
        ({**GOOD, "rtt_s": None, **TIME}, ""),
        (GOOD, "time"),
        ({**TIME, **GOOD}, "first"),
        ({**GOOD, "n": True, **TIME}, "ping.n is no integer"),
        ({**GOOD, "n": "1", **TIME}, "ping.n is no integer"),
        ({**GOOD, "kind": "tunnelled", **TIME}, "ping.kind"),
        ({**GOOD, "colour": "red", **TIME}, "ping.colour is not on the page"),
        ({key: value for key, value in {**GOOD, **TIME}.items() if key != "peer"}, "ping.peer is missing"),
        ({"event": "pong", **TIME}, "no such event"),
        ({"event": "warning", "code": "odd", "message": "", **TIME}, "the code odd"),
        ({"event": "revoked", "peer": "a", "revoked": [1], "grants": [], "streams": 0, **TIME}, "revoked.revoked"),
    ],
)
def test_the_page_tells_right_from_wrong(event: dict[str, Any], word: str) -> None:
    found = schema().problems(event)
    assert (found == []) if not word else (word in " ".join(found))


def test_nothing_prints_json_but_the_one_function_that_gives_it_a_time() -> None:
    """Else a line could lack what the page promises of each.  Log lines have a formatter of their own."""
    found = []
    for module in modules():
        if module.name.startswith("tunnel.cli") and module.name not in {"tunnel.cli.render", "tunnel.cli.json_log"}:
            tree = ast.parse(module.text)
            calls = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr == "dumps"]
            found += [f"{module.name}:{node.lineno}" for node in calls]
    assert found == []


def test_the_schema_is_read_whole() -> None:
    page: Schema = schema()
    assert len(page.events) > 20
    assert len(page.warnings) > 25

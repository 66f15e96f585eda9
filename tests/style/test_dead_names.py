"""Nothing lies in the product that neither the product nor its users call."""

from __future__ import annotations

import re

from vulture import Vulture

from tests.style.source import ROOT

KINDS = ("function", "method", "property", "class", "import", "unreachable_code")

#: Called by name, or by somebody outside: a framework, or whoever uses the library.
CALLED_FROM_OUTSIDE = {
    "__dir__", "__getattr__", "__call__",
    "wait_link", "new_code", "open_tcp", "receive_exactly",  # tunnel: docs/library.md
    "wait_send_all_might_not_block",  # trio.abc.HalfCloseableStream
    "format_commands", "create_command", "join_command", "remove_command", "list_command", "forget_command",  # click
    "rename_command",
    "_on_started", "_on_packets_sent", "_on_packets_received", "_on_packets_lost", "_on_packets_dropped", "_on_metrics",
    "_on_timeout", "_on_keys", "_on_closed",  # telemetry.qlog, by the name of the event
    "METRICS",  # a page's table, which a test compares
    "serve_unit",  # setup.units: scripts/units and scripts/package are made by it
}  # fmt: skip

#: Constants of a format, complete though we send only some.
OF_A_FORMAT = {"FLOW_CONTROL", "STREAM_LIMIT", "GSO_UDP"}


def test_every_name_is_used_by_the_product() -> None:
    finder = Vulture()
    finder.scavenge([str(ROOT / "tunnel")])
    unused = finder.get_unused_code()
    found = {item.name for item in unused if item.typ in KINDS}
    found |= {item.name for item in unused if item.typ == "variable" and re.fullmatch(r"_?[A-Z][A-Z0-9_]+", item.name)}
    assert found - CALLED_FROM_OUTSIDE - OF_A_FORMAT == set()
    assert (CALLED_FROM_OUTSIDE | OF_A_FORMAT) - found == set()  # the lists name nothing that is gone

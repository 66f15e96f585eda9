"""docs/decisions/hops.md names places of the code: each is there."""

from __future__ import annotations

import re

from tests.style.source import ROOT

PAGE = ROOT / "docs/decisions/hops.md"


def missing(page: str) -> list[str]:
    """The places that `page` names, as `folder/module.py:Class.method`, and that do not exist."""
    found = []
    for module, name, method in re.findall(r"`([\w/]+\.py):(\w+)\.(\w+)`", page):
        path = ROOT / "tunnel" / module
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        if not re.search(rf"^class {name}\b", text, re.M) or not re.search(rf"^    (?:async )?def {method}\b", text, re.M):
            found.append(f"{module}:{name}.{method}")
    return found


def test_each_place_on_the_page_exists() -> None:
    assert missing(PAGE.read_text(encoding="utf-8")) == []


def test_a_place_that_does_not_exist_is_found() -> None:
    assert missing("`node/agenda.py:Agenda.nxt` `node/agenda.py:Agenda.next`") == ["node/agenda.py:Agenda.nxt"]

"""docs/json.md as a schema: what each object of the machine interface may look like, read from the tables of the page."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parent.parent / "docs" / "json.md"
_ROW = re.compile(r"^\| `(\w+)`(, optional)? \| ([^|]+) \| [^|]+ \|$")
_CODE_ROW = re.compile(r"^\| `(\w+)` \| ([^|]+) \|$")
_LINK = re.compile(r"\[([^]]+)\]\(#[\w-]+\)")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
_PLAIN = {"string": str, "boolean": bool, "object": dict}


@dataclass(slots=True)
class Shape:
    """The fields of one kind of object: type in the words of the page, and whether it may be missing."""

    types: dict[str, str] = field(default_factory=dict)
    optional: set[str] = field(default_factory=set)


@dataclass(slots=True)
class Schema:
    events: dict[str, Shape] = field(default_factory=dict)
    objects: dict[str, Shape] = field(default_factory=dict)
    warnings: dict[str, str] = field(default_factory=dict)  # code -> when
    errors: dict[str, str] = field(default_factory=dict)  # code -> exit code

    def problems(self, event: Mapping[str, Any], *, is_line: bool = True) -> list[str]:
        """What is wrong with it; `is_line`: as it was printed, with its time."""
        name = str(event.get("event"))
        shape = self.events.get(name)
        if shape is None:
            return [f"{name}: no such event on the page"]
        fields = {key: value for key, value in event.items() if key not in ("event", "time")}
        found = [f"{name}.{text}" for text in self._compare(fields, shape)]
        if next(iter(event)) != "event":
            found.append(f"{name}: `event` does not come first")
        if is_line and (list(event)[-1] != "time" or _TIME.fullmatch(str(event["time"])) is None):
            found.append(f"{name}: `time` does not come last")
        codes = {"warning": self.warnings, "error": self.errors}.get(name)
        if codes is not None and event.get("code") not in codes:
            found.append(f"{name}: the code {event.get('code')} is not on the page")
        return found

    def line_problems(self, text: str) -> list[str]:
        """The same of one line of output, which has to be an object."""
        try:
            event = json.loads(text)
        except ValueError:
            return [f"no JSON: {text[:80]!r}"]
        return self.problems(event) if isinstance(event, dict) and event else [f"no object: {text[:80]!r}"]

    def _compare(self, value: Mapping[str, Any], shape: Shape) -> list[str]:
        found = [f"{key} is missing" for key in shape.types if key not in value and key not in shape.optional]
        for key, each in value.items():
            if key not in shape.types:
                found.append(f"{key} is not on the page")
            elif not self._fits(each, shape.types[key]):
                found.append(f"{key} is no {shape.types[key]}: {each!r}"[:300])
        return found

    def _fits(self, value: Any, kind: str) -> bool:
        if " or " in kind:
            return any(self._fits(value, each) for each in kind.split(" or "))
        if kind.startswith("array of "):
            return isinstance(value, list) and all(self._fits(each, kind.removeprefix("array of ")) for each in value)
        if kind.startswith("map of "):
            return isinstance(value, dict) and all(self._fits(each, kind.removeprefix("map of ")) for each in value.values())
        if kind.startswith('"'):
            return bool(value == kind.strip('"'))
        if kind == "null":
            return value is None
        if kind in ("integer", "number"):
            return isinstance(value, int if kind == "integer" else int | float) and not isinstance(value, bool)
        if kind in _PLAIN:
            return isinstance(value, _PLAIN[kind])
        return isinstance(value, dict) and not self._compare(value, self.objects[kind])


@cache
def schema() -> Schema:
    """As the page has it now."""
    found = Schema()
    shape: Shape | None = None
    codes: dict[str, str] = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if heading := re.match(r"### (`?)([\w ]+)\1$", line):
            shape = (found.events if heading[1] else found.objects).setdefault(heading[2], Shape())
        elif line.startswith("## Codes of "):
            shape, codes = None, found.warnings if "warning" in line else found.errors
        elif shape is not None and (row := _ROW.match(line)):
            shape.types[row[1]] = _LINK.sub(r"\1", row[3]).strip()
            if row[2]:
                shape.optional.add(row[1])
        elif shape is None and (row := _CODE_ROW.match(line)):
            codes[row[1]] = row[2]
    return found

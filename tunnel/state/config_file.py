"""config.toml: what a person has written, and where."""

from __future__ import annotations

import io
import json
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunnel.errors import StateError


class ConfigFile(dict[str, Any]):
    """The content of a config.toml, and the line of each key."""

    def __init__(self, values: Mapping[str, Any], text: str = "", path: str = "config.toml") -> None:
        super().__init__(values)
        self._text = text
        self._path = path

    def place(self, key: str) -> str:
        """The file and the line of a key, as in `config.toml:3:`."""
        top = re.split(r"^\s*\[", self._text, maxsplit=1, flags=re.MULTILINE)[0].splitlines()
        said = re.compile(rf"""\s*(["']?){re.escape(key)}\1\s*[=.]""")
        line = next((f"{number}:" for number, each in enumerate(top, 1) if said.match(each)), "")
        return f"{self._path}:{line}"

    def place_in(self, table: str, index: int, key: str | None = None) -> str:
        """The file and the line of the table `[[table]]` of that index, or of a key of it; of the file alone where it is not so
        written."""
        head = re.compile(rf"""\s*\[\[\s*(["']?){re.escape(table)}\1\s*\]\]""")
        said = re.compile(rf"""\s*(["']?){re.escape(key or "")}\1\s*[=.]""")
        found, count = 0, -1
        for number, line in enumerate(self._text.splitlines(), 1):
            if re.match(r"\s*\[", line) and (count == index or head.match(line)):
                if count == index:
                    break
                count += 1
                found = number if count == index else 0
            elif count == index and key is not None and said.match(line):
                found = number
                break
        return f"{self._path}:{f'{found}:' if found else ''}" if found else self.place(table)


def read_config(data: bytes, path: str) -> ConfigFile:
    """Raises StateError with the line."""
    try:
        text = data.decode("utf-8-sig")
        return ConfigFile(tomllib.loads(text), text, path)
    except (ValueError, RecursionError) as error:
        reason = str(error).partition("\n")[0] if isinstance(error, tomllib.TOMLDecodeError) else "it is not UTF-8 text"
        raise StateError(f"{path} is not valid TOML: {reason}.") from None


def with_setting(text: str, key: str, value: str | None) -> str:
    """The text of a config.toml with that key set, or without it; every other line stays as it is.

    Raises StateError where the file says it in a way that only a person can change.
    """
    lines = io.StringIO(text.removeprefix("\ufeff"), newline="\n").readlines()
    end = next((number for number, line in enumerate(lines) if re.match(r"\s*\[", line)), len(lines))
    said = re.compile(rf"""\s*(["']?){re.escape(key)}\1\s*=""")
    number = next((number for number, line in enumerate(lines[:end]) if said.match(line)), None)
    fresh = [] if value is None else [f"{key} = {_quoted(value)}\n"]
    if number is not None:
        lines[number : number + 1] = fresh
    else:
        if end and not lines[end - 1].endswith("\n"):
            lines[end - 1] += "\n"
        lines[end:end] = fresh
    changed = "".join(lines)
    before, after = tomllib.loads(text.removeprefix("\ufeff")), _parsed(changed)
    if value is None:
        before.pop(key, None)
    else:
        before[key] = value
    if after != before:
        raise StateError(f"{key} stands in config.toml over several lines: change it there by hand.")
    return changed


def _quoted(value: str) -> str:
    """A basic string of TOML, which differs from JSON's in this one character."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _parsed(text: str) -> dict[str, Any] | None:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return None


def elsewhere(path: Path) -> Path | None:
    """A config.toml where other programs have theirs, while there is none at `path`, which is the one that is read."""
    try:
        base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
        other = Path(base) / "ptunnel" / "config.toml"
        return other if not path.exists() and other.is_file() else None
    except (OSError, RuntimeError):  # RuntimeError: no home directory
        return None

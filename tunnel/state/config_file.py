"""config.toml: what a person has written, and where."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from typing import Any

from tunnel.errors import StateError


class ConfigFile(dict[str, Any]):
    """What stands in a config.toml, and on which line."""

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


def read_config(data: bytes, path: str) -> ConfigFile:
    """Raises StateError with the line."""
    try:
        text = data.decode("utf-8-sig")
        return ConfigFile(tomllib.loads(text), text, path)
    except (ValueError, RecursionError) as error:
        reason = str(error).partition("\n")[0] if isinstance(error, tomllib.TOMLDecodeError) else "it is not UTF-8 text"
        raise StateError(f"{path} is not valid TOML: {reason}.") from None

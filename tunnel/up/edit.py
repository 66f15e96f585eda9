"""Changes to the text of config.toml that leave its comments and its order as they are."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from typing import Any

from tunnel.errors import ConfigurationError, StateError
from tunnel.pairing.grants import GrantSet
from tunnel.state.config_file import ConfigFile
from tunnel.up.config import EVERYBODY, KEYS, Wish, named


def parsed(text: str, path: str) -> ConfigFile:
    """Raises StateError."""
    try:
        return ConfigFile(tomllib.loads(text), text, path)
    except tomllib.TOMLDecodeError as error:
        raise StateError(f"{path} would not be valid TOML: {error}.") from None


def add_forward(text: str, *, peer: str, spec: str) -> str:
    """With that forward: in the peer's table, or in a new one.  The same text where it stands there already."""
    document = _read(text)
    key, word = named(spec)
    for table in _tables(document, "forward"):
        if str(table.get("peer", "")).casefold() == peer.casefold():
            if any(_is_same(each, word, key) for each in _texts(table, key)):
                return text
            if "rate" not in table:
                _add(table, key, [word])
                return _written(document)
    _append(document, "forward", {"peer": peer, key: [word]})
    return _written(document)


def remove_forward(text: str, *, peer: str, spec: str) -> str:
    """Without it; the same text where it does not stand there."""
    document = _read(text)
    key, word = named(spec)
    for table in list(_tables(document, "forward")):
        if str(table.get("peer", "")).casefold() == peer.casefold():
            for each in _texts(table, key):
                if _is_same(each, word, key):
                    _remove(document, "forward", table, key, each)
    return _written(document)


def add_share(text: str, *, what: Sequence[str], to: str) -> str:
    """With these grants for that peer alone."""
    document = _read(text)
    for table in _tables(document, "expose"):
        if [each.casefold() for each in _texts(table, "to")] == [to.casefold()] and "rate" not in table:
            there = GrantSet.parse(*_texts(table, "what"))
            fresh = [each for each in what if not set(GrantSet.parse(each)) <= set(there)]
            if fresh:
                _add(table, "what", fresh)
            return _written(document)
    _append(document, "expose", {"what": [*what], "to": [to]})
    return _written(document)


def remove_share(text: str, *, what: Sequence[str], to: str) -> str:
    """Without these grants of that peer, or without any where none are named.

    Raises ConfigurationError where they are those of others too, which only a person can sort out.
    """
    document = _read(text)
    for table in list(_tables(document, "expose")):
        names = _texts(table, "to")
        if not any(each == EVERYBODY or each.casefold() == to.casefold() for each in names):
            continue
        for each in _texts(table, "what"):
            if not _is_taken(each, what):
                continue
            if len(names) > 1 or EVERYBODY in names:
                whom = "everybody" if EVERYBODY in names else ", ".join(names)
                raise ConfigurationError(f"config.toml grants {each} to {whom}: change it there, then run 'ptunnel reload'.")
            _remove(document, "expose", table, "what", each)
    return _written(document)


def _is_taken(each: str, what: Sequence[str]) -> bool:
    if not what:
        return True
    grants = GrantSet.parse(each)
    for text in what:
        try:
            left, _cut = grants.without(text)
        except ConfigurationError:
            continue
        if len(left):
            raise ConfigurationError(f"config.toml grants {each}, of which {text} is a part: change it there.")
        return True
    return False


def _is_same(one: str, other: str, key: str) -> bool:
    prefix = next(each for each, name in KEYS.items() if name == key)
    return Wish("", prefix + one).key == Wish("", prefix + other).key


def _read(text: str) -> Any:
    import tomlkit

    return tomlkit.parse(text.removeprefix("\ufeff"))


def _written(document: Any) -> str:
    import tomlkit

    return tomlkit.dumps(document)


def _tables(document: Any, name: str) -> list[Any]:
    return list(document.get(name, []))


def _texts(table: Any, key: str) -> list[str]:
    value = table.get(key, [])
    return [str(value)] if isinstance(value, str) else [str(each) for each in value]


def _add(table: Any, key: str, texts: Sequence[str]) -> None:
    value = table.get(key)
    if value is None:
        table[key] = [*texts]
    elif isinstance(value, str):
        table[key] = [str(value), *texts]
    else:
        for text in texts:
            value.append(text)


def _append(document: Any, name: str, values: dict[str, Any]) -> None:
    import tomlkit

    table = tomlkit.table()
    for key, value in values.items():
        table[key] = value
    if name not in document:
        document[name] = tomlkit.aot()
    tables = document[name]
    if hasattr(tables, "unwrap") and type(tables).__name__ == "Array":  # written as one list of inline tables
        inline = tomlkit.inline_table()
        inline.update(values)
        tables.append(inline)
    else:
        tables.append(table)


def _remove(document: Any, name: str, table: Any, key: str, text: str) -> None:
    """One of the texts; with the last one of all the table goes, and with the last table the list."""
    value = table[key]
    if not isinstance(value, str) and len(value) > 1:
        del value[[str(each) for each in value].index(text)]
        return
    if any(_texts(table, each) for each in KEYS.values() if each != key):
        del table[key]
        return
    tables = document[name]
    if len(tables) == 1:
        del document[name]
    else:
        del tables[next(number for number, each in enumerate(tables) if each is table or each == table)]

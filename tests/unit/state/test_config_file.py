"""Where a word of config.toml stands."""

from __future__ import annotations

import pytest

from tunnel.errors import ConfigurationError, StateError
from tunnel.settings import TABLE, load
from tunnel.state.config_file import read_config

TEXT = """# ours
server = "rv.example.net"
 "path"="relay"

[elsewhere]
name = "not of the top"
"""


def test_a_key_is_found_on_its_line_and_only_at_the_top() -> None:
    file = read_config(TEXT.encode(), "ada/config.toml")
    assert file["path"] == "relay"
    assert file.place("server") == "ada/config.toml:2:"
    assert file.place("path") == "ada/config.toml:3:"
    assert file.place("name") == "ada/config.toml:"
    assert file.place("elsewhere") == "ada/config.toml:"


def test_what_is_no_text_or_no_toml_is_one_sentence() -> None:
    with pytest.raises(StateError, match=r"/c\.toml is not valid TOML: it is not UTF-8 text"):
        read_config(b"\xff", "/c.toml")
    with pytest.raises(StateError, match="line 1"):
        read_config(b"server = \nname = 1", "/c.toml")


@pytest.mark.parametrize("key", [key for key, row in TABLE.items() if row.is_in_file and (row.check or row.rule)])
def test_a_bad_value_is_told_with_the_file_the_line_and_the_key(key: str) -> None:
    bad = 'a "b" c' if key == "access_token" else "a b \\u0007"
    file = read_config(
        f"\n{key} = '''{bad}'''\n".encode() if key == "access_token" else f'\n{key} = "{bad}"\n'.encode(), "c.toml"
    )
    with pytest.raises(ConfigurationError, match=rf"^c\.toml:2: {key}"):
        load(file, {})

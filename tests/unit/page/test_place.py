"""How the setting `page` is written."""

from __future__ import annotations

import pytest

from tunnel.errors import ConfigurationError
from tunnel.page.place import EXAMPLE, Place, read_place


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (EXAMPLE, Place("127.0.0.1", 24580)),
        (" 127.0.0.1:1 ", Place("127.0.0.1", 1)),
        ("127.8.9.1:65535", Place("127.8.9.1", 65535)),
        ("localhost:24580", Place("127.0.0.1", 24580)),
        ("[::1]:24580", Place("::1", 24580)),
        ("[0:0::1]:24580", Place("::1", 24580)),
        ("unix:/run/user/1000/page.sock", Place("", 0, "/run/user/1000/page.sock")),
    ],
)
def test_it_is_on_this_machine(text: str, place: Place) -> None:
    assert read_place(text) == place


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0.0.0.0:24580", "can be reached from other machines"),
        ("192.168.1.5:24580", "ssh -L 24580:localhost:24580"),
        ("[::]:24580", "can be reached from other machines"),
        ("[::ffff:192.0.2.1]:24580", "not"),
        ("[fe80::1]:1", "can be reached from other machines"),
        ("8.8.888:80", "is no IP address"),
        ("24580", "an address of this machine with a port"),
        (":24580", "an address of this machine with a port"),
        ("*:24580", "an address of this machine with a port"),
        ("127.0.0.1", "an address of this machine with a port"),
        ("127.0.0.1:0", "an address of this machine with a port"),
        ("127.0.0.1:65536", "an address of this machine with a port"),
        ("127.0.0.1:24580/x", "an address of this machine with a port"),
        ("home.example.net:24580", "an address of this machine with a port"),
        ("unix:page.sock", "an address of this machine with a port"),
        ("unix:/" + "x" * 200, "107 bytes"),
        ("", "an address of this machine with a port"),
    ],
)
def test_anything_else_is_refused_with_one_sentence(text: str, words: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read_place(text, "config.toml:3: page")
    assert words in str(caught.value)
    assert "config.toml:3: page" in str(caught.value) or "107" in words
    assert "\n" not in str(caught.value)


def test_it_is_known_by_the_names_of_this_machine_alone() -> None:
    assert read_place("127.0.0.1:24580").names(24580) == {"127.0.0.1:24580", "localhost:24580"}
    assert read_place("[::1]:24580").names(24580) == {"[::1]:24580", "localhost:24580"}
    assert read_place("127.0.0.1:80").names(80) == {"127.0.0.1:80", "localhost:80", "127.0.0.1", "localhost"}

"""What --forward and --stdio mean, and the sentence for each mistake."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.errors import ConfigurationError
from tunnel.ports.spec import Forward, parse_forward, parse_forwards, parse_target


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8080", [Forward("127.0.0.1", 8080, 8080, "tcp")]),
        ("2222:22", [Forward("127.0.0.1", 2222, 22, "tcp")]),
        ("0:22", [Forward("127.0.0.1", 0, 22, "tcp")]),
        ("5353:53/udp", [Forward("127.0.0.1", 5353, 53, "udp")]),
        ("53/tcp+udp", [Forward("127.0.0.1", 53, 53, "tcp"), Forward("127.0.0.1", 53, 53, "udp")]),
        ("53/UDP+TCP", [Forward("127.0.0.1", 53, 53, "tcp"), Forward("127.0.0.1", 53, 53, "udp")]),
        ("445:nas", [Forward("127.0.0.1", 445, "nas", "tcp")]),
        ("8445:nas:445", [Forward("127.0.0.1", 8445, "nas:445", "tcp")]),
        ("8445:192.168.1.5:445", [Forward("127.0.0.1", 8445, "192.168.1.5:445", "tcp")]),
        ("0.0.0.0:2222:22", [Forward("0.0.0.0", 2222, 22, "tcp", True)]),
        ("*:2222:22", [Forward("*", 2222, 22, "tcp", True)]),
        ("localhost:2222", [Forward("127.0.0.1", 2222, 2222, "tcp", True)]),
        ("[::1]:2222:22", [Forward("::1", 2222, 22, "tcp", True)]),
        ("[::]:53:dns:53/udp", [Forward("::", 53, "dns:53", "udp", True)]),
        ("[fe80::1%eth0]:80", [Forward("fe80::1%eth0", 80, 80, "tcp", True)]),
        ("127.0.0.1:8445:nas:445", [Forward("127.0.0.1", 8445, "nas:445", "tcp", True)]),
        ("5000-5002", [Forward("127.0.0.1", port, port, "tcp") for port in (5000, 5001, 5002)]),
        ("5000-5001:6000-6001", [Forward("127.0.0.1", 5000, 6000, "tcp"), Forward("127.0.0.1", 5001, 6001, "tcp")]),
        (
            "5000-5001:nas:6000-6001",
            [Forward("127.0.0.1", 5000, "nas:6000", "tcp"), Forward("127.0.0.1", 5001, "nas:6001", "tcp")],
        ),
        (" 8080 ", [Forward("127.0.0.1", 8080, 8080, "tcp")]),
    ],
)
def test_a_forward_means(text: str, expected: list[Forward]) -> None:
    assert parse_forward(text) == expected


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "needs a port"),
        ("/udp", "needs a port"),
        ("nonsense", "is no port"),
        ("8080/sctp", r"tcp, udp or tcp\+udp"),
        ("8080/", r"tcp, udp or tcp\+udp"),
        ("70000", "Port 70000 .* is out of range: ports go from 1 to 65535"),
        ("8080:70000", "out of range"),
        ("99999999999999999999", "out of range"),
        ("8080:0", "out of range"),
        ("0", "does not say which port"),
        ("0-10", "out of range"),
        ("5010-5000", "runs backwards: write 5000-5010"),
        ("5000-", "has no end"),
        ("5000-5010:6000", "differ in length"),
        ("5000-5010:6000-6005", "differ in length"),
        ("1-65535", "at most 1024"),
        ("5000-5010:nas", "say its ports too, as in nas:5000-5010"),
        ("8080:", "A port is missing"),
        ("8080:nas:", "A port is missing"),
        ("8080::22", "cannot be read"),
        ("::1:8080", "put the IPv6 address in brackets"),
        ("fe80::1:8080:80", "brackets"),
        ("[::1]", "needs a port behind the bracket"),
        ("[::1", "needs a port behind the bracket"),
        ("[::1]8080", "needs a port behind the bracket"),
        ("[nonsense]:8080", "is no IP address"),
        ("nas:8080", "is no IP address"),
        ("300.1.1.1:8080", "is no IP address"),
        ("8080:na me", "neither a port nor a name"),
        ("8080:nas\x1b", "neither a port nor a name"),
        ("8080:-nas", "neither a port nor a name"),
        ("127.0.0.1:8080:nas:445:9", "cannot be read|too many parts"),
        ("8080:nas:445:9", "too many parts"),
        ("٨٠", "is no port"),
    ],
)
def test_a_mistake_gets_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence) as caught:
        parse_forward(text)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith((".", "/udp"))


@given(st.text(alphabet="0123456789:[]-/*.ntcpudas+% \x00é", max_size=40))
def test_any_text_is_a_forward_or_a_configuration_error(text: str) -> None:
    try:
        forwards = parse_forward(text)
    except ConfigurationError:
        return
    assert all(0 <= forward.local <= 65_535 for forward in forwards)


def test_the_same_port_twice_is_named() -> None:
    with pytest.raises(ConfigurationError, match="--forward 8080:81 wants tcp port 8080, which --forward 8080 has already"):
        parse_forwards(["8080", "8080:81"])
    assert len(parse_forwards(["8080/tcp", "8080/udp", "0:1", "0:2", "[::1]:8080"])) == 5


def test_too_many_ports_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="More than 1024 ports"):
        parse_forwards(["1000-1999", "3000-3999"])


@pytest.mark.parametrize(("text", "expected"), [("22", 22), ("nas", "nas"), ("nas:445", "nas:445")])
def test_a_stdio_target_means(text: str, expected: int | str) -> None:
    assert parse_target(text) == expected


@pytest.mark.parametrize("text", ["", "0", "22-23", "nas:", ":", "a:b:c", "70000", "nas:1-2"])
def test_a_wrong_stdio_target_gets_one_sentence(text: str) -> None:
    with pytest.raises(ConfigurationError):
        parse_target(text)

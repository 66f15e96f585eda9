from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.errors import ConfigurationError, StateError
from tunnel.pairing.grants import GrantSet, parse_grant

GRANTS = GrantSet.parse(
    "22", "53/udp", "5000-5010", "80/tcp+udp", "nas=192.168.1.5:445", "web=host:8000-8010/tcp", "v6=[fd00::1]:22"
)


@pytest.mark.parametrize(
    ("protocol", "target", "place"),
    [
        ("tcp", 22, ("127.0.0.1", 22)),
        ("tcp", "22", ("127.0.0.1", 22)),
        ("udp", 22, None),
        ("udp", 53, ("127.0.0.1", 53)),
        ("tcp", 53, None),
        ("tcp", 5000, ("127.0.0.1", 5000)),
        ("tcp", 5010, ("127.0.0.1", 5010)),
        ("tcp", 5011, None),
        ("tcp", 4999, None),
        ("tcp", 80, ("127.0.0.1", 80)),
        ("udp", 80, ("127.0.0.1", 80)),
        ("tcp", "nas", ("192.168.1.5", 445)),
        ("tcp", "NAS:445", ("192.168.1.5", 445)),
        ("tcp", "nas:22", None),
        ("udp", "nas", None),
        ("tcp", 445, None),
        ("tcp", "web", ("host", 8000)),
        ("tcp", "web:8010", ("host", 8010)),
        ("tcp", "web:8011", None),
        ("tcp", "v6", ("fd00::1", 22)),
        ("tcp", "192.168.1.5:445", None),
        ("tcp", "127.0.0.1:22", None),
        ("tcp", ":22", None),
        ("tcp", "", None),
        ("tcp", "nas:", None),
        ("tcp", "nas:-1", None),
        ("tcp", "nas:٤٤٥", None),
        ("tcp", -1, None),
        ("tcp", 2**70, None),
        ("icmp", 22, None),
    ],
)
def test_only_what_was_granted_is_allowed(protocol: str, target: int | str, place: tuple[str, int] | None) -> None:
    assert GRANTS.allows(protocol, target) == place


def test_nothing_is_granted_by_default() -> None:
    assert GrantSet().allows("tcp", 22) is None


@given(st.text(max_size=20) | st.text(max_size=5), st.text(max_size=20) | st.integers())
def test_whatever_a_peer_asks_for_is_answered(protocol: str, target: str | int) -> None:
    GRANTS.allows(protocol, target)
    place = GRANTS.allows("tcp", target)
    assert place is None or place[0] in {"127.0.0.1", "192.168.1.5", "host", "fd00::1"}


@pytest.mark.parametrize(
    "text",
    [
        *("", "0", "65536", "22-21", "1-", "-5", "x", "22/sctp", "22/tcp+tcp", "22/", "22/tcp+", "22/tcp/udp", "٢٢"),
        *("nas=", "nas=445", "nas=:445", "=h:1", "9x=h:1", "n s=h:1", "nas=h h:1", "nas=h:", "nas=-h:1", "192.168.1.5:445"),
    ],
)
def test_a_bad_grant_gets_one_sentence(text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_grant(text)
    assert str(caught.value).endswith(".")


def test_one_name_means_one_place() -> None:
    with pytest.raises(ConfigurationError, match="two places"):
        GrantSet.parse("nas=a:1", "NAS=b:1")
    assert len(GrantSet.parse("nas=a:1/tcp+udp", "nas=a:1")) == 2


def test_grants_survive_the_state_file() -> None:
    assert GrantSet.from_dicts(GRANTS.to_dicts()) == GRANTS
    assert hash(GrantSet.from_dicts(GRANTS.to_dicts())) == hash(GRANTS)


GOOD = {"protocol": "tcp", "name": None, "host": "127.0.0.1", "first": 1, "last": 2}


@pytest.mark.parametrize(
    "change",
    [
        *({"protocol": "icmp"}, {"protocol": ["tcp"]}, {"name": 5}, {"name": "\n"}, {"host": None}, {"host": "a b"}),
        *({"first": "1"}, {"first": True}, {"first": 3}, {"last": 70_000}, {"first": 0}),
    ],
)
def test_a_damaged_record_is_a_state_error(change: dict[str, object]) -> None:
    with pytest.raises(StateError):
        GrantSet.from_dicts([GOOD | change])
    with pytest.raises(StateError):
        GrantSet.from_dicts([{key: value for key, value in GOOD.items() if key not in change}])


OTHER_KINDS = GrantSet.parse(
    "net/192.168.1.0/24:80,443", "net/[fd00::]/64:53/udp", "remote/8080", "remote/*:9000-9010", "unix:/run/x.sock"
)


def test_networks_remote_ports_and_sockets_survive_the_state_file_and_read_as_they_are_typed() -> None:
    assert GrantSet.from_dicts(OTHER_KINDS.to_dicts()) == OTHER_KINDS == GrantSet.parse(*map(str, OTHER_KINDS))


def test_networks_and_remote_ports_are_for_what_they_say_and_open_no_port_here() -> None:
    assert [each.host for each in OTHER_KINDS.nets("tcp", 443)] == ["192.168.1.0/24"]
    assert [each.host for each in OTHER_KINDS.nets("udp", 53)] == ["fd00::/64"]
    assert OTHER_KINDS.nets("udp", 443) == []
    assert OTHER_KINDS.lets_listen("127.0.0.1", 8080)
    assert OTHER_KINDS.lets_listen("*", 9010)
    assert not OTHER_KINDS.lets_listen("*", 8080)
    assert OTHER_KINDS.allows("tcp", 443) is OTHER_KINDS.allows("tcp", 8080) is None


@pytest.mark.parametrize(
    "record",
    [
        GOOD | {"protocol": "nets/tcp", "host": "10.0.0.0/8"},
        GOOD | {"protocol": "net/tcp", "host": "10.0.0.1/8"},  # no network's own address
        GOOD | {"protocol": "net/tcp", "host": "office"},
        GOOD | {"protocol": "net/tcp", "host": "10.0.0.0/8", "name": "office"},
        GOOD | {"protocol": "remote/udp"},
        GOOD | {"protocol": "remote/tcp", "host": "a b"},
        GOOD | {"protocol": "remote/tcp", "proxy": True},
        GOOD | {"protocol": "udp", "host": "unix:/run/x.sock", "first": 1, "last": 1},
        GOOD | {"host": "unix:x.sock", "first": 1, "last": 1},
    ],
)
def test_a_damaged_record_of_another_kind_is_a_state_error(record: dict[str, object]) -> None:
    with pytest.raises(StateError):
        GrantSet.from_dicts([record])


def test_newer_grants_win_where_they_give_the_same_name() -> None:
    both = GRANTS.union(GrantSet.parse("443", "Nas=other:1", "22"))
    assert both.allows("tcp", "nas") == ("other", 1)
    assert both.allows("tcp", 443) == ("127.0.0.1", 443)
    assert len(both) == len(GRANTS) + 1


def test_a_grant_reads_well() -> None:
    assert [str(grant) for grant in GrantSet.parse("22", "5000-5010/udp", "nas=192.168.1.5:445", "v6=[fd00::1]:22")] == [
        "tcp/22",
        "udp/5000-5010",
        "tcp/nas=192.168.1.5:445",
        "tcp/v6=[fd00::1]:22",
    ]
    assert "tcp/22" in repr(GRANTS)


@pytest.mark.parametrize("text", ["tcp/22", "udp/53", "tcp+udp/80", "TCP/5000-5010", "tcp/nas=192.168.1.5:445"])
def test_a_grant_is_read_as_it_is_shown(text: str) -> None:
    protocols, _, rest = text.partition("/")
    assert parse_grant(text) == parse_grant(f"{rest}/{protocols}")


@pytest.mark.parametrize(
    ("granted", "text", "left", "taken"),
    [
        ("22 8080", "22", "8080", "22"),
        ("22 8080", "tcp/22", "8080", "22"),
        ("22/tcp+udp", "22/udp", "22", "22/udp"),
        ("22/tcp+udp 53/udp", "22", "53/udp", "22/tcp+udp"),
        ("5000-5010", "5005", "5000-5004 5006-5010", "5005"),
        ("5000-5010", "4000-5003", "5004-5010", "5000-5003"),
        ("5000-5010 5005", "5005", "5000-5004 5006-5010", "5005"),
        ("5000-5010/udp", "1-65535", "", "5000-5010/udp"),
        ("nas=a:445 web=b:80/tcp+udp", "WEB", "nas=a:445", "web=b:80/tcp+udp"),
        ("nas=a:445 22", "nas=a:445", "22", "nas=a:445"),
        ("web=b:8000-8010", "web:8003-8010", "web=b:8000-8002", "web=b:8003-8010"),
        ("web=b:80/tcp+udp", "web/udp", "web=b:80", "web=b:80/udp"),
    ],
)
def test_what_is_taken_back_is_gone_and_nothing_else_is(granted: str, text: str, left: str, taken: str) -> None:
    before, kept, cut = (GrantSet.parse(*texts.split()) for texts in (granted, left, taken))
    assert before.without(text) == (kept, cut)


@pytest.mark.parametrize(
    "text", ["23", "22/udp", "445", "nas:22", "nas=b:445", "nas/udp", "web", "192.168.1.7:22", "", "0", "22/x"]
)
def test_what_is_not_shared_cannot_be_taken_back_and_that_is_said(text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        GrantSet.parse("22", "nas=a:445").without(text)
    assert str(caught.value).endswith(".")


ports = st.tuples(st.integers(1, 60), st.integers(0, 20)).map(lambda pair: f"{pair[0]}-{pair[0] + pair[1]}")


@given(st.lists(ports, min_size=1, max_size=5), ports)
def test_of_what_is_taken_back_no_port_is_allowed_and_all_others_still_are(granted: list[str], text: str) -> None:
    before = GrantSet.parse(*granted)
    try:
        left, _taken = before.without(text)
    except ConfigurationError:
        left = before
    first, last = map(int, text.split("-"))
    for port in range(1, 90):
        assert left.allows("tcp", port) == (None if first <= port <= last else before.allows("tcp", port))

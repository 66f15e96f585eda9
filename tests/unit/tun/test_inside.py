"""What `ptunnel exec` prepares for its command, as far as no kernel is needed."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.doors.tun import inside
from tunnel.doors.tun.config import InterfaceConfig
from tunnel.doors.tun.create import NO_PRIVILEGE
from tunnel.doors.tun.inside import MAX_MESSAGE, only_files, why_not, why_refused
from tunnel.doors.tun.namespace import open_namespace_interface
from tunnel.errors import ConfigurationError

CONFIG = InterfaceConfig(mac="02:70:74:00:00:03", ipv4=("10.77.1.3", 24))


def test_host_names_are_asked_of_files_alone() -> None:
    before = b"passwd: files systemd\nhosts: mymachines resolve [!UNAVAIL=return] files myhostname dns\nnetworks: files"
    assert only_files(before) == b"passwd: files systemd\nnetworks: files\nhosts: files dns\n"
    assert only_files(b"") == b"hosts: files dns\n"
    assert only_files(b"  hosts:\tmdns4\n#hosts: kept\n") == b"#hosts: kept\nhosts: files dns\n"


@given(st.binary(max_size=80) | st.lists(st.sampled_from([b"hosts: x", b"\n", b" hosts:", b"passwd: y"])).map(b"".join))
def test_there_is_one_line_about_hosts_whatever_was_there(text: bytes) -> None:
    lines = [line for line in only_files(text).split(b"\n") if line.strip(b" \t").startswith(b"hosts:")]
    assert lines == [b"hosts: files dns"]


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("kernel/apparmor_restrict_unprivileged_userns", "1\n", "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"),
        ("kernel/unprivileged_userns_clone", "0\n", "sysctl -w kernel.unprivileged_userns_clone=1"),
        ("user/max_user_namespaces", "0\n", "sysctl -w user.max_user_namespaces=10000"),
        ("user/max_user_namespaces", "5\n", "Operation not permitted"),
    ],
)
def test_a_refusal_says_what_to_do(monkeypatch: pytest.MonkeyPatch, setting: str, value: str, words: str) -> None:
    def read(self: Path, encoding: str = "") -> str:
        if str(self) != f"/proc/sys/{setting}":
            raise FileNotFoundError(errno.ENOENT, "")
        return value

    monkeypatch.setattr(Path, "read_text", read)
    sentence = why_refused(OSError(errno.EPERM, ""))
    assert words in sentence
    assert "sudo" in sentence
    assert sentence.count(".\n") == 0
    assert sentence.endswith(".")


@pytest.mark.parametrize("command", [[], [""], ["x" * MAX_MESSAGE]])
async def test_a_command_that_is_none_starts_nothing(command: list[str]) -> None:
    with pytest.raises(ConfigurationError):
        await open_namespace_interface(CONFIG, command)


@pytest.mark.parametrize(
    ("refusal", "told"),
    [
        (None, None),
        (
            "You may not open /dev/net/tun: sudo chmod 666 /dev/net/tun.",
            "You may not open /dev/net/tun: sudo chmod 666 /dev/net/tun.",
        ),
        (NO_PRIVILEGE, "This system refuses a network of its own to the command (Operation not permitted)"),
    ],
)
def test_what_keeps_a_command_from_its_network_is_known_before_a_code_is_asked_for(
    refusal: str | None, told: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def create(name: str) -> tuple[int, str]:
        if refusal is None:
            return 0, name
        raise ConfigurationError(refusal) from PermissionError(errno.EPERM, "no")

    monkeypatch.setattr(inside, "enter_namespaces", lambda: None)
    monkeypatch.setattr(inside, "create_tap", create)
    monkeypatch.setattr(inside, "why_refused", lambda error: told)
    assert why_not() == told


def test_a_refused_namespace_is_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise ConfigurationError("no namespaces here")

    monkeypatch.setattr(inside, "enter_namespaces", refuse)
    assert why_not() == "no namespaces here"

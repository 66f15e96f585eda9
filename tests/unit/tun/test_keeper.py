"""The keeper does what its few commands say and refuses everything else with a sentence."""

from __future__ import annotations

import json
import subprocess
import sys
from ipaddress import ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.doors.tun import configure, keeper
from tunnel.doors.tun.config import InterfaceConfig, check_mtu
from tunnel.doors.tun.keeper import MAX_MESSAGE, NO_WALL, Keeper
from tunnel.doors.tun.routes import Network
from tunnel.errors import ConfigurationError

CONFIG = InterfaceConfig(mac="02:70:74:00:00:03", ipv4=("10.77.1.3", 24), ipv6=(("fd12::3", 64),))


class Desk:
    """A keeper with recorders in place of the kernel and the hosts file."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: list[Any] = []
        monkeypatch.setattr(keeper, "_in_child", lambda action: action())
        monkeypatch.setattr(configure, "apply", lambda config, is_walled: self.done.append(config) or ["a fact"])
        monkeypatch.setattr(configure, "set_mtu", lambda name, mtu: self.done.append((name, check_mtu(mtu))))
        self.present: set[Network] | None = {ip_network("10.77.1.0/24"), ip_network("fd12::/64"), ip_network("fe80::/64")}
        self.keeper = Keeper("lan0", self.done.append, self._networks)

    def _networks(self, name: str) -> set[Network]:
        assert name == "lan0"
        if self.present is None:
            raise OSError("no such interface")
        return self.present

    def ask(self, **command: Any) -> dict[str, Any]:
        answer, goes_on = self.keeper.answer(json.dumps({"id": 1, **command}).encode())
        assert goes_on
        assert answer.pop("id") == 1
        return answer


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> Desk:
    return Desk(monkeypatch)


def test_without_the_wall_the_interface_forwards_nothing_and_a_person_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    walled: list[bool] = []
    monkeypatch.setattr(keeper, "_in_child", lambda action: action())
    monkeypatch.setattr(configure, "apply", lambda config, is_walled: walled.append(is_walled) or ["a fact"])

    def refuse(config: InterfaceConfig) -> None:
        raise ConfigurationError("no nf_tables")

    command = json.dumps({"id": 1, "do": "configure", "config": CONFIG.to_json()}).encode()
    with_it = Keeper("lan0", lambda names: None, build_wall=lambda config: None).answer(command)[0]
    without = Keeper("lan0", lambda names: None, build_wall=refuse).answer(command)[0]
    assert walled == [True, False]
    assert (with_it["facts"], without["facts"]) == (["a fact"], [NO_WALL, "a fact"])


def test_it_configures_its_own_interface_whatever_name_is_asked(desk: Desk) -> None:
    assert desk.ask(do="configure", config={**CONFIG.to_json(), "name": "eth0"}) == {"ok": True, "facts": ["a fact"]}
    assert [config.name for config in desk.done] == ["lan0"]


def test_it_sets_the_mtu_within_bounds(desk: Desk) -> None:
    assert desk.ask(do="mtu", mtu=1400)["ok"]
    assert desk.done == [("lan0", 1400)]
    for mtu in (68, 100_000, "1400", None, 1400.0, True):
        assert not desk.ask(do="mtu", mtu=mtu)["ok"]
    assert len(desk.done) == 1


def test_names_lead_into_the_lan_only(desk: Desk) -> None:
    assert not desk.ask(do="names", names={"home": ["10.77.1.1"]})["ok"], "nothing is configured yet"
    desk.ask(do="configure", config=CONFIG.to_json())
    assert desk.ask(do="names", names={"home": ["10.77.1.1", "fd12::1"]})["ok"]
    assert desk.done[-1] == {"home": ["10.77.1.1", "fd12::1"]}
    wrong: tuple[object, ...] = (
        {"home": ["8.8.8.8"]},
        {"home": ["fd99::1"]},
        {"home": "10.77.1.1"},
        {"home": ["10.77.1.1"] * 5},
        {"h" * 300: ["10.77.1.1"]},
        {"home": [7]},
        {str(number): [] for number in range(257)},
        ["home"],
        None,
    )
    for names in wrong:
        assert not desk.ask(do="names", names=names)["ok"]
    assert len(desk.done) == 2


def test_names_stand_for_what_is_reached_by_the_interface(desk: Desk) -> None:
    """A subnet that was left out for a clash is somebody else's on this machine."""
    desk.ask(do="configure", config=CONFIG.to_json())
    both = {"home": ["10.77.1.1", "fd12::1"], "old": ["10.77.1.2"]}
    desk.present = {ip_network("fd12::/64"), ip_network("fe80::/64")}
    assert desk.ask(do="names", names=both)["ok"]
    assert desk.done[-1] == {"home": ["fd12::1"], "old": []}
    desk.present = {ip_network("10.77.1.0/24")}
    assert desk.ask(do="names", names=both)["ok"]
    assert desk.done[-1] == {"home": ["10.77.1.1"], "old": ["10.77.1.2"]}
    desk.present = None
    assert desk.ask(do="names", names=both)["ok"]
    assert desk.done[-1] == both


@pytest.mark.parametrize("do", ["route", "", None, 7, ["mtu"]])
def test_other_commands_are_refused(desk: Desk, do: object) -> None:
    answer = desk.ask(do=do)
    assert not answer["ok"]
    assert answer["error"].endswith("is no command.")


def test_quit_is_the_end() -> None:
    assert Keeper("lan0", lambda names: None).answer(b'{"id": 3, "do": "quit"}') == ({"id": 3, "ok": True, "facts": []}, False)


def test_a_message_too_long_is_refused(desk: Desk) -> None:
    answer, _ = desk.keeper.answer(b" " * MAX_MESSAGE + b'{"id": 1, "do": "mtu", "mtu": 1400}')
    assert not answer["ok"]
    assert not desk.done


@given(
    st.binary(max_size=60) | st.sampled_from([b"[" * 60_000, b"\xff", b'{"id": true, "do": "quit"}', b"{}", b"null", b"1e999"])
)
def test_any_bytes_get_an_answer(message: bytes) -> None:
    answer, goes_on = Keeper("lan0", lambda names: None).answer(message)
    assert goes_on
    assert not answer["ok"]


IN_CHILD = """
import sys
from tunnel.errors import ConfigurationError
from tunnel.doors.tun.keeper import _in_child

def refuse():
    raise ConfigurationError("No such thing.")

assert _in_child(lambda: ["one", "pyroute2" in sys.modules]) == ["one", False]
for action, words in ((refuse, "No such thing"), (lambda: {}["oops"], "KeyError")):
    try:
        _in_child(action)
    except ConfigurationError as error:
        assert words in str(error), error
    else:
        raise SystemExit("nothing was raised")
"""


def test_what_fails_in_the_child_is_a_sentence_here() -> None:
    """In a process without threads, as the keeper is: it forks."""
    done = subprocess.run([sys.executable, "-c", IN_CHILD], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, "")

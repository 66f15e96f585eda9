"""What scripts/fuzz stands on: every case that was found is replayed, each machine is run for a moment, and the engine finds."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fuzz.engine import CASES, Case, Finding, Machine, Mutator, minimise, replay, run_episode, signature
from tests.fuzz.machines import MACHINES
from tests.fuzz.run import main

#: Inputs of the short run, where those of an episode would take seconds.
SHORT = {"bench": 12, "control": 20, "interface": 1, "endpoint": 150, "handshake": 60, "agent": 60}


@pytest.mark.parametrize("path", sorted(CASES.glob("*.case")), ids=lambda path: path.stem)
def test_what_was_found_once_is_found_no_more(path: Path) -> None:
    case = Case.read(path)
    replay(MACHINES[case.machine], case)


@pytest.mark.parametrize("name", MACHINES)
def test_real_inputs_are_taken_one_and_all(name: str) -> None:
    machine = MACHINES[name]
    corpus = machine.corpus()
    assert len(corpus) > 5
    episode = machine.begin(1)
    for data in corpus[: SHORT.get(name, 300)]:
        episode.feed(data)
    episode.end()


@pytest.mark.parametrize("name", MACHINES)
def test_a_machine_takes_mutated_inputs_for_a_moment(name: str) -> None:
    machine = MACHINES[name]
    assert run_episode(machine, 1, machine.corpus(), min(machine.length, SHORT.get(name, 400))) > 0


class _Lock:
    """Opens to three inputs in order, the last of which is longer than it need be."""

    def __init__(self) -> None:
        self.step = 0

    def feed(self, data: bytes) -> None:
        if self.step < 2 and data[:1] == bytes((self.step + 1,)):
            self.step += 1
        elif self.step == 2 and b"key" in data:
            raise KeyError("open")

    def end(self) -> None:
        pass


LOCK = Machine("lock", lambda: [b"\1abc", b"\2defghi", b"turn the key now", b"else"], lambda _seed: _Lock(), length=500)


def find() -> Finding:
    for seed in range(50):
        try:
            run_episode(LOCK, seed, LOCK.corpus())
        except Finding as found:
            return found
    raise AssertionError("nothing was found")


def test_the_engine_finds_and_makes_small(tmp_path: Path) -> None:
    found = find()
    case = minimise(LOCK, found.case, found.error)
    assert [each[:1] for each in case.inputs[:2]] == [b"\1", b"\2"]
    assert len(case.inputs) == 3
    assert case.inputs[2] == b"key"
    again = Case.read(case.write(tmp_path, "lock"))
    assert again == case
    with pytest.raises(KeyError):
        replay(LOCK, again)


def test_an_episode_is_the_same_another_time() -> None:
    assert find().case == find().case


def test_the_mutator_changes_most_inputs_and_leaves_some() -> None:
    corpus = [bytes(range(40)), b"other words"]
    mutator = Mutator(random.Random(1), corpus)
    made = [mutator.next() for _ in range(2_000)]
    kept = sum(each in corpus for each in made)
    assert 400 < kept < 1_000
    assert len(set(made)) > 1_000


def test_a_finding_is_told_from_another_by_the_line_that_raised() -> None:
    @dataclass
    class Raises:
        which: int

        def go(self) -> None:
            if self.which:
                raise ValueError("one line")
            raise ValueError("another line")

    marks = set()
    for which in (0, 1, 1):
        try:
            Raises(which).go()
        except ValueError as error:
            marks.add(signature(error))
    assert len(marks) == 2


def test_the_script_counts_inputs_by_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seconds", "0.4", "--seed", "3", "router", "decoders"]) == 0
    table = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
    assert int(table["router"][0].replace(",", "")) > 100
    assert int(table["decoders"][0].replace(",", "")) > 100
    with pytest.raises(SystemExit):
        main(["nonsense"])


def test_the_script_keeps_what_it_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(MACHINES, "lock", LOCK)
    assert main(["--seconds", "0.4", "--cases", str(tmp_path), "lock"]) == 1
    [path] = tmp_path.glob("lock-*.case")
    assert Case.read(path).inputs[2] == b"key"
    assert "FOUND lock: KeyError" in capsys.readouterr().out

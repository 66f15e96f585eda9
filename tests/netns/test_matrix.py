"""A handful of the pairs of scripts/nat-matrix, and its page and picture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.netns.lab import Lab
from tests.netns.matrix import KINDS, SITUATIONS, Result, can_be_direct, everything, may_be_direct, run_pair
from tests.netns.matrix_page import BEGIN, END, class_of, percentile, read_results, summary, write_page
from tests.netns.test_lab import SAYINGS

QUICK = [  # home, friend, who is late and by how much, seconds within which the path is direct; 0: never
    ("uprc", "restricted", "home", 0.25, 3.0),
    ("prcrace", "cgn", "friend", 0.2, 3.0),
    ("prcrace", "symseq", "home", 0.1, 2.0),
    ("quota", "uprc", "friend", 0.0, 15.0),
    ("sym", "cgnsym", "home", 0.05, 0.0),
    ("tcp443", "prc", "home", 0.2, 0.0),
    ("same carrier that hairpins", "", "friend", 0.25, 5.0),
]


@pytest.mark.parametrize(("home", "friend", "late", "late_s", "within"), QUICK)
def test_the_kernels_counters_say_direct_where_it_can_be(
    lab: Lab, home: str, friend: str, late: str, late_s: float, within: float
) -> None:
    result = run_pair(lab, home, friend, late, late_s)
    assert can_be_direct(home, friend) == bool(within)
    if not within:
        assert (result.outcome, result.seconds) == ("relayed", None)
        assert result.relayed_bytes > 200_000
        return
    assert result.outcome == "direct", result
    assert result.direct_bytes > 200_000
    assert result.seconds is not None
    assert result.seconds < within


@pytest.mark.time_limit(240)
def test_two_hard_routers_meet_where_linux_and_a_carrier_give_each_few_ports(tmp_path: Path) -> None:
    """One attempt in a thousand misses, and one in fifty goes slowly: the second try is for those."""
    for number in range(2):
        with Lab(tmp_path / str(number)) as lab:
            lab.folder.mkdir()
            result = run_pair(lab, "symblock", "block512", "home", 0.1)
            carrier = lab.sites["friend"].behind
            assert carrier is not None
            drops = carrier.ask_nat("drops")
        assert not {"quota", "rate", "no port left"} & set(drops)
        if result.outcome == "direct":
            assert result.technique == "blocks"
            assert result.direct_bytes > 200_000
            return
    raise AssertionError(result)


def test_every_kind_of_the_laboratory_is_in_the_matrix() -> None:
    assert {kind for kind, _ in SAYINGS} | {"dual"} == set(KINDS)
    assert len(everything()) == len(KINDS) ** 2 + len(SITUATIONS)


def made_up(home: str, friend: str, number: int) -> Result:
    outcome = "direct" if can_be_direct(home, friend) else "relayed"
    return Result(home, friend, "home", 0.1, outcome, number / 100 if outcome == "direct" else None, "checks", 1, 1, 0.5)


def test_page_and_picture_say_what_was_found(tmp_path: Path) -> None:
    results = [made_up(home, friend, number) for number, (home, friend) in enumerate(everything())]
    broken = replace(results[3], outcome="failed", seconds=None)
    page, picture = tmp_path / "reach.md", tmp_path / "matrix.svg"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    write_page([broken, *results], page, picture)
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert f"- {broken.home} x {broken.friend}: failed, direct 0.03" in text  # each try is told
    assert text.count("| **") == len(KINDS)
    tree = ElementTree.parse(picture)
    labels = [element.text for element in tree.iter() if element.tag.endswith("text")]
    assert all(kind in labels for kind in KINDS)
    assert labels.count("relay") == sum(result.outcome == "relayed" for result in results)


def test_a_result_is_judged_by_what_is_possible() -> None:
    cases = {("prc", "prc"): "missed", ("sym", "sym"): "relayed", ("symad", "quota"): "luck", ("same carrier", ""): "relayed"}
    for (home, friend), name in cases.items():
        result = Result(home, friend, "home", 0.0, "relayed", None, "", 0, 1, 0.0)
        assert class_of(result) == name
        assert may_be_direct(home, friend) == (name == "luck")
    assert percentile([3.0, 1.0, 2.0, 4.0], 0.5) == 2.0
    assert percentile([1.0], 0.99) == 1.0


def test_the_published_results_are_whole() -> None:
    path = Path(__file__).resolve().parents[2] / "docs" / "reach-matrix.jsonl"
    results = read_results(path)
    assert {(result.home, result.friend) for result in results} == set(everything())
    page = " ".join((path.parent / "reach.md").read_text(encoding="utf-8").split())  # its prose is wrapped
    assert [line for line in summary(results) if " ".join(line.split()) not in page] == []

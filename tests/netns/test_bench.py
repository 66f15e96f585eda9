"""scripts/bench, briefly: that it measures what is there, names what is not, and draws a picture.  No figure is judged."""

from __future__ import annotations

import argparse
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from tests.bench import compare, plot


@pytest.mark.time_limit(90)
def test_a_short_comparison(tmp_path: Path) -> None:
    only = ["kernel TCP", "ptunnel", "ssh -L", "iroh"]
    arguments = argparse.Namespace(runs=1, seconds=1, only=only, link=None, ordinary=False, tools=None, python=None)
    found = compare.compare(arguments, tmp_path)
    assert list(found["medians"]) == ["kernel TCP", "ptunnel", "ssh -L"]
    assert found["missing"] == {"iroh": "it is not installed"}
    for name, figures in found["medians"].items():
        assert set(figures) >= {"up", "down", "echo"}, name
        assert all(value > 0 for key, value in figures.items() if "CPU" not in key), (name, figures)
    shown = compare.table(found["medians"])
    assert len(shown.splitlines()) == 2 + 3
    picture = ElementTree.fromstring(plot.bars(found["medians"], 1))
    assert sum(each.get("fill") == plot.OURS for each in picture.iter()) == 2

"""Another version may be under trial: it is chosen before any module of these tests is imported."""

from __future__ import annotations

from tests.adversary.reproduction import tree

tree.choose()


def pytest_report_header() -> list[str]:
    return [] if tree.IS_OURS else [f"ptunnel under trial: {tree.TREE}"]

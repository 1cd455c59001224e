"""Every example is a lab, and runs with every frame accounted for."""

from __future__ import annotations

from pathlib import Path

import pytest

from virtfn.api.lab import load_lab, refuse_unsupported
from virtfn.api.report import verdict

EXAMPLES = sorted((Path(__file__).parents[3] / "examples").glob("*.yaml"))
EMBEDDED = [path for path in EXAMPLES if "vmm: qemu" not in path.read_text(encoding="utf-8")]  # others: tests/guest


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 8


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_an_example_is_a_lab(path: Path) -> None:
    lab = load_lab(path)
    refuse_unsupported(lab)
    assert lab.name == path.stem


@pytest.mark.slow
@pytest.mark.parametrize("path", EMBEDDED, ids=lambda p: p.stem)
def test_an_example_runs(path: Path) -> None:
    from virtfn.api.run import run_lab

    report = run_lab(load_lab(path))
    judged = verdict(report)
    assert judged.passed, judged.words
    assert report["totals"]["frames"] > 0

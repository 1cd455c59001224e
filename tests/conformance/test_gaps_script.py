"""`benchmarks/gaps.py`: this card answers as the datasheet has it. QEMU's is asked in `guest/test_gaps.py`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gaps.py"


def rows(card: str) -> list[list[str]]:
    """Run all probes on one card; return gap, question, answer and the datasheet's answer of each."""
    done = subprocess.run([sys.executable, str(SCRIPT), card], capture_output=True, text=True, timeout=300)
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.splitlines()[2:]]
    assert done.returncode == 0, done.stdout + done.stderr
    return lines


def test_this_card_answers_every_probe_as_the_datasheet_does():
    answers = rows("card")
    assert {int(gap) for gap, *_ in answers} == set(range(1, 21))
    assert [row for row in answers if row[2] != row[3]] == []

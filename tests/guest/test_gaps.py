"""`benchmarks/gaps.py` on QEMU's own igb: every probe runs, whatever it finds."""

from __future__ import annotations

import pytest

from conformance.test_gaps_script import rows

pytestmark = pytest.mark.guest


def test_every_probe_runs_on_the_igb_of_qemu(qemu):
    answers = rows("qemu")
    assert {int(gap) for gap, *_ in answers} == set(range(1, 21))
    assert [row for row in answers if row[2].startswith("not run")] == []

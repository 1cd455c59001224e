"""An honest pair of guests keeps at least half its rate beside a client that floods the server.

`benchmarks/neighbours.py` with short slices: quiet and flood alternate in one run, so that only their ratio counts.
Before there were allowances, most floods left 0 to 30 %.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pytest

from virtfn.kernels.stray import CHECKED
from virtfn.machine.clock import MS_PS

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import floods
import neighbours

pytestmark = pytest.mark.skipif(CHECKED, reason="not run: the checked build's rates mean nothing")
ROUNDS, SLICE_PS = 3, 150 * MS_PS
CHOSEN = (
    "multi of resets", "multi of FLRs", "4 KiB BAR writes", "4 KiB config writes", "FLR", "VTCTRL.RST",
    "mailbox requests", "bus master", "maps in pieces", "connections with memory",
)  # fmt: skip


@pytest.fixture(scope="module")
def street() -> Iterator[neighbours.Street]:
    with neighbours.street() as made:
        yield made


def kept(street: neighbours.Street, name: str) -> float:
    """Measure what the pair keeps; once more if that is too little, since others may use this machine meanwhile."""
    shares = 0.0
    for _ in range(2):
        shares = max(shares, median(street.measure(neighbours.client(street, name), ROUNDS, SLICE_PS).shares))
        if shares > 0.5:
            break
    return shares


@pytest.mark.parametrize("name", CHOSEN)
def test_the_pair_keeps_half(street, name):
    assert kept(street, name) > 0.5


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize("name", sorted(floods.FLOODS.keys() - set(CHOSEN)))
def test_the_pair_keeps_half_beside_any_other(street, name):
    assert kept(street, name) > 0.5

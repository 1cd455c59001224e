"""`benchmarks/hosts.py`: how it judges what it has measured, on hosts that answer from a list."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from virtfn.vmm.qemu import Outcome

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import hostclauses
import hosts
from hostclauses import CHECKS, judge, run_all
from hostpairs import Hosts

COUNTED = """== pf
NIC statistics:
     tx_packets: {n}
     rx_errors: {n}
== vf0
     tx_packets: 5
== log
spoof_events: 0
"""


def a_host(heard: list[int], refused: str = "", drops: Callable[[], dict[str, int]] = dict) -> Hosts:
    """A host whose VFs hear what the list says, and which refuses a clause."""
    looks = iter(range(100))

    def run(n: int, command: str, seconds: float) -> Outcome:
        if refused and refused in command:
            return Outcome(8, f"made\n{refused}: Operation not supported")
        if "ethtool -S" in command:
            return Outcome(0, COUNTED.format(n=next(looks)))
        if "heard " in command:
            return Outcome(0, f"heard {heard.pop(0)}\n")
        return Outcome(0, "")

    return Hosts(run, [], drops=drops)


def test_what_is_held_back_and_let_through_is_enforced() -> None:
    check = next(each for each in CHECKS if each.clause == "vlan 7")
    for heard, enforced in (
        ([0, 20], True),
        ([20, 20], False),
        ([0, 0], False),
        ([1, 20], False),
        ([0, 19], False),
        ([0, 21], True),
    ):
        finding = check.run(a_host(list(heard)))
        assert finding.accepted
        assert finding.enforced is enforced
        assert finding.seen == f"{heard[0]} of 20; {heard[1]} of 20 where it allows them"


def test_counters_that_moved_are_told_and_those_that_tell_of_losses_are_named() -> None:
    dropped: dict[str, int] = {}

    def drops() -> dict[str, int]:
        before = dict(dropped)
        dropped["mac-spoof"] = dropped.get("mac-spoof", 0) + 20
        return before

    finding = judge(a_host([0, 20], drops=drops), "heard 0 1", "heard 0 1")
    assert finding.counters == {"pf tx_packets": 1, "pf rx_errors": 1, "card mac-spoof": 20}
    assert hosts.describe(finding).endswith("counted: card mac-spoof 20, pf rx_errors 1")


def test_a_clause_that_is_refused_is_one_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("vlan 7", "state disable")
    monkeypatch.setattr(hostclauses, "CHECKS", [each for each in CHECKS if each.clause in names])
    found = run_all(a_host([0, 20], "say 0 state disable"), lambda clause: None)
    assert hosts.describe(found["state disable"]) == "refused: say 0 state disable: Operation not supported"
    assert hosts.describe(found["vlan 7"]).startswith("**enforced**: 0 of 20; 20 of 20")


def test_tables_have_a_column_for_each_card_and_medians() -> None:
    rounds = [dict.fromkeys(hosts.FIGURES, value) for value in (3.0, 1.0, 2.0)]
    table = hosts.figure_table({"x": rounds, "y": rounds})
    assert table[0] == "| | x | y |"
    assert "| 7 VFs made, s | 2.0 (1.0 to 3.0) | 2.0 (1.0 to 3.0) |" in table
    assert hosts.figure_table({"x": []}) == []

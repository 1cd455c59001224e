"""Rates between two snapshots: of functions with guests, of guests without, of labs that change between looks."""

from __future__ import annotations

import copy

from virtfn.api.rates import compare
from virtfn.api.session.snapshot import Snapshot


def snapshot() -> Snapshot:
    return {
        "lab": "rates",
        "state": "ready",
        "elapsed_s": 10.0,
        "guests": [
            {
                "name": name,
                "io": io,
                "vmm": "embedded",
                "address": address,
                "tx_frames": 1000,
                "tx_bytes": 64_000,
                "rx_frames": 500,
                "rx_bytes": 32_000,
                "dropped": {"mac-spoof": 3, "echo": 1},
                "exits": 7,
                "interrupts": 9,
            }
            for name, io, address in (("a", "sriov", "0000:02:10.0"), ("b", "split", "virtio"))
        ],
        "pfs": [
            {
                "name": "pf0",
                "address": "0000:01:00.0",
                "switch": {"forwarded": 1, "flooded": 0, "dropped": {}},
                "vfs": [
                    {"vf": 0, "address": "0000:02:10.0", "guest": "a", "tx_frames": 1, "rx_frames": 1, "dropped": {}},
                    {"vf": 1, "address": "0000:02:10.2", "guest": None, "tx_frames": 0, "rx_frames": 0, "dropped": {}},
                ],
            }
        ],
        "iommu": {},
    }


def later(seconds: float) -> Snapshot:
    after = copy.deepcopy(snapshot())
    after["elapsed_s"] += seconds
    after["guests"][0]["tx_frames"] += 200
    after["guests"][0]["rx_bytes"] += 1000
    after["guests"][0]["dropped"] = {"mac-spoof": 5, "echo": 3}
    return after


def test_counters_become_rates() -> None:
    rates = compare(snapshot(), later(2.0))
    assert rates["interval_s"] == 2.0
    first, second, third = rates["rows"]
    assert first == {
        "function": "pf0 vf0",
        "address": "0000:02:10.0",
        "guest": "a",
        "tx_frames": 100.0,
        "rx_frames": 0.0,
        "bits": 4000.0,
        "drops": 2.0,
        "drops_total": 8,
        "interrupts": 0.0,
        "exits": 0.0,
    }
    assert (second["function"], second["guest"], second["bits"]) == ("pf0 vf1", None, 0.0)
    assert (third["function"], third["guest"]) == ("split", "b")


def test_a_lab_that_began_anew_has_no_rates() -> None:
    for passed in (0.0, -5.0):
        rates = compare(snapshot(), later(passed))
        assert rates["interval_s"] == 0.0
        assert all(row["tx_frames"] == row["drops"] == 0.0 for row in rates["rows"])


def test_a_vf_with_another_guest_begins_at_nothing() -> None:
    before, after = snapshot(), later(1.0)
    before["pfs"][0]["vfs"][0]["guest"] = "c"
    assert compare(before, after)["rows"][0]["tx_frames"] == 0.0


def test_functions_that_are_new_begin_at_nothing() -> None:
    before, after = snapshot(), later(1.0)
    before["pfs"][0]["vfs"].clear()
    assert compare(before, after)["rows"][0]["tx_frames"] == 0.0

"""See whether a frame costs more when more VFs are enabled, or when all of them send to all.

one to one    like frames of 64 bytes from VF 0 to VF 1; 2, 4 and 8 VFs enabled and driven
all to all    IPv4/UDP in 64 flows, checksums and hash; each VF sends to each other one in turn

Rounds alternate. Prints the median of all steps, some thousand frames each, the middle half of them, and the least of
any: the one figure that hardly changes with what else the machine does. Usage: python benchmarks/scale.py [ROUNDS]
[SECONDS]
"""

from __future__ import annotations

import sys
from dataclasses import replace
from statistics import quantiles

from virtfn.api import bench
from virtfn.api.frames import TRAFFIC
from virtfn.api.lab import parse_lab
from virtfn.api.machine import Machine
from virtfn.hw.eth import HEADER_BYTES
from virtfn.machine.clock import S_PS, WallClock


def one_to_one(vfs: int, seconds: float) -> list[float]:
    """Let VF 0 send to VF 1, and return nanoseconds a frame of each step."""
    clock = WallClock()
    with Machine(parse_lab(bench._lab(vfs)), clock, ring=bench._RING, mtu=1500) as machine:
        return steps(bench._Path(machine, TRAFFIC["like"], (64,), clock), clock, seconds)


def all_to_all(vfs: int, seconds: float) -> list[float]:
    """Let every VF send to every other one, and return nanoseconds a frame of each step."""
    clock = WallClock()
    kind = replace(TRAFFIC["ipv4-udp"], receivers=vfs - 1)
    with Machine(parse_lab(bench._lab(vfs)), clock, ring=bench._RING, mtu=1500) as machine:
        path = bench._Path(machine, kind, (64,), clock)
        drivers = [path.source, *path.receivers]
        for driver in drivers:
            path.source = driver
            path.receivers = [other for other in drivers if other is not driver]
            path._fill(kind, (64,))
            driver.rings.set_context(0, HEADER_BYTES, kind.start, False, 0)
        tasks = path._workload.row["tasks"]
        tasks["kind"][:vfs] = tasks["kind"][0]
        tasks["stop"][:vfs] = tasks["stop"][0]
        path.receivers = drivers
        return steps(path, clock, seconds)


def steps(path: bench._Path, clock: WallClock, seconds: float) -> list[float]:
    """Take steps for a while, and return nanoseconds a frame of each."""
    path.step()
    found = []
    end = clock.now() + int(seconds * S_PS)
    had, now = path.received(), clock.now()
    while now < end:
        path.step()
        before, since = had, now
        had, now = path.received(), clock.now()
        if had > before:
            found.append((now - since) / 1000 / (had - before))
    return found


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 2.0
    found: dict[tuple[str, int], list[float]] = {}
    for _ in range(rounds):
        for measure in (one_to_one, all_to_all):
            for vfs in (2, 4, 8):
                found.setdefault((measure.__name__.replace("_", " "), vfs), []).extend(measure(vfs, seconds))
    for (name, vfs), values in found.items():
        low, middle, high = quantiles(values, n=4)
        print(f"{name}, {vfs} VFs   {middle:6.1f} ns a frame   {low:.1f} to {high:.1f}   least {min(values):.1f}")


if __name__ == "__main__":
    main()

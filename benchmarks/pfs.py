"""Compare one PF at work, two PFs of one lab, and two labs of one PF each in processes of their own.

What two processes reach together is what the machine has to give: two processors that share a core or a memory do not
do twice the work of one. Rounds alternate; median and spread of millions of frames a second, VF to VF, both ways.
Usage: python benchmarks/pfs.py [-r ROUNDS] [-b FRAME_BYTES] [-f FRAMES]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from statistics import median

from virtfn.api.lab import parse_lab
from virtfn.api.run import run_lab


def rate(pfs: int, size: int, frames: int) -> float:
    """Run a lab; return its rate."""
    lines = ["name: pfs", "pfs:", *(f"  - {{name: pf{p}, sr-iov: {{total-vfs: 2}}}}" for p in range(pfs)), "guests:"]
    for p in range(pfs):
        lines += [f"  - {{name: g{p}{v}, memory-mib: 32, nic: {{pf: pf{p}, io: sriov, vf: {v}}}}}" for v in range(2)]
    lines.append(f"workload: {{kind: pairs, frame-bytes: {size}, frames: {frames}}}")
    return run_lab(parse_lab("\n".join(lines)))["totals"]["mpps"]


def apart(size: int, frames: int) -> float:
    """Run two labs in processes of their own at the same time; return the sum of their rates."""
    command = [sys.executable, __file__, "--alone", "-b", str(size), "-f", str(frames)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
    return sum(json.loads(process.communicate()[0]) for process in both)


def main() -> None:
    parser = argparse.ArgumentParser(description="One PF, two PFs, two processes.")
    parser.add_argument("-r", "--rounds", type=int, default=5)
    parser.add_argument("-b", "--frame-bytes", type=int, default=64)
    parser.add_argument("-f", "--frames", type=int, default=16_000_000)
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    size, frames = options.frame_bytes, options.frames
    if options.alone:
        print(json.dumps(rate(1, size, frames)))
        return
    found: dict[str, list[float]] = {"one PF": [], "two PFs": [], "two processes": []}
    for _ in range(options.rounds):
        found["one PF"].append(rate(1, size, frames))
        found["two PFs"].append(rate(2, size, frames))
        found["two processes"].append(apart(size, frames))
    one = median(found["one PF"])
    for name, rates in found.items():
        spread = f"{min(rates):.2f} to {max(rates):.2f}"
        print(f"{name:14} {median(rates):6.2f} million a second ({spread}), {median(rates) / one:.2f} times one PF")


if __name__ == "__main__":
    main()

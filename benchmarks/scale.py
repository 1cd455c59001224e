"""See whether a frame costs more when more VFs are enabled, or when queues stand unused.

One sender, one receiver, 64-byte frames; 2, 4 and 8 VFs enabled and driven. Rounds alternate; median and spread.
Usage: python benchmarks/scale.py [ROUNDS] [SECONDS]
"""

from __future__ import annotations

import sys
from statistics import median

from virtfn.api.bench import run_bench


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 2.0
    found: dict[int, list[float]] = {2: [], 4: [], 8: []}
    for _ in range(rounds):
        for vfs, values in found.items():
            values.append(1000 / run_bench([64], vfs, seconds, traffic=["like"])["points"][0]["mpps"])
    for vfs, values in found.items():
        print(f"{vfs} VFs   {median(values):6.1f} ns a frame   {min(values):.1f} to {max(values):.1f}")


if __name__ == "__main__":
    main()

"""Compare a hop through virtfn with one through DPDK's shared-memory interface, on the same core, in one run.

    virtfn like      VF to VF, like frames: both drivers, IOMMU, sorting, anti-spoofing, statistics
    virtfn ipv4-udp  the same with IPv4/UDP in 64 flows: checksums inserted and judged, flows hashed
    memif io         testpmd, two memif ports in one process: a frame is handed from port to port, nobody looks at it
    memif csum       the same, and each frame is parsed and its checksums are computed anew

All move 64-byte frames (60 without the frame check sequence; testpmd's are IPv4/UDP) in bursts of 64 on one core;
rounds alternate. Prints median and spread of each. DPDK's testpmd comes from Debian's package dpdk-dev, which this
script installs if it may. Usage: python benchmarks/memif.py [ROUNDS] [SECONDS]
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from virtfn.api.bench import run_bench


def find_testpmd() -> str | None:
    found = shutil.which("dpdk-testpmd")
    if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
        subprocess.run(["apt-get", "update", "-q"], check=False, stdout=subprocess.DEVNULL)
        command = ["apt-get", "install", "-y", "-q", "dpdk-dev"]
        subprocess.run(
            command, check=False, stdout=subprocess.DEVNULL, env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        )
        found = shutil.which("dpdk-testpmd")
    return found


def memif_mpps(testpmd: str, mode: str, seconds: float) -> float:
    """Run testpmd in a forwarding mode for a while; return million frame hops a second, from its own statistics."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit("not run: testpmd needs a second core for its own thread of control")
    with tempfile.TemporaryDirectory() as folder:
        ports = [
            f"--vdev=net_memif{i},role={role},id=0,socket={folder}/memif.sock,socket-abstract=no"
            for i, role in enumerate(("server", "client"))
        ]
        environment = f"-l {cores[0]},{cores[1]} --no-huge -m 512 --no-pci --no-telemetry"
        work = f"--nb-cores=1 --forward-mode={mode} --txpkts=60 --burst=64 --tx-first --stats-period=1"
        command = [testpmd, *environment.split(), f"--file-prefix={Path(folder).name}", *ports, "--", *work.split()]
        command += ["--total-num-mbufs=8192", "--no-lsc-interrupt"]
        run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            output, _ = run.communicate(timeout=seconds + 3)
        except subprocess.TimeoutExpired:
            run.terminate()
            output, _ = run.communicate(timeout=20)
    # Each port prints its receive rate every second; both ports together are the hops. The first second warms up.
    rates = [int(rate) for rate in re.findall(r"Rx-pps:\s+(\d+)", output)]
    pairs = [a + b for a, b in zip(rates[::2], rates[1::2], strict=False)][1:]
    if not pairs:
        raise SystemExit(f"not run: testpmd gave no rates:\n{output[-2000:]}")
    return median(pairs) / 1e6


def show(name: str, values: list[float]) -> None:
    hop = 1000 / median(values)
    print(f"{name:16} {median(values):7.2f} Mpps   {min(values):.2f} to {max(values):.2f}   {hop:.1f} ns a hop")


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 4.0
    testpmd = find_testpmd()
    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        for traffic in ("like", "ipv4-udp"):
            point = run_bench([64], 2, seconds, traffic=[traffic])["points"][0]
            found.setdefault(f"virtfn {traffic}", []).append(point["mpps"])
        for mode in ("io", "csum") if testpmd is not None else ():
            found.setdefault(f"memif {mode}", []).append(memif_mpps(testpmd, mode, seconds))
    for name, values in found.items():
        show(name, values)
    if testpmd is None:
        print("memif            not run: dpdk-testpmd is not installed (Debian package dpdk-dev)")
        return
    for ours, theirs in (("like", "io"), ("ipv4-udp", "io"), ("ipv4-udp", "csum")):
        pairs = zip(found[f"virtfn {ours}"], found[f"memif {theirs}"], strict=True)
        print(f"virtfn {ours} moves {median(a / b for a, b in pairs):.2f} times what memif {theirs} does")


if __name__ == "__main__":
    main()

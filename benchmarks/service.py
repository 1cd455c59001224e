"""A service with 64 VFs on 8 PFs, a guest each: how long it starts, what it takes, what it costs at rest and at work.

    python benchmarks/service.py

Beyond guests' memory: all that is resident, but for guests' memory itself (shared memory, less the host's own tables).
Idle: processor time over wall time of ten seconds in which nobody asks; the same with a reader once a second.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from virtfn.api.control import ask
from virtfn.api.service import find_kept

PFS, VFS, MEMORY_MIB = 8, 8, 4
COMMAND = [sys.executable, "-c", "from virtfn.cli.start import main; main()"]
IDLE_S = 10.0


def lab() -> str:
    lines = ["name: sixty-four", "pfs:"]
    lines += [f"  - {{name: pf{p}, sr-iov: {{total-vfs: {VFS}}}}}" for p in range(PFS)]
    lines.append("guests:")
    for g in range(PFS * VFS):
        nic = f"{{pf: pf{g // VFS}, vf: {g % VFS}}}"
        lines.append(f"  - {{name: g{g}, memory-mib: {MEMORY_MIB}, nic: {nic}}}")
    return "\n".join([*lines, "workload: {kind: pairs, frame-bytes: 256}"]) + "\n"


def virtfn(*arguments: str, stdin: str = "") -> str:
    return subprocess.run([*COMMAND, *arguments], input=stdin, text=True, check=True, stdout=subprocess.PIPE).stdout


def busy_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident(pid: int) -> dict[str, float]:
    """What is resident, in MB, by kind."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return {
        line.split(":")[0]: int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(("VmRSS", "Rss"))
    }


def share_of_a_core(pid: int, *, reader: bool = False) -> float:
    before, began = busy_s(pid), time.monotonic()
    while time.monotonic() - began < IDLE_S:
        time.sleep(1)
        if reader:
            ask("session.snapshot", {}, "sixty-four")
    return (busy_s(pid) - before) / (time.monotonic() - began)


def took_ms(method: str, params: dict[str, object]) -> float:
    began = time.monotonic()
    ask(method, params, "sixty-four", 60.0)
    return 1e3 * (time.monotonic() - began)


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_RUNTIME_DIR"] = folder
        began = time.monotonic()
        virtfn("up", "-", stdin=lab())
        ready_s = time.monotonic() - began
        kept = find_kept("sixty-four")
        assert kept is not None
        try:
            measure(kept.pid, ready_s)
        finally:
            began = time.monotonic()
            virtfn("down", "sixty-four")
            print(f"down in                 {time.monotonic() - began:.1f} s")
    return 0


def measure(pid: int, ready_s: float) -> None:
    print(f"up in                   {ready_s:.1f} s")
    print(f"idle                    {100 * share_of_a_core(pid):.2f} % of a core")
    print(f"idle, read each second  {100 * share_of_a_core(pid, reader=True):.2f} % of a core")
    snapshots = [took_ms("session.snapshot", {}) for _ in range(20)]
    print(f"snapshot                {statistics.median(snapshots):.1f} ms, median of 20")
    away = [took_ms("guest.detach", {"guest": f"g{g}"}) for g in range(0, 64, 4)]
    back = [took_ms("guest.attach", {"guest": f"g{g}"}) for g in range(0, 64, 4)]
    print(f"detach, attach          {statistics.median(away):.0f} ms, {statistics.median(back):.0f} ms, medians of 16")
    ask("traffic.start", {"rate": 200}, "sixty-four")
    busy = 100 * share_of_a_core(pid)
    counts = ask("traffic.stop", {}, "sixty-four")
    print(f"64 guests send 200/s    {busy:.0f} % of a core; {json.dumps(counts)}")
    parts = resident(pid)
    guests = PFS * VFS * MEMORY_MIB * 1.048576
    rest = parts["VmRSS"] - min(parts["RssShmem"], guests)
    shared = parts["RssShmem"]
    print(f"resident                {parts['VmRSS']:.0f} MB, of which shared {shared:.0f}; guests have {guests:.0f}")
    print(f"beyond guests' memory   {rest:.0f} MB")


if __name__ == "__main__":
    sys.exit(main())

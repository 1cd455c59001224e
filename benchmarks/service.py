"""A service with 64 VFs on 8 PFs, a guest each: what it costs at rest, how soon it obeys, and what looking at it costs.

    python benchmarks/service.py [--only rest,links,looks,capture] [--pairs 10] [--seconds 1.5]

rest      processor time while nobody asks, and with a snapshot each second; memory beyond guests' own
links     `link.set` of a client that connects for each: at rest, beside paced traffic, beside traffic at full rate
looks     a snapshot, and what the page asks over HTTP, ten times a second beside traffic at full rate, and not, in turn
capture   `virtfn capture` of all frames of a PF into /dev/null, beside traffic at full rate, and not, in turn

Rows are as docs/measurements.md has them: medians, and the middle half.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from fullrate import COMMAND, Asker, at_full_rate, captured, costs, spread

from virtfn.api.control import ask
from virtfn.api.service import find_kept, read_token, serve_web

PFS, VFS, MEMORY_MIB = 8, 8, 4
NAME = "sixty-four"
IDLE_S, IDLE_ROUNDS = 5.0, 5
SETS = 60
PACE = 20_000
LOOKS = 10  # a second: so that what they cost stands out of the noise


def lab(pfs: int = PFS, vfs: int = VFS) -> str:
    lines = [f"name: {NAME}", "pfs:"]
    lines += [f"  - {{name: pf{p}, sr-iov: {{total-vfs: {vfs}}}}}" for p in range(pfs)]
    lines.append("guests:")
    for g in range(pfs * vfs):
        nic = f"{{pf: pf{g // vfs}, vf: {g % vfs}}}"
        lines.append(f"  - {{name: g{g}, memory-mib: {MEMORY_MIB}, nic: {nic}}}")
    return "\n".join([*lines, "workload: {kind: pairs, frame-bytes: 256}"]) + "\n"


def row(what: str, value: str) -> None:
    print(f"| {what} | {value} |", flush=True)


# Who asks, in a process of its own.


def be(what: str, *more: str) -> None:
    """Ask for ever, so many times a second, and say how long each took, in ms."""
    number = 0
    while True:
        began = time.monotonic()
        if what == "links":
            set_link(number)
        elif what == "snapshots":
            ask("session.snapshot", {}, NAME)
        else:
            look(more[0], more[1], policies=number % 5 == 0)
        print(1e3 * (time.monotonic() - began), flush=True)
        number += 1
        time.sleep(max(1 / LOOKS - (time.monotonic() - began), 0))


def set_link(number: int) -> None:
    pf, vf, rate = f"pf{number % PFS}", number // PFS % VFS, 500 + number % 2
    ask("link.set", {"pf": pf, "settings": [{"vf": vf, "max_tx_rate": rate}]}, NAME)


def look(where: str, token: str, *, policies: bool) -> None:
    """Ask what the page asks."""
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    body = json.dumps({"events": 0, "messages": 0, "policies": policies}).encode()
    with urllib.request.urlopen(urllib.request.Request(f"{where}/api/session.look", body, headers), timeout=10) as told:
        told.read()


# The service.


def virtfn(*arguments: str, stdin: str = "") -> str:
    return subprocess.run([*COMMAND, *arguments], input=stdin, text=True, check=True, stdout=subprocess.PIPE).stdout


def busy_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/schedstat").read_text(encoding="utf-8").split()
    threads = [int((path / "schedstat").read_text().split()[0]) for path in Path(f"/proc/{pid}/task").iterdir()]
    return (sum(threads) or int(fields[0])) / 1e9


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
            ask("session.snapshot", {}, NAME)
    return (busy_s(pid) - before) / (time.monotonic() - began)


def sets_ms() -> list[float]:
    took = []
    for number in range(SETS):
        began = time.monotonic()
        set_link(number)
        took.append(1e3 * (time.monotonic() - began))
        time.sleep(0.02)
    return took


def measure_service(only: set[str]) -> None:
    began = time.monotonic()
    virtfn("up", "-", stdin=lab())
    row("up, s", f"{time.monotonic() - began:.1f}")
    kept = find_kept(NAME)
    assert kept is not None
    try:
        time.sleep(1)
        if "rest" in only:
            at_rest(kept.pid)
        if "links" in only:
            row("`link.set`, at rest, ms", spread(sets_ms()))
            ask("traffic.start", {"rate": PACE}, NAME)
            row(f"`link.set`, 64 guests send {PACE:,} frames a second each, ms", spread(sets_ms()))
            busy = 100 * share_of_a_core(kept.pid)
            row("the same, % of a core that this traffic takes", f"{busy:.0f}")
            ask("traffic.stop", {}, NAME)
    finally:
        began = time.monotonic()
        virtfn("down", NAME)
        row("down, s", f"{time.monotonic() - began:.1f}")


def at_rest(pid: int) -> None:
    alone, read = [], []
    for _ in range(IDLE_ROUNDS):
        alone.append(share_of_a_core(pid))
        read.append(share_of_a_core(pid, reader=True))
    row("idle, % of a core", spread(alone, 100, 2))
    row("idle, with a snapshot each second, % of a core", spread(read, 100, 2))
    parts = resident(pid)
    guests = PFS * VFS * MEMORY_MIB * 1.048576
    row("resident beyond guests' memory, MB", f"{parts['VmRSS'] - min(parts['RssShmem'], guests):.0f}")


# Beside traffic at full rate.


def measure_looks(only: set[str], pairs: int, seconds: float) -> None:
    with at_full_rate(lab(), 256) as full:
        lab_rate, _ = full.slice(1.0)
        row("64 guests at full rate, 256 bytes, Mpps", f"{lab_rate:.2f}")
        if "links" in only:
            asker = Asker.start("links")
            full.go_on(lambda: asker.ready() and len(asker.said) >= SETS)
            asker.end()
            row("`link.set`, beside that, ms", spread(asker.said))
        if "looks" in only:
            asker = Asker.start("snapshots")
            say_costs("a snapshot each second", costs(full, asker, pairs, seconds), asker)
            with serve_web(NAME, 0) as web:
                busy = busy_s(web.process.pid)
                asker = Asker.start("page", web.where, read_token(NAME))
                say_costs("the page", costs(full, asker, pairs, seconds), asker)
                spent = 1e3 * (busy_s(web.process.pid) - busy) / max(len(asker.said), 1)
            row("processor time of HTTP for a look of the page, ms", f"{spent:.1f}")


def say_costs(what: str, found: list[tuple[float, float]], asker: Asker) -> None:
    asker.end()
    for k, of in enumerate(("its rate", "frames for its processor time")):
        row(f"{what} costs the lab, % of {of}", spread([pair[k] for pair in found], 100, 2))
    row(f"{what}: until the answer, ms", spread(asker.said))


def measure_capture(pairs: int, seconds: float) -> None:
    for outside, way in ((False, "VF to VF"), (True, "VF to wire")):
        for size in (64, 1518):
            with at_full_rate(lab(1, 2), size, outside=outside) as full:
                found = captured(full, "pf0", NAME, pairs, seconds)
            share = spread([each[0] for each in found], 100, 0)
            kept, lost = (statistics.median(each[k] for each in found) for k in (1, 2))
            row(f"captured, {way}, {size} bytes: rate that is kept, %", share)
            row("of what was to be captured, written, %", f"{100 * kept / max(kept + lost, 1):.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description="What a service costs, and what looking at it costs.")
    parser.add_argument("--only", default="rest,links,looks,capture")
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=1.5)
    parser.add_argument("--be", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.be:
        be(*given.be)
    only = set(given.only.split(","))
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
    memory = Path("/dev/shm")  # as XDG_RUNTIME_DIR is
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        os.environ["XDG_RUNTIME_DIR"] = folder
        if only & {"rest", "links"}:
            measure_service(only)
        if only & {"looks", "links"}:
            measure_looks(only, given.pairs, given.seconds)
        if "capture" in only:
            measure_capture(given.pairs, given.seconds)
    print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    sys.exit(main())

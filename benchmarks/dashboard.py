"""What the page costs the lab that it shows: runs at full rate with the page's questions and without, in turn.

    python benchmarks/dashboard.py [--looks 10] [--pairs 9]

Each look is what the page asks once a second: a snapshot, policies, states, events, messages, over HTTP. With `--looks
10` it asks ten times as often, so that what a look costs stands out of the noise; a tenth of that is the page's.
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
import urllib.error
import urllib.request

LAB = """
name: looked-at
pfs:
  - {name: pf0, model: 82576, link-mbps: 0, sr-iov: {total-vfs: 8}}
guests:
  - {name: a, memory-mib: 64, nic: {pf: pf0, io: sriov, vf: 0}}
  - {name: b, memory-mib: 64, nic: {pf: pf0, io: sriov, vf: 1}}
workload: {kind: pairs, frame-bytes: 1518, frames: %d}
"""
QUESTIONS = ("session.snapshot", "link.show", "vf.list", "events.read", "mailbox.read")


def look(where: str, token: str) -> None:
    """Ask what the page asks."""
    for method in QUESTIONS:
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"{where}/api/{method}", b"{}", headers)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                answer.read()
        except urllib.error.HTTPError as refused:
            refused.read()


def ask_for_ever(where: str, token: str, looks: float) -> None:
    """Be the page, in a process of its own."""
    while True:
        began = time.monotonic()
        look(where, token)
        print("look", flush=True)
        time.sleep(max(1 / looks - (time.monotonic() - began), 0))


def measure(frames: int, looks: float) -> tuple[float, int]:
    """Run once; return million frames a second, and how many looks there were. looks: 0 for none."""
    from virtfn.api.lab import parse_lab
    from virtfn.api.service import read_token, serve_web
    from virtfn.api.session import Session

    with Session(parse_lab(LAB % frames), controlled=True) as session:
        session.start()
        with serve_web(session.lab.name, 0) as web:
            command = [sys.executable, __file__, "--be", web.where, read_token(session.lab.name), str(looks)]
            page = subprocess.Popen(command, stdout=subprocess.PIPE) if looks else None
            began = time.monotonic()
            session.work()
            seconds = time.monotonic() - began
            if page is None:
                return 2 * frames / seconds / 1e6, 0
            page.kill()
            return 2 * frames / seconds / 1e6, page.communicate()[0].count(b"look")


def main() -> None:
    parser = argparse.ArgumentParser(description="What the page costs the lab that it shows.")
    parser.add_argument("--looks", type=float, default=1.0, help="a second")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--frames", type=int, default=5_000_000, help="of each guest, in a run")
    parser.add_argument("--be", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.be:
        ask_for_ever(given.be[0], given.be[1], float(given.be[2]))
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_RUNTIME_DIR"] = folder
        rows, ratios, seen = [], [], 0
        measure(given.frames // 10, given.looks)
        for pair in range(given.pairs):
            order = (0.0, given.looks) if pair % 2 else (given.looks, 0.0)
            got = {looks: measure(given.frames, looks) for looks in order}
            rows.append([round(got[0.0][0], 3), round(got[given.looks][0], 3)])
            ratios.append(got[given.looks][0] / got[0.0][0])
            seen += got[given.looks][1]
        ratios.sort()
        result = {
            "looks_per_second": given.looks,
            "looks": seen,
            "mpps_alone_and_looked_at": rows,
            "kept": round(statistics.median(ratios), 4),
            "kept_quartiles": [round(ratios[len(ratios) // 4], 4), round(ratios[-1 - len(ratios) // 4], 4)],
        }
        print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()

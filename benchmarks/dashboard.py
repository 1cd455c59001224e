"""What the page costs the lab that it shows: a run at full rate, with the page's questions and without, slice by slice.

    python benchmarks/dashboard.py [--looks 10] [--pairs 20]

Each look is what the page asks once a second: a snapshot, policies, states, events, messages, over HTTP. With `--looks
10` it asks ten times as often, so that what a look costs stands out of the noise; a tenth of that is the page's.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from virtfn.api.session import Session

LAB = """
name: looked-at
pfs:
  - {name: pf0, model: 82576, link-mbps: 0, sr-iov: {total-vfs: 8}}
guests:
  - {name: a, memory-mib: 64, nic: {pf: pf0, io: sriov, vf: 0}}
  - {name: b, memory-mib: 64, nic: {pf: pf0, io: sriov, vf: 1}}
workload: {kind: pairs, frame-bytes: 1518, frames: 100000000}
"""
QUESTIONS = ("session.snapshot", "events.read", "mailbox.read")
AT_TIMES = ("link.show", "vf.list")
"""Every fifth time."""
SLICE_S = 1.5


def look(where: str, token: str, number: int) -> None:
    """Ask what the page asks."""
    for method in (*QUESTIONS, *(AT_TIMES if number % 5 == 0 else ())):
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"{where}/api/{method}", b"{}", headers)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                answer.read()
        except urllib.error.HTTPError as refused:
            refused.read()


def be_the_page(where: str, token: str, looks: float) -> None:
    """Ask for ever, in a process of its own."""
    for number in count():
        began = time.monotonic()
        look(where, token, number)
        print("look", flush=True)
        time.sleep(max(1 / looks - (time.monotonic() - began), 0))


def rates(session: Session) -> tuple[float, float]:
    """Return million frames of one slice: in a second, and in a second of this process's processor time."""
    before = now(session)
    time.sleep(SLICE_S)
    frames, wall, busy = (after - then for after, then in zip(now(session), before, strict=True))
    return frames / wall / 1e6, frames / busy / 1e6


def now(session: Session) -> tuple[int, float, float]:
    """Read frames, time, and processor time."""
    frames = sum(guest["rx_frames"] for guest in session.snapshot()["guests"])
    return frames, time.monotonic(), time.process_time()


def busy_s(pid: int) -> float:
    """Read the processor time of another process."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


Row = tuple[tuple[float, float], tuple[float, float]]
"""A pair of slices: without the page, and with it."""


def measure(session: Session, page: subprocess.Popen[bytes], pairs: int, rows: list[Row]) -> None:
    """Let the page ask and rest in turn; then end the work."""
    while session.state.value != "working":
        time.sleep(0.05)
    time.sleep(2)
    for pair in range(pairs):
        got = {}
        for asks in (False, True) if pair % 2 else (True, False):
            page.send_signal(signal.SIGCONT if asks else signal.SIGSTOP)
            time.sleep(0.1)
            got[asks] = rates(session)
        rows.append((got[False], got[True]))
    os.kill(os.getpid(), signal.SIGINT)


def main() -> None:
    parser = argparse.ArgumentParser(description="What the page costs the lab that it shows.")
    parser.add_argument("--looks", type=float, default=1.0, help="a second")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--be", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.be:
        be_the_page(given.be[0], given.be[1], float(given.be[2]))
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_RUNTIME_DIR"] = folder
        looks, busy = look_and_rest(given.looks, given.pairs, rows)
    result: dict[str, object] = {"looks_per_second": given.looks, "looks": looks}
    result["http_ms_a_look"] = round(1000 * busy / max(looks, 1), 1)
    for k, what in enumerate(("wall", "processor")):
        ratios = sorted(looked_at[k] / alone[k] for alone, looked_at in rows)
        result[f"mpps_{what}"] = round(statistics.median(alone[k] for alone, _ in rows), 3)
        result[f"kept_{what}"] = round(statistics.median(ratios), 4)
        result[f"quartiles_{what}"] = [round(ratios[len(ratios) // 4], 4), round(ratios[-1 - len(ratios) // 4], 4)]
    print(json.dumps(result, indent=2))


def look_and_rest(looks: float, pairs: int, rows: list[Row]) -> tuple[int, float]:
    """Measure pairs of slices; return how many looks there were, and what processor time HTTP took for them."""
    from virtfn.api.lab import parse_lab
    from virtfn.api.service import read_token, serve_web
    from virtfn.api.session import Session

    with Session(parse_lab(LAB), controlled=True) as session:
        session.start()
        with serve_web(session.lab.name, 0) as web:
            command = [sys.executable, __file__, "--be", web.where, read_token(session.lab.name), str(looks)]
            page = subprocess.Popen(command, stdout=subprocess.PIPE)
            before = busy_s(web.process.pid)
            threading.Thread(target=measure, args=(session, page, pairs, rows), daemon=True).start()
            with contextlib.suppress(KeyboardInterrupt):
                session.work()
            busy = busy_s(web.process.pid) - before
            page.kill()
            return page.communicate()[0].count(b"look"), busy


if __name__ == "__main__":
    main()

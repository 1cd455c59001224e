"""Measure the data plane: frames from VF to VF through both drivers, IOMMU, sorting and statistics, on one core.

Each point alternates slices of two things on the same buffers in the same run: the path, and a plain copy. Medians are
reported. Frames are checked by type as they arrive, and buffer by buffer when the clock has stopped.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np

from virtfn.api.lab import parse_lab
from virtfn.api.machine import Machine
from virtfn.api.progress import Progress
from virtfn.api.report import BenchPoint, BenchReport
from virtfn.hw.eth import FCS_BYTES
from virtfn.iomodels.engine import Engine
from virtfn.iomodels.workload import Station, Workload
from virtfn.kernels import warm
from virtfn.kernels.copylimit import copy_buffers
from virtfn.machine.clock import MS_PS, S_PS, WallClock
from virtfn.machine.memory import view_bytes
from virtfn.machine.ports import VirtfnError

__all__ = ["run_bench"]

_SLICES = 7
_ENDLESS = 1 << 60
_COPY_BATCH = 20_000


def run_bench(
    frame_bytes: list[int],
    vfs: int = 2,
    seconds: float = 1.0,
    progress: Callable[[Progress], None] | None = None,
) -> BenchReport:
    """Measure one hop from VF 0 to VF 1 for each frame size, with `vfs` VFs enabled and driven.

    frame_bytes: sizes with frame check sequence. seconds: time of each point, half of it for the copy. Raises
    VirtfnError if a frame arrives that was not sent.
    """
    clock = WallClock()
    started = clock.now()

    def tell(phase: str) -> None:
        if progress is not None:
            progress(Progress(phase, (clock.now() - started) / S_PS))

    tell("starting" if warm.cached() else "compiling kernels (first run only)")
    warm.load()
    points: list[BenchPoint] = []
    copy_gbps: dict[str, float] = {}
    for size in frame_bytes:
        tell(f"{size} bytes, {vfs} VFs")
        point, copied = _measure(size, vfs, seconds, clock)
        points.append(point)
        copy_gbps[str(size)] = copied
    return {"cpu": _cpu(), "copy_gbps": copy_gbps, "points": points}


def _lab(vfs: int) -> str:
    guests = "".join(f"  - {{name: g{n}, memory-mib: 32, nic: {{pf: pf0, io: sriov, vf: {n}}}}}\n" for n in range(vfs))
    pf = f"{{name: pf0, sr-iov: {{total-vfs: {vfs}}}}}"
    return f"name: bench\npfs: [{pf}]\nguests:\n{guests}workload: {{kind: fan-in}}\n"


def _measure(size: int, vfs: int, seconds: float, clock: WallClock) -> tuple[BenchPoint, float]:
    length = size - FCS_BYTES
    with Machine(parse_lab(_lab(vfs)), clock, ring=1024, mtu=max(1500, length - 14)) as machine:
        runs = machine.guests
        drivers = [run.guest.nics[0].driver for run in runs]
        workload = Workload("pairs", [Station(d.row, d.mac) for d in drivers], length=length, frames=_ENDLESS, raw=True)
        for task in workload.row["tasks"][1 : len(runs)]:
            task["kind"] = 0  # VF 0 sends, the others are there
        engine = Engine(machine.host, machine.pfs[0].nic, [run.guest for run in runs], workload)
        source, target = drivers[0], drivers[1]
        buffers = (
            int(source.netdev["tx_buffers"]),
            int(target.netdev["rx_buffers"]),
            int(source.netdev["buffer_bytes"]),
            int(source.netdev["tx_size"]),
        )
        copied = 0

        def copy() -> None:
            nonlocal copied
            copied += copy_buffers(*buffers, length, _COPY_BATCH)

        copy()
        engine.step()
        path_rates, copy_rates = [], []
        slice_ps = int(seconds * S_PS / (2 * _SLICES))
        for _ in range(_SLICES):
            path_rates.append(_rate(clock, slice_ps, engine.step, lambda: int(target.netdev["rx_frames"])))
            copy_rates.append(_rate(clock, slice_ps, copy, lambda: copied))
        workload.row["tasks"][0]["stop"] = 0
        while engine.step() or source.tx_pending:
            clock.sleep(MS_PS // 100)
        _verify(source.netdev, target.netdev, length, int(workload.row["tasks"]["corrupt"].sum()))
    fps, copies = median(path_rates), median(copy_rates)
    point: BenchPoint = {
        "path": "vf-to-vf",
        "frame_bytes": size,
        "mpps": round(fps / 1e6, 3),
        "gbps": round(fps * length * 8 / 1e9, 3),
        "copy_ratio": round(fps / copies, 4),
        "vfs": vfs,
    }
    return point, round(copies * length * 8 / 1e9, 3)


def _rate(clock: WallClock, slice_ps: int, work: Callable[[], object], count: Callable[[], int]) -> float:
    """Frames in a second, over one slice."""
    work()
    before, began = count(), clock.now()
    while clock.now() - began < slice_ps:
        work()
    return (count() - before) * S_PS / (clock.now() - began)


def _verify(source: np.void, target: np.void, length: int, wrong: int) -> None:
    """Compare what lies in the receiver's buffers with what the sender sends.

    Raises VirtfnError for a byte that differs.
    """
    step, ring = int(source["buffer_bytes"]), int(source["tx_size"])
    sent = view_bytes(int(source["tx_buffers"]), ring * step).reshape(ring, step)[:, :length]
    had = view_bytes(int(target["rx_buffers"]), ring * step).reshape(ring, step)[:, :length]
    known = {row.tobytes() for row in sent}
    strangers = sum(row.tobytes() not in known for row in had)
    if wrong or strangers or int(target["rx_errors"]):
        raise VirtfnError(f"{strangers + wrong} frames of {length} bytes arrived that were not sent", errno_name="EIO")


def _cpu() -> str:
    """Name of this machine's processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return "unknown processor"

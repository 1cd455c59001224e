"""Measure the data plane: frames from VF to VF through both drivers, IOMMU, sorting and statistics, on one core.

Each point alternates slices of two things on the same frames in the same run: the path, and a plain copy. Medians are
reported. Frames are checked by type as they arrive, and buffer by buffer when the clock has stopped. What they look
like: `api/frames.py`. Not in it: guests that make and read frames, for senders fill their buffers once; and interrupts.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from statistics import mean, median
from typing import Protocol, cast

import numpy as np

from virtfn.api.frames import IMIX, TCP, TRAFFIC, Frame, Traffic, make_frame
from virtfn.api.lab import parse_lab
from virtfn.api.machine import Machine
from virtfn.api.processor import processor
from virtfn.api.progress import Progress
from virtfn.api.report import BenchPoint, BenchReport
from virtfn.hw.eth import FCS_BYTES, HEADER_BYTES, VLAN_BYTES, as_loaded
from virtfn.iomodels.engine import Engine
from virtfn.iomodels.workload import Station, Workload
from virtfn.kernels import warm
from virtfn.kernels.copylimit import copy_buffers
from virtfn.kernels.netdev import ASK_CHECKSUM, ASK_TAG
from virtfn.kernels.ranges import address_of
from virtfn.kernels.traffic import IDLE
from virtfn.machine.clock import MS_PS, S_PS, WallClock
from virtfn.machine.memory import view_bytes
from virtfn.machine.netports import NetDriver
from virtfn.machine.ports import Clock, VirtfnError

__all__ = ["run_bench"]

_SLICES = 7
_RING = 256  # what Linux's drivers of the 82576 have
_ENDLESS = 1 << 60
_COPY_BATCH = 20_000


def run_bench(
    frame_bytes: Sequence[int] = (),
    vfs: int = 2,
    seconds: float = 1.0,
    progress: Callable[[Progress], None] | None = None,
    traffic: Sequence[str] = tuple(TRAFFIC),
) -> BenchReport:
    """Measure one hop from VF 0 to others for each kind of traffic, with at least `vfs` VFs enabled and driven.

    frame_bytes: sizes with frame check sequence, 64 and 1518 if there are none; what is too short for a kind's headers
    is made longer. seconds: time of each point, half of it for the copy. traffic: names in `TRAFFIC`. Raises
    VirtfnError if a frame arrives that was not sent.
    """
    clock = WallClock()
    started = clock.now()

    def tell(phase: str, steps: int = 0, total: int = 0) -> None:
        if progress is not None:
            progress(Progress(phase, (clock.now() - started) / S_PS, steps=steps, total_steps=total))

    phase = warm.phase()
    tell(phase)
    warm.load(watch=lambda steps, total: tell(phase, steps, total))
    points: list[BenchPoint] = []
    copy_gbps: dict[str, float] = {}
    for name in traffic:
        kind = TRAFFIC[name]
        for sizes in _sizes(kind, frame_bytes):
            tell(f"{name}, {round(mean(sizes))} bytes")
            point, copied = _measure(kind, sizes, max(vfs, kind.receivers + 1), seconds, clock)
            points.append(point)
            copy_gbps.setdefault(str(point["frame_bytes"]), copied)
    return {"cpu": processor(), "copy_gbps": copy_gbps, "points": points}


def _sizes(kind: Traffic, frame_bytes: Sequence[int]) -> list[tuple[int, ...]]:
    """List the points of a kind of traffic, each by its sizes of frames."""
    if kind.name == "imix":
        return [IMIX]
    return [(size,) for size in sorted({max(size, kind.least) for size in frame_bytes or (64, 1518)})]


def _lab(vfs: int) -> str:
    guests = "".join(f"  - {{name: g{n}, memory-mib: 32, nic: {{pf: pf0, io: sriov, vf: {n}}}}}\n" for n in range(vfs))
    pf = f"{{name: pf0, sr-iov: {{total-vfs: {vfs}}}}}"
    return f"name: bench\npfs: [{pf}]\nguests:\n{guests}workload: {{kind: fan-in}}\n"


class _Rings(Protocol):
    def set_context(self, index: int, l3: int, l4: int, tcp: bool, tag: int) -> None:
        """Tell the card what frames with this context are like."""


class _Driver(NetDriver, Protocol):
    """A driver of a VF whose card inserts tags and checksums."""

    @property
    def rings(self) -> _Rings:
        """What it gives the card."""

    @property
    def tx_pending(self) -> bool:
        """Whether the card still has frames to send."""

    def set_vlan(self, vid: int, member: bool = True) -> None:
        """Join a VLAN."""


class _PfDriver(Protocol):
    def hash_flows(self) -> None:
        """Let the card hash flows for the VFs."""


class _Path:
    """A machine with VF 0 sending, over and over, what its buffers hold, to the VFs after it."""

    def __init__(self, machine: Machine, kind: Traffic, sizes: Sequence[int], clock: Clock) -> None:
        self._clock = clock
        drivers = [cast(_Driver, run.driver) for run in machine.guests]
        self.source, self.receivers = drivers[0], drivers[1 : 1 + kind.receivers]
        self._workload = Workload(
            "pairs", [Station(d.row, d.mac) for d in drivers], length=60, frames=_ENDLESS, raw=True
        )
        tasks = self._workload.row["tasks"][: len(drivers)]
        tasks["kind"][1:] = IDLE  # VF 0 sends, the others are there
        tasks["raw"] = as_loaded(kind.arrives)
        nics = [run.guest for run in machine.guests]
        self._engine = Engine(machine.host, machine.pfs[0].nic, nics, self._workload)
        if kind.ip:
            cast(_PfDriver, machine.pfs[0].driver).hash_flows()
        if kind.tag:
            for driver in drivers:
                driver.set_vlan(kind.tag & 0xFFF)
        self._frames = self._fill(kind, sizes)
        self._copied = np.zeros(int(self.source.netdev["tx_size"]) * int(self.source.netdev["buffer_bytes"]), np.uint8)
        self._target = address_of(self._copied, "copies of frames")
        if kind.ip:
            self.source.rings.set_context(0, HEADER_BYTES, kind.start, kind.protocol == TCP, kind.tag)
        self.step = self._engine.step

    def _fill(self, kind: Traffic, sizes: Sequence[int]) -> list[Frame]:
        """Write frames into the sender's buffers, as its driver gives them to the card; return them."""
        d = self.source.netdev
        count, step = int(d["tx_size"]), int(d["buffer_bytes"])
        buffers = view_bytes(int(d["tx_buffers"]), count * step).reshape(count, step)
        lengths = view_bytes(int(d["tx_lengths"]), count * 8).view(np.int64)
        asks = (ASK_CHECKSUM if kind.ip else 0) | (ASK_TAG if kind.tag else 0)
        rng = random.Random(1)
        frames = []
        for i in range(count):
            target = self.receivers[i % kind.receivers].mac
            frame = make_frame(kind, sizes[i % len(sizes)], i % kind.flows, self.source.mac, target, rng)
            buffers[i, : len(frame.given)] = np.frombuffer(frame.given, np.uint8)
            lengths[i] = len(frame.given) | asks
            frames.append(frame)
        return frames

    def received(self) -> int:
        """Count the frames that have arrived."""
        return sum(int(driver.netdev["rx_frames"]) for driver in self.receivers)

    def copy(self) -> int:
        """Copy the sender's frames to as many other buffers; return how many."""
        d = self.source.netdev
        lengths = int(d["tx_lengths"])
        step, count = int(d["buffer_bytes"]), int(d["tx_size"])
        return copy_buffers(int(d["tx_buffers"]), self._target, step, count, lengths, _COPY_BATCH)

    def finish(self) -> None:
        """Let the sender stop, and compare what lies in the receivers' buffers with what was sent.

        Raises VirtfnError for a byte that differs.
        """
        self._workload.row["tasks"][0]["stop"] = 0
        while self.step() or self.source.tx_pending:
            self._clock.sleep(MS_PS // 100)
        known: dict[int, set[bytes]] = {}
        for frame in self._frames:
            known.setdefault(len(frame.arrives), set()).add(frame.arrives)
        wrong = int(self._workload.row["tasks"]["corrupt"].sum())
        for driver in self.receivers:
            d = driver.netdev
            count, step = int(d["rx_size"]), int(d["buffer_bytes"])
            had = view_bytes(int(d["rx_buffers"]), count * step).reshape(count, step)
            wrong += sum(all(row[:size].tobytes() not in of for size, of in known.items()) for row in had)
            wrong += int(d["rx_errors"])
        if wrong:
            raise VirtfnError(f"{wrong} frames arrived that were not sent", errno_name="EIO")


def _measure(
    kind: Traffic, sizes: tuple[int, ...], vfs: int, seconds: float, clock: WallClock
) -> tuple[BenchPoint, float]:
    length = mean(sizes) - FCS_BYTES
    # A driver of the card adds room for a tag to its MTU, and the largest frame has none to spare.
    mtu = max(1500, max(sizes) - FCS_BYTES - HEADER_BYTES - VLAN_BYTES)
    with Machine(parse_lab(_lab(vfs)), clock, ring=_RING, mtu=mtu) as machine:
        path = _Path(machine, kind, sizes, clock)
        copied = 0

        def copy() -> None:
            nonlocal copied
            copied += path.copy()

        copy()
        path.step()
        path_rates, copy_rates = [], []
        slice_ps = int(seconds * S_PS / (2 * _SLICES))
        for _ in range(_SLICES):
            path_rates.append(_rate(clock, slice_ps, path.step, path.received))
            copy_rates.append(_rate(clock, slice_ps, copy, lambda: copied))
        path.finish()
    fps, copies = median(path_rates), median(copy_rates)
    point: BenchPoint = {
        "path": "vf-to-vf",
        "traffic": kind.name,
        "frame_bytes": round(mean(sizes)),
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

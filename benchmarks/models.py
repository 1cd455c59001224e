"""How fast is each I/O model in this process? Slices of all of them alternate, in one run.

    python benchmarks/models.py [SECONDS]     of each model and size, 2 by default

One guest sends IPv4/UDP frames, 64 flows, to another on the same NIC, as fast as it can: by SR-IOV through the card's
switch, by Split through Dom0's bridge, by Direct through two emulated cards and the VMM's bridge. And one guest sends
to the other end of the wire, by Passthrough and by SR-IOV. Frames are not looked at when they arrive, but for their
ether type. Medians and the middle half.
"""

from __future__ import annotations

import random
import sys
from contextlib import ExitStack
from statistics import median, quantiles

import numpy as np

from virtfn.api.frames import TRAFFIC, make_frame
from virtfn.api.lab import Lab
from virtfn.api.lab import Workload as Work
from virtfn.api.labmodel import Guest, Nic, Pf, SrIov
from virtfn.api.machine import Machine
from virtfn.hw.eth import as_loaded
from virtfn.hw.types import Mac
from virtfn.iomodels.engine import Engine
from virtfn.iomodels.workload import Station, Workload
from virtfn.kernels import warm
from virtfn.kernels.traffic import IDLE
from virtfn.machine.clock import MS_PS, S_PS, WallClock
from virtfn.machine.memory import view_bytes

SIZES = (64, 1518)
SLICES = 15
PARTNER = Mac(0x99_00_00_00_00_02)


def lab(io: str, guests: int) -> Lab:
    sr_iov = SrIov(total_vfs=guests) if io == "sriov" else None
    nics = [Nic(pf="pf0", io=io, vf=n if io == "sriov" else None) for n in range(guests)]  # type: ignore[arg-type]
    made = tuple(Guest(name=f"g{n}", memory_mib=16, nic=nic) for n, nic in enumerate(nics))
    return Lab(name="models", pfs=(Pf(name="pf0", sr_iov=sr_iov),), guests=made, workload=Work(kind="pairs"))


class Way:
    """A machine in which the first station sends to the second, over and over, what its buffers hold."""

    def __init__(self, stack: ExitStack, clock: WallClock, io: str, size: int, *, outside: bool) -> None:
        self.clock = clock
        self.machine = machine = stack.enter_context(Machine(lab(io, 1 if outside else 2), clock, ring=256))
        pf = machine.pfs[0]
        stations = [Station(run.driver.row, run.driver.mac) for run in machine.guests]
        if outside:
            pf.nic.set_wire(True, 0)
            pf.nic.set_carrier(True)
            self.far_end = pf.nic.far_end()
            stations.append(Station(self.far_end, PARTNER))
        self.receiver = stations[1].row[0]
        work = Workload("pairs", stations, length=size - 4, frames=1 << 60, raw=True)
        tasks = work.row["tasks"][:2]
        tasks["kind"][1] = IDLE
        kind = TRAFFIC["ipv4-udp"]
        tasks["raw"] = as_loaded(kind.arrives)
        d = stations[0].row[0]
        count, step = int(d["tx_size"]), int(d["buffer_bytes"])
        buffers = view_bytes(int(d["tx_buffers"]), count * step - 64)
        lengths = view_bytes(int(d["tx_lengths"]), count * 8).view(np.int64)
        rng = random.Random(1)
        for i in range(count):
            frame = make_frame(kind, size, i % kind.flows, stations[0].mac, stations[1].mac, rng)
            buffers[i * step : i * step + len(frame.arrives)] = np.frombuffer(frame.arrives, np.uint8)
            lengths[i] = len(frame.arrives)
        guests = [run.guest for run in machine.guests]
        self.engine = Engine(machine.host, pf.served, guests, work, hosts=pf.hosts)
        self.work = work
        self.rates: list[float] = []

    def measure(self, slice_ps: int) -> None:
        """Measure for a slice."""
        self.engine.step()
        before, began = int(self.receiver["rx_frames"]), self.clock.now()
        while self.clock.now() - began < slice_ps:
            self.engine.step()
        self.rates.append((int(self.receiver["rx_frames"]) - before) * S_PS / (self.clock.now() - began))


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 2.0
    warm.load()
    clock = WallClock()
    for size in SIZES:
        with ExitStack() as stack:
            ways = {
                "guest to guest, SR-IOV": Way(stack, clock, "sriov", size, outside=False),
                "guest to guest, Split": Way(stack, clock, "split", size, outside=False),
                "guest to guest, Direct": Way(stack, clock, "direct", size, outside=False),
                "guest to wire, SR-IOV": Way(stack, clock, "sriov", size, outside=True),
                "guest to wire, Passthrough": Way(stack, clock, "passthrough", size, outside=True),
            }
            for _ in range(SLICES):
                for way in ways.values():
                    way.measure(max(int(seconds / SLICES * S_PS), MS_PS))
            for name, way in ways.items():
                low, _, high = quantiles(way.rates, n=4)
                rate = f"{median(way.rates) / 1e6:6.2f} Mpps  ({low / 1e6:.2f} to {high / 1e6:.2f})"
                print(f"{size:5} bytes  {name:28} {rate}")
                assert not int(way.work.row["tasks"]["corrupt"].sum()), "frames arrived that were not sent"
            ratio = median(
                a / b
                for a, b in zip(
                    ways["guest to wire, SR-IOV"].rates, ways["guest to wire, Passthrough"].rates, strict=True
                )
            )
            print(f"{size:5} bytes  SR-IOV has {ratio:.3f} of Passthrough's rate, one guest to the wire")


if __name__ == "__main__":
    main()

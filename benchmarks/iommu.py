"""What protection costs: IOTLB hits, page walks, invalidations, remapped interrupts, and their share of a frame.

    python benchmarks/iommu.py [ROUNDS] [--plot FILE.svg]

The frame's cost is an A/B in one process on the same rings and buffers: the guests' drivers use host addresses, which a
domain maps to themselves, and remapping of DMA is switched on and off between slices. Medians, and the spread.

--plot draws misses of random 64-byte reads against the window that they fall into, for several IOTLBs and page sizes,
as IOMMUs of real machines were measured (Neugebauer et al., Understanding PCIe performance, SIGCOMM 2018).
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import numpy as np
import numpy.typing as npt

from virtfn.api.lab import parse_lab
from virtfn.api.machine import Machine
from virtfn.hw.types import Hpa, Iova, make_rid
from virtfn.hw.vtd.regs import GCMD, Regs
from virtfn.iomodels.engine import Engine
from virtfn.iomodels.workload import Station, Workload
from virtfn.kernels import warm
from virtfn.kernels._jit import Row, kernel
from virtfn.kernels.vtd.dma import translate
from virtfn.kernels.vtd.irqremap import remap_interrupt
from virtfn.machine.clock import WallClock
from virtfn.machine.memory import CHUNK, PAGE
from virtfn.vmm.host import Host

RID = make_rid(1, 0, 0)
ENDLESS = 1 << 60
MIB = 1 << 20


@kernel
def read_all(iommu: Row, rid: int, addresses: npt.NDArray[np.int64], times: int) -> int:
    """Translate a 64-byte read of each address, `times` over."""
    done = 0
    for _ in range(times):
        for k in range(addresses.shape[0]):
            _, run = translate(iommu, rid, addresses[k], 64, 0)
            done += run
    return done


@kernel
def send_all(iommu: Row, rid: int, addresses: npt.NDArray[np.int64], times: int) -> int:
    """Send the message at each address, `times` over."""
    done = 0
    for _ in range(times):
        for k in range(addresses.shape[0]):
            outcome, _, _ = remap_interrupt(iommu, rid, addresses[k], 0)
            done += outcome
    return done


def nanoseconds(work: Callable[[], object], count: int) -> float:
    """Time one call of `work`, for each of the `count` things that it does."""
    began = time.perf_counter_ns()
    work()
    return (time.perf_counter_ns() - began) / count


def show(name: str, values: list[float], unit: str = "ns") -> None:
    """Print a line of the result."""
    print(f"  {name:52} {median(values):9.1f} {unit}   {min(values):.1f} to {max(values):.1f}")


class Window:
    """A domain over `size` bytes at addresses from 0, in pages of 4 KiB or 2 MiB."""

    def __init__(self, size: int, page: int, iotlb_entries: int) -> None:
        self.host = Host(WallClock(), max(size, CHUNK), iotlb_entries=iotlb_entries)
        self.domain = self.host.remapping.create_domain(1)
        pieces = self.host.memory.alloc_chunks(-(-size // CHUNK), random.Random(1))
        for i, piece in enumerate(pieces):
            at = list(range(0, CHUNK, page))
            if page != CHUNK:  # shuffled, or the driver would find large pages
                random.Random(i).shuffle(at)
            for k, offset in enumerate(at):
                self.domain.map(Iova(i * CHUNK + k * page), Hpa(piece + offset), page)
        self.host.remapping.attach(RID, self.domain)
        self.row = self.host.iommu.iommu.row

    def read(self, addresses: npt.NDArray[np.int64], times: int = 1) -> float:
        """Return the nanoseconds of one read."""
        return nanoseconds(lambda: read_all(self.row, int(RID), addresses, times), addresses.size * times)

    def walks(self) -> int:
        """Count page walks."""
        return self.host.iommu.stats()["page_walks"]


def measure_unit(rounds: int) -> None:
    """Measure the remapping unit by itself."""
    window = Window(16 * MIB, PAGE, 1024)
    within = np.arange(0, 512 * PAGE, PAGE, dtype=np.int64)
    # Pages that share a slot of the IOTLB: each drives the other out.
    apart = np.array([0, 1024 * PAGE], np.int64)
    window.read(within)
    window.read(apart)
    show("IOTLB hit", [window.read(within, 2000) for _ in range(rounds)])
    before = window.walks()
    show("IOTLB miss: walk of four levels, hot tables", [window.read(apart, 300_000) for _ in range(rounds)])
    if window.walks() - before < rounds * 600_000 - 1:
        raise SystemExit("not every read walked")

    remapping = window.host.remapping

    def invalidate(pages: int) -> float:
        return (
            nanoseconds(lambda: [remapping.invalidate_pages(window.domain, 0, pages * PAGE) for _ in range(200)], 200)
            / 1000
        )

    show("invalidation by queue, with its wait: one page", [invalidate(1) for _ in range(rounds)], "us")
    show("invalidation by queue, with its wait: a domain", [invalidate(4096 - 1) for _ in range(rounds)], "us")
    page = Hpa(window.host.memory.alloc_chunks(1)[0])

    def map_unmap() -> float:
        def once() -> None:
            window.domain.map(Iova(64 * MIB), page, PAGE)
            window.domain.unmap(Iova(64 * MIB), PAGE)

        return nanoseconds(lambda: [once() for _ in range(200)], 200) / 1000

    show("map and unmap of a page, strictly", [map_unmap() for _ in range(rounds)], "us")

    table = window.host.interrupt_table
    if table is None:
        raise SystemExit("interrupt remapping is off")
    near = np.array([table.remap(RID, 1, 0x40)[0] for _ in range(128)], np.int64)
    spread = [table.remap(RID, 1, 0x40)[0] for _ in range(256)]
    clash = np.array([near[0], spread[128]], np.int64)
    posted = np.array([table.post(RID, n, table.descriptor(1, 0xF0))[0] for n in range(64)], np.int64)

    def send(addresses: npt.NDArray[np.int64], times: int) -> float:
        return nanoseconds(lambda: send_all(window.row, int(RID), addresses, times), addresses.size * times)

    send(near, 1)
    show("interrupt remapped, entry cached", [send(near, 5000) for _ in range(rounds)])
    before = int(window.host.iommu.stats()["interrupt_walks"])
    show("interrupt remapped, entry read from the table", [send(clash, 300_000) for _ in range(rounds)])
    if int(window.host.iommu.stats()["interrupt_walks"]) - before < rounds * 600_000 - 1:
        raise SystemExit("not every message read its entry")
    show("interrupt posted", [send(posted, 10_000) for _ in range(rounds)])
    window.host.close()


LAB = """
name: iommu
pfs: [{name: pf0, sr-iov: {total-vfs: 2}}]
guests:
  - {name: a, memory-mib: 32, nic: {pf: pf0, io: sriov, vf: 0}}
  - {name: b, memory-mib: 32, nic: {pf: pf0, io: sriov, vf: 1}}
workload: {kind: pairs}
"""


@contextmanager
def two_guests(length: int) -> Iterator[tuple[Host, Engine, Callable[[], int]]]:
    """Bring two guests up that use host addresses, the first sending to the second; their domains map these too."""
    with Machine(parse_lab(LAB), WallClock(), ring=1024, remapping=False) as machine:
        guests = [run.guest for run in machine.guests]
        for guest in guests:
            (domain,) = (d for d in machine.host.remapping.domains.values() if guest.nics[0].function.rid in d.rids)
            for _, hpa, size in guest.memory.mappings():
                domain.map(Iova(hpa), hpa, size)
        machine.host.remapping.start()
        drivers = [guest.nics[0].driver for guest in guests]
        workload = Workload("pairs", [Station(d.row, d.mac) for d in drivers], length=length, frames=ENDLESS, raw=True)
        workload.row["tasks"][1]["kind"] = 0
        engine = Engine(machine.host, machine.pfs[0].nic, guests, workload)
        yield machine.host, engine, lambda: int(drivers[1].netdev["rx_frames"])
        translate_dma(machine.host, False)


def translate_dma(host: Host, on: bool) -> None:
    """Switch remapping of DMA, and leave that of interrupts."""
    status = host.iommu.read(Regs.GSTS.offset, 4)
    kept = status & (GCMD.QIE.mask | GCMD.IRE.mask)
    host.iommu.write(Regs.GCMD.offset, 4, kept | (GCMD.TE.mask if on else 0))


def measure_frames(rounds: int) -> None:
    """Measure a frame from VF to VF with and without remapping of DMA."""
    for frame_bytes in (64, 1518):
        costs: dict[bool, list[float]] = {True: [], False: []}
        per_frame = 0.0
        with two_guests(frame_bytes - 4) as (host, engine, received):
            for _ in range(3 * rounds):
                for on, cost in costs.items():
                    translate_dma(host, on)
                    engine.step()
                    stats, frames, began = host.iommu.stats(), received(), time.perf_counter_ns()
                    while time.perf_counter_ns() - began < 100_000_000:
                        engine.step()
                    cost.append((time.perf_counter_ns() - began) / (received() - frames))
                    if on:
                        after = host.iommu.stats()
                        per_frame = (after["translations"] - stats["translations"]) / (received() - frames)
                        if after["page_walks"] - stats["page_walks"] > 64:
                            raise SystemExit("the IOTLB is not warm")
        show(f"frame of {frame_bytes} bytes, translated", costs[True])
        show(f"frame of {frame_bytes} bytes, remapping off", costs[False])
        more = [a / b - 1 for a, b in zip(costs[True], costs[False], strict=True)]
        show("  more for translation", [100 * x for x in more], "%")
        print(f"  {'  translations':52} {per_frame:9.2f} a frame")


def misses(entries: int, page: int, windows: list[int]) -> list[float]:
    """Measure the share of random reads that miss, for each window."""
    found = []
    host = Window(max(windows), page, entries)
    random_numbers = np.random.default_rng(1)
    for window in windows:
        addresses = random_numbers.integers(0, window // 64, 200_000) * 64
        host.read(addresses[:100_000])
        before = host.walks()
        host.read(addresses[100_000:])
        found.append((host.walks() - before) / 100_000)
    host.host.close()
    return found


def plot(target: Path) -> None:
    """Draw misses against the window."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    windows = [1 << n for n in range(13, 30)]
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for entries, colour in ((64, "C0"), (256, "C1"), (1024, "C2"), (4096, "C3")):
        for page, style, name in ((PAGE, "-o", "4 KiB"), (CHUNK, "--s", "2 MiB")):
            fitting = [window for window in windows if window <= (64 * MIB if page == PAGE else windows[-1])]
            share = [100 * x for x in misses(entries, page, fitting)]
            axes.plot(fitting, share, style, color=colour, label=f"{entries} entries, {name} pages", ms=3)
        model = [100 * max(0.0, 1 - entries * PAGE / window) for window in windows]
        axes.plot(windows, model, ":", color=colour, lw=1, alpha=0.6)
    axes.set_xscale("log", base=2)
    axes.set_xticks(windows[::2], [f"{w // 1024} KiB" if w < MIB else f"{w // MIB} MiB" for w in windows[::2]])
    axes.set_xlabel("window of random 64-byte reads (dotted: 1 - entries / pages)")
    axes.set_ylabel("misses, %")
    axes.set_title("IOTLB misses against working set")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, ncols=2)
    figure.savefig(target)
    print(f"  drawn: {target}")


def main() -> None:
    """Measure everything."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("rounds", nargs="?", type=int, default=7)
    arguments.add_argument("--plot", type=Path)
    given = arguments.parse_args()
    warm.load()
    measure_unit(given.rounds)
    measure_frames(given.rounds)
    if given.plot:
        plot(given.plot)


if __name__ == "__main__":
    main()

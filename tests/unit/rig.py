"""A lab's machine in virtual time, and frames put into and taken out of its guests' rings one by one, for tests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from virtfn.api.lab import parse_lab
from virtfn.api.machine import LabPf, Machine
from virtfn.drivers.igbvf import Igbvf
from virtfn.drivers.vfmailbox import VfMailbox
from virtfn.drivers.window import Window
from virtfn.hw.i82576.desc import (
    RXD_DD,
    TXD_DEXT,
    TXD_DTYP_DATA,
    TXD_EOP,
    TXD_IFCS,
    TXD_PAYLEN_SHIFT,
    TXD_RS,
)
from virtfn.hw.types import Mac
from virtfn.iomodels.engine import Engine
from virtfn.iomodels.workload import Station, Workload
from virtfn.iovm.iovm import Vf
from virtfn.machine.clock import MS_PS, VirtualClock
from virtfn.machine.memory import view_bytes
from virtfn.vmm.guest import Guest

BROADCAST = Mac((1 << 48) - 1)
_SEND = TXD_DTYP_DATA | TXD_EOP | TXD_DEXT | TXD_IFCS | TXD_RS


def lab_text(
    guests: Sequence[tuple[str, int]] = (("pf0", 0), ("pf0", 1)),
    *,
    total_vfs: int = 4,
    policies: str = "",
    workload: str = "{kind: fan-in, frames: 1000}",
    memory_mib: int = 8,
    link_mbps: int = 0,
    iommu: str = "{}",
) -> str:
    """Write a lab: the (PF, VF) of each guest a, b, c, ..."""
    names = sorted({pf for pf, _ in guests} | {"pf0"})
    lines = ["name: rig", "pfs:"]
    for name in names:
        vfs = f", vfs: {policies}" if policies else ""
        sriov = f"sr-iov: {{total-vfs: {total_vfs}{vfs}}}"
        lines.append(f"  - {{name: {name}, model: 82576, link-mbps: {link_mbps}, {sriov}}}")
    lines.append("guests:")
    for i, (pf, vf) in enumerate(guests):
        nic = f"{{pf: {pf}, io: sriov, vf: {vf}}}"
        lines.append(f"  - {{name: {chr(97 + i)}, memory-mib: {memory_mib}, nic: {nic}}}")
    return "\n".join([*lines, f"workload: {workload}", f"iommu: {iommu}"]) + "\n"


class Rig:
    """The machine of a lab, up, in virtual time; a `with` block."""

    def __init__(self, guests: Sequence[tuple[str, int]] = (("pf0", 0), ("pf0", 1)), ring: int = 512, **lab) -> None:
        self.clock = VirtualClock()
        self.machine = Machine(parse_lab(lab_text(guests, **lab)), self.clock, ring=ring)

    def __enter__(self) -> Rig:
        self.machine.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.machine.close()

    @property
    def pf(self) -> LabPf:
        return self.machine.pfs[0]

    @property
    def nic(self):
        return self.pf.nic

    @property
    def igb(self):
        return self.pf.driver

    @property
    def iovm(self):
        return self.machine.iovm

    def guest(self, i: int) -> Guest:
        return self.machine.guests[i].guest

    def driver(self, i: int) -> Igbvf:
        return self.guest(i).nics[0].driver

    def vf(self, n: int) -> Vf:
        return self.iovm.vf(self.nic.pf_rid, n)

    def spare_guest(self, name: str = "spare", mib: int = 4, **kwargs) -> Guest:
        """A guest beside the lab's; the machine closes it too."""
        host = self.machine.host
        self.spares = [*getattr(self, "spares", []), Guest(host, name, mib << 20, **kwargs)]
        return self.spares[-1]

    def registers(self, i: int) -> Window:
        """VF registers of guest `i`, as its driver reaches them."""
        return Window(self.guest(i).nics[0].function.bar(0), self.clock)

    def mailbox(self, i: int) -> VfMailbox:
        """A mailbox client of its own for guest `i`."""
        return VfMailbox(self.registers(i), self.clock)

    def serve(self, rounds: int = 4) -> None:
        """Let the NIC move frames, and the guests handle interrupts."""
        for _ in range(rounds):
            self.nic.serve()
            for run in self.machine.guests:
                run.guest.run_interrupts()

    def drops(self, n: int) -> dict[str, int]:
        return self.nic.drops(n)

    def engine(self, kind: str = "pairs", frames: int | None = 1000, **kwargs) -> Engine:
        """Work for all guests of the first PF."""
        runs = self.machine.guests_of(self.pf)
        stations = [Station(run.guest.nics[0].driver.row, run.guest.nics[0].driver.mac) for run in runs]
        workload = Workload(kind, stations, frames=frames, **kwargs)
        return Engine(self.machine.host, self.nic, [run.guest for run in runs], workload)


def frame(target: int, source: int, payload: bytes = b"", vid: int | None = None, length: int = 64) -> bytes:
    """Make a frame without frame check sequence, padded to `length`."""
    tag = b"" if vid is None else b"\x81\x00" + vid.to_bytes(2, "big")
    body = int(target).to_bytes(6, "little") + int(source).to_bytes(6, "little") + tag + b"\x88\xb6" + payload
    return body.ljust(length, b"\0")


def send(driver: Igbvf, *frames: bytes) -> None:
    """Put frames into a driver's transmit ring and show the tail."""
    d = driver.netdev
    ring = view_bytes(int(d["tx_ring"]), int(d["tx_size"]) * 16).view(np.int64).reshape(-1, 2)
    for body in frames:
        at, step = int(d["tx_tail"]), int(d["buffer_bytes"])
        view_bytes(int(d["tx_buffers"]) + at * step, len(body))[:] = np.frombuffer(body, np.uint8)
        ring[at] = int(d["tx_iova"]) + at * step, _SEND | len(body) | len(body) << TXD_PAYLEN_SHIFT
        d["tx_tail"] = (at + 1) % int(d["tx_size"])
        d["tx_frames"] += 1
    view_bytes(int(d["tx_tail_register"]), 4).view(np.uint32)[0] = d["tx_tail"]
    driver.rings.show_tails()


def take(driver: Igbvf) -> list[bytes]:
    """Take all received frames out of a driver's ring and give the descriptors back."""
    d = driver.netdev
    size, step = int(d["rx_size"]), int(d["buffer_bytes"])
    ring = view_bytes(int(d["rx_ring"]), size * 16).view(np.int64).reshape(-1, 2)
    frames = []
    while int(ring[int(d["rx_next"]), 1]) & RXD_DD:
        at = int(d["rx_next"])
        length = int(ring[at, 1]) >> 32 & 0xFFFF
        frames.append(view_bytes(int(d["rx_buffers"]) + at * step, length).tobytes())
        ring[at] = int(d["rx_iova"]) + at * step, 0
        d["rx_next"] = (at + 1) % size
    if frames:
        view_bytes(int(d["rx_tail_register"]), 4).view(np.uint32)[0] = (int(d["rx_next"]) - 1) % size
        driver.rings.show_tails()
    return frames


def pass_time(rig: Rig, ms: float = 1) -> None:
    rig.clock.sleep(int(ms * MS_PS))

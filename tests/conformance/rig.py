"""An 82576 in a slot of a machine, its registers by name, its messages written down; a driver only if asked for.

The card is scanned and its BARs placed as any card's; accesses go to the device by routing ID, as the bus carries them.
Time is virtual. Each function's MSI-X vector v sends message v, so that `take` tells who interrupted and how.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from virtfn.devices.nic82576 import Card, Nic82576
from virtfn.drivers.igb import OTHER_VECTOR, Igb
from virtfn.hw.bits import Decl
from virtfn.hw.i82576 import Regs
from virtfn.hw.i82576.fields import CTRL, GPIE
from virtfn.hw.types import Hpa, Iova, Rid, parse_mac
from virtfn.iovm.pcim import Pcim
from virtfn.kernels.i82576.port import wire_in
from virtfn.kernels.ranges import address_of
from virtfn.machine.clock import MS_PS, US_PS, VirtualClock
from virtfn.machine.memory import CHUNK
from virtfn.vmm.host import Host, HostBar

PF = None  # the PF, where a VF would be named by its number
MSI_ADDRESS = 0xFEE00000
BROADCAST = b"\xff" * 6


class Rig:
    """A NIC with `vfs` VFs and no driver. mbps: speed of its link, which is up when CTRL.SLU is set."""

    def __init__(self, vfs: int = 0, *, mbps: int = 1000, connected: bool = False, chunks: int = 4) -> None:
        self.clock = VirtualClock()
        self.host = Host(self.clock, chunks * CHUNK, slots=1)
        self.nic = Nic82576(self.host, self.host.iommu.iommu, Card(parse_mac("00:1b:21:2b:46:e0")))
        self.nic.port.set_wire(connected, mbps)
        self.host.root.attach(self.nic)
        self.pcim = Pcim(self.host.root, self.clock)
        self.pcim.scan()
        self.pcim.enable_function(self.nic.pf_rid)
        self.messages: list[tuple[Rid, int, int]] = []
        self.host.iommu.interrupts.on_message = lambda rid, address, message: self.messages.append(
            (rid, address, message)
        )
        if vfs:
            self.pcim.enable_vfs(self.nic.pf_rid, vfs)
        for n in (PF, *range(vfs)):
            self.config(n, 0x04, 0x0006)
        self.take()

    def close(self) -> None:
        self.nic.close()
        self.host.close()

    # Accesses.

    def rid(self, n: int | None) -> Rid:
        return self.nic.pf_rid if n is None else self.nic.vf_rid(n)

    def config(self, n: int | None, offset: int, value: int, size: int = 2) -> None:
        self.host.root.config_write(self.rid(n), offset, size, value)

    def flr(self, n: int | None) -> None:
        """Reset a function through its configuration space."""
        self.config(n, 0xA8, 0x8000)

    def get(self, decl: Decl, index: int = 0, vf: int | None = None) -> int:
        """Read a register through BAR0 of the PF, or of a VF by the VF's map."""
        return self.nic.bar_read(self.rid(vf), 0, decl.at(index), 4)

    def set(self, decl: Decl, value: int, index: int = 0, vf: int | None = None) -> None:
        self.nic.bar_write(self.rid(vf), 0, decl.at(index), 4, value & 0xFFFFFFFF)

    # Interrupts.

    def use_msix(self, *functions: int | None) -> None:
        """Let functions use MSI-X: vector v sends message v."""
        for n in functions:
            for v in range(10 if n is PF else 3):
                for word, value in enumerate((MSI_ADDRESS, 0, v, 0)):
                    self.nic.bar_write(self.rid(n), 3, 16 * v + 4 * word, 4, value)
            self.config(n, 0x72, 0x8000)
        if PF in functions:
            self.set(Regs.GPIE, GPIE.of(NSICR=1, MULTIPLE_MSIX=1, EIAME=1, PBA_SUPPORT=1).value)

    def take(self) -> list[tuple[int | None, int]]:
        """Take the messages sent since the last call: (function, message)."""
        names = {self.nic.pf_rid: PF} | {self.nic.vf_rid(n): n for n in range(self.nic.vfs)}
        taken = [(names[rid], message) for rid, _, message in self.messages]
        self.messages.clear()
        return taken

    def pass_time(self, us: int) -> list[tuple[int | None, int]]:
        """Let time pass, the port do what is due, and take the messages."""
        self.clock.sleep(us * US_PS)
        self.nic.serve()
        return self.take()

    # Frames.

    def domain(self, number: int, *functions: int | None, iova: int = 0) -> Hpa:
        """Give functions 2 MiB of memory at `iova`, theirs alone; return its host address."""
        (chunk,) = self.host.memory.alloc_chunks(1)
        domain = self.host.remapping.create_domain(number)
        domain.map(Iova(iova), chunk, CHUNK)
        for n in functions:
            self.host.remapping.attach(self.rid(n), domain)
        return chunk

    def store(self, address: int, content: bytes) -> None:
        """Write machine memory."""
        at = address - self.host.memory.base
        self.host.memory.bytes[at : at + len(content)] = np.frombuffer(content, np.uint8)

    def load(self, address: int, size: int) -> bytes:
        """Read machine memory."""
        at = address - self.host.memory.base
        return self.host.memory.bytes[at : at + size].tobytes()

    def words(self, address: int, *words: int) -> None:
        """Write 64-bit words."""
        self.store(address, b"".join((w & (1 << 64) - 1).to_bytes(8, "little") for w in words))

    def receive(self, *frames: bytes) -> int:
        """Let frames come in from the wire; return how many the port took."""
        self.clock.sleep(MS_PS)  # the wire has its pace
        self.nic.port.settle()
        joined = np.frombuffer(b"".join(frames), np.uint8)
        lengths = np.array([len(f) for f in frames], np.int64)
        offsets = np.cumsum(lengths) - lengths
        taken, events = wire_in(
            self.nic.port.block.ctypes.data, self.clock.now(), address_of(joined), offsets, lengths, 0, len(frames)
        )
        self.nic.handle(events)
        return int(taken)

    # A driver.

    def start_driver(self, vfs: int, on_interrupt: Callable[[], object] | None = None) -> Igb:
        """Probe and start the PF driver. on_interrupt: called for its interrupt, in place of the driver."""
        csr = next(bar for bar in self.pcim.functions[self.nic.pf_rid].bars if bar.bar == 0)
        driver = Igb(HostBar(self.host.root, csr.address), self.clock)
        driver.probe()
        handler = on_interrupt or (lambda: driver.interrupt(OTHER_VECTOR))
        address, message = self.host.allocate_message(self.nic.pf_rid, handler)
        for word, value in enumerate((address, 0, message, 0)):
            self.nic.bar_write(self.nic.pf_rid, 3, 4 * word, 4, value)
        self.config(PF, 0x72, 0x8000)
        driver.start(vfs)
        return driver

    def link_up(self) -> None:
        self.set(Regs.CTRL, CTRL.of(FD=1, SLU=1).value)


def ethernet(destination: bytes, size: int = 60, source: bytes = b"\x02\0\0\0\0\x99", kind: int = 0x88B5) -> bytes:
    """Make a frame of `size` bytes without frame check sequence."""
    return (destination + source + kind.to_bytes(2, "big")).ljust(size, b"\x5a")


def data_descriptor(address: int, size: int) -> Sequence[int]:
    """Make the two words of an advanced data descriptor for a whole frame that asks for a report."""
    return address, size | 3 << 20 | 0x2B << 24 | size << 46

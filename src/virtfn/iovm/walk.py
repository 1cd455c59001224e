"""Look at a hierarchy through configuration accesses alone: capability lists, SR-IOV, and a device's functions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from virtfn.hw.bits import Decl, RegMap
from virtfn.hw.pci import (
    CONFIG_SIZE,
    EXTENDED_START,
    HEADER_SIZE,
    NO_DEVICE,
    Ari,
    AriCapabilities,
    ExtendedHeader,
    HeaderType,
    PciStatus,
    SrIov,
    SrIovControl,
    Type0,
    capability_id,
)
from virtfn.hw.types import Rid, format_rid, make_rid
from virtfn.machine.ports import VirtfnError

__all__ = ["ConfigBus", "Registers", "SrIovView", "capability_of", "function_numbers", "offsets", "present"]


class ConfigBus(Protocol):
    """Configuration accesses by routing ID: a root complex, or anything that stands for one."""

    def config_read(self, rid: Rid, offset: int, size: int) -> int:
        """Read 1, 2 or 4 bytes; all ones if nobody answers."""

    def config_write(self, rid: Rid, offset: int, size: int, value: int) -> None:
        """Write 1, 2 or 4 bytes."""


@dataclass(frozen=True, slots=True)
class Registers:
    """Registers of one function at one place of its configuration space: its header, or a capability at `base`."""

    bus: ConfigBus
    rid: Rid
    base: int = 0

    def get(self, decl: Decl, index: int = 0) -> int:
        """Read a register."""
        return self.bus.config_read(self.rid, self.base + decl.at(index), decl.size)

    def set(self, decl: Decl, value: int, index: int = 0) -> None:
        """Write a register."""
        self.bus.config_write(self.rid, self.base + decl.at(index), decl.size, value)


def present(bus: ConfigBus, rid: Rid) -> bool:
    """Tell whether a function answers to `rid`; a VF does not by this measure, its vendor ID being FFFF."""
    return bus.config_read(rid, Type0.VENDOR_ID.offset, 2) != NO_DEVICE


def offsets(bus: ConfigBus, rid: Rid) -> list[tuple[int, int, bool]]:
    """List (ID, offset, extended) of a function's capabilities in list order; a list that loops ends where it would."""
    found: list[tuple[int, int, bool]] = []
    visited: set[int] = set()
    status = PciStatus(bus.config_read(rid, Type0.STATUS.offset, 2))
    at = bus.config_read(rid, Type0.CAP_POINTER.offset, 1) & ~3 if status.CAP_LIST else 0
    while HEADER_SIZE <= at < EXTENDED_START and at not in visited:
        visited.add(at)
        found.append((bus.config_read(rid, at, 1), at, False))
        at = bus.config_read(rid, at + 1, 1) & ~3
    at = EXTENDED_START
    while EXTENDED_START <= at < CONFIG_SIZE and at not in visited:
        visited.add(at)
        header = ExtendedHeader(bus.config_read(rid, at, 4))
        if header.value in (0, 0xFFFFFFFF):
            break
        found.append((header.ID, at, True))
        at = header.NEXT & ~3
    return found


def capability_of(bus: ConfigBus, rid: Rid, regs: type[RegMap]) -> Registers | None:
    """Find a function's capability of the kind that `regs` describes; None if it has none."""
    wanted = capability_id(regs)
    for number, at, extended in offsets(bus, rid):
        if (number, extended) == wanted:
            return Registers(bus, rid, at)
    return None


class SrIovView:
    """A PF's SR-IOV capability as software reads it.

    Raises VirtfnError if the function has none.
    """

    def __init__(self, bus: ConfigBus, pf: Rid) -> None:
        found = capability_of(bus, pf, SrIov)
        if found is None:
            raise VirtfnError(f"{format_rid(pf)} is not a PF: it has no SR-IOV capability", errno_name="ENOSYS")
        self.regs = found
        self.pf = pf

    @property
    def control(self) -> SrIovControl:
        """The SR-IOV Control register."""
        return SrIovControl(self.regs.get(SrIov.CONTROL))

    def count(self) -> int:
        """Return how many VFs are enabled."""
        return self.regs.get(SrIov.NUM_VFS) if self.control.VFE else 0

    def rid_of(self, n: int) -> int:
        """Compute the routing ID of VF `n`; above FFFF there is no such bus."""
        return self.pf + self.regs.get(SrIov.FIRST_VF_OFFSET) + n * self.regs.get(SrIov.VF_STRIDE)


def function_numbers(bus: ConfigBus, number: int, device: int, *, ari: bool) -> Iterator[Rid]:
    """Yield the functions of a device: all that its header type or its ARI chain promises."""
    first = make_rid(number, device, 0)
    if not present(bus, first):
        return
    yield first
    if ari:
        rid, last = first, 0
        while (chain := capability_of(bus, rid, Ari)) is not None:
            following = AriCapabilities(chain.get(Ari.CAPABILITY)).NEXT_FUNCTION
            if following <= last:
                return
            rid, last = Rid(number << 8 | following), following
            yield rid
        return
    if HeaderType(bus.config_read(first, Type0.HEADER_TYPE.offset, 1)).MULTIFUNCTION:
        for function in range(1, 8):
            rid = make_rid(number, device, function)
            if present(bus, rid):
                yield rid

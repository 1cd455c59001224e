"""The host's own driver of a PF that PCIM has found, bound as an operating system binds one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from virtfn.drivers.ports import BoundDriver
from virtfn.hw.pci import Location, MsiX, MsiXControl, MsiXEntry
from virtfn.hw.types import format_rid
from virtfn.iovm.pcim import Found, Pcim
from virtfn.iovm.walk import Registers, capability_of
from virtfn.machine.ports import Bar, Clock, VirtfnError
from virtfn.vmm.host import Host, HostBar
from virtfn.vmm.traps import Traps

__all__ = ["open_pf", "pf_bar", "route_vector", "start_pf"]

_Driver = TypeVar("_Driver", bound=BoundDriver)


def open_pf(host: Host, pcim: Pcim, pf: Found, make: Callable[[Bar, Clock], _Driver]) -> _Driver:
    """Let a PF answer at its BARs, and give its registers to a driver, which does nothing yet."""
    pcim.enable_function(pf.rid)
    return make(pf_bar(host, pf), host.clock)


def start_pf(host: Host, pcim: Pcim, pf: Found, make: Callable[[Bar, Clock], _Driver]) -> _Driver:
    """Bind a driver to a PF and probe it; its vector for everything but queues calls the driver.

    Raises VirtfnError if the PF has no MSI-X, or the driver does not like what it finds.
    """
    driver = open_pf(host, pcim, pf, make)
    driver.probe()
    msix = route_vector(host, pcim, pf, 0, lambda: driver.interrupt(0))
    msix.set(MsiX.CONTROL, MsiXControl.of(ENABLE=1).value)
    return driver


def pf_bar(host: Host, pf: Found, writes: Traps | None = None) -> HostBar:
    """Open the registers of a PF. writes: how compiled code of the host writes them."""
    csr = next(bar for bar in pf.bars if bar.bar == 0)
    return HostBar(host.root, csr.address, writes)


def route_vector(host: Host, pcim: Pcim, pf: Found, vector: int, deliver: Callable[[], None]) -> Registers:
    """Let a vector of a PF call `deliver`; return its MSI-X capability.

    Raises VirtfnError if the PF has no MSI-X, or nothing is left to send its message to.
    """
    address, message = host.allocate_message(pf.rid, deliver)
    msix = capability_of(pcim.bus, pf.rid, MsiX)
    if msix is None:
        raise VirtfnError(f"{format_rid(pf.rid)} has no MSI-X", errno_name="ENODEV")
    place = Location(msix.get(MsiX.TABLE))
    table = next(bar for bar in pf.bars if bar.bar == place.BIR)
    bar = HostBar(host.root, table.address + place.OFFSET * 8 + vector * 16)
    bar.write(MsiXEntry.ADDRESS.offset, address & 0xFFFFFFFF)
    bar.write(MsiXEntry.ADDRESS_HIGH.offset, address >> 32)
    bar.write(MsiXEntry.MESSAGE.offset, message)
    bar.write(MsiXEntry.CONTROL.offset, 0)
    return msix

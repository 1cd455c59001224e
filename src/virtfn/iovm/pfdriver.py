"""The host's own driver of a PF that PCIM has found, bound as an operating system binds one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from virtfn.drivers.ports import BoundDriver
from virtfn.hw.pci import Location, MsiX, MsiXControl, MsiXEntry
from virtfn.hw.types import format_rid
from virtfn.iovm.pcim import Found, Pcim
from virtfn.iovm.walk import capability_of
from virtfn.machine.ports import Bar, Clock, VirtfnError
from virtfn.vmm.host import Host, HostBar

__all__ = ["open_pf", "start_pf"]

_Driver = TypeVar("_Driver", bound=BoundDriver)


def open_pf(host: Host, pcim: Pcim, pf: Found, make: Callable[[Bar, Clock], _Driver]) -> _Driver:
    """Let a PF answer at its BARs, and give its registers to a driver, which does nothing yet."""
    pcim.enable_function(pf.rid)
    csr = next(bar for bar in pf.bars if bar.bar == 0)
    return make(HostBar(host.root, csr.address), host.clock)


def start_pf(host: Host, pcim: Pcim, pf: Found, make: Callable[[Bar, Clock], _Driver]) -> _Driver:
    """Bind a driver to a PF and probe it; its vector for everything but queues calls the driver.

    Raises VirtfnError if the PF has no MSI-X, or the driver does not like what it finds.
    """
    driver = open_pf(host, pcim, pf, make)
    driver.probe()
    address, message = host.allocate_message(pf.rid, lambda: driver.interrupt(0))
    msix = capability_of(pcim.bus, pf.rid, MsiX)
    if msix is None:
        raise VirtfnError(f"{format_rid(pf.rid)} has no MSI-X", errno_name="ENODEV")
    place = Location(msix.get(MsiX.TABLE))
    table = next(bar for bar in pf.bars if bar.bar == place.BIR)
    bar = HostBar(host.root, table.address + place.OFFSET * 8)
    bar.write(MsiXEntry.ADDRESS.offset, address & 0xFFFFFFFF)
    bar.write(MsiXEntry.ADDRESS_HIGH.offset, address >> 32)
    bar.write(MsiXEntry.MESSAGE.offset, message)
    bar.write(MsiXEntry.CONTROL.offset, 0)
    msix.set(MsiX.CONTROL, MsiXControl.of(ENABLE=1).value)
    return driver

"""The host's own driver of a PF that PCIM has found, bound as an operating system binds one."""

from __future__ import annotations

from virtfn.drivers import igb
from virtfn.hw.pci import Location, MsiX, MsiXControl, MsiXEntry
from virtfn.hw.types import format_rid
from virtfn.iovm.pcim import Found, Pcim
from virtfn.iovm.walk import capability_of
from virtfn.machine.ports import VirtfnError
from virtfn.vmm.host import Host, HostBar

__all__ = ["open_igb", "start_igb"]


def open_igb(host: Host, pcim: Pcim, pf: Found) -> igb.Igb:
    """Let a PF answer at its BARs, and give its registers to a driver, which does nothing yet."""
    pcim.enable_function(pf.rid)
    csr = next(bar for bar in pf.bars if bar.bar == 0)
    return igb.Igb(HostBar(host.root, csr.address), host.clock)


def start_igb(host: Host, pcim: Pcim, pf: Found) -> igb.Igb:
    """Bind a driver to a PF and probe it; its vector for everything but queues calls the driver.

    Raises VirtfnError if the PF has no MSI-X, or the driver does not like what it finds.
    """
    driver = open_igb(host, pcim, pf)
    driver.probe()
    address, message = host.allocate_message(pf.rid, lambda: driver.interrupt(igb.OTHER_VECTOR))
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

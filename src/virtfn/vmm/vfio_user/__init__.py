"""vfio-user: PCI devices in Python for virtual machines of QEMU, over a UNIX socket.

A device tells its regions and interrupts and answers accesses (`VfioUserDevice`); a `Server` speaks the protocol for
it, one client at a time, and hands it a `Client` with the memory and the interrupts of the virtual machine.

Linux only; nothing but the standard library. Reference: docs/reference/vfio-user.md.
"""

from virtfn.vmm.vfio_user.client import Client
from virtfn.vmm.vfio_user.device import VfioUserDevice
from virtfn.vmm.vfio_user.irqs import Interrupts
from virtfn.vmm.vfio_user.limits import Limits
from virtfn.vmm.vfio_user.memory import DmaMapper, DmaRange, DmaRanges, MmapMapper
from virtfn.vmm.vfio_user.messages import Capabilities, Command, IrqFlags, RefusedError
from virtfn.vmm.vfio_user.regions import Irq, IrqIndex, Region, RegionIndex, shared_memory, split
from virtfn.vmm.vfio_user.server import Server
from virtfn.vmm.vfio_user.steps import Going, Steps, finish
from virtfn.vmm.vfio_user.transfers import Done

__all__ = [
    "Capabilities",
    "Client",
    "Command",
    "DmaMapper",
    "DmaRange",
    "DmaRanges",
    "Done",
    "Going",
    "Interrupts",
    "Irq",
    "IrqFlags",
    "IrqIndex",
    "Limits",
    "MmapMapper",
    "RefusedError",
    "Region",
    "RegionIndex",
    "Server",
    "Steps",
    "VfioUserDevice",
    "finish",
    "shared_memory",
    "split",
]

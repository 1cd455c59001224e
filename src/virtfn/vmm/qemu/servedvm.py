"""What virtual machines of QEMU have in common, whoever starts them: functions at sockets, each with memory of its own.

Each function has an address space of its own, since QEMU tells each about memory by itself.
"""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path

from virtfn.hw.types import Rid
from virtfn.machine.meter import Meter
from virtfn.machine.ports import ConfigSpace, Device, DmaDomain
from virtfn.vmm.guest import Emulation
from virtfn.vmm.host import Host
from virtfn.vmm.served import ServedFunction, SharedFiles

__all__ = ["ServedVm"]


class ServedVm:
    """One virtual machine. functions: that are served to it; meter: what it costs.

    room: bytes of memory that it may share, of the host's foreign bytes. Raises VirtfnError when there are not so many
    left.
    """

    def __init__(self, host: Host, name: str, room: int) -> None:
        self.host = host
        self.name = name
        self.functions: dict[Rid, ServedFunction] = {}
        self.meter = Meter()
        self._files = SharedFiles(host.memory, room)

    def address_space(self, rid: Rid) -> Hashable:
        """Name the address space that a function's DMA is in: its own."""
        return self, rid

    def populate(self, domain: DmaDomain) -> None:
        """Map nothing yet: memory is mapped as QEMU tells of it."""

    def inject(self, rid: Rid, address: int, message: int) -> None:
        """Interrupt it by a message of its own, for a function that it has."""
        if rid in self.functions:
            self.functions[rid].send(address, message)

    @property
    def messages(self) -> int:
        """Messages about registers: the exits of this machine."""
        return self.meter.exits

    @property
    def interrupts(self) -> int:
        """Interrupts that were sent to it."""
        return self.meter.read()["interrupts"]

    def _serve(
        self,
        device: Device,
        rid: Rid,
        config: ConfigSpace,
        domain: DmaDomain,
        path: Path,
        *,
        mapped: bool,
        emulation: Emulation | None,
    ) -> ServedFunction:
        """Serve a function at a path, and note it. Raises VirtfnError if the socket cannot be had."""
        self.functions[rid] = served = ServedFunction(
            self.host,
            device,
            rid,
            config,
            domain,
            self._files,
            path,
            mapped=mapped,
            meter=self.meter,
            emulation=emulation,
        )
        return served

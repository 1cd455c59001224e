"""A virtual machine whose QEMU somebody else starts: by hand, by a script, by libvirt.

    NEW --plug or connect--> SERVED: its sockets stand at paths that do not change
                             a QEMU comes, goes, is killed, comes again; each time the function is as after a reset
    SERVED --unplug, close--> ENDED: the sockets are gone

Nothing here talks to QEMU but through the sockets: what is plugged in is so from QEMU's start, by its command line.
"""

from __future__ import annotations

from collections.abc import Hashable
from contextlib import ExitStack
from pathlib import Path

from virtfn.hw.types import Rid, format_rid
from virtfn.machine.meter import Meter
from virtfn.machine.ports import ConfigSpace, Device, DmaDomain, VirtfnError
from virtfn.vmm.guest import Emulation
from virtfn.vmm.host import Host, room_for
from virtfn.vmm.qemu.machine import VirtioNic
from virtfn.vmm.served import ServedFunction, SharedFiles

__all__ = ["VmElsewhere"]


class VmElsewhere:
    """One virtual machine. socket: where QEMU finds its function, or the back end of its virtio device.

    memory_bytes: that it may have, of the host's foreign bytes. Raises VirtfnError when there are not so many left.
    """

    def __init__(self, host: Host, name: str, memory_bytes: int, socket: Path) -> None:
        self.host = host
        self.name = name
        self.socket = socket
        self.functions: dict[Rid, ServedFunction] = {}
        self.meter = Meter()
        self._files = SharedFiles(host.memory, room_for(memory_bytes))

    def door(self, name: str) -> Path:
        """Return where the socket of a part is to be: there is one."""
        return self.socket

    def address_space(self, rid: Rid) -> Hashable:
        """Name the address space that a function's DMA is in: its own."""
        return self, rid

    def populate(self, domain: DmaDomain) -> None:
        """Map nothing yet: memory is mapped as QEMU tells of it."""

    def plug(
        self,
        device: Device,
        rid: Rid,
        config: ConfigSpace,
        domain: DmaDomain,
        *,
        mapped: bool = True,
        emulation: Emulation | None = None,
    ) -> ServedFunction:
        """Serve a function at the socket.

        Raises VirtfnError if there is one already (EEXIST), or the socket cannot be had.
        """
        if self.functions:
            raise VirtfnError(f"guest {self.name} has a function at {self.socket} already", errno_name="EEXIST")
        self.functions[rid] = served = ServedFunction(
            self.host,
            device,
            rid,
            config,
            domain,
            self._files,
            self.socket,
            mapped=mapped,
            meter=self.meter,
            emulation=emulation,
        )
        return served

    def unplug(self, rid: Rid, *, surprise: bool = False) -> None:
        """Take a function away, whoever has it plugged in. Raises VirtfnError (ENODEV) if it does not have it."""
        if rid not in self.functions:
            raise VirtfnError(f"guest {self.name} does not have {format_rid(rid)}", errno_name="ENODEV")
        self.functions.pop(rid).close()

    def inject(self, rid: Rid, address: int, message: int) -> None:
        """Interrupt it by a message of its own, for a function that it has."""
        if rid in self.functions:
            self.functions[rid].send(address, message)

    def connect(self, network: VirtioNic) -> None:
        """Do nothing: whose QEMU it is gives it the device."""

    @property
    def connected(self) -> bool:
        """Whether a QEMU has its function plugged in."""
        return any(served.connected_now for served in self.functions.values())

    @property
    def refusal(self) -> str:
        """Why a QEMU was refused something last, for people."""
        return next((served.server.last_refusal for served in self.functions.values()), "")

    @property
    def messages(self) -> int:
        """Messages about registers: the exits of this machine."""
        return self.meter.exits

    @property
    def interrupts(self) -> int:
        """Interrupts that were sent to it."""
        return self.meter.read()["interrupts"]

    def close(self) -> None:
        """Take the sockets away, and back what it had."""
        with ExitStack() as stack:
            stack.callback(self._files.close)
            while self.functions:
                stack.callback(self.functions.popitem()[1].close)

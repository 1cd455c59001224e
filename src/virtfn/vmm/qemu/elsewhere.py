"""A virtual machine whose QEMU somebody else starts: by hand, by a script, by libvirt.

    NEW --plug or connect--> SERVED: its sockets stand at paths that do not change
                             a QEMU comes, goes, is killed, comes again; each time the function is as after a reset
    SERVED --unplug, close--> ENDED: the sockets are gone

Nothing here talks to QEMU but through the sockets: what is plugged in is so from QEMU's start, by its command line.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from virtfn.hw.types import Rid, format_rid
from virtfn.machine.ports import ConfigSpace, Device, DmaDomain, VirtfnError
from virtfn.vmm.guest import Emulation
from virtfn.vmm.host import Host, room_for
from virtfn.vmm.qemu.machine import VirtioNic
from virtfn.vmm.qemu.servedvm import ServedVm
from virtfn.vmm.served import ServedFunction

__all__ = ["VmElsewhere"]


class VmElsewhere(ServedVm):
    """One virtual machine. socket: where QEMU finds its function, or the back end of its virtio device.

    memory_bytes: that it may have, of the host's foreign bytes. Raises VirtfnError when there are not so many left.
    """

    def __init__(self, host: Host, name: str, memory_bytes: int, socket: Path) -> None:
        super().__init__(host, name, room_for(memory_bytes))
        self.socket = socket

    def door(self, name: str) -> Path:
        """Return where the socket of a part is to be: there is one."""
        return self.socket

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
        return self._serve(device, rid, config, domain, self.socket, mapped=mapped, emulation=emulation)

    def unplug(self, rid: Rid, *, surprise: bool = False) -> None:
        """Take a function away, whoever has it plugged in. Raises VirtfnError (ENODEV) if it does not have it."""
        if rid not in self.functions:
            raise VirtfnError(f"guest {self.name} does not have {format_rid(rid)}", errno_name="ENODEV")
        self.functions.pop(rid).close()

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

    def close(self) -> None:
        """Take the sockets away, and back what it had."""
        with ExitStack() as stack:
            stack.callback(self._files.close)
            while self.functions:
                stack.callback(self.functions.popitem()[1].close)

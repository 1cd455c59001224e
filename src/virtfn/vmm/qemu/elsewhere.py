"""A virtual machine whose QEMU somebody else starts: by hand, by a script, by libvirt.

    NEW --plug or connect--> SERVED: its sockets stand at paths that do not change
                             a QEMU comes, goes, is killed, comes again; each time the function is as after a reset
    SERVED --unplug, close--> ENDED: the sockets are gone

What is plugged in is so from QEMU's start, by its command line. Nothing here talks to QEMU but through the sockets; and
by its monitor for a guest that is a host, which makes VFs of a whole card:

    GUEST.sock                the PF, and all of a guest that is no host
    GUEST.vf0, GUEST.vf1 ...  the VFs that may come
    GUEST.qmp                 QEMU listens here, on a monitor besides that of who has started it

A QEMU without that monitor gets the PF as an ordinary card, without its SR-IOV capability.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from virtfn.hw.types import Rid, format_rid
from virtfn.machine.ports import ConfigSpace, Device, DmaDomain, VirtfnError
from virtfn.machine.wholecard import CardPf, CardVf
from virtfn.vmm.guest import Emulation
from virtfn.vmm.host import Host, room_for
from virtfn.vmm.hostcard import Member, Placement
from virtfn.vmm.qemu.machine import VirtioNic, port_function
from virtfn.vmm.qemu.machinery import QemuMachinery
from virtfn.vmm.qemu.monitor import OthersMonitor
from virtfn.vmm.qemu.servedvm import ServedVm
from virtfn.vmm.served import ServedFunction

__all__ = ["VmElsewhere", "monitor_socket", "vf_socket"]

_SLOT = 0
_HOW = "start it by the line of virtfn qemu-args"


def vf_socket(socket: Path, n: int) -> Path:
    """Return the socket of VF `n`, beside that of its PF."""
    return socket.with_suffix(f".vf{n}")


def monitor_socket(socket: Path) -> Path:
    """Return where the QEMU of a guest that is a host listens, beside the socket of the PF."""
    return socket.with_suffix(".qmp")


class VmElsewhere(ServedVm):
    """One virtual machine. socket: where QEMU finds its function, or the back end of its virtio device.

    memory_bytes: that it may have, of the host's foreign bytes. Raises VirtfnError when there are not so many left.
    """

    def __init__(self, host: Host, name: str, memory_bytes: int, socket: Path) -> None:
        super().__init__(host, name, room_for(memory_bytes))
        self.socket = socket
        self._monitor: OthersMonitor | None = None

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

    def plug_card(self, device: Device, pf: CardPf, vfs: Sequence[CardVf]) -> None:
        """Serve a card whose VFs the guest makes, each function at a socket of its own.

        Raises VirtfnError as `plug`, and EEXIST if there is something else where QEMU is to listen.
        """
        if self.functions:
            raise VirtfnError(f"guest {self.name} has a function at {self.socket} already", errno_name="EEXIST")
        paths = [*(vf_socket(self.socket, n) for n in range(len(vfs))), self.socket]
        with self._serve_card(device, pf, vfs, paths) as made:
            monitor = self._monitor = OthersMonitor(self.name, monitor_socket(self.socket))
            placement = self._place_card(made, pf, vfs, QemuMachinery(monitor, port_function(_SLOT)))
            self._follow(made, placement, monitor)

    def _follow(self, made: Sequence[Member], placement: Placement, monitor: OthersMonitor) -> None:
        """Call the monitor of each QEMU that comes, and let it go when that is gone."""
        pf = made[-1]

        def obstacle() -> str:
            if any(member.process != pf.process for member in made):
                return f"its QEMU has not all VFs plugged in; {_HOW}"
            why = monitor.call(pf.process)
            return f"{why}; {_HOW}" if why else ""

        def gone() -> None:
            placement.give_up()
            monitor.hang_up()

        pf.obstacle, pf.on_gone = obstacle, gone

    def unplug(self, rid: Rid, *, surprise: bool = False) -> None:
        """Take a function away, a PF with its VFs, whoever has them. Raises VirtfnError (ENODEV) if it does not."""
        if rid not in self.functions:
            raise VirtfnError(f"guest {self.name} does not have {format_rid(rid)}", errno_name="ENODEV")
        for each in self._forget_card(rid):
            self.functions.pop(each).close()
        self._end_monitor()

    def _end_monitor(self) -> None:
        if self._monitor is not None:
            self._monitor.close()
            self._monitor = None

    def connect(self, network: VirtioNic) -> None:
        """Do nothing: whose QEMU it is gives it the device."""

    @property
    def connected(self) -> bool:
        """Whether a QEMU has its function plugged in; of a card, the PF."""
        functions = [self.functions[rid] for rid in self.placements] or self.functions.values()
        return any(served.connected_now for served in functions)

    @property
    def without_vfs(self) -> str:
        """Why the guest that is there can make no VFs, or those that it has made do not work, in words."""
        members = [served for served in self.functions.values() if isinstance(served, Member)]
        reasons = [*(member.without_vfs for member in members), *(each.why for each in self.placements.values())]
        return next((why for why in reasons if why), "")

    @property
    def refusal(self) -> str:
        """Why a QEMU was refused something last, for people."""
        refusals = (served.server.last_refusal for served in self.functions.values())
        return self.without_vfs or next((why for why in refusals if why), "")

    def close(self) -> None:
        """Take the sockets away, and back what it had."""
        self._forget_cards()
        with ExitStack() as stack:
            stack.callback(self._end_monitor)
            stack.callback(self._files.close)
            while self.functions:
                stack.callback(self.functions.popitem()[1].close)

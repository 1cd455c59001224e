"""The host's network stack on a PF: rings of its own, and a bridge above them, to which guests are connected.

    guests' ends --- bridge --- rings of the PF --- card --- wire, VFs

Dom0's under Split I/O, the VMM's under Direct I/O. It is a guest of its own as far as memory goes: the PF's DMA reaches
that, and nothing else. Guests' ends are rings in this process, or sockets of virtual machines (`vmm/vhost_user`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from virtfn.cards import Model
from virtfn.devices.virtio import BackEnd, Bridge
from virtfn.drivers.ports import BoundDriver
from virtfn.iovm.iovm import Iovm
from virtfn.iovm.pcim import Found, Pcim
from virtfn.iovm.pfdriver import pf_bar, route_vector
from virtfn.machine.clock import S_PS
from virtfn.machine.meter import device_costs
from virtfn.machine.netports import Card
from virtfn.machine.ports import VirtfnError
from virtfn.vmm.emulated import EmulatedCard
from virtfn.vmm.guest import Guest
from virtfn.vmm.host import Host
from virtfn.vmm.traps import Traps
from virtfn.vmm.vhost_user import Server, Switch

__all__ = ["STACK_BYTES", "HostStack"]

STACK_BYTES = 16 << 20
_AGEING_PS = 300 * S_PS
_RX_VECTOR = 1


class HostStack:
    """A stack and its bridge. name: of who runs it. memory_bytes: that it has, a multiple of 2 MiB.

    To the pump it is a `Stack`; cards: made for virtual machines. Raises VirtfnError if the PF has no pool left for
    itself, or memory is exhausted.
    """

    def __init__(
        self,
        host: Host,
        pcim: Pcim,
        iovm: Iovm,
        model: Model,
        card: Card,
        found: Found,
        pf: BoundDriver,
        name: str,
        memory_bytes: int = STACK_BYTES,
    ) -> None:
        self._iovm, self._rid = iovm, card.pf_rid
        self.guest = Guest(host, name, memory_bytes)
        self.bridge = Bridge(ageing_ps=_AGEING_PS)
        self.cards: list[EmulatedCard] = []
        self._backs: list[BackEnd] = []
        self._switch: Switch | None = None
        if model.stack is None:
            self.guest.close()
            raise VirtfnError(f"the host has no network stack on a {model.report}", errno_name="EOPNOTSUPP")
        try:
            iovm.lend(card.pf_rid, self.guest)
            self.guest.meter.follow(card.pf_rid, device_costs(card, host.iommu, card.pf_rid))
            writes = Traps(card, card.pf_rid)
            self.driver = model.stack(pf, pf_bar(host, found, writes), self.guest.dma, host.clock)
            self.driver.probe()
            route_vector(host, pcim, found, _RX_VECTOR, self._interrupted)
            self.driver.start()
        except VirtfnError:
            self.guest.close()
            raise
        self._ports = [self.bridge.add_netdev(self.driver.row, idle=self.driver.idle)]
        self.bridge.set_card(writes)
        self.guest.meter.follow(self, self._copies)

    def add(self, end: npt.NDArray[np.void]) -> int:
        """Give what has rings a port of the bridge; return its number. end: (1,), begins with a NETDEV row."""
        port = self.bridge.add_netdev(end)
        self._ports.append(port)
        return port

    def remove(self, port: int) -> None:
        """Take such a port away; what was copied for it stays counted."""
        counts = self.bridge.port(port)
        self.guest.meter.add("copies", counts["copies"])
        self.guest.meter.add("copy_bytes", counts["copy_bytes"])
        self._ports.remove(port)
        self.bridge.remove(port)

    def listen(self, path: Path) -> Server:
        """Give the bridge a port at a socket. Raises VirtfnError as `Switch.listen`."""
        if self._switch is None:
            self._switch = Switch(bridge=self.bridge)
        server = self._switch.listen(path)
        self._backs.append(server.back)
        return server

    def hang_up(self, server: Server) -> None:
        """Take such a port away."""
        if self._switch is not None:
            self._switch.remove(server)
            self._backs.remove(server.back)

    # To the pump.

    @property
    def frames(self) -> int:
        """Count the frames that front ends at sockets have sent."""
        return sum([int(back.row["tx"]["frames"]) for back in self._backs])

    def answer(self) -> int:
        """Answer messages of front ends; return how many."""
        return 0 if self._switch is None else self._switch.answer()

    def kicks(self) -> Sequence[int]:
        """List descriptors that can be read when front ends have frames."""
        return [] if self._switch is None else [self.bridge.kicks.fileno()]

    def doors(self) -> Sequence[int]:
        """List descriptors that can be read when there are messages."""
        return [] if self._switch is None else [server.fileno() for server in self._switch.servers]

    # What observers see.

    def drops(self) -> dict[str, int]:
        """Count frames that the bridge could not give to the PF's rings, by reason."""
        return self.bridge.drops(self._ports[0])

    def _copies(self) -> dict[str, int]:
        """Count what the bridge has copied into rings; their back ends count what went into front ends' memory."""
        counts = [self.bridge.port(port) for port in self._ports]
        return {name: sum(each[name] for each in counts) for name in ("copies", "copy_bytes")}

    def _interrupted(self) -> None:
        """Take the card's interrupt: frames have come for the bridge."""
        self.guest.meter.add("interrupts")
        self.driver.interrupt(_RX_VECTOR)

    def stop(self) -> None:
        """Bring the PF's interface down, and take its memory away. Raises VirtfnError if the PF does not answer."""
        self.driver.stop()
        self._iovm.take_home(self._rid, self.guest)

    def close(self) -> None:
        """Hang up on all, and give the memory back."""
        if self._switch is not None:
            self._switch.close()
        self.bridge.close()
        self.guest.close()

"""SR-IOV: a VF for each guest. Rings mapped, DMA and interrupts remapped; the card sorts frames, and the IOVM assigns.

The way of a frame: the guest's driver writes a descriptor and the tail; the card fetches both through the IOMMU, as the
VF's requester ID, and moves the frame to whoever has the address. No processor of the host takes part.
"""

from __future__ import annotations

from collections.abc import Sequence

from virtfn.hw.types import format_rid
from virtfn.iomodels.model import Connection, IoModel, Nic, Parts, Plug, VirtualMachine, Wish
from virtfn.vmm.guest import Guest

__all__ = ["Model"]


class Model(IoModel):
    """SR-IOV on one NIC, whose VFs are there."""

    def __init__(self, parts: Parts, nic: Nic) -> None:
        self._iovm, self._nic = parts.iovm, nic

    def connect(self, guest: Guest, wish: Wish) -> Connection:
        """Assign a VF to a guest."""
        card, driver = self._nic.card, self._nic.driver
        vf = self._iovm.vf(card.pf_rid, wish.vf)
        self._iovm.assign(vf, guest, wish.policy, wish.mac)
        n = vf.index
        return Connection(
            guest,
            guest.nic(vf.rid).driver,
            format_rid(vf.rid),
            drops=lambda: dict(card.drops(n)),
            messages=lambda: card.mailbox_messages(n),
            claims=lambda: driver.claims(n) if vf.vm is not None else 0,
            vf=vf,
        )

    def start(self, connection: Connection) -> None:
        """Bring a guest's interface up."""
        connection.driver.start()
        connection.guest.run_interrupts()

    def disconnect(self, connections: Sequence[Connection]) -> None:
        """Take the VFs back; one wait serves all."""
        taken = [c.vf for c in connections if c.vf is not None and c.vf.vm is not None]
        if taken:
            self._iovm.take_back(*taken)

    def plug(self, vm: VirtualMachine, wish: Wish) -> Plug:
        """Assign a VF to a virtual machine."""
        card, driver = self._nic.card, self._nic.driver
        vf = self._iovm.vf(card.pf_rid, wish.vf)
        self._iovm.assign(vf, vm, wish.policy, wish.mac, mapped=wish.mapped)
        n = vf.index
        return Plug(
            vm,
            wish.policy.mac or wish.mac,
            format_rid(vf.rid),
            moved=lambda: card.moved(vf.rid),
            drops=lambda: dict(card.drops(n)),
            messages=lambda: card.mailbox_messages(n),
            claims=lambda: driver.claims(n) if vf.vm is not None else 0,
            vf=vf,
        )

    def unplug(self, plugs: Sequence[Plug]) -> None:
        """Take the VFs back; one wait serves all."""
        taken = [plug.vf for plug in plugs if plug.vf is not None and plug.vf.vm is not None]
        if taken:
            self._iovm.take_back(*taken, surprise=True)

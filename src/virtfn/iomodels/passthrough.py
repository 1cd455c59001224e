"""Passthrough: the NIC, whole, to one guest, which runs the NIC's own driver. There is no second guest.

Ring registers are mapped, DMA and interrupts remapped, as for a VF; nobody shares the card, and nobody polices it.
"""

from __future__ import annotations

from collections.abc import Sequence

from virtfn.hw.types import format_rid
from virtfn.iomodels.model import Connection, IoModel, Nic, Parts, Plug, VirtualMachine, Wish
from virtfn.iovm.iovm import Vm
from virtfn.machine.ports import VirtfnError
from virtfn.vmm.guest import Guest

__all__ = ["Model"]


class Model(IoModel):
    """Passthrough of one NIC that nobody drives here."""

    def __init__(self, parts: Parts, nic: Nic) -> None:
        self._iovm, self._nic = parts.iovm, nic
        self._owner = ""

    def connect(self, guest: Guest, wish: Wish) -> Connection:
        """Give the card to a guest; its address is the card's. Raises VirtfnError (EBUSY) if another has it."""
        self._give(guest)
        card = self._nic.card
        rid = card.pf_rid
        return Connection(guest, guest.nic(rid).driver, format_rid(rid), drops=card.all_drops)

    def _give(self, vm: Vm) -> None:
        if self._owner:
            raise VirtfnError(f"the whole card is {self._owner}'s; passthrough serves one guest", errno_name="EBUSY")
        self._iovm.assign_whole(self._nic.found, self._nic.card, vm)
        self._owner = vm.name

    def start(self, connection: Connection) -> None:
        """Bring the guest's interface up."""
        connection.driver.start()
        connection.guest.run_interrupts()

    def disconnect(self, connections: Sequence[Connection]) -> None:
        """Take the card back."""
        if connections and self._owner:
            self._owner = ""
            self._iovm.take_back_whole(self._nic.card.pf_rid)

    def plug(self, vm: VirtualMachine, wish: Wish) -> Plug:
        """Give the card to a virtual machine; `wish` knows the card's address."""
        self._give(vm)
        card = self._nic.card
        rid = card.pf_rid
        return Plug(vm, wish.mac, format_rid(rid), moved=lambda: card.moved(rid), drops=card.all_drops)

    def unplug(self, plugs: Sequence[Plug]) -> None:
        """Take the card back."""
        if plugs and self._owner:
            self._owner = ""
            self._iovm.take_back_whole(self._nic.card.pf_rid, surprise=True)

"""A host of its own: the NIC, whole, with its SR-IOV capability, to one virtual machine, which makes the VFs.

Linux's PCI core is the PCIM there, its own driver the PF's, and its commands set policy. Functions are mapped, remapped
and interrupted as ever: the card and the IOMMU do not know who enables VFs.
"""

from __future__ import annotations

from collections.abc import Sequence

from virtfn.hw.types import format_rid
from virtfn.iomodels.model import Connection, IoModel, Nic, Parts, Plug, VirtualMachine, Wish
from virtfn.machine.ports import VirtfnError
from virtfn.vmm.guest import Guest

__all__ = ["Model"]


class Model(IoModel):
    """One NIC that nobody drives here, for one host."""

    def __init__(self, parts: Parts, nic: Nic) -> None:
        self._iovm, self._nic = parts.iovm, nic
        self._owner = ""

    def connect(self, guest: Guest, wish: Wish) -> Connection:
        """Refuse: an embedded guest has a network driver, and nothing that makes VFs."""
        raise VirtfnError(
            f"guest {guest.name} is embedded, and no host: io host needs vmm qemu", errno_name="EOPNOTSUPP"
        )

    def plug(self, vm: VirtualMachine, wish: Wish) -> Plug:
        """Give the card with its VFs to a virtual machine; `wish` knows the card's address.

        Raises VirtfnError: EBUSY if another has it, and as the IOVM does.
        """
        if self._owner:
            raise VirtfnError(f"the whole card is {self._owner}'s: it has one host", errno_name="EBUSY")
        card = self._nic.card
        self._iovm.assign_host(self._nic.found, card, vm)
        self._owner = vm.name
        rid = card.pf_rid
        return Plug(
            vm,
            wish.mac,
            format_rid(rid),
            moved=lambda: card.moved(rid),
            drops=card.all_drops,
            messages=lambda: sum(card.mailbox_messages(n) for n in range(self._nic.found.total_vfs)),
        )

    def unplug(self, plugs: Sequence[Plug]) -> None:
        """Take the card back, with its VFs."""
        if plugs and self._owner:
            self._owner = ""
            self._iovm.take_back_whole(self._nic.card.pf_rid, surprise=True)

"""Direct I/O: an unmodified driver in the guest, and a card of the guest's own that the VMM emulates.

Every register access traps. The emulated cards' wires lead to a bridge in the VMM, which drives the NIC: it maps and
checks guests' addresses, copies their frames, and multiplexes them over the NIC's one queue pair.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from virtfn.hw.types import format_rid
from virtfn.iomodels.model import Connection, IoModel, Nic, Parts, Plug, VirtualMachine, Wish
from virtfn.iovm.pcim import Pcim
from virtfn.iovm.whole import WholeConfig
from virtfn.machine.netports import Card, Served
from virtfn.machine.ports import Clock, VirtfnError
from virtfn.machine.rootcomplex import RootComplex
from virtfn.vmm.emulated import EmulatedCard
from virtfn.vmm.guest import Guest

__all__ = ["Model"]


class Model(IoModel):
    """Direct I/O over one NIC."""

    def __init__(self, parts: Parts, nic: Nic) -> None:
        self._host, self._nic = parts.host, nic
        self._stack = nic.host_stack(parts, "vmm")
        self._cards: dict[str, EmulatedCard] = {}
        self._ports: dict[str, int] = {}

    @property
    def served(self) -> Sequence[Served]:
        """The guests' cards, but for those of virtual machines: the pump serves them."""
        return [card for card in self._cards.values() if card not in self._stack.cards]

    def connect(self, guest: Guest, wish: Wish) -> Connection:
        """Make a card for a guest, plug it in, and its wire into the bridge."""
        emulated = EmulatedCard(self._host, guest, self._nic.model, wish.mac)
        try:
            emulated.plug_in()
        except VirtfnError:
            emulated.close()
            raise
        drops = self._wire_up(guest.name, emulated, wish)
        return Connection(guest, guest.nic(emulated.rid).driver, format_rid(emulated.rid), drops=drops)

    def _wire_up(self, name: str, emulated: EmulatedCard, wish: Wish) -> Callable[[], dict[str, int]]:
        """Lead a card's wire to the bridge; return what counts its drops."""
        self._cards[name] = emulated
        port = self._ports[name] = self._stack.add(emulated.far_end)
        self._stack.bridge.pin(port, wish.mac, check=True)

        def drops() -> dict[str, int]:
            return dict(Counter(emulated.card.all_drops()) + Counter(self._stack.bridge.drops(port)))

        return drops

    def start(self, connection: Connection) -> None:
        """Bring a guest's interface up."""
        connection.driver.start()
        connection.guest.run_interrupts()

    def disconnect(self, connections: Sequence[Connection]) -> None:
        """Take the guests' cards away."""
        for connection in connections:
            emulated = self._cards.pop(connection.guest.name, None)
            if emulated is not None:
                connection.guest.unplug(emulated.rid)
                self._stack.remove(self._ports.pop(connection.guest.name))
                emulated.close()

    def plug(self, vm: VirtualMachine, wish: Wish) -> Plug:
        """Make a card for a virtual machine, which is the only one on a bus of its own; its driver may be any."""
        emulated = EmulatedCard(self._host, vm, self._nic.model, wish.mac, compiled=False)
        drops = self._wire_up(vm.name, emulated, wish)
        self._stack.cards.append(emulated)
        plug = Plug(
            vm, wish.mac, format_rid(emulated.rid), moved=lambda: emulated.card.moved(emulated.rid), drops=drops
        )
        try:
            emulated.plug_in(_config(emulated.card, self._host.clock))
        except VirtfnError:
            self.unplug([plug])
            raise
        return plug

    def unplug(self, plugs: Sequence[Plug]) -> None:
        """Take the cards of virtual machines away."""
        for plug in plugs:
            emulated = self._cards.pop(plug.vm.name, None)
            if emulated is not None:
                self._stack.cards.remove(emulated)
                self._stack.remove(self._ports.pop(plug.vm.name))
                emulated.close()

    def close(self) -> None:
        """Let go of the guests' cards."""
        for emulated in self._cards.values():
            emulated.close()
        self._cards.clear()


def _config(card: Card, clock: Clock) -> WholeConfig:
    """Return what a virtual machine finds of a card that has a machine to itself: one function, ready for a driver."""
    root = RootComplex(1)
    root.attach(card, 0)
    pcim = Pcim(root, clock)
    pcim.scan()
    pcim.enable_function(card.pf_rid)
    return WholeConfig(root, pcim.functions[card.pf_rid])

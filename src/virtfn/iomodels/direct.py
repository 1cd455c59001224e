"""Direct I/O: an unmodified driver in the guest, and a card of the guest's own that the VMM emulates.

Every register access traps. The emulated cards' wires lead to a bridge in the VMM, which drives the NIC: it maps and
checks guests' addresses, copies their frames, and multiplexes them over the NIC's one queue pair.
"""

from __future__ import annotations

from collections.abc import Sequence

from virtfn.hw.types import format_rid
from virtfn.iomodels.model import Connection, IoModel, Nic, Parts, Wish
from virtfn.machine.netports import Served
from virtfn.machine.ports import VirtfnError
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
        """The guests' cards."""
        return list(self._cards.values())

    def connect(self, guest: Guest, wish: Wish) -> Connection:
        """Make a card for a guest, plug it in, and its wire into the bridge."""
        emulated = EmulatedCard(self._host, guest, self._nic.model, wish.mac)
        try:
            emulated.plug_in()
        except VirtfnError:
            emulated.close()
            raise
        self._cards[guest.name] = emulated
        port = self._ports[guest.name] = self._stack.add(emulated.far_end)
        self._stack.bridge.pin(port, wish.mac, check=True)

        def drops() -> dict[str, int]:
            found = dict(emulated.card.all_drops())
            for reason, count in self._stack.bridge.drops(port).items():
                found[reason] = found.get(reason, 0) + count
            return found

        return Connection(guest, guest.nic(emulated.rid).driver, format_rid(emulated.rid), drops=drops)

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

    def close(self) -> None:
        """Let go of the guests' cards."""
        for emulated in self._cards.values():
            emulated.close()
        self._cards.clear()

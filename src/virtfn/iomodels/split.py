"""Split I/O: a front-end driver in the guest, a back end in Dom0, rings in the guest's memory between the two.

Dom0 drives the NIC. Its back end looks at each ring, copies frames as a grant copy does, and bridges them. The rings
are virtio's split virtqueues, so that Linux's own front end finds what it knows: in a virtual machine, by vhost-user.
Notifications go through event channels, counted each way; no register traps.
"""

from __future__ import annotations

from collections.abc import Sequence

from virtfn.devices.virtio import BackEnd
from virtfn.drivers.virtio_net import VirtioNet
from virtfn.hw.types import format_mac
from virtfn.iomodels.model import Connection, IoModel, Nic, Parts, Plug, VirtualMachine, Wish
from virtfn.machine.netports import Moved
from virtfn.machine.ports import VirtfnError
from virtfn.vmm.guest import Guest
from virtfn.vmm.qemu import VirtioNic
from virtfn.vmm.vhost_user import Server

__all__ = ["Model"]

_SOCKET = "vif"


def _costs(back: BackEnd) -> dict[str, int]:
    """Count what a front end's frames have cost.

    One processor: who is told of something is switched to, unless it is at work already and is not told.
    """
    counts = back.costs()
    return {**counts, "guest_switches": counts["notify_host"] + counts["notify_guest"]}


class Model(IoModel):
    """Split I/O over one NIC."""

    def __init__(self, parts: Parts, nic: Nic) -> None:
        self._stack = nic.host_stack(parts, "dom0")
        self._ports: dict[str, int] = {}
        self._servers: dict[str, Server] = {}

    def connect(self, guest: Guest, wish: Wish) -> Connection:
        """Make a back end for a guest, and a port of the bridge for it; the guest's front end finds it."""
        bridge = self._stack.bridge
        back = BackEnd([(0, guest.memory.size, guest.memory.base)], mac=wish.mac, mtu=1500)
        driver = VirtioNet(back, guest.dma, guest.clock)
        inject = guest.add_device(driver)
        driver.probe()

        def call(queue: int) -> None:
            inject()

        port = bridge.add(back, on_call=call)
        bridge.pin(port, wish.mac, check=True)
        self._ports[guest.name] = port
        guest.meter.follow(port, lambda: _costs(back))
        return Connection(guest, driver, f"vif {format_mac(wish.mac)}", drops=lambda: bridge.drops(port))

    def start(self, connection: Connection) -> None:
        """Bring a guest's interface up."""
        connection.driver.start()

    def disconnect(self, connections: Sequence[Connection]) -> None:
        """Take the front ends away."""
        for connection in connections:
            port = self._ports.pop(connection.guest.name, None)
            if port is not None:
                connection.driver.stop()
                connection.guest.remove_device(connection.driver)
                connection.guest.meter.release(port)
                self._stack.bridge.remove(port)

    def plug(self, vm: VirtualMachine, wish: Wish) -> Plug:
        """Make a back end at a socket for a virtual machine, and a port of the bridge for it."""
        bridge, path, mac = self._stack.bridge, vm.door(_SOCKET), format_mac(wish.mac)
        server = self._stack.listen(path)
        back, port = server.back, server.port
        try:
            bridge.pin(port, wish.mac, check=True)
            vm.connect(VirtioNic(_SOCKET, path, mac))
        except VirtfnError:
            self._stack.hang_up(server)
            raise
        self._servers[vm.name] = server

        def costs() -> dict[str, int]:
            counts = _costs(back)
            return {**counts, "interrupts": counts["notify_guest"]}

        def moved() -> Moved:
            counts = bridge.port(port)
            return Moved(counts["tx_frames"], counts["tx_bytes"], counts["rx_frames"], counts["rx_bytes"])

        vm.meter.follow(port, costs)
        return Plug(
            vm,
            wish.mac,
            f"vif {mac}",
            moved=moved,
            drops=lambda: bridge.drops(port),
            connected=lambda: server.connected,
            refusal=lambda: server.last_refusal,
        )

    def unplug(self, plugs: Sequence[Plug]) -> None:
        """Take the back ends away."""
        for plug in plugs:
            server = self._servers.pop(plug.vm.name, None)
            if server is not None:
                plug.vm.meter.release(server.port)
                self._stack.hang_up(server)

"""A virtual machine of QEMU as the IOVM sees it: functions are served at sockets, and plugged in over QMP.

    start     QEMU stands, its processors do not run: what is plugged in now, the guest finds as it boots
    plug      a socket for the function, then device_add; memory comes through the socket, into a domain of its own
    connect   a virtio network device, whose back end has a socket already; memory comes through that
    unplug    device_del, the guest lets go; or, by surprise, the socket closes first

Each function has an address space of its own, since QEMU tells each about memory by itself.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from virtfn.hw.types import Rid, format_rid
from virtfn.machine.meter import Meter
from virtfn.machine.ports import ConfigSpace, Device, DmaDomain, VirtfnError
from virtfn.vmm.guest import Emulation
from virtfn.vmm.host import Host, room_for
from virtfn.vmm.qemu.launch import QemuGuest
from virtfn.vmm.qemu.machine import Function, VirtioNic
from virtfn.vmm.qemu.wait import Tick
from virtfn.vmm.served import ServedFunction, SharedFiles

__all__ = ["QemuVm"]

_LET_GO_S = 30.0
_SURPRISE_S = 2.0


class QemuVm:
    """One virtual machine. tick: serves every function while something of QEMU's is waited for.

    room: bytes of memory that it may share, of the host's foreign bytes; by default `room_for` its memory. Raises
    VirtfnError when there are not so many left.
    """

    def __init__(self, host: Host, guest: QemuGuest, tick: Tick, room: int | None = None) -> None:
        self.host = host
        self.guest = guest
        self.name = guest.machine.name
        self.functions: dict[Rid, ServedFunction] = {}
        self.meter = Meter()
        self._tick = tick
        self._files = SharedFiles(host.memory, room_for(guest.machine.memory_mib << 20) if room is None else room)

    def start(self) -> None:
        """Start QEMU, with its processors stopped.

        Raises VirtfnError as `QemuGuest.start` does.
        """
        self.guest.start(tick=self._tick)

    def run(self) -> None:
        """Let the processors run. Raises VirtfnError if QEMU has ended."""
        self.guest.resume(tick=self._tick)

    # What the IOVM asks.

    def address_space(self, rid: Rid) -> Hashable:
        """Name the address space that a function's DMA is in: its own."""
        return self, rid

    def door(self, name: str) -> Path:
        """Return where the socket of a part is to be."""
        return self.guest.folder / name

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
        """Plug a function in. emulation: of one that the VMM makes itself.

        Raises VirtfnError if QEMU does not take it, or has ended.
        """
        if rid in self.functions:
            raise VirtfnError(f"guest {self.name} has {format_rid(rid)} already", errno_name="EEXIST")
        path = self.door(f"{rid:04x}")
        served = ServedFunction(
            self.host,
            device,
            rid,
            config,
            domain,
            self._files,
            path,
            mapped=mapped,
            meter=self.meter,
            emulation=emulation,
        )
        self.functions[rid] = served
        try:
            self.guest.plug(Function(_device_name(rid), path), tick=self._tick)
        except BaseException:
            del self.functions[rid]
            served.close()
            raise
        return served

    def unplug(self, rid: Rid, *, surprise: bool = False) -> None:
        """Take a function out; one that the guest does not let go of is taken all the same.

        Raises VirtfnError if it does not have it.
        """
        if rid not in self.functions:
            raise VirtfnError(f"guest {self.name} does not have {format_rid(rid)}", errno_name="ENODEV")
        served = self.functions[rid]
        try:
            if surprise:
                with self._processors_stopped():
                    served.close()
            if self.guest.running:
                with suppress(VirtfnError):
                    timeout_s = _SURPRISE_S if surprise else _LET_GO_S
                    self.guest.unplug(_device_name(rid), timeout_s=timeout_s, tick=self._tick)
        finally:
            del self.functions[rid]
            served.close()

    def inject(self, rid: Rid, address: int, message: int) -> None:
        """Interrupt it by a message of its own, for a function that it has."""
        if rid in self.functions:
            self.functions[rid].send(address, message)

    def connect(self, network: VirtioNic) -> None:
        """Plug a virtio network device in. Raises VirtfnError if QEMU does not take it, or has ended."""
        self.guest.connect(network, tick=self._tick)

    @contextmanager
    def _processors_stopped(self) -> Iterator[None]:
        """Stop the processors for a moment: QEMU aborts if a socket closes while one waits for an answer."""
        stopped = False
        with suppress(VirtfnError):
            state = self.guest.qmp("query-status", timeout_s=_SURPRISE_S, tick=self._tick)
            if isinstance(state, dict) and state.get("running"):
                self.guest.pause(tick=self._tick)
                stopped = True
        try:
            yield
        finally:
            if stopped:
                with suppress(VirtfnError):
                    self.guest.resume(tick=self._tick)

    # What goes on.

    @property
    def messages(self) -> int:
        """Messages about registers: the exits of this machine."""
        return self.meter.exits

    @property
    def interrupts(self) -> int:
        """Interrupts that were sent to it."""
        return self.meter.read()["interrupts"]

    def close(self) -> None:
        """End QEMU, and take back what it had."""
        with ExitStack() as stack:
            stack.callback(self._files.close)
            stack.callback(self.guest.close, tick=self._tick)
            while self.functions:
                stack.callback(self.functions.popitem()[1].close)


def _device_name(rid: Rid) -> str:
    return f"f{rid:04x}"

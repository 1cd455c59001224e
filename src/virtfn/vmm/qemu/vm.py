"""A virtual machine of QEMU as the IOVM sees it: functions are served at sockets, and plugged in over QMP.

start     QEMU stands, its processors do not run: what is plugged in now, the guest finds as it boots
plug      a socket for the function, then device_add; memory comes through the socket, into a domain of its own
connect   a virtio network device, whose back end has a socket already; memory comes through that
unplug    device_del, the guest lets go; or, by surprise, the socket closes first
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from virtfn.hw.types import Rid, format_rid
from virtfn.machine.clock import S_PS
from virtfn.machine.pieces import InPieces
from virtfn.machine.ports import ConfigSpace, Device, DmaDomain, VirtfnError
from virtfn.machine.wholecard import CardPf, CardVf
from virtfn.vmm.guest import Emulation
from virtfn.vmm.host import Host, room_for
from virtfn.vmm.qemu.launch import QemuGuest
from virtfn.vmm.qemu.machine import Function, VirtioNic, port_function
from virtfn.vmm.qemu.machinery import QemuMachinery
from virtfn.vmm.qemu.servedvm import ServedVm
from virtfn.vmm.qemu.wait import Tick
from virtfn.vmm.served import ServedFunction

__all__ = ["QemuVm"]

_LET_GO_S = 30.0
_SURPRISE_S = 2.0


class QemuVm(ServedVm):
    """One virtual machine. tick: serves every function while something of QEMU's is waited for.

    room: bytes of memory that it may share, of the host's foreign bytes; by default `room_for` its memory. Raises
    VirtfnError when there are not so many left.
    """

    def __init__(self, host: Host, guest: QemuGuest, tick: Tick, room: int | None = None) -> None:
        super().__init__(host, guest.machine.name, room_for(guest.machine.memory_mib << 20) if room is None else room)
        self.guest = guest
        self._asked: set[Rid] = set()  # to be let go of
        self._tick = tick

    def start(self) -> None:
        """Start QEMU, with its processors stopped.

        Raises VirtfnError as `QemuGuest.start` does.
        """
        self.guest.start(tick=self._tick)

    def run(self) -> None:
        """Let the processors run. Raises VirtfnError if QEMU has ended."""
        self.guest.resume(tick=self._tick)

    # What the IOVM asks.

    def door(self, name: str) -> Path:
        """Return where the socket of a part is to be."""
        return self.guest.folder / name

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
        served = self._serve(device, rid, config, domain, path, mapped=mapped, emulation=emulation)
        try:
            self.guest.plug(Function(_device_name(rid), path), tick=self._tick)
        except BaseException:
            del self.functions[rid]
            served.close()
            raise
        return served

    def plug_card(self, device: Device, pf: CardPf, vfs: Sequence[CardVf]) -> None:
        """Plug a card in whose VFs the guest makes: each function of it at a socket, the PF last.

        Raises VirtfnError as `plug`; then nothing of it is left here.
        """
        places = [*(vf.config.function for vf in vfs), 0]
        parts: list[CardPf | CardVf] = [*vfs, pf]
        paths = [self.door(f"{part.rid:04x}") for part in parts]
        with self._serve_card(device, pf, vfs, paths) as made:
            slot = self.guest.plug_card(
                [
                    Function(_device_name(member.function.rid), member.server.path, place=place)
                    for member, place in zip(made, places, strict=True)
                ],
                tick=self._tick,
            )
            self._place_card(made, pf, vfs, QemuMachinery(self.guest, port_function(slot)))

    def let_go(self, rid: Rid) -> InPieces[None]:
        """Ask the guest to let go of a function; each piece is a look whether it has, for half a minute at most.

        `unplug` then waits for nothing, and others go on meanwhile.
        """
        if rid not in self.functions:
            return
        self._asked.add(rid)
        end = self.host.clock.now() + round(_LET_GO_S * S_PS)
        pieces = self.guest.letting_go(_device_name(rid))
        while self.host.clock.now() < end:
            try:
                next(pieces)
            except (StopIteration, VirtfnError):
                return
            yield

    def unplug(self, rid: Rid, *, surprise: bool = False) -> None:
        """Take a function out, a PF with the VFs that came with it; the guest may hold on to them, they are taken.

        Raises VirtfnError if it does not have it.
        """
        if rid not in self.functions:
            raise VirtfnError(f"guest {self.name} does not have {format_rid(rid)}", errno_name="ENODEV")
        rids = self._forget_card(rid)
        asked = rid in self._asked
        self._asked.discard(rid)
        parts = [self.functions[each] for each in rids]
        try:
            if surprise:
                with self._processors_stopped():
                    _close(parts)
            if self.guest.running and not asked:
                with suppress(VirtfnError):
                    timeout_s = _SURPRISE_S if surprise else _LET_GO_S
                    self.guest.unplug(_device_name(rid), timeout_s=timeout_s, tick=self._tick)
        finally:
            for each in rids:
                del self.functions[each]
            _close(parts)

    def connect(self, network: VirtioNic) -> None:
        """Plug a virtio network device in. Raises VirtfnError if QEMU does not take it, or has ended."""
        self.guest.connect(network, tick=self._tick)

    @contextmanager
    def _processors_stopped(self) -> Iterator[None]:
        """Stop the processors for a moment: QEMU aborts if a socket closes while one waits for an answer."""
        stopped = ExitStack()
        with suppress(VirtfnError):
            stopped.enter_context(self.guest.stopped(timeout_s=_SURPRISE_S, tick=self._tick))
        try:
            yield
        finally:
            with suppress(VirtfnError):
                stopped.close()

    # What goes on.

    def close(self) -> None:
        """End QEMU, and take back what it had."""
        self._forget_cards()
        with ExitStack() as stack:
            stack.callback(self._files.close)
            stack.callback(self.guest.close, tick=self._tick)
            while self.functions:
                stack.callback(self.functions.popitem()[1].close)


def _close(parts: Sequence[ServedFunction]) -> None:
    """Take functions out of the machine's hands, all of them whatever happens to one."""
    with ExitStack() as stack:
        for part in parts:
            stack.callback(part.close)


def _device_name(rid: Rid) -> str:
    return f"f{rid:04x}"

"""Labs whose QEMUs somebody else starts: sockets at paths that stay, and what QEMU needs to find them.

    SOCKETS/GUEST.sock    vfio-user: the guest's function; or vhost-user: the back end of its virtio device, io split
    SOCKETS/GUEST.vfN     io host: the VFs that the guest may make; GUEST.qmp: where its QEMU listens for virtfn

SOCKETS is what the user says, or a folder of the lab's name in the runtime folder: `virtfn serve` and `virtfn
qemu-args` come to the same without asking each other.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from virtfn import private
from virtfn.api.lab import Guest, Lab
from virtfn.api.machine import LabPf, Machine
from virtfn.api.progress import OnProgress
from virtfn.api.session.events import Event, GuestConnected, GuestDisconnected, VfsRefused
from virtfn.cards import MODELS
from virtfn.hw.types import Ps, format_mac
from virtfn.iomodels.hoststack import HostStack
from virtfn.iomodels.model import Plug
from virtfn.machine.places import runtime_folder
from virtfn.machine.ports import Actor, VirtfnError
from virtfn.vmm.pump import Pump
from virtfn.vmm.qemu.elsewhere import VmElsewhere, monitor_socket, vf_socket
from virtfn.vmm.qemu.folder import MAX_SOCKET_PATH
from virtfn.vmm.world import World

__all__ = [
    "ServedGuest",
    "ServedGuests",
    "ServiceDocument",
    "SocketDocument",
    "protocol_of",
    "serve_lab",
    "socket_of",
    "sockets_folder",
    "vf_sockets",
]


class SocketDocument(TypedDict):
    """The socket of a guest. protocol: vfio-user or vhost-user; address: of the function, as the machine sees it.

    Of a host it is the PF's. vfs: those of its VFs; monitor: where its QEMU is to listen, null for others.
    """

    guest: str
    io: str
    protocol: str
    path: str
    address: str
    mac: str
    vfs: list[str]
    monitor: str | None


class ServiceDocument(TypedDict):
    """The document of `virtfn serve --json`, written when the sockets stand."""

    lab: str
    sockets: list[SocketDocument]


def sockets_folder(lab: Lab, given: Path | None) -> Path:
    """Return the folder of a lab's sockets; it may not be there yet. given: the user's, if any.

    Raises VirtfnError if this user has no folder for sockets.
    """
    if given is not None:
        return given.absolute()
    return runtime_folder() / "served" / lab.name


def socket_of(guest: Guest, folder: Path) -> Path:
    """Return the socket of a guest."""
    return folder / f"{guest.name}.sock"


def protocol_of(guest: Guest) -> str:
    """Return what is spoken at a guest's socket."""
    return "vhost-user" if guest.nic.io == "split" else "vfio-user"


def vf_sockets(lab: Lab, guest: Guest, folder: Path) -> list[Path]:
    """Return the sockets of the VFs that a host may make; none for another guest."""
    if guest.nic.io != "host":
        return []
    return [vf_socket(socket_of(guest, folder), n) for n in range(MODELS[str(lab.pf(guest.nic.pf).model)].limits.vfs)]


def _make_folder(lab: Lab, folder: Path, *, own: bool) -> None:
    """Make the folder of sockets. own: it is virtfn's, and else the user's. Raises VirtfnError."""
    for guest in lab.guests:
        length = len(os.fsencode(socket_of(guest, folder)))  # those of VFs and monitors are no longer
        if length > MAX_SOCKET_PATH:
            raise VirtfnError(
                f"{socket_of(guest, folder)} has {length} bytes, and a path of a socket {MAX_SOCKET_PATH} at most; "
                "give a shorter folder by --sockets",
                errno_name="ENAMETOOLONG",
            )
    try:
        if own:
            private.own_folder(folder)
            return
        private.check(folder)
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise VirtfnError(f"{folder}: {error.strerror}", errno_name="EACCES") from None


@dataclass(slots=True)
class ServedGuest:
    """A guest of the lab whose QEMU somebody else starts, and its interface to the PF, which stays.

    without_vfs: why a host that is there has no VFs that work, as was told.
    """

    lab: Guest
    vm: VmElsewhere
    pf: LabPf
    plug: Plug
    was_connected: bool = False
    without_vfs: str = ""
    attached: bool = True

    @property
    def connected(self) -> bool:
        """Whether a QEMU is there."""
        return self.vm.connected if self.plug.connected is None else self.plug.connected()

    @property
    def refusal(self) -> str:
        """Why the QEMU that is there, or was last, was refused something, in words; empty if it was not."""
        return self.vm.refusal if self.plug.refusal is None else self.plug.refusal()


class ServedGuests(Actor):
    """All guests under QEMU of a lab, at their sockets. An actor of `world`; tell: takes events."""

    def __init__(self, machine: Machine, folder: Path, world: World, tell: Callable[[Event], None]) -> None:
        self.guests: list[ServedGuest] = []
        self._machine, self._folder, self._world, self._tell = machine, folder, world, tell
        self._vms: list[VmElsewhere] = []
        self._stacks: list[HostStack] = []
        wires = [pf.wire for pf in machine.pfs if pf.wire is not None and pf.live]
        self._pump = Pump(machine.host, [pf.nic for pf in machine.pfs], self._vms, wires, self._stacks)
        world.rest_by(self._pump)
        world.add(self)

    def start(self) -> None:
        """Make all sockets. Raises VirtfnError if one cannot be had, or somebody refuses an interface."""
        machine = self._machine
        for guest in machine.lab.guests:
            if guest.vmm != "qemu":
                continue
            vm = VmElsewhere(machine.host, guest.name, guest.memory_mib << 20, socket_of(guest, self._folder))
            self._vms.append(vm)
            pf = next(p for p in machine.pfs if p.name == guest.nic.pf)
            model = machine.model(pf, guest.nic.io)
            self._stacks[:] = [stack for stack in (each.stack for each in machine.pfs) if stack is not None]
            self.guests.append(ServedGuest(guest, vm, pf, model.plug(vm, machine.wish(pf, guest))))

    def turn(self, now: Ps) -> int:
        """Tell of QEMUs that have come or gone, and of hosts whose VFs are none."""
        for guest in self.guests:
            if guest.connected is not guest.was_connected:
                guest.was_connected = not guest.was_connected
                event = GuestConnected(guest.lab.name) if guest.was_connected else self._gone(guest)
                self._tell(event)
            if guest.was_connected and guest.lab.nic.io == "host":
                before, guest.without_vfs = guest.without_vfs, guest.vm.without_vfs
                if guest.without_vfs not in ("", before):
                    self._tell(VfsRefused(guest.lab.name, guest.without_vfs))
        return 0

    def _gone(self, guest: ServedGuest) -> Event:
        refusal, guest.without_vfs = guest.without_vfs or guest.refusal, ""
        return GuestDisconnected(guest.lab.name, refusal)

    def words(self) -> str:
        """Say who is there."""
        there = [guest.lab.name for guest in self.guests if guest.was_connected]
        waiting = [guest.lab.name for guest in self.guests if not guest.was_connected]
        parts = [f"{', '.join(there)} connected"] if there else []
        parts += [f"{each.lab.name} has no VFs: {each.without_vfs}" for each in self.guests if each.without_vfs]
        parts += [f"waiting for {', '.join(waiting)}"] if waiting else []
        return "; ".join(parts)

    def document(self) -> ServiceDocument:
        """Return where the sockets are."""
        return {
            "lab": self._machine.lab.name,
            "sockets": [
                {
                    "guest": guest.lab.name,
                    "io": guest.lab.nic.io,
                    "protocol": protocol_of(guest.lab),
                    "path": str(guest.vm.socket),
                    "address": guest.plug.address,
                    "mac": format_mac(guest.plug.mac),
                    "vfs": [str(path) for path in vf_sockets(self._machine.lab, guest.lab, self._folder)],
                    "monitor": str(monitor_socket(guest.vm.socket)) if guest.lab.nic.io == "host" else None,
                }
                for guest in self.guests
            ],
        }

    def stop(self) -> None:
        """Take the interfaces back, whoever has them plugged in."""
        guests = list(self.guests)
        self.close()
        for pf in self._machine.pfs:
            for name, model in pf.models.items():
                model.unplug([guest.plug for guest in guests if guest.pf is pf and guest.lab.nic.io == name])

    def close(self) -> None:
        """Take all sockets away."""
        self._world.remove(self)
        self._world.remove(self._pump)
        with ExitStack() as stack:
            while self._vms:
                stack.callback(self._vms.pop().close)
        self.guests.clear()


def serve_lab(
    lab: Lab,
    *,
    sockets: Path | None = None,
    capture: Path | None = None,
    trace: Path | None = None,
    progress: OnProgress | None = None,
    ready: Callable[[ServiceDocument], None],
) -> None:
    """Serve the sockets of a lab's guests under QEMU, which others start, until a signal comes.

    sockets: their folder; without it, one of the lab's name. capture, trace: as for `run_lab`. ready: gets where the
    sockets are, once they stand. While it is up, others can ask it. Raises VirtfnError if the lab has no such guest, a
    socket cannot be had, or others can ask a lab of that name already.
    """
    if all(guest.vmm != "qemu" for guest in lab.guests):
        raise VirtfnError(
            f"lab {lab.name} has no guest with vmm: qemu to serve; virtfn run runs it", errno_name="EINVAL"
        )
    folder = sockets_folder(lab, sockets)
    _make_folder(lab, folder, own=sockets is None)
    try:
        _serve(lab, folder, capture, trace, progress, ready)
    finally:
        if sockets is None:
            for empty in (folder, folder.parent):
                with suppress(OSError):
                    empty.rmdir()


def _serve(
    lab: Lab,
    folder: Path,
    capture: Path | None,
    trace: Path | None,
    progress: OnProgress | None,
    ready: Callable[[ServiceDocument], None],
) -> None:
    from virtfn.api.session import Session  # which serves labs by the above

    with Session(
        lab, capture=capture, trace=trace, progress=progress, controlled=True, standing=True, sockets=folder
    ) as session:
        session.start()
        session.keep(lambda: ready(session.service()))
        session.stop()
    if session.unwritten:
        raise VirtfnError("; ".join(session.unwritten))

"""Frames of a card for another process: a request that opens a tap, and hands its memory to whoever asked.

answer   what the tap's records mean, as JSON; and two descriptors: the memory, and a socket
socket   closes with its reader, and so the tap ends; and with the lab, and so the reader knows
"""

from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import ClassVar, TypedDict

from virtfn.api.control import Handed
from virtfn.api.machine import LabPf, Machine
from virtfn.api.session.asking import Answering, Params, Request, known, number
from virtfn.hw.types import Ps, Rid, format_rid
from virtfn.kernels.tapring import TAP_DROP, TAP_RX, TAP_SWITCH, TAP_TX
from virtfn.machine.clock import epoch_ps
from virtfn.machine.ports import Actor, VirtfnError
from virtfn.machine.taps import Tap, TapInterface
from virtfn.vmm.closing import refuse_rights
from virtfn.vmm.world import World

__all__ = [
    "POINTS",
    "CardDocument",
    "InterfaceDocument",
    "ReadCard",
    "StartCapture",
    "TapDocument",
    "find_function",
    "owners_of",
]

POINTS = {"tx": TAP_TX, "switch": TAP_SWITCH, "rx": TAP_RX, "drop": TAP_DROP}
_DEFAULT = ("tx", "rx", "drop")
_MOST_MIB = 256
_MIB = 16
_SNAP = 1 << 16
_FUNCTION = re.compile(r"([^/]{1,64})(?:/vf([0-9]{1,3}))?")


class InterfaceDocument(TypedDict):
    """An interface of a capture. numbers: those that records of the tap have for it."""

    name: str
    description: str
    numbers: list[int]


class TapDocument(TypedDict):
    """What the records of a tap mean.

    names, reasons: what interfaces and drop reasons are called, by number. epoch_ps: what makes times of records times
    since 1970. bytes: of the ring.
    """

    lab: str
    interfaces: list[InterfaceDocument]
    wanted: list[str]
    names: list[str]
    reasons: list[str]
    epoch_ps: int
    bytes: int


def find_function(machine: Machine, name: str) -> tuple[LabPf, int | None]:
    """Find what `PF` or `PF/vfN` names: a PF of the lab, and the VF's number.

    Raises VirtfnError: EINVAL for another form, ENODEV for what is not there.
    """
    form = _FUNCTION.fullmatch(name)
    if form is None:
        raise VirtfnError(f"{name[:64]!r} is no function like pf0 or pf0/vf1", errno_name="EINVAL")
    pf = machine.pf(form[1])
    if form[2] is None:
        return pf, None
    n = int(form[2])
    if n >= pf.nic.vfs:
        raise VirtfnError(f"{pf.name} has {pf.nic.vfs} VFs, from 0 on; there is no vf{n}", errno_name="ENODEV")
    return pf, n


def owners_of(session: Answering) -> dict[Rid, str]:
    """Say who has which VF, by routing ID."""
    owners = {run.link.vf.rid: run.lab.name for run in list(session.machine.guests) if run.link.vf is not None}
    linux = session.linux_guests
    owners |= {guest.plug.vf.rid: guest.lab.name for guest in linux if guest.plug.vf is not None}
    hosts = [guest for guest in linux if guest.lab.nic.io == "host"]
    return owners | {rid: guest.lab.name for guest in hosts for _, rid in guest.pf.functions()}


@dataclass(frozen=True, slots=True)
class StartCapture(Request[object]):
    """Copy frames of a PF with all of its VFs and its wire, or of one VF, into memory that whoever asks reads.

    interface: `PF` or `PF/vfN`. points: of tx, switch, rx and drop; none: all but switch. snap: bytes of a frame that
    are kept; 0: all. mib: of the ring; 0: 16. The answer is Handed: what only a socket of this machine can carry.
    """

    method: ClassVar[str] = "capture.start"
    hands: ClassVar[bool] = True
    interface: str
    points: tuple[str, ...] = ()
    snap: int = 0
    mib: int = 0

    @classmethod
    def from_params(cls, params: Params) -> StartCapture:
        """Make it from JSON."""
        known(params, "interface", "points", "snap", "mib")
        interface, points = params.get("interface"), params.get("points", [])
        if not isinstance(interface, str):
            raise VirtfnError("interface is a PF, or a VF as pf0/vf1", errno_name="EINVAL")
        if not isinstance(points, list | tuple) or not all(isinstance(p, str) and p in POINTS for p in points):
            raise VirtfnError(f"points are some of {', '.join(POINTS)}", errno_name="EINVAL")
        mib = number(params, "mib", 16)
        if mib > _MOST_MIB or mib & (mib - 1):
            raise VirtfnError(f"mib is a power of two up to {_MOST_MIB}", errno_name="EINVAL")
        return cls(interface, tuple(points), number(params, "snap", 16), mib)

    def answer(self, session: Answering) -> Handed:
        """Open the tap. Raises VirtfnError (EMFILE) if there is no descriptor left for it."""
        pf, n = find_function(session.machine, self.interface)
        owners = owners_of(session)
        interfaces = _interfaces(pf, n, owners)
        wanted = self.points or _DEFAULT
        bits = sum(1 << number for interface in interfaces.values() for number in interface["numbers"])
        size = (self.mib or _MIB) << 20
        tap = pf.nic.open_tap(sum({POINTS[point] for point in wanted}), bits, self.snap or _SNAP, size)
        with ExitStack() as at_first:
            at_first.callback(tap.close)
            document: TapDocument = {
                "lab": session.lab.name,
                "interfaces": list(interfaces.values()),
                "wanted": list(wanted),
                "names": [_describe(pf, interface, owners)[0] for interface in pf.nic.tap_interfaces()],
                "reasons": list(pf.nic.drop_reasons()),
                "epoch_ps": epoch_ps(session.world.clock),  # type: ignore[arg-type]  # a lab's clock is one of both
                "bytes": size,
            }
            handed = Handed(document, _TapKeeper.hand(tap, session.world))
            at_first.pop_all()
        return handed


def _interfaces(pf: LabPf, n: int | None, owners: Mapping[Rid, str]) -> dict[str, InterfaceDocument]:
    """Name the interfaces of a capture: each function once, whatever the card has for it."""
    made: dict[str, InterfaceDocument] = {}
    for interface in pf.nic.tap_interfaces():
        if n is None or interface.n == n:
            name, description = _describe(pf, interface, owners)
            made.setdefault(name, {"name": name, "description": description, "numbers": []})
            made[name]["numbers"].append(interface.number)
    return made


def _describe(pf: LabPf, interface: TapInterface, owners: Mapping[Rid, str]) -> tuple[str, str]:
    if interface.wire:
        return f"{pf.name}/wire", f"the wire of {format_rid(pf.nic.pf_rid)}"
    if interface.n is None:
        return pf.name, f"PF {format_rid(pf.nic.pf_rid)}"
    rid = pf.nic.vf_rid(interface.n)
    return f"{pf.name}/vf{interface.n}", f"VF {format_rid(rid)}, " + (
        f"guest {owners[rid]}" if rid in owners else "nobody's"
    )


class CardDocument(TypedDict):
    """A card, as `card.state` answers. state: as its model has it (`cards.py`)."""

    lab: str
    pf: str
    model: str
    vfs: int
    state: dict[str, object]


@dataclass(frozen=True, slots=True)
class ReadCard(Request[CardDocument]):
    """Read all that decides what becomes of a frame at a PF's card."""

    method: ClassVar[str] = "card.state"
    pf: str

    @classmethod
    def from_params(cls, params: Params) -> ReadCard:
        """Make it from JSON."""
        known(params, "pf")
        pf = params.get("pf")
        if not isinstance(pf, str):
            raise VirtfnError("pf is the name of a PF", errno_name="EINVAL")
        return cls(pf)

    def answer(self, session: Answering) -> CardDocument:
        """Read."""
        pf, _ = find_function(session.machine, self.pf)
        model = next(str(lab.model) for lab in session.lab.pfs if lab.name == pf.name)
        return {
            "lab": session.lab.name,
            "pf": pf.name,
            "model": model,
            "vfs": pf.nic.vfs,
            "state": dict(pf.nic.state()),
        }


class _TapKeeper(Actor):
    """Ends a tap when its reader is gone."""

    def __init__(self, tap: Tap, world: World, ours: socket.socket) -> None:
        self._tap = tap
        self._world = world
        self._socket = ours
        tap.on_close.append(self._leave)
        world.add(self)

    @staticmethod
    def hand(tap: Tap, world: World) -> tuple[int, int]:
        """Keep a tap; return the descriptors for its reader: of the memory, and of the socket.

        Raises VirtfnError if the system has none left.
        """
        with ExitStack() as at_first:
            try:
                ours, theirs = map(at_first.enter_context, socket.socketpair())
                memory = os.dup(tap.fd)
                at_first.callback(os.close, memory)
            except OSError as error:
                name = errno.errorcode.get(error.errno or 0, "EMFILE")
                raise VirtfnError(f"a capture: {error.strerror}", errno_name=name) from None
            ours.setblocking(False)
            refuse_rights(ours)
            _TapKeeper(tap, world, ours)
            at_first.pop_all()
        return memory, theirs.detach()

    def turn(self, now: Ps) -> int:
        """Look whether the reader is there."""
        try:
            gone = self._tap.open and not self._socket.recv(64)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError:
            gone = True
        if gone:
            self._tap.close()
        return 0

    def fileno(self) -> int:
        """Return the descriptor that can be read when the reader goes."""
        return self._socket.fileno()

    def _leave(self) -> None:
        self._socket.close()
        self._world.remove(self)

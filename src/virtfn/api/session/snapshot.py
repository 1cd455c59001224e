"""What guests, functions and cards have counted, read from memory while frames move.

Each number is true when it is read; all of them together are of no one moment. Whoever reads takes no turn of anybody's
and may be in any thread; what must not go away meanwhile is the caller's care.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypedDict

from virtfn.api.machine import LabGuestRun, LabPf, Machine
from virtfn.api.report import SwitchReport
from virtfn.hw.types import Rid, format_rid
from virtfn.machine.netports import Tally
from virtfn.machine.pieces import InPieces, finish
from virtfn.machine.ports import VirtfnError

if TYPE_CHECKING:
    from virtfn.api.linux import LinuxGuest
    from virtfn.api.served import ServedGuest

__all__ = ["GuestCounts", "PfCounts", "Snapshot", "VfCounts", "snapshot_pieces", "take_snapshot"]

_ATTEMPTS = 16
_GUESTS = 16  # that are read in a piece


class GuestCounts(TypedDict):
    """One guest. Frames and bytes are those of its driver or, of a guest under QEMU, of its interface."""

    name: str
    io: str
    vmm: str
    address: str
    tx_frames: int
    tx_bytes: int
    rx_frames: int
    rx_bytes: int
    dropped: dict[str, int]
    exits: int
    interrupts: int


class VfCounts(TypedDict):
    """One VF, as the card counts. guest: who has it; null: nobody. ways: frames by where they went and came from."""

    vf: int
    address: str
    guest: str | None
    tx_frames: int
    tx_bytes: int
    rx_frames: int
    rx_bytes: int
    dropped: dict[str, int]
    mailbox_messages: int
    ways: dict[str, int]


class PfCounts(TypedDict):
    """One PF, its switch and its VFs."""

    name: str
    address: str
    switch: SwitchReport
    vfs: list[VfCounts]


class Snapshot(TypedDict):
    """The document of `session.snapshot`. elapsed_s: since the session was made; iommu: counters of the unit."""

    lab: str
    state: str
    elapsed_s: float
    guests: list[GuestCounts]
    pfs: list[PfCounts]
    iommu: dict[str, int]


def take_snapshot(
    machine: Machine, linux: Sequence[LinuxGuest | ServedGuest], *, state: str, elapsed_s: float
) -> Snapshot:
    """Read all counters of a machine that is up, with its guests under QEMU.

    Raises VirtfnError (EAGAIN) if functions come and go all the time.
    """
    return finish(snapshot_pieces(machine, linux, state=state, elapsed_s=elapsed_s))


def snapshot_pieces(
    machine: Machine, linux: Sequence[LinuxGuest | ServedGuest], *, state: str, elapsed_s: float
) -> InPieces[Snapshot]:
    """Do the same in pieces: a card each, or some guests. What has come and gone meanwhile is read anew."""
    for _ in range(_ATTEMPTS):
        try:
            guests: list[GuestCounts] = []
            for k, run in enumerate(list(machine.guests), 1):
                if _there(run, machine.guests) and run.guest.drivers:
                    guests.append(_embedded(run))
                if not k % _GUESTS:
                    yield
            for guest in list(linux):
                if guest.attached:
                    guests.append(_linux(guest))
                yield
            owners = {run.link.vf.rid: run.lab.name for run in list(machine.guests) if run.link.vf is not None}
            owners |= {guest.plug.vf.rid: guest.lab.name for guest in list(linux) if guest.attached and guest.plug.vf}
            pfs: list[PfCounts] = []
            for pf in list(machine.pfs):
                yield
                counts, host = _pf(pf), machine.lab.host_of(pf.name)
                for n, tally in enumerate(pf.nic.tally()):
                    rid = pf.nic.vf_rid(n)
                    counts["vfs"].append(_vf(n, rid, host or owners.get(rid), tally))
                pfs.append(counts)
        except (RuntimeError, LookupError):  # a list or a dictionary changed while it was read in another thread
            continue
        order = {guest.name: k for k, guest in enumerate(machine.lab.guests)}
        guests.sort(key=lambda guest: order[guest["name"]])
        return {
            "lab": machine.lab.name,
            "state": state,
            "elapsed_s": elapsed_s,
            "guests": guests,
            "pfs": pfs,
            "iommu": machine.host.iommu.counted(),
        }
    raise VirtfnError("functions come and go too fast to be counted; ask again", errno_name="EAGAIN")


def _there(one: object, all_now: Sequence[object]) -> bool:
    return any(one is each for each in all_now)


def _embedded(run: LabGuestRun) -> GuestCounts:
    counts = run.driver.netdev
    return {
        "name": run.lab.name,
        "io": run.lab.nic.io,
        "vmm": run.lab.vmm,
        "address": run.link.address,
        "tx_frames": int(counts["tx_frames"]),
        "tx_bytes": int(counts["tx_bytes"]),
        "rx_frames": int(counts["rx_frames"]),
        "rx_bytes": int(counts["rx_bytes"]),
        "dropped": run.link.drops(),
        "exits": run.guest.exits,
        "interrupts": run.guest.interrupts,
    }


def _linux(guest: LinuxGuest | ServedGuest) -> GuestCounts:
    counts = guest.plug.moved()
    return {
        "name": guest.lab.name,
        "io": guest.lab.nic.io,
        "vmm": guest.lab.vmm,
        "address": guest.plug.address,
        "tx_frames": counts.tx_frames,
        "tx_bytes": counts.tx_bytes,
        "rx_frames": counts.rx_frames,
        "rx_bytes": counts.rx_bytes,
        "dropped": guest.plug.drops(),
        "exits": guest.vm.messages,
        "interrupts": guest.vm.interrupts,
    }


def _pf(pf: LabPf) -> PfCounts:
    counters = pf.nic.counters()
    return {
        "name": pf.name,
        "address": format_rid(pf.nic.pf_rid),
        "switch": {
            "forwarded": counters["forwarded"],
            "flooded": counters["flooded"],
            "dropped": pf.nic.all_drops(),
        },
        "vfs": [],
    }


def _vf(n: int, rid: Rid, owner: str | None, tally: Tally) -> VfCounts:
    counts = tally.moved
    return {
        "vf": n,
        "address": format_rid(rid),
        "guest": owner,
        "tx_frames": counts.tx_frames,
        "tx_bytes": counts.tx_bytes,
        "rx_frames": counts.rx_frames,
        "rx_bytes": counts.rx_bytes,
        "dropped": tally.drops,
        "mailbox_messages": tally.messages,
        "ways": tally.ways._asdict(),
    }

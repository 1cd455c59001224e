"""A lab's machine: root complex, NICs, drivers, IOVM and guests, brought up in the order of a real host.

cards in slots -> scan -> PF drivers -> VFs -> guests -> VF assigned, plugged, probed, started
"""

from __future__ import annotations

import resource
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from virtfn.api.lab import Guest as LabGuest
from virtfn.api.lab import Lab, Pf
from virtfn.api.labmodel import find_pf
from virtfn.api.labpolicy import driver_policy, switch_policy
from virtfn.api.labwatch import watch_rules
from virtfn.api.messages import Messages
from virtfn.cards import MODELS, Model, Options
from virtfn.drivers.policy import VfPolicy as DriverPolicy
from virtfn.drivers.ports import BoundDriver
from virtfn.hw.types import Mac, Rid, format_rid
from virtfn.iomodels.hoststack import HostStack
from virtfn.iomodels.model import Connection, IoModel, Nic, Wish, open_model
from virtfn.iovm import lspci
from virtfn.iovm.iovm import Iovm, Vf
from virtfn.iovm.pcim import Found, Pcim
from virtfn.iovm.pfdriver import open_pf, start_pf
from virtfn.iovm.watch import Watch
from virtfn.machine.captures import Frames
from virtfn.machine.netports import Card, NetDriver, Served
from virtfn.machine.ports import Clock, VirtfnError
from virtfn.machine.trace import Tracer
from virtfn.vmm.guest import Guest
from virtfn.vmm.host import Host, room_for
from virtfn.vmm.hostaddresses import HostAddresses
from virtfn.vmm.together import Together
from virtfn.vmm.uplink import CableEnd, PcapUplink, Uplink, Wire, make_cable, open_uplink

__all__ = ["LabGuestRun", "LabPf", "Machine", "card_mac", "function_name", "guest_mac"]

_CARD_MAC = Mac(0x00_00_01_00_76_02)
_DESCRIPTORS = 1 << 16
_OTHERS = 0x40  # from here on are guests without VFs
_GUEST_MAC = (
    0x00_00_00_00_00_02  # 02:00:00:tt:ss:nn, ss the PF, nn from 10h the VF, tt 0 but where a lab has given that
)


@dataclass(slots=True)
class LabPf:
    """A PF of the lab, up: a card, its driver. wire: to its uplink. driven: by us, not by a guest that has it whole.

    io: the NIC as I/O models know it; models: those by which guests reach it. policies: of VFs, where they were
    changed since the lab was read.
    """

    name: str
    model: Model
    nic: Card
    found: Found
    driver: BoundDriver
    vfs: list[Vf] = field(default_factory=list)
    wire: Wire | None = None
    driven: bool = True
    io: Nic | None = None
    models: dict[str, IoModel] = field(default_factory=dict)
    policies: dict[int, DriverPolicy] = field(default_factory=dict)

    @property
    def strangers(self) -> Frames | None:
        """Frames that come from outside, where that is known before."""
        uplink = self.wire.uplink if self.wire is not None else None
        return uplink.frames if isinstance(uplink, PcapUplink) else None

    @property
    def served(self) -> Served:
        """What compiled code serves: the card, with all that stands on it."""
        parts = [part for model in self.models.values() for part in model.served]
        parts.append(self.nic if self.stack is None else self.stack.bridge)
        return parts[0] if len(parts) == 1 else Together(parts)

    @property
    def stack(self) -> HostStack | None:
        """The host's own network stack on this PF, if a model has opened it."""
        return None if self.io is None else self.io.stack

    @property
    def hosts(self) -> list[NetDriver]:
        """Drivers of the host's own on this PF."""
        return [] if self.stack is None else [self.stack.driver]

    def host_drops(self) -> dict[str, int]:
        """Count what was dropped on its way through the host's own stack, by reason."""
        if self.stack is None:
            return {}
        drops = Counter(self.nic.drops(self.nic.vfs))  # the pool after those of the VFs is the PF's
        drops.update(self.stack.drops())
        return {f"host-{reason}": count for reason, count in drops.items()}

    def functions(self) -> list[tuple[int, Rid]]:
        """List the VFs that there are, number and routing ID, whoever has made them."""
        return [(n, self.nic.vf_rid(n)) for n in range(self.nic.vfs)]

    @property
    def live(self) -> bool:
        """Whether frames may come from outside at any time."""
        return self.wire is not None and self.wire.uplink.live


@dataclass(slots=True)
class LabGuestRun:
    """An embedded guest of the lab, up, and its interface to the PF."""

    lab: LabGuest
    guest: Guest
    pf: LabPf
    link: Connection

    @property
    def driver(self) -> NetDriver:
        """The driver of its interface."""
        return self.link.driver

    @property
    def vf(self) -> Vf:
        """The VF that it has. Raises VirtfnError (ENODEV) for a guest without one."""
        if self.link.vf is None:
            raise VirtfnError(f"guest {self.lab.name} has no VF: its I/O is {self.lab.nic.io}", errno_name="ENODEV")
        return self.link.vf


class Machine:
    """The machine of a lab, with its embedded guests: `start`, then `close`, or a `with` block.

    Guests under QEMU come on top (linux.py); here is what they need: memory's addresses, and their functions.

    unwritten: which files of its could not be written, and why. messages: of its mailboxes. ring, mtu: what the
    guests' drivers use. remapping: off, devices reach all memory, and guests name it as the host does. Raises
    VirtfnError if a part refuses what the lab asks. waiting: the clock by which functions come and go, if others go
    on meanwhile. standing: numbers of VFs will change.
    """

    def __init__(
        self,
        lab: Lab,
        clock: Clock,
        *,
        seed: int = 1,
        ring: int = 512,
        mtu: int = 1500,
        trace: Path | None = None,
        remapping: bool = True,
        waiting: Clock | None = None,
        standing: bool = False,
    ) -> None:
        self.lab = lab
        self._standing = standing
        self._ring, self._mtu = ring, mtu
        guest_bytes = sum(guest.memory_mib << 20 for guest in lab.guests if guest.vmm == "embedded")
        guest_bytes += sum(memory_for_stack(lab, pf) for pf in lab.pfs)
        foreign = [guest.memory_mib << 20 for guest in lab.guests if guest.vmm == "qemu"]
        if foreign:
            _allow_descriptors()
        tracer = Tracer(trace, clock) if trace is not None else None
        self.host = Host(
            clock,
            guest_bytes,
            seed,
            slots=len(lab.pfs),
            iotlb_entries=lab.iommu.iotlb_entries,
            remapping=remapping,
            foreign_bytes=sum(map(room_for, foreign)),
            foreign_functions=sum(_functions(lab, guest) for guest in lab.guests if guest.vmm == "qemu"),
        )
        self._remapping = remapping
        self.unwritten: list[str] = []
        self.messages = Messages(clock)
        self.pcim = Pcim(self.host.root, waiting or clock)
        self.iovm = Iovm(self.pcim, self.host.remapping, waiting or clock)
        self.watch = Watch(self.iovm, clock)
        self.pfs: list[LabPf] = []
        self.guests: list[LabGuestRun] = []
        self._guests: list[Guest] = []
        self.host.tracer = tracer
        self._cards: list[Card] = []
        self._wires: list[Wire] = []
        self._cable_ends: dict[str, CableEnd] = {}

    def __enter__(self) -> Machine:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Starting.

    def start(self, progress: Callable[[], None] | None = None) -> None:
        """Bring everything up: NICs and their VFs, then the guests."""
        nics = []
        for i, pf in enumerate(self.lab.pfs):
            options = Options(
                card_mac(i),
                total_vfs=MODELS[str(pf.model)].limits.vfs if self._all_vfs(pf) else pf.total_vfs,
                ats=self.lab.iommu.ats,
                device_tlb_entries=self.lab.iommu.device_tlb_entries,
            )
            # Cards work at the same time: each but the first has caches of its own.
            iommu = self.host.iommu.row_for_a_card() if self._cards else self.host.iommu.iommu
            nic = MODELS[str(pf.model)].make(self.host, iommu, self.host.iommu, options)
            self._cards.append(nic)
            nic.set_wire(False, pf.link_mbps)
            self.host.root.attach(nic, i)
            nics.append((nic, self._open_wire(nic, pf)))
        self.pcim.scan()
        found = {f.rid: f for f in self.pcim.functions.values()}
        whole = {guest.nic.pf for guest in self.lab.guests if guest.nic.io in ("passthrough", "host")}
        for pf, (nic, wire) in zip(self.lab.pfs, nics, strict=True):
            self._watch(nic)
            if pf.name in whole:
                self.pfs.append(self._leave_pf(pf, nic, found[nic.pf_rid], wire))
            else:
                self.pfs.append(self._start_pf(pf, nic, found[nic.pf_rid], wire))
        for lab_guest in self.lab.guests:
            if lab_guest.vmm != "embedded":
                continue
            if progress is not None:
                progress()
            key = "guests", self.lab.guests.index(lab_guest)
            with self._naming(*key, "memory-mib", only="ENOMEM"), self._naming(*key, "nic", but="ENOMEM"):
                self._start_guest(lab_guest)

    def _all_vfs(self, pf: Pf) -> bool:
        """Tell whether a card is to have as many VFs as there can be, whatever the lab begins with."""
        return bool(self.lab.host_of(pf.name)) or (pf.sr_iov is not None and self._standing)

    @contextmanager
    def _naming(self, *key: str | int, only: str = "", but: str = "") -> Iterator[None]:
        """Say in errors which key of the lab they are about. only, but: errors of this errno, or all others."""
        try:
            yield
        except VirtfnError as error:
            if (not only or error.errno_name == only) and (not but or error.errno_name != but):
                error.args = (f"{self.lab.where(key)}: {error}",)
            raise

    def _open_wire(self, nic: Card, pf: Pf) -> Wire | None:
        with self._naming("pfs", self.lab.pfs.index(pf), "uplink"):
            uplink = self._cable_end(pf) or open_uplink(pf.uplink, self.lab.folder, self.host.clock)
        if uplink is None:
            return None
        self._wires.append(Wire(nic, uplink, pf.link_mbps))
        return self._wires[-1]

    def _cable_end(self, pf: Pf) -> Uplink | None:
        """Return this PF's end of its cable, which the first of the two makes; None without one."""
        other = self.lab.cable_of(pf.name)
        if not other:
            return None
        if pf.name not in self._cable_ends:
            self._cable_ends[pf.name], self._cable_ends[other] = make_cable()
        return self._cable_ends[pf.name]

    def _start_pf(self, pf: Pf, nic: Card, found: Found, wire: Wire | None) -> LabPf:
        model = MODELS[str(pf.model)]
        driver = start_pf(self.host, self.pcim, found, model.pf_driver)
        self.iovm.adopt(nic.pf_rid, nic, driver)
        created = self.iovm.create(nic.pf_rid, pf.total_vfs) if pf.total_vfs else []
        if pf.sr_iov is not None:
            driver.set_switch(switch_policy(pf.sr_iov))
        rules = [watch_rules(pf.policy(n).watch, pf.watch) for n in range(model.limits.vfs)]
        self.watch.follow(nic.pf_rid, nic, rules.__getitem__)
        return LabPf(pf.name, model, nic, found, driver, created, wire)

    def _leave_pf(self, pf: Pf, nic: Card, found: Found, wire: Wire | None) -> LabPf:
        """Leave a PF to the guest that gets it whole: placed, and not driven."""
        model = MODELS[str(pf.model)]
        driver = open_pf(self.host, self.pcim, found, model.pf_driver)
        return LabPf(pf.name, model, nic, found, driver, wire=wire, driven=False)

    def _watch(self, nic: Card) -> None:
        nic.on_message = self.messages.note
        tracer = self.host.tracer
        if tracer is None:
            return

        def note_message(rid: Rid, to_pf: bool, words: Sequence[int], text: str) -> None:
            self.messages.note(rid, to_pf, words, text)
            tracer.mailbox(rid, to_pf, words, text)

        self.host.iommu.on_fault = lambda f: tracer.fault(f.rid, f.iova, f.reason.text, f.write)
        nic.on_access = tracer.register
        nic.on_reset = tracer.reset
        nic.on_message = note_message
        self.host.iommu.interrupts.on_message = lambda rid, address, message: tracer.interrupt(rid, message & 0xFF)

    def _start_guest(self, lab_guest: LabGuest) -> None:
        pf = self.pf(lab_guest.nic.pf)
        guest = Guest(self.host, lab_guest.name, lab_guest.memory_mib << 20, ring=self._ring, mtu=self._mtu)
        self._guests.append(guest)
        if not self._remapping:
            guest.dma = HostAddresses(guest.memory)
        if lab_guest.nic.attached:
            self._connect(lab_guest, guest, pf)

    def _connect(self, lab_guest: LabGuest, guest: Guest, pf: LabPf) -> None:
        model = self.model(pf, lab_guest.nic.io)
        link = model.connect(guest, self.wish(pf, lab_guest))
        try:
            model.start(link)
        except VirtfnError:
            model.disconnect([link])
            raise
        self.guests.append(LabGuestRun(lab_guest, guest, pf, link))
        order = [each.name for each in self.lab.guests]
        self.guests.sort(key=lambda run: order.index(run.lab.name))

    # Changes while it is up.

    def pf(self, name: str) -> LabPf:
        """Find a PF. Raises VirtfnError (ENODEV) if there is none of that name."""
        return find_pf(self.pfs, name)

    def attach(self, lab_guest: LabGuest) -> None:
        """Give an embedded guest that is up, without an interface, the VF that it is to have.

        Raises VirtfnError as the IOVM does; then it has none, as before.
        """
        guest = next(each for each in self._guests if each.name == lab_guest.name)
        self._connect(lab_guest, guest, self.pf(lab_guest.nic.pf))

    def detach(self, run: LabGuestRun) -> None:
        """Take the VF of an embedded guest back. Raises VirtfnError (EIO) if it cannot be reset; it is taken anyway."""
        self.guests.remove(run)
        run.pf.models[run.lab.nic.io].disconnect([run.link])

    def set_vfs(self, pf: LabPf, count: int) -> None:
        """Change the number of VFs of a PF, at most eight.

        What is decided about its switch stays, if all VFs are there that it names. Raises VirtfnError: EBUSY while a
        guest has one, EOPNOTSUPP if the host has a network stack on the PF, in the pool after those of the VFs; as the
        IOVM does.
        """
        if pf.stack is not None or not pf.driven:
            words = f"the VFs of {pf.name} cannot change: its other pools are in use, by guests with io split or direct"
            raise VirtfnError(words, errno_name="EOPNOTSUPP")
        rid = pf.nic.pf_rid
        switch = pf.driver.switch_policy()
        if pf.vfs:
            self.iovm.destroy(rid)
            pf.vfs = []
        if count:
            pf.vfs = self.iovm.create(rid, count)
            if all(n < count for n in switch.named()):
                pf.driver.set_switch(switch)

    def model(self, pf: LabPf, name: str) -> IoModel:
        """Find the model by which guests reach a PF, or open it. Raises VirtfnError as `open_model`."""
        if name not in pf.models:
            if pf.io is None:
                pf.io = Nic(pf.model, pf.nic, pf.found, pf.driver, self.lab.dom0.memory_mib << 20)
            pf.models[name] = open_model(name, self, pf.io)
        return pf.models[name]

    def wish(self, pf: LabPf, guest: LabGuest) -> Wish:
        """Say what a guest of a PF is to get. Raises VirtfnError (ENODEV) if there is no such VF."""
        if guest.nic.io == "sriov":
            vf = self.iovm.vf(pf.nic.pf_rid, guest.nic.vf or 0)
            return Wish(self.offered_mac(pf, vf.index), vf.index, self.policy(pf, vf), mapped=guest.nic.map_rings)
        if guest.nic.io in ("passthrough", "host"):
            return Wish(card_mac(self.pfs.index(pf)))
        return Wish(guest_mac(self.lab, guest))

    # The lab, and its state.

    def note_unwritten(self, error: VirtfnError) -> None:
        """Note that a file of this machine's cannot be written; whoever reports says so."""
        if str(error) not in self.unwritten:
            self.unwritten.append(str(error))

    def flush_trace(self) -> None:
        """Put what was traced so far into the file, as far as that can be."""
        if self.host.tracer is not None:
            self._try_to_write(self.host.tracer.flush)

    def _try_to_write(self, write: Callable[[], None]) -> None:
        try:
            write()
        except VirtfnError as error:
            self.note_unwritten(error)

    def policy(self, pf: LabPf, vf: Vf) -> DriverPolicy:
        """Return what the lab says of a VF, or whoever has changed that since, for the PF's driver."""
        return pf.policies.get(vf.index) or driver_policy(self.lab.pf(pf.name).policy(vf.index))

    def offered_mac(self, pf: LabPf, n: int) -> Mac:
        """Return the address that VF `n` is offered when the lab gives it none; one that the lab gives to no other."""
        fixed = {driver_policy(policy).mac for each in self.lab.pfs if each.sr_iov for policy in each.sr_iov.vfs}
        base = _GUEST_MAC | self.pfs.index(pf) << 32 | (0x10 + n) << 40
        return next(mac for turn in range(256) if (mac := Mac(base | turn << 24)) not in fixed)

    def guests_of(self, pf: LabPf) -> list[LabGuestRun]:
        """List the embedded guests that have a VF of a PF."""
        return [run for run in self.guests if run.pf is pf]

    def used_vfs(self, pf: LabPf) -> list[tuple[int, Rid]]:
        """List the VFs of a PF that guests of the lab have, or may have, in the guests' order: number, routing ID."""
        if self.lab.host_of(pf.name):
            return [(n, pf.nic.vf_rid(n)) for n in range(pf.found.total_vfs)]
        on_pf = [guest.nic for guest in self.lab.guests if guest.nic.pf == pf.name and guest.nic.io == "sriov"]
        return [(vf.index, vf.rid) for vf in (self.iovm.vf(pf.nic.pf_rid, nic.vf or 0) for nic in on_pf)]

    def dump(self) -> str:
        """Print every function in the hex that pciutils' `lspci -F` reads."""
        return lspci.dump(self.pcim)

    def listing(self) -> str:
        """List every function in the manner of lspci."""
        return lspci.listing(self.pcim)

    def tree(self) -> str:
        """Draw the bus in the manner of `lspci -t`."""
        return lspci.tree(self.pcim)

    def json(self) -> list[lspci.Entry]:
        """Describe every function."""
        return lspci.decode(self.pcim)

    def device_tlb_counts(self) -> dict[str, int]:
        """Add up what the device TLBs of all cards did; empty without ATS."""
        total: Counter[str] = Counter()
        for nic in self._cards:
            total.update(nic.device_tlb())
        return dict(total)

    # Stopping.

    def stop(self) -> None:
        """Take every VF back from its guest, and the VFs away."""
        for pf in self.pfs:
            for name, model in pf.models.items():
                model.disconnect([run.link for run in self.guests if run.pf is pf and run.lab.nic.io == name])
            if pf.stack is not None:
                pf.stack.stop()
            if not pf.driven:
                continue
            pf.driver.stop()
            if pf.vfs:
                self.iovm.destroy(pf.nic.pf_rid, last=True)

    def close(self) -> None:
        """Release everything, whatever state it is in."""
        if self.host.tracer is not None:
            self.host.iommu.service()
            self._try_to_write(self.host.tracer.close)
            self.host.tracer = None
        for guest in self._guests:
            guest.close()
        self._guests.clear()
        self.guests.clear()
        for pf in self.pfs:
            for model in pf.models.values():
                model.close()
            if pf.stack is not None:
                pf.stack.close()
        for wire in self._wires:
            wire.close()
        self._wires.clear()
        for end in self._cable_ends.values():
            end.close()
        self._cable_ends.clear()
        for nic in self._cards:
            nic.close()
        self._cards.clear()
        self.pfs.clear()
        self.host.close()


def _allow_descriptors() -> None:
    """Let this process have more descriptors than the usual 1,024: a hostile machine can take a few hundred."""
    few, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if most == resource.RLIM_INFINITY else min(_DESCRIPTORS, most)
    if few != resource.RLIM_INFINITY and few < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def _functions(lab: Lab, guest: LabGuest) -> int:
    """Return how many functions a guest gets: a host's are the PF, and all VFs that its card can have."""
    return 1 + (MODELS[str(lab.pf(guest.nic.pf).model)].limits.vfs if guest.nic.io == "host" else 0)


def memory_for_stack(lab: Lab, pf: Pf) -> int:
    """Return the bytes that the host's own network stack on a PF takes, Dom0's or the VMM's; 0 where there is none."""
    models = {guest.nic.io for guest in lab.guests if guest.nic.pf == pf.name}
    return lab.dom0.memory_mib << 20 if models & {"split", "direct"} else 0


def card_mac(number: int) -> Mac:
    """Return the address in the NVM of a lab's PF, by the PF's number."""
    return Mac(_CARD_MAC | number << 40)


def guest_mac(lab: Lab, guest: LabGuest) -> Mac:
    """Return the address of a guest that has neither a VF nor a PF whole."""
    number = [pf.name for pf in lab.pfs].index(guest.nic.pf)
    place = [other.name for other in lab.guests if other.nic.pf == guest.nic.pf].index(guest.name)
    return Mac(_GUEST_MAC | number << 32 | (_OTHERS + place) << 40)


def function_name(n: int, rid: Rid) -> str:
    """Name a VF for captures: `vf0 0000:02:10.0`."""
    return f"vf{n} {format_rid(rid)}"

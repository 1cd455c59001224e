"""The attack lab: a hostile guest tries what it can, while its neighbours go on with their work.

    attacker's driver --- VF --- NIC --- wire --- an accomplice outside, who hears and sends anything
                                  |
        unit: faults, messages    +--- victims: frames to each other, pages with secrets

What came of an attempt is read from memory, compared byte by byte, and from counters and fault records of the unit,
the NIC and the guests: nothing is taken for granted, and the same attempts on a machine without remapping show that
they are no sham.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from virtfn.devices.nic82576 import Nic82576
from virtfn.drivers.igb import Igb
from virtfn.drivers.ports import BoundDriver
from virtfn.drivers.vtdirq import InterruptTable
from virtfn.hw.types import Hpa, Iova, Mac, Ps, Rid
from virtfn.hw.vtd.regs import RTADDR, Fault
from virtfn.hw.vtd.regs import Regs as UnitRegs
from virtfn.hw.vtd.tables import RootEntry
from virtfn.iomodels.attacker import ETHERTYPE, Attacker
from virtfn.iomodels.engine import PACE, Engine
from virtfn.iovm.iovm import Iovm, Vf
from virtfn.kernels.i82576.port import wire_in
from virtfn.kernels.ranges import address_of
from virtfn.machine.clock import MS_PS
from virtfn.machine.memory import PAGE, view_bytes
from virtfn.machine.netports import Card
from virtfn.machine.ports import Actor, VirtfnError
from virtfn.vmm.guest import Guest
from virtfn.vmm.host import Host
from virtfn.vmm.hostaddresses import HostAddresses, host_address
from virtfn.vmm.world import World

__all__ = ["OUTSIDE", "Attempt", "Finding", "Outcome", "Region", "Result", "Stage", "attempt", "carry_out"]

Outcome = Literal["stopped", "succeeded", "harmless"]

_SLOWLY = 1, 2  # rounds and frames of a step: an attempt is to meet frames under way
OUTSIDE = Mac(0x99_00_00_00_00_02)
"""The accomplice on the wire."""
_TASTE = 16  # bytes of a secret in a row that nobody has by chance


@dataclass(slots=True)
class Region:
    """Memory that the attacker must not reach: its address for a device that reaches all, and what belongs there."""

    address: int
    now: npt.NDArray[np.uint8]
    kept: npt.NDArray[np.uint8] = field(init=False)

    def __post_init__(self) -> None:
        self.kept = self.now.copy()

    def changed(self) -> int:
        """Count the bytes that are not what they were."""
        return int(np.count_nonzero(self.now != self.kept))

    def stolen(self, frames: Iterable[bytes]) -> int:
        """Count the bytes of this memory that frames carry, in runs that are no chance."""
        secret, total = self.kept.tobytes(), 0
        for frame in frames:
            for at in range(0, len(secret), _TASTE):
                if secret[at : at + _TASTE] in frame:
                    total += _TASTE
        return total

    def restore(self) -> None:
        """Put back what belongs there."""
        self.now[:] = self.kept


@dataclass(slots=True)
class Result:
    """What an attempt came to. harm: bytes stolen or changed, frames or interrupts that should not have been.

    guards: what refused it and is no counter of unit or NIC, in words, and how often.
    """

    harm: int
    evidence: dict[str, int | float] = field(default_factory=dict)
    guards: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One thing that a hostile guest may try. same_without: why remapping plays no role in it; empty if it does."""

    name: str
    description: str
    act: Callable[[Stage], Result]
    same_without: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """The judgement on an attempt."""

    attempt: Attempt
    outcome: Outcome
    stopped_by: str
    evidence: dict[str, int | float]


def attempt(name: str, description: str, same_without: str = "") -> Callable[[Callable[[Stage], Result]], Attempt]:
    """Make an attempt of a function."""

    def make(act: Callable[[Stage], Result]) -> Attempt:
        return Attempt(name, description, act, same_without)

    return make


class Stage(Actor):
    """One machine under attack. driver: of the PF. vf: what the attacker has; victims work for `engine` meanwhile.

    interrupts: the interrupt remapping table in the machine's memory, whether the unit uses it or not. secrets_seed: of
    what is planted. The machine must be up, and the attacker's own driver running.
    """

    def __init__(
        self,
        host: Host,
        nic: Card,
        driver: BoundDriver,
        iovm: Iovm,
        vf: Vf,
        engine: Engine,
        guests: tuple[Guest, ...],
        interrupts: InterruptTable,
        secrets_seed: int = 1,
    ) -> None:
        if not isinstance(nic, Nic82576) or not isinstance(driver, Igb):
            raise VirtfnError("the attacks are those on an 82576 and its driver", errno_name="EOPNOTSUPP")
        self.host, self.nic, self.driver, self.iovm, self.vf, self.engine = host, nic, driver, iovm, vf, engine
        self.victims = guests[1:]
        self.interrupts = interrupts
        self.random = random.Random(secrets_seed)
        self.faults: list[Fault] = []
        self.heard: list[bytes] = []
        # The accomplice is in the VLAN that the host put the attacker into.
        self._tag = b"\x81\x00" + (vf.policy.vlan | vf.policy.qos << 13).to_bytes(2, "big") if vf.policy.vlan else b""
        self._tell_fault = host.iommu.on_fault
        host.iommu.on_fault = self._note_fault
        nic.port.set_wire(True, nic.port.l2switch.link_mbps if nic.port.nic["port"]["wire_ps_per_byte"] else 0)
        nic.start_capture()
        engine.pace = _SLOWLY
        self._world = World.of(host.clock, engine)
        self._world.add(self)
        self.attacker = Attacker(guests[0])
        self.attacker.seize()
        self.host_page = self.secret_at(host.memory.alloc_page())
        self.victim_page = self.secret_of(self.victims[0])
        self.pump()

    def leave(self, link_mbps: int) -> None:
        """Send the accomplice away; the machine is as it was, but for the attacker, whose driver stays stopped."""
        self.engine.pace = PACE
        self.nic.stop_capture()
        self.nic.take_capture()
        self.nic.port.set_wire(False, link_mbps)
        self.host.iommu.on_fault = self._tell_fault

    @property
    def remapping(self) -> bool:
        """Whether the unit translates."""
        return bool(self.host.iommu.iommu.unit[0]["enabled"])

    # What there is to steal and to spoil.

    def secret_of(self, guest: Guest) -> Region:
        """Plant a secret page in a guest's memory."""
        _, hva = guest.dma.alloc(PAGE)
        return self.secret_at(host_address(guest.memory, hva))

    def secret_at(self, page: int) -> Region:
        """Plant a secret in a page of the machine's memory, as whoever owns it now."""
        self.memory(page, PAGE)[:] = np.frombuffer(self.random.randbytes(PAGE), np.uint8)
        return self.region(page, PAGE)

    def memory(self, address: int, size: int) -> npt.NDArray[np.uint8]:
        """Look at the machine's memory, as (size,) uint8."""
        return view_bytes(address, size)

    def region(self, address: int, size: int) -> Region:
        """Remember what is at an address now."""
        return Region(address, self.memory(address, size))

    def tables(self) -> dict[str, Region]:
        """Find the translation tables: the root, the context table of the NIC's bus, the top one of the attacker."""
        root = RTADDR(self.host.iommu.read(UnitRegs.RTADDR.offset, 8)).value & RTADDR.RTA.mask
        entry = int(self.memory(root + (self.vf.rid >> 8) * 16, 8).view(np.uint64)[0])
        (domain,) = (d for d in self.host.remapping.domains.values() if self.vf.rid in d.rids)
        found = {"root": root, "context": entry & RootEntry.CTP.mask, "second_stage": int(domain.tables.root)}
        return {name: self.region(address, PAGE) for name, address in found.items()}

    # Serving the machine.

    def pump(self, steps: int = 6) -> None:
        """Let everyone work: victims, NIC, and the attacker's interrupt handlers."""
        for _ in range(steps):
            self._world.step()

    def turn(self, now: Ps) -> int:
        """Hear what left by the wire, and let the unit tell what it met."""
        self.listen()
        self.host.iommu.service()
        return 0

    def serve(self, budget: int = 64) -> int:
        """Let only the NIC work; return the frames that it moved."""
        frames, _ = self.nic.serve(budget)
        self.listen()
        self.host.iommu.service()
        return frames

    def quiet(self) -> None:
        """Let what is under way for the victims come to its end: what happens next, the attacker does."""
        port = self.nic.port.nic["port"]
        for _ in range(200):
            busy = self.serve()
            for guest in self.engine.guests:
                guest.run_interrupts()
            if not busy and not int(port["pending"]) & int(port["eims"]):
                return
            self.host.clock.sleep(MS_PS // 4)

    def listen(self) -> None:
        """Take what left by the wire, where the accomplice listens."""
        taken = self.nic.take_capture()
        for interface, outbound, _, frame in taken:
            if interface is None and outbound:
                body = frame.tobytes()
                self.heard.append(body[:12] + body[16:] if self._tag and body[12:16] == self._tag else body)

    @contextmanager
    def unheard(self) -> Iterator[None]:
        """Let nobody listen at the wire meanwhile, so that the device may take its shortest path."""
        self.listen()
        self.nic.stop_capture()
        try:
            yield
        finally:
            self.nic.start_capture()

    def take_heard(self) -> list[bytes]:
        """Take the frames that the accomplice has heard since the last time."""
        heard, self.heard = self.heard, []
        return heard

    def inject(self, target: Mac, payload: bytes) -> None:
        """Let the accomplice send a frame in by the wire."""
        body = target.to_bytes(6, "little") + OUTSIDE.to_bytes(6, "little") + self._tag + ETHERTYPE + payload
        store = np.frombuffer(body.ljust(60, b"\0"), np.uint8)
        lengths, offsets = np.array([store.size], np.int64), np.zeros(1, np.int64)
        for _ in range(50):
            self.nic.port.settle()
            block = self.nic.port.address
            taken, events = wire_in(block, self.host.now(), address_of(store), offsets, lengths, 0, 1)
            self.nic.handle(events)
            self.listen()
            self.host.iommu.service()
            if taken:
                return
            self.host.clock.sleep(MS_PS // 4)

    # What can be counted.

    def _note_fault(self, fault: Fault) -> None:
        self.faults.append(fault)
        if self._tell_fault is not None:
            self._tell_fault(fault)

    def interrupted(self) -> int:
        """Count the interrupts that the victims have had."""
        return sum(victim.interrupts for victim in self.victims)

    def received(self) -> int:
        """Count the frames that the victims have got."""
        return sum(int(nic.driver.netdev["rx_frames"]) for victim in self.victims for nic in victim.nics)

    def counters(self) -> Counter[str]:
        """Count what the unit and the NIC did about the attacker, and what the victims got."""
        unit = self.host.iommu.stats()
        cached = self.nic.ats.counts() if self.nic.ats is not None else {}
        return Counter(
            {
                "interrupts_blocked": unit["blocked"],
                "aborted": unit["aborted"],
                "translations_denied": cached.get("denied", 0),
                "attacker_interrupts": self.attacker.guest.interrupts,
                "victim_frames": self.received(),
                **{f"dropped_{reason}": count for reason, count in self.nic.drops(self.vf.index).items()},
            }
        )

    def take_page(self, rid: Rid, iova: int) -> None:
        """Take a page of the attacker's away, as a host does that needs it: out of its domain, out of all caches."""
        for domain in self.host.remapping.domains.values():
            if self.remapping and rid in domain.rids:
                domain.unmap(Iova(iova), PAGE)

    def give_page(self, rid: Rid, iova: int, address: int) -> None:
        """Give such a page back."""
        for domain in self.host.remapping.domains.values():
            if self.remapping and rid in domain.rids:
                domain.map(Iova(iova), Hpa(address), PAGE)

    @staticmethod
    def buffers_of(guest: Guest) -> bytes:
        """Read the receive buffers of a guest's ordinary driver."""
        row = guest.nics[0].driver.netdev
        return view_bytes(int(row["rx_buffers"]), int(row["rx_size"]) * int(row["buffer_bytes"])).tobytes()

    def newcomer(self, name: str) -> Guest:
        """Make one more guest, a small one."""
        guest = Guest(self.host, name, 4 << 20, ring=80)
        if isinstance(self.attacker.guest.dma, HostAddresses):
            guest.dma = HostAddresses(guest.memory)
        return guest


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count:,} times"


def carry_out(stage: Stage, attempts: Iterable[Attempt]) -> list[Finding]:
    """Make attempts one by one, each with a VF as new, and judge each by what it left behind."""
    findings = []
    for each in attempts:
        stage.attacker.renew()
        stage.pump()
        stage.take_heard()
        before, faults = stage.counters(), len(stage.faults)
        result = each.act(stage)
        stage.pump()
        # What an attempt hits beside its aim is harm as well.
        spoilt = sum(region.changed() for region in (stage.host_page, stage.victim_page))
        after = stage.counters()
        after.subtract(before)
        seen = {name: count for name, count in after.items() if count}
        refused = Counter(f.reason for f in stage.faults[faults:] if f.rid == stage.vf.rid)
        guards = {
            **{
                f"{'interrupt' if reason.of_interrupt else 'DMA'} remapping: {reason.text} (fault {reason:#x})": count
                for reason, count in refused.items()
            },
            "DMA remapping: the translation that the device asked for has no such right": seen.get(
                "translations_denied", 0
            ),
            **{
                f"switch: {name[8:]}": count
                for name, count in seen.items()
                if name.startswith("dropped_") and name not in _CONSEQUENCES
            },
            **result.guards,
        }
        guards = {words: count for words, count in guards.items() if count}
        harm = result.harm or spoilt
        findings.append(
            Finding(
                each,
                "succeeded" if harm else "stopped" if guards else "harmless",
                "" if harm else "; ".join(f"{words}, {_times(count)}" for words, count in guards.items()),
                {"harm": harm, **result.evidence, "faults": sum(refused.values()), **seen},
            )
        )
        for region in (stage.host_page, stage.victim_page):
            region.restore()
    stage.attacker.renew()
    return findings


_CONSEQUENCES = {"dropped_dma-fault", "dropped_no-descriptor", "dropped_queue-disabled", "dropped_echo"}

"""The remapping driver: sets the unit up through its registers, owns its tables, gives each guest a domain.

    VtdDriver ---- root table -- context tables          one entry a requester: attach, detach
       +-- Domain 1 -- second-stage tables               map, unmap
       +-- Domain 2 -- second-stage tables

Tables are pages of the machine's memory that no domain maps: who could write them could reach everything. Caches are
invalidated after every change that takes something away, and a table page is freed only after that. Entries that were
not present are not cached (CAP.CM is 0), so adding needs no invalidation.

Spec: VT-d, software usage of DMA remapping.
"""

from __future__ import annotations

from typing import Protocol

from virtfn.drivers.secondstage import Range, SecondStage, TablePages
from virtfn.hw.bits import Decl
from virtfn.hw.types import Hpa, Iova, Rid, format_rid
from virtfn.hw.vtd.regs import (
    CAP,
    CCMD,
    ECAP,
    FRCD_HIGH,
    FSTS,
    GCMD,
    GSTS,
    IOTLB,
    IVA,
    RTADDR,
    EventControl,
    Fault,
    Granularity,
    Regs,
    decode_fault,
)
from virtfn.hw.vtd.tables import INTERRUPT_RANGE, INTERRUPT_RANGE_END, ContextEntry, RootEntry, Translation
from virtfn.machine.clock import MS_PS, US_PS
from virtfn.machine.memory import PAGE, HostMemory
from virtfn.machine.ports import Clock, VirtfnError

__all__ = ["Domain", "Registers", "VtdDriver"]

PASS_THROUGH_DOMAIN = 0
_ONE_SHOT = GCMD.SRTP.mask | GCMD.SIRTP.mask | GCMD.SFL.mask | GCMD.WBF.mask


class Registers(Protocol):
    """The unit's register window."""

    def read(self, offset: int, size: int) -> int:
        """Read 4 or 8 bytes."""

    def write(self, offset: int, size: int, value: int) -> None:
        """Write 4 or 8 bytes."""


class Domain:
    """What one guest's devices can reach: its own addresses, mapped to pages of the machine's memory.

    Lives from `VtdDriver.create_domain` to `destroy`. rids: the requesters attached to it.
    """

    def __init__(self, driver: VtdDriver, domain_id: int, tables: SecondStage) -> None:
        self.id = domain_id
        self.rids: set[Rid] = set()
        self.tables = tables
        self._driver = driver

    def map(self, iova: Iova, hpa: Hpa, nbytes: int, read: bool = True, write: bool = True) -> None:
        """Let devices reach `nbytes` of memory at `hpa` by the addresses from `iova` on.

        Raises VirtfnError, and maps nothing, if the range is not made of whole pages, is too high for the tables, means
        interrupts, overlaps a mapping, or is not memory that devices may reach.
        """
        self._check(iova, nbytes)
        if hpa % PAGE:
            raise VirtfnError(f"host address {hpa:#x} is not the start of a page", errno_name="EINVAL")
        if not (read or write):
            raise VirtfnError("a mapping allows reads, writes or both", errno_name="EINVAL")
        if iova < INTERRUPT_RANGE_END and iova + nbytes > INTERRUPT_RANGE:
            raise VirtfnError(f"addresses {iova:#x}+{nbytes:#x} overlap the interrupt range", errno_name="EINVAL")
        if any(self.tables.leaves(iova, nbytes)):
            raise VirtfnError(f"domain {self.id} has a mapping in {iova:#x}+{nbytes:#x}", errno_name="EEXIST")
        leaves = self.tables.plan(iova, hpa, nbytes, read, write)
        for leaf in leaves:
            if not self._driver.pages.mappable(leaf.hpa, leaf.shift):
                raise VirtfnError(f"host page {leaf.hpa:#x} is not memory for devices", errno_name="EFAULT")
        try:
            for leaf in leaves:
                self.tables.map(leaf)
        except VirtfnError:
            self.unmap(iova, nbytes)
            raise
        self._driver.flush_writes()

    def unmap(self, iova: Iova, nbytes: int) -> int:
        """Take away what is mapped in a range, from caches too; return how many bytes were.

        Raises VirtfnError if the range is not made of whole pages, or no memory is left to split a large page.
        """
        self._check(iova, nbytes)
        done, idle = self.tables.unmap(iova, nbytes)
        if done or idle:
            self._driver.invalidate_pages(self.id, iova, nbytes)
        for page in idle:
            self._driver.pages.free(page)
        return done

    def ranges(self) -> list[Range]:
        """List what is mapped, in order of address, adjacent pages of equal rights in one."""
        return self.tables.ranges()

    def destroy(self) -> None:
        """Free the tables.

        Raises VirtfnError while a requester is attached, or the second time.
        """
        self.check_alive()
        if self.rids:
            raise VirtfnError(f"domain {self.id} is in use by {self._users()}", errno_name="EBUSY")
        self._driver.drop_domain(self)

    def _users(self) -> str:
        return ", ".join(format_rid(rid) for rid in sorted(self.rids))

    def _check(self, iova: int, nbytes: int) -> None:
        if iova < 0 or nbytes <= 0 or (iova | nbytes) % PAGE:
            raise VirtfnError(f"{iova:#x}+{nbytes:#x} is not a range of whole pages", errno_name="EINVAL")
        if iova + nbytes > self.tables.limit:
            raise VirtfnError(f"{iova:#x}+{nbytes:#x} is beyond {self.tables.levels} levels", errno_name="EINVAL")
        self.check_alive()

    def check_alive(self) -> None:
        """Raise VirtfnError if the domain has been destroyed."""
        if self._driver.domains.get(self.id) is not self:
            raise VirtfnError(f"domain {self.id} has been destroyed", errno_name="ENOENT")


class VtdDriver:
    """The driver of one remapping unit. Made, started, stopped; `close` gives every table page back.

    Raises VirtfnError if the unit cannot do what this driver needs.
    """

    def __init__(self, registers: Registers, memory: HostMemory, clock: Clock) -> None:
        self._registers = registers
        self._clock = clock
        self._cap = CAP(self._read(Regs.CAP))
        self._ecap = ECAP(self._read(Regs.ECAP))
        if not self._ecap.C or self._cap.CM or not self._cap.SAGAW & 0b0110:
            raise VirtfnError(f"cannot drive this remapping unit: {self._cap}; {self._ecap}", errno_name="ENODEV")
        self._iotlb_at = self._ecap.IRO * 16
        self._faults_at = self._cap.FRO * 16
        self.pages = TablePages(memory)
        self.domains: dict[int, Domain] = {}
        self._attached: dict[Rid, Domain | None] = {}
        self._contexts: dict[int, Hpa] = {}
        self._root = self.pages.alloc()

    def start(self, fault_event: tuple[int, int] | None = None) -> None:
        """Give the unit its root table and switch remapping on.

        fault_event: address and message of the interrupt for faults; without it, faults are only recorded.
        """
        self._write(Regs.RTADDR, RTADDR(self._root).value)
        self._command(GCMD.SRTP.mask, GSTS.RTPS.mask)
        self._invalidate_contexts(Granularity.GLOBAL)
        self._invalidate_iotlb(Granularity.GLOBAL)
        if fault_event is not None:
            address, message = fault_event
            self._write(Regs.FEDATA, message)
            self._write(Regs.FEADDR, address & 0xFFFF_FFFF)
            self._write(Regs.FEUADDR, address >> 32)
            self._write(Regs.FECTL, 0)
        self._command(GCMD.TE.mask, GSTS.TES.mask)

    def stop(self) -> None:
        """Switch remapping off: every requester reaches all memory."""
        self._write(Regs.FECTL, EventControl.IM.mask)
        self._command(0, 0, clear=GCMD.TE.mask)

    def close(self) -> None:
        """Stop, detach everyone, destroy the domains and free the tables."""
        self.stop()
        for rid in list(self._attached):
            self.detach(rid)
        for domain in list(self.domains.values()):
            domain.destroy()
        for page in [*self._contexts.values(), self._root]:
            self.pages.free(page)
        self._contexts.clear()

    def create_domain(self, domain_id: int, levels: int = 4) -> Domain:
        """Make an empty domain.

        Raises VirtfnError if the number is taken or too large, or the unit has no tables of so many levels.
        """
        if not PASS_THROUGH_DOMAIN < domain_id < 1 << 4 + 2 * self._cap.ND:
            raise VirtfnError(f"no domain can be number {domain_id}", errno_name="EINVAL")
        if domain_id in self.domains:
            raise VirtfnError(f"domain {domain_id} exists", errno_name="EEXIST")
        if levels not in (3, 4) or not self._cap.SAGAW >> (levels - 2) & 1:
            raise VirtfnError(f"the unit has no tables of {levels} levels", errno_name="EINVAL")
        self.domains[domain_id] = Domain(self, domain_id, SecondStage(self.pages, levels, self._cap.SSLPS))
        return self.domains[domain_id]

    def attach(self, rid: Rid, domain: Domain) -> None:
        """Send a requester's DMA through a domain.

        Raises VirtfnError if it is attached already, or the domain is destroyed.
        """
        domain.check_alive()
        self._attach(
            rid,
            domain,
            ContextEntry.of(P=1, T=Translation.SECOND_STAGE, AW=domain.tables.levels - 2, DID=domain.id).value
            | domain.tables.root,
        )
        domain.rids.add(rid)

    def pass_through(self, rid: Rid) -> None:
        """Let a requester reach all memory, by host addresses.

        Raises VirtfnError if it is attached already, or the unit cannot.
        """
        if not self._ecap.PT:
            raise VirtfnError("the unit has no pass-through", errno_name="ENODEV")
        widest = self._cap.SAGAW.bit_length() - 1
        self._attach(rid, None, ContextEntry.of(P=1, T=Translation.PASS_THROUGH, AW=widest).value)

    def detach(self, rid: Rid) -> None:
        """Refuse a requester's DMA from now on; nothing of its translations remains cached.

        Raises VirtfnError if it is not attached.
        """
        if rid not in self._attached:
            raise VirtfnError(f"{format_rid(rid)} is not attached to a domain", errno_name="ENOENT")
        domain = self._attached.pop(rid)
        domain_id = PASS_THROUGH_DOMAIN if domain is None else domain.id
        row = self.pages.row(self._contexts[rid >> 8])
        row[2 * (rid & 0xFF)] = 0
        row[2 * (rid & 0xFF) + 1] = 0
        self.flush_writes()
        self._invalidate_contexts(Granularity.SELECTIVE, domain_id, rid)
        self._invalidate_iotlb(Granularity.DOMAIN, domain_id)
        if domain is not None:
            domain.rids.discard(rid)

    def take_faults(self) -> list[Fault]:
        """Read the recorded faults, oldest first, and clear their records. A full set means that some were lost."""
        taken = []
        status = FSTS(self._read(Regs.FSTS))
        records = self._cap.NFR + 1
        for i in range(records if status.PPF else 0):
            at = self._faults_at + (status.FRI + i) % records * 16
            high = self._registers.read(at + 8, 8)
            if FRCD_HIGH(high).F:
                taken.append(decode_fault(self._registers.read(at, 8), high))
                self._registers.write(at + 8, 8, FRCD_HIGH.F.mask)
        if status.PFO:
            self._write(Regs.FSTS, FSTS.PFO.mask)
        return taken

    def invalidate_pages(self, domain_id: int, iova: int, nbytes: int) -> None:
        """Forget cached translations of a range: page-selective if one aligned block covers it, else the domain's."""
        self.flush_writes()
        last = (iova + nbytes - 1) // PAGE
        mask = (iova // PAGE ^ last).bit_length()
        if not self._cap.PSI or mask > self._cap.MAMV:
            self._invalidate_iotlb(Granularity.DOMAIN, domain_id)
        else:
            where = IVA.of(AM=mask).value | (iova & -(PAGE << mask))
            self._registers.write(self._iotlb_at, 8, where)
            self._invalidate_iotlb(Granularity.SELECTIVE, domain_id)

    def flush_writes(self) -> None:
        """Make table writes visible to a unit that asks for it."""
        if self._cap.RWBF:
            self._command(GCMD.WBF.mask, 0, gone=GSTS.WBFS.mask)

    def drop_domain(self, domain: Domain) -> None:
        """Forget a domain that nobody uses, and free its tables."""
        del self.domains[domain.id]
        self._invalidate_iotlb(Granularity.DOMAIN, domain.id)
        domain.tables.free()

    def _attach(self, rid: Rid, domain: Domain | None, entry: int) -> None:
        if rid in self._attached:
            raise VirtfnError(f"{format_rid(rid)} is attached to a domain already", errno_name="EBUSY")
        bus = rid >> 8
        if bus not in self._contexts:
            self._contexts[bus] = self.pages.alloc()
            self.pages.row(self._root)[2 * bus] = RootEntry.of(P=1).value | self._contexts[bus]
        row = self.pages.row(self._contexts[bus])
        # The low half last: it holds P, and the unit may read at any time.
        row[2 * (rid & 0xFF) + 1] = entry >> 64
        row[2 * (rid & 0xFF)] = entry & (1 << 64) - 1
        self._attached[rid] = domain
        self.flush_writes()

    def _invalidate_contexts(self, granularity: Granularity, domain_id: int = 0, rid: int = 0) -> None:
        command = CCMD.of(ICC=1, CIRG=granularity, DID=domain_id, SID=rid)
        self._write(Regs.CCMD, command.value)
        done = CCMD(self._wait(Regs.CCMD, CCMD.ICC.mask, 0))
        if not done.CAIG:
            raise VirtfnError(f"the remapping unit refused to invalidate contexts: {command}", errno_name="EIO")

    def _invalidate_iotlb(self, granularity: Granularity, domain_id: int = 0) -> None:
        command = IOTLB.of(IVT=1, IIRG=granularity, DID=domain_id, DW=self._cap.DWD, DR=self._cap.DRD)
        self._registers.write(self._iotlb_at + 8, 8, command.value)
        done = IOTLB(self._wait_at(self._iotlb_at + 8, 8, IOTLB.IVT.mask, 0, "IOTLB"))
        if not done.IAIG:
            raise VirtfnError(f"the remapping unit refused to invalidate its IOTLB: {command}", errno_name="EIO")

    def _command(self, bits: int, until: int, clear: int = 0, gone: int = 0) -> None:
        """Change one bit of GCMD, keep the others as they are, and wait until GSTS agrees."""
        status = self._read(Regs.GSTS) & ~_ONE_SHOT
        self._write(Regs.GCMD, (status | bits) & ~clear)
        self._wait(Regs.GSTS, until | clear | gone, until)

    def _wait(self, decl: Decl, mask: int, value: int) -> int:
        return self._wait_at(decl.offset, decl.size, mask, value, decl.name)

    def _wait_at(self, offset: int, size: int, mask: int, value: int, name: str) -> int:
        deadline = self._clock.now() + 10 * MS_PS
        while True:
            got = self._registers.read(offset, size)
            if got & mask == value:
                return got
            if self._clock.now() >= deadline:
                raise VirtfnError(f"the remapping unit hangs: {name} is {got:#x}", errno_name="ETIMEDOUT")
            self._clock.sleep(US_PS)

    def _read(self, decl: Decl) -> int:
        return self._registers.read(decl.offset, decl.size)

    def _write(self, decl: Decl, value: int) -> None:
        self._registers.write(decl.offset, decl.size, value)

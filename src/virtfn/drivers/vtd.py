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

import itertools
from collections import Counter
from itertools import islice

from virtfn.drivers.pagerequests import Pager, PageRequestHandler
from virtfn.drivers.secondstage import Range, SecondStage, TablePages
from virtfn.drivers.vtdqueue import WHOLE_SPACE, ByQueue, ByRegister, Invalidations, blocks, device_tlb_invalidation
from virtfn.drivers.vtdregisters import Registers, UnitRegisters
from virtfn.hw.bits import Register
from virtfn.hw.types import Hpa, Iova, Rid, format_rid
from virtfn.hw.vtd.queue import (
    ContextInvalidation,
    InterruptInvalidation,
    InvalidationType,
    IotlbInvalidation,
)
from virtfn.hw.vtd.regs import (
    FRCD_HIGH,
    FSTS,
    GCMD,
    GSTS,
    IRTA,
    RTADDR,
    EventControl,
    Fault,
    Granularity,
    Regs,
    decode_fault,
)
from virtfn.hw.vtd.tables import INTERRUPT_RANGE, INTERRUPT_RANGE_END, ContextEntry, RootEntry, Translation
from virtfn.machine.memory import PAGE, HostMemory
from virtfn.machine.ports import Clock, VirtfnError

__all__ = ["Domain", "Registers", "VtdDriver"]

PASS_THROUGH_DOMAIN = 0
# Beyond so many page-selective invalidations, filling the IOTLB again for the whole domain costs less.
_MAX_BLOCKS = 8


class Domain:
    """What one guest's devices can reach: its own addresses, mapped to pages of the machine's memory.

    Lives from `VtdDriver.create_domain` to `destroy`. rids: the requesters attached to it. pager: maps the page at an
    address when a device asks for it, or refuses; by default all are refused.
    """

    def __init__(self, driver: VtdDriver, domain_id: int, tables: SecondStage) -> None:
        self.id = domain_id
        self.rids: set[Rid] = set()
        self.tables = tables
        self.pager: Pager | None = None
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
            self._driver.invalidate_pages(self, iova, nbytes)
        for page in idle:
            self._driver.pages.free(page)
        return done

    def limit_tables(self, most: int) -> None:
        """Let the tables take so many pages at most."""
        self.tables.most = most

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

    queue_errors: what the invalidation queue reported, by field of FSTS: IQE, ICE, ITE.

    Raises VirtfnError if the unit cannot do what this driver needs.
    """

    def __init__(self, registers: Registers, memory: HostMemory, clock: Clock) -> None:
        self._unit = UnitRegisters(registers, clock)
        self._cap, self._ecap = self._unit.cap, self._unit.ecap
        if not self._ecap.C or self._cap.CM or not self._cap.SAGAW & 0b0110:
            raise VirtfnError(f"cannot drive this remapping unit: {self._cap}; {self._ecap}", errno_name="ENODEV")
        self._faults_at = self._cap.FRO * 16
        self.pages = TablePages(memory)
        self.queue_errors: Counter[str] = Counter()
        self._invalidations: Invalidations = ByRegister(self._unit)
        self.domains: dict[int, Domain] = {}
        self._attached: dict[Rid, Domain | None] = {}
        self._device_tlbs: set[Rid] = set()
        self._pages: PageRequestHandler | None = None
        self._contexts: dict[int, Hpa] = {}
        self._root = self.pages.alloc()

    def start(self, fault_event: tuple[int, int] | None = None) -> None:
        """Give the unit its invalidation queue and its root table, and switch remapping on.

        fault_event: address and message of the interrupt for faults; without it, faults are only recorded.
        """
        unit = self._unit
        if self._ecap.QI:
            self._invalidations = ByQueue(unit, self.pages, self.queue_errors)
        unit.write(Regs.RTADDR, RTADDR(self._root).value)
        unit.command(GCMD.SRTP.mask, until=GSTS.RTPS.mask, wanted=GSTS.RTPS.mask)
        self.submit(_contexts(Granularity.GLOBAL), self._translations(Granularity.GLOBAL))
        if fault_event is not None:
            unit.enable_event(fault_event, Regs.FECTL, Regs.FEDATA, Regs.FEADDR, Regs.FEUADDR)
        unit.command(GCMD.TE.mask, until=GSTS.TES.mask, wanted=GSTS.TES.mask)

    def start_interrupts(self, table: Hpa, entries: int) -> None:
        """Give the unit its interrupt remapping table, of a power of two of entries, and switch that remapping on.

        Raises VirtfnError if the unit has no interrupt remapping, or no queue for its invalidations.
        """
        if not (self._ecap.IR and self._ecap.QI):
            raise VirtfnError("the unit has no interrupt remapping", errno_name="ENODEV")
        unit = self._unit
        unit.write(Regs.IRTA, IRTA.of(S=entries.bit_length() - 2).value | table)
        unit.command(GCMD.SIRTP.mask, until=GSTS.IRTPS.mask, wanted=GSTS.IRTPS.mask)
        self.submit(InterruptInvalidation.of(TYPE=InvalidationType.INTERRUPT_ENTRY_CACHE))
        unit.command(GCMD.IRE.mask, until=GSTS.IRES.mask, wanted=GSTS.IRES.mask)

    def invalidate_interrupts(self, index: int, mask: int) -> None:
        """Forget 2**mask cached entries of the interrupt remapping table, from `index` on."""
        kind = InvalidationType.INTERRUPT_ENTRY_CACHE
        self.submit(InterruptInvalidation.of(TYPE=kind, G=1, IIDX=index, IM=mask))

    def start_page_requests(self, event: tuple[int, int] | None = None) -> None:
        """Give the unit its page request queue. event: address and message of the interrupt that calls `serve_pages`.

        Raises VirtfnError if the unit has no page requests, or no queue for the answers.
        """
        if not (self._ecap.PRS and self._ecap.QI):
            raise VirtfnError("the unit has no page requests", errno_name="ENODEV")
        self._pages = PageRequestHandler(self._unit, self.pages, self._grant, self.submit, event)

    def serve_pages(self) -> int:
        """Answer the page requests that wait; return how many."""
        return 0 if self._pages is None else self._pages.serve()

    def _grant(self, rid: Rid, iova: Iova, write: bool) -> bool:
        """Have a page that a requester asks for mapped; another one may have asked for it before."""
        domain = self._attached.get(rid)
        if domain is None or iova >= domain.tables.limit:
            return False
        leaf = next(domain.tables.leaves(iova, PAGE), None)
        there = leaf is not None and (leaf.write if write else leaf.read)
        return there or (domain.pager is not None and domain.pager(iova, write))

    def stop(self) -> None:
        """Switch all remapping off, and the queues: every requester reaches all memory."""
        if self._pages is not None:
            self._pages.close()
            self._pages = None
        self._unit.write(Regs.FECTL, EventControl.IM.mask)
        self._unit.command(0, GCMD.IRE.mask, until=GSTS.IRES.mask, wanted=0)
        self._unit.command(0, GCMD.TE.mask, until=GSTS.TES.mask, wanted=0)
        self._invalidations.close()
        self._invalidations = ByRegister(self._unit)

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

    def submit(self, *descriptors: Register) -> None:
        """Have the unit do descriptors of its invalidation queue, in order, and return when they are done.

        Raises VirtfnError if it refuses one, or it or a device does not answer.
        """
        self._invalidations.submit(descriptors)

    def new_domain(self) -> Domain:
        """Make a domain with the next free number. Raises VirtfnError as `create_domain` does."""
        return self.create_domain(next(n for n in itertools.count(1) if n not in self.domains))

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

    def attach(self, rid: Rid, domain: Domain, device_tlb: bool = False) -> None:
        """Send a requester's DMA through a domain.

        device_tlb: it may cache translations and use them; only after this may ATS be enabled in its configuration, and
        it has to be disabled before it is detached. Raises VirtfnError if it is attached already, the domain is
        destroyed, or the unit allows no device TLBs.
        """
        domain.check_alive()
        if device_tlb and not (self._ecap.DT and self._ecap.QI):
            raise VirtfnError("the unit allows no device TLBs", errno_name="ENODEV")
        kind = Translation.DEVICE_TLB if device_tlb else Translation.SECOND_STAGE
        self._attach(
            rid,
            domain,
            ContextEntry.of(P=1, T=kind, AW=domain.tables.levels - 2, DID=domain.id).value | domain.tables.root,
        )
        domain.rids.add(rid)
        if device_tlb:
            self._device_tlbs.add(rid)

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
        everything = [device_tlb_invalidation(rid)] if rid in self._device_tlbs else []
        self._device_tlbs.discard(rid)
        if domain is not None:
            domain.rids.discard(rid)
        contexts = _contexts(Granularity.SELECTIVE, domain_id, rid)
        self.submit(contexts, self._translations(Granularity.DOMAIN, domain_id), *everything)

    def take_faults(self) -> list[Fault]:
        """Read the recorded faults, oldest first, and clear their records. A full set means that some were lost."""
        taken = []
        status = FSTS(self._unit.read(Regs.FSTS))
        records = self._cap.NFR + 1
        for i in range(records if status.PPF else 0):
            at = self._faults_at + (status.FRI + i) % records * 16
            high = self._unit.window.read(at + 8, 8)
            if FRCD_HIGH(high).F:
                taken.append(decode_fault(self._unit.window.read(at, 8), high))
                self._unit.window.write(at + 8, 8, FRCD_HIGH.F.mask)
        if status.PFO:
            self._unit.write(Regs.FSTS, FSTS.PFO.mask)
        return taken

    def invalidate_pages(self, domain: Domain, iova: int, nbytes: int) -> None:
        """Forget cached translations of a range: page-selective if few blocks cover it, else the domain's.

        Device TLBs come last: until the IOTLB has forgotten a translation, they could ask for it again.
        """
        self.flush_writes()
        pieces = list(islice(blocks(iova // PAGE, nbytes // PAGE, self._cap.MAMV), _MAX_BLOCKS + 1))
        few = len(pieces) <= _MAX_BLOCKS
        batch: list[Register] = []
        if self._cap.PSI and few:
            batch += [self._translations(Granularity.SELECTIVE, domain.id, *piece) for piece in pieces]
        else:
            batch.append(self._translations(Granularity.DOMAIN, domain.id))
        for rid in sorted(domain.rids & self._device_tlbs):
            batch += [device_tlb_invalidation(rid, *piece) for piece in (pieces if few else [(0, WHOLE_SPACE)])]
        self.submit(*batch)

    def flush_writes(self) -> None:
        """Make table writes visible to a unit that asks for it."""
        if self._cap.RWBF:
            self._unit.command(GCMD.WBF.mask, until=GSTS.WBFS.mask, wanted=0)

    def drop_domain(self, domain: Domain) -> None:
        """Forget a domain that nobody uses, and free its tables."""
        del self.domains[domain.id]
        self.submit(self._translations(Granularity.DOMAIN, domain.id))
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

    def _translations(
        self, granularity: Granularity, domain_id: int = 0, page: int = 0, mask: int = 0
    ) -> IotlbInvalidation:
        """Describe the invalidation of translations: all, a domain's, or those of its 2**mask pages from `page` on."""
        return IotlbInvalidation.of(
            TYPE=InvalidationType.IOTLB,
            G=granularity,
            DID=domain_id,
            DW=self._cap.DWD,
            DR=self._cap.DRD,
            ADDR=page,
            AM=mask,
        )


def _contexts(granularity: Granularity, domain_id: int = 0, rid: int = 0) -> ContextInvalidation:
    """Describe the invalidation of contexts: all, a domain's, or that of one requester in it."""
    return ContextInvalidation.of(TYPE=InvalidationType.CONTEXT_CACHE, G=granularity, DID=domain_id, SID=rid)

"""The IOVM: the inventory of VFs, who has which, and under which policy.

    ABSENT --create--> FREE --assign--> ASSIGNED --take_back--> FREE --destroy--> ABSENT
                                 |  ^
                       quarantine v  | release
                                QUARANTINED

An assigned VF may be throttled, too, until `release`. `watch.py` decides when; nobody but a person releases.

Assigning gives a VF a complete virtual configuration space and the VM's own domain in the IOMMU, and plugs it in.
Taking back unplugs it, resets it, and scrubs what its owner left: rings, write-back, filters, mailbox, MSI-X, domain.
It knows VMs by the small Protocol below, and no VMM.
"""

from __future__ import annotations

import enum
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from virtfn.drivers.policy import VfPolicy
from virtfn.drivers.ports import PfDriver
from virtfn.hw.pci import DevCtl, PageRequestControl, PageRequests, Pcie
from virtfn.hw.types import Mac, Rid, format_rid
from virtfn.iovm.nested import NestedPf, NestedVf
from virtfn.iovm.pcim import Found, FoundVf, Pcim
from virtfn.iovm.ports import Remapping
from virtfn.iovm.vconfig import VirtualConfig
from virtfn.iovm.walk import capability_of
from virtfn.iovm.whole import WholeConfig
from virtfn.machine.clock import MS_PS
from virtfn.machine.ports import Clock, ConfigSpace, Device, DmaDomain, VirtfnError
from virtfn.machine.wholecard import CardPf, CardVf

__all__ = ["HostVm", "Iovm", "Vf", "VfState", "Vm"]


class Vm(Protocol):
    """What the IOVM asks of a virtual machine, whatever runs it."""

    name: str

    @property
    def interrupts(self) -> int:
        """Count the interrupts that reached it."""

    def address_space(self, rid: Rid) -> Hashable:
        """Name the address space that a function's DMA is in: functions of one space share a domain."""

    def populate(self, domain: DmaDomain) -> None:
        """Map its memory into the domain of one of its address spaces, now or as it comes."""

    def plug(self, device: Device, rid: Rid, config: ConfigSpace, domain: DmaDomain, *, mapped: bool = True) -> object:
        """Hot-add a function, whose DMA is in `domain`."""

    def unplug(self, rid: Rid, *, surprise: bool = False) -> None:
        """Hot-remove a function."""


class HostVm(Vm, Protocol):
    """A virtual machine that can be a host: it takes a card whose VFs it makes itself."""

    def plug_card(self, device: Device, pf: CardPf, vfs: Sequence[CardVf]) -> None:
        """Hot-add a card: its PF, and the VFs that it can have. `unplug` of the PF takes all out."""


class VfState(enum.Enum):
    """Where a VF is in its life."""

    FREE = "free"
    ASSIGNED = "assigned"
    QUARANTINED = "quarantined"


@dataclass(slots=True)
class Vf:
    """A VF of the inventory. driver: of its PF. throttled: Mb/s that it is held back to, if it is."""

    found: FoundVf
    config: VirtualConfig
    driver: PfDriver
    state: VfState = VfState.FREE
    vm: Vm | None = None
    assignments: int = 0
    throttled: int | None = None

    @property
    def index(self) -> int:
        """Number of the VF on its PF."""
        return self.found.index

    @property
    def rid(self) -> Rid:
        """Routing ID."""
        return self.found.rid

    @property
    def policy(self) -> VfPolicy:
        """The policy in force: what the PF's driver says."""
        return self.driver.policy(self.index)


@dataclass(slots=True)
class _Pf:
    rid: Rid
    device: Device
    driver: PfDriver
    vfs: list[Vf] = field(default_factory=list)


class Iovm:
    """Manager of all VFs of a machine."""

    def __init__(self, pcim: Pcim, remapping: Remapping[Any], clock: Clock) -> None:
        self.pcim = pcim
        self._remapping = remapping
        self._clock = clock
        self._pfs: dict[Rid, _Pf] = {}
        self._domains: dict[Hashable, DmaDomain] = {}
        self._whole: dict[Rid, tuple[Vm, list[Rid]]] = {}  # by PF: its owner, and all functions that came with it

    # PFs and their VFs.

    def adopt(self, pf: Rid, device: Device, driver: PfDriver) -> None:
        """Take a PF with its driver into the inventory."""
        self._pfs[pf] = _Pf(pf, device, driver)

    def create(self, pf: Rid, count: int) -> list[Vf]:
        """Cut a PF into `count` VFs.

        Raises VirtfnError as `Pcim.enable_vfs` does, ENODEV for a PF that was not adopted.
        """
        owner = self._pf(pf)
        found = self.pcim.enable_vfs(pf, count)
        try:
            owner.driver.start(count)
        except VirtfnError:
            self.pcim.disable_vfs(pf)
            raise
        owner.vfs = [Vf(vf, VirtualConfig(self.pcim.bus, vf), owner.driver) for vf in found]
        return owner.vfs

    def destroy(self, pf: Rid, *, last: bool = False) -> None:
        """Take a PF's VFs away. last: the PF goes too, nobody will use it after this.

        Raises VirtfnError, errno EBUSY, while a VM has one.
        """
        owner = self._pf(pf)
        busy = [f"{format_rid(vf.rid)} ({vf.vm.name})" for vf in owner.vfs if vf.vm is not None]
        if busy:
            raise VirtfnError(f"VFs are in use: {', '.join(busy)}", errno_name="EBUSY")
        self.pcim.disable_vfs(pf, last=last)
        owner.driver.end_vfs()
        owner.vfs = []

    def allow_page_requests(self, pf: Rid) -> None:
        """Let a PF and its VFs ask for pages that are not mapped, as many at a time as it can.

        Raises VirtfnError, errno EOPNOTSUPP, if it cannot.
        """
        requests = capability_of(self.pcim.bus, pf, PageRequests)
        if requests is None:
            raise VirtfnError(f"{format_rid(pf)} has no page requests", errno_name="EOPNOTSUPP")
        requests.set(PageRequests.ALLOCATION, requests.get(PageRequests.CAPACITY))
        requests.set(PageRequests.CONTROL, PageRequestControl.of(ENABLE=1).value)

    def _pf(self, pf: Rid) -> _Pf:
        if pf not in self._pfs:
            raise VirtfnError(f"{format_rid(pf)} is not managed", errno_name="ENODEV")
        return self._pfs[pf]

    def inventory(self) -> list[Vf]:
        """List every VF."""
        return [vf for pf in self._pfs.values() for vf in pf.vfs]

    def vfs(self, pf: Rid) -> list[Vf]:
        """List the VFs of a PF, by their numbers. Raises VirtfnError (ENODEV) for a PF that is not managed."""
        return self._pf(pf).vfs

    def vf(self, pf: Rid, index: int) -> Vf:
        """Find a VF by its PF and number.

        Raises VirtfnError, errno ENODEV, if there is none.
        """
        owner = self._pf(pf)
        if not 0 <= index < len(owner.vfs):
            raise VirtfnError(f"{format_rid(pf)} has no VF {index}: {len(owner.vfs)} are enabled", errno_name="ENODEV")
        return owner.vfs[index]

    # Assigning and taking back.

    def assign(
        self, vf: Vf, vm: Vm, policy: VfPolicy | None = None, mac: Mac | None = None, *, mapped: bool = True
    ) -> None:
        """Give a VF to a VM and plug it in; if anything refuses, the VF is free again, and as new.

        mac: the address to offer where the policy fixes none; without it, any. mapped: map its ring registers into the
        VM. Raises VirtfnError: EBUSY if the VF is not free, ENODEV if it is no more, what the PF's driver or the VM's
        refuses.
        """
        if vf.state is not VfState.FREE:
            holder = f", by {vf.vm.name}" if vf.vm is not None else ""
            raise VirtfnError(f"VF {format_rid(vf.rid)} is {vf.state.value}{holder}", errno_name="EBUSY")
        owner = self._pf(vf.found.physfn)
        if not any(vf is known for known in owner.vfs):
            raise VirtfnError(f"VF {format_rid(vf.rid)} was taken away", errno_name="ENODEV")
        policy = policy or VfPolicy()
        vf.state, vf.vm = VfState.ASSIGNED, vm
        try:
            owner.driver.set_policy(vf.index, policy)
            if not policy.mac:
                owner.driver.offer_mac(vf.index, mac)
            domain = self._domain_of(vm, vf.rid)
            self._remapping.attach(vf.rid, domain, device_tlb=vf.config.has_ats)
            vf.config.set_ats(True)
            vm.plug(owner.device, vf.rid, vf.config, domain, mapped=mapped)
        except VirtfnError:
            self.take_back(vf, surprise=True)
            raise
        vf.assignments += 1

    def _domain_of(self, vm: Vm, rid: Rid) -> DmaDomain:
        """Find the domain of an address space, or make it. Two VMs of one name are two all the same."""
        space = vm.address_space(rid)
        if space not in self._domains:
            self._domains[space] = self._remapping.new_domain()
            vm.populate(self._domains[space])
        return self._domains[space]

    def take_back(self, *vfs: Vf, surprise: bool = False) -> None:
        """Unplug VFs from their VMs and make them as new; one wait serves all. surprise: do not ask the guests.

        Raises VirtfnError, errno EINVAL, if nobody has one of them; then none is touched. Errno EIO if one cannot be
        reset; all are taken back then, too.
        """
        owners: list[tuple[Vf, Vm]] = []
        for vf in vfs:
            if vf.vm is None:
                raise VirtfnError(f"VF {format_rid(vf.rid)} is assigned to nobody", errno_name="EINVAL")
            if not any(vf is known for known, _ in owners):
                owners.append((vf, vf.vm))
        for vf, vm in owners:
            # A VM that has lost its function already is no reason to leave the VF as it is.
            with suppress(VirtfnError):
                vm.unplug(vf.rid, surprise=surprise)
            vf.config.set_ats(False)
        try:
            self.reset(*vfs)
        finally:
            for vf, vm in owners:
                driver = self._pf(vf.found.physfn).driver
                driver.serve()
                driver.release_vf(vf.index)
                vf.config.reset()
                vf.state, vf.vm, vf.throttled = VfState.FREE, None, None
                self._detach(vf.rid, vm)

    def _detach(self, rid: Rid, vm: Vm) -> None:
        """Refuse the VF's DMA, and give up the domain with its last VF."""
        space = vm.address_space(rid)
        domain = self._domains.get(space)
        if domain is None:
            return
        if rid in domain.rids:
            self._remapping.detach(rid)
        if not domain.rids:
            domain.destroy()
            del self._domains[space]

    def lend(self, pf: Rid, vm: Vm) -> None:
        """Let the DMA of a PF that is driven here reach the memory of a VM: Dom0's, whose network stack is on it.

        Raises VirtfnError as the remapping unit's driver does.
        """
        domain = self._domain_of(vm, pf)
        try:
            self._remapping.attach(pf, domain)
        except VirtfnError:
            self._detach(pf, vm)
            raise

    def take_home(self, pf: Rid, vm: Vm) -> None:
        """End that: the PF reaches nothing any more."""
        self._detach(pf, vm)

    def assign_whole(self, pf: Found, device: Device, vm: Vm) -> None:
        """Give a PF that nobody manages to a VM, whole, and plug it in.

        Raises VirtfnError: EBUSY if it is managed here or has an owner, and what the VM's driver refuses.
        """
        self._refuse_taken(pf.rid)
        (domain,) = self._claim(vm, pf.rid)
        with self._or_take_back(pf.rid):
            vm.plug(device, pf.rid, WholeConfig(self.pcim.bus, pf), domain, mapped=True)

    def assign_host(self, pf: Found, device: Device, vm: HostVm) -> None:
        """Give a PF that nobody manages to a VM with all VFs that it can have: the VM is the host that makes them.

        Raises VirtfnError as `assign_whole`, and ENOSYS for a PF that can have none.
        """
        self._refuse_taken(pf.rid)
        config = NestedPf(self.pcim.bus, pf, self._clock.now)
        found = self.pcim.enable_vfs(pf.rid, pf.total_vfs)
        vfs = [NestedVf(self.pcim.bus, vf, config) for vf in found]
        # The second that a PF needs after this passes before a guest can ask for VFs: plugging it in resets it.
        self.pcim.disable_vfs(pf.rid, last=True)
        domain, *domains = self._claim(vm, pf.rid, *(vf.rid for vf in found))
        with self._or_take_back(pf.rid):
            parts = [CardVf(vf.rid, space, its) for vf, space, its in zip(found, vfs, domains, strict=True)]
            vm.plug_card(device, CardPf(pf.rid, config, domain), parts)

    def _refuse_taken(self, pf: Rid) -> None:
        if pf in self._pfs or pf in self._whole:
            raise VirtfnError(f"{format_rid(pf)} is in use", errno_name="EBUSY")

    def _claim(self, vm: Vm, pf: Rid, *vfs: Rid) -> list[DmaDomain]:
        """Make a VM the owner of a PF, and of VFs that may come; return the domain of each, the PF's first."""
        self._whole[pf] = vm, [pf, *vfs]
        domains = []
        try:
            for rid in (pf, *vfs):
                domains.append(self._domain_of(vm, rid))
                self._remapping.attach(rid, domains[-1])
        except VirtfnError:
            self._disown(pf)
            raise
        return domains

    @contextmanager
    def _or_take_back(self, pf: Rid) -> Iterator[None]:
        try:
            yield
        except VirtfnError:
            self.take_back_whole(pf, surprise=True)
            raise

    def _disown(self, pf: Rid) -> None:
        """Refuse the DMA of a PF that a VM had, and of its VFs."""
        vm, rids = self._whole.pop(pf)
        for rid in rids:
            self._detach(rid, vm)

    def take_back_whole(self, pf: Rid, *, surprise: bool = False) -> None:
        """Unplug a PF from its only owner, with the VFs that came with it, and reset it.

        Raises VirtfnError, errno EINVAL, if nobody has it.
        """
        if pf not in self._whole:
            raise VirtfnError(f"{format_rid(pf)} is assigned to nobody", errno_name="EINVAL")
        vm, _ = self._whole[pf]
        with suppress(VirtfnError):
            vm.unplug(pf, surprise=surprise)
        try:
            self._reset_functions(pf)
        finally:
            self._disown(pf)

    def reset(self, *vfs: Vf) -> None:
        """Reset VFs by FLR and wait until they answer again.

        Raises VirtfnError if one has no FLR; the others are reset.
        """
        try:
            self._reset_functions(*(vf.rid for vf in vfs))
        finally:
            for vf in vfs:
                vf.config.restore_ats()

    def _reset_functions(self, *rids: Rid) -> None:
        stuck = []
        for rid in rids:
            pcie = capability_of(self.pcim.bus, rid, Pcie)
            if pcie is None:
                stuck.append(format_rid(rid))
            else:
                pcie.set(Pcie.DEVCTL, pcie.get(Pcie.DEVCTL) | DevCtl.FLR.mask)
        self._clock.sleep(100 * MS_PS)
        if stuck:
            raise VirtfnError(f"{', '.join(stuck)} cannot be reset", errno_name="EIO")

    # What is done about an owner that misbehaves: it holds until `release`, or until the VF is taken back.

    def throttle(self, vf: Vf, mbps: int) -> None:
        """Hold a VF back: what it sends, its interrupts, and how many of its messages are answered.

        Raises VirtfnError: EINVAL if nobody has it, what the PF's driver refuses.
        """
        if vf.state is not VfState.ASSIGNED:
            raise VirtfnError(f"VF {format_rid(vf.rid)} is {vf.state.value}, not assigned", errno_name="EINVAL")
        self._pf(vf.found.physfn).driver.throttle(vf.index, mbps)
        vf.throttled = mbps

    def quarantine(self, vf: Vf) -> None:
        """Stop a VF that its guest still holds: nothing goes in or out, and the guest sees no link.

        Raises VirtfnError, errno EINVAL, if nobody has it, or it is stopped already.
        """
        if vf.state is not VfState.ASSIGNED:
            raise VirtfnError(f"VF {format_rid(vf.rid)} is {vf.state.value}, not assigned", errno_name="EINVAL")
        self._pf(vf.found.physfn).driver.stop_vf(vf.index)
        vf.state = VfState.QUARANTINED

    def release(self, vf: Vf) -> None:
        """Let a VF run again that was quarantined or throttled.

        Raises VirtfnError, errno EINVAL, if it was neither.
        """
        if vf.state is not VfState.QUARANTINED and vf.throttled is None:
            raise VirtfnError(f"VF {format_rid(vf.rid)} is {vf.state.value}, not quarantined", errno_name="EINVAL")
        driver = self._pf(vf.found.physfn).driver
        if vf.throttled is not None:
            driver.throttle(vf.index, None)
            vf.throttled = None
        if vf.state is VfState.QUARANTINED:
            driver.start_vf(vf.index)
            vf.state = VfState.ASSIGNED

"""The life of VFs, whatever order things come in: who has which, what reaches what, and the allocator beneath."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from unit.rig import Rig, frame, send, take
from virtfn.drivers.igbvf import State
from virtfn.drivers.policy import VfPolicy
from virtfn.hw.types import Iova, Mac
from virtfn.iovm.iovm import VfState
from virtfn.machine.clock import VirtualClock
from virtfn.machine.memory import PAGE
from virtfn.machine.ports import VirtfnError
from virtfn.vmm.guest import Guest, GuestDma
from virtfn.vmm.host import Host

MIB = 1 << 20
VFS, GUESTS = st.integers(0, 3), st.integers(0, 2)


class VfLife(RuleBasedStateMachine):
    """A machine whose VFs wander between three guests, are quarantined, reset, taken away and made anew."""

    @initialize()
    def bring_up(self):
        self.rig = Rig()
        self.rig.__enter__()
        self.iovm, self.pf = self.rig.iovm, self.rig.nic.pf_rid
        self.iovm.take_back(self.rig.vf(0), self.rig.vf(1))
        self.guests = [self.rig.spare_guest(f"g{i}", ring=80) for i in range(3)]
        for i, guest in enumerate(self.guests):
            guest.memory.bytes[-8:] = i + 1
        self.owners: dict[int, int] = {}
        self.quarantined: set[int] = set()
        self.vfs = 4

    def teardown(self):
        if hasattr(self, "rig"):
            for guest in self.guests:
                guest.close()
            self.rig.__exit__()

    def driver(self, n):
        return self.guests[self.owners[n]].nic(self.rig.vf(n).rid).driver

    @rule(n=VFS, g=GUESTS, trust=st.booleans(), vlan=st.sampled_from([0, 0, 10]), mac=st.booleans())
    def assign(self, n, g, trust, vlan, mac):
        policy = VfPolicy(mac=Mac((0x30 + n) << 40 | 2) if mac else Mac(0), trust=trust, vlan=vlan)
        if n >= self.vfs:
            with pytest.raises(VirtfnError, match=r"no VF|has no"):
                self.rig.vf(n)
            return
        if n in self.owners:
            with pytest.raises(VirtfnError, match=r"is assigned|is quarantined"):
                self.iovm.assign(self.rig.vf(n), self.guests[g], policy)
            return
        self.iovm.assign(self.rig.vf(n), self.guests[g], policy, Mac((0x40 + n) << 40 | 2))
        self.owners[n] = g
        if len(self.guests[g].nics) <= 3:
            self.driver(n).start()

    @rule(n=VFS, surprise=st.booleans())
    def take_back(self, n, surprise):
        if n >= self.vfs:
            return
        if n not in self.owners:
            with pytest.raises(VirtfnError, match="nobody"):
                self.iovm.take_back(self.rig.vf(n), surprise=surprise)
            return
        self.iovm.take_back(self.rig.vf(n), surprise=surprise)
        del self.owners[n]
        self.quarantined.discard(n)

    @rule(n=VFS)
    def quarantine(self, n):
        if n < self.vfs:
            if n in self.owners and n not in self.quarantined:
                self.iovm.quarantine(self.rig.vf(n))
                self.quarantined.add(n)
            else:
                with pytest.raises(VirtfnError, match="not assigned"):
                    self.iovm.quarantine(self.rig.vf(n))

    @rule(n=VFS)
    def release(self, n):
        if n < self.vfs:
            if n in self.quarantined:
                self.iovm.release(self.rig.vf(n))
                self.quarantined.discard(n)
            else:
                with pytest.raises(VirtfnError, match="not quarantined"):
                    self.iovm.release(self.rig.vf(n))

    @rule()
    def reset_the_pf(self):
        self.rig.igb.reset()
        for guest in self.guests:
            guest.run_interrupts()
        for n in self.owners:
            if self.driver(n).state is not State.PROBED:
                self.driver(n).recover()

    @rule(count=st.integers(1, 4))
    def cut_anew(self, count):
        if self.owners:
            with pytest.raises(VirtfnError, match="in use"):
                self.iovm.destroy(self.pf)
            return
        self.iovm.destroy(self.pf)
        self.iovm.create(self.pf, count)
        self.vfs = count

    @precondition(lambda self: len(self.owners) >= 2)
    @rule(pick=st.randoms(use_true_random=False))
    def send_a_frame(self, pick):
        source, target = pick.sample(sorted(self.owners), 2)
        a, b = self.driver(source), self.driver(target)
        if not (a.netdev["up"] and b.netdev["up"]):
            return
        take(b)
        self.rig.nic.serve()
        take(b)
        send(a, frame(b.mac, a.mac))
        self.rig.nic.serve()
        for guest in self.guests:
            guest.run_interrupts()
        vlans = [self.rig.vf(n).policy.vlan for n in (source, target)]
        open_ = not self.quarantined & {source, target} and vlans[0] == vlans[1]
        assert len(take(b)) == int(open_)

    @invariant()
    def everybody_agrees_who_has_what(self):
        if not hasattr(self, "rig"):
            return
        host = self.rig.machine.host
        assert len(self.iovm.inventory()) == self.vfs
        for vf in self.iovm.inventory():
            owner = self.owners.get(vf.index)
            wanted = VfState.FREE if owner is None else VfState.ASSIGNED
            assert vf.state is (VfState.QUARANTINED if vf.index in self.quarantined else wanted)
            seen = host.dma_read(vf.rid, Iova(4 * MIB - 8), 8)
            assert seen == (None if owner is None else bytes([owner + 1]) * 8)
            holders = [g for g, guest in enumerate(self.guests) if any(n.function.rid == vf.rid for n in guest.nics)]
            assert holders == ([] if owner is None else [owner])
        assert len(host.remapping.domains) == len(set(self.owners.values()))
        assert len(host.interrupt_table.entries()) == 1 + 3 * len(self.owners)


VfLife.TestCase.settings = settings(max_examples=12, stateful_step_count=20, deadline=None)
test_vf_life = VfLife.TestCase


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.tuples(
            st.booleans(), st.integers(1, 300_000), st.sampled_from([1, PAGE, 2 * PAGE, 1 << 16]), st.integers(0)
        ),
        max_size=40,
    )
)
def test_allocations_are_disjoint_and_freeing_all_gives_all_back(steps, shared_guest):
    dma = GuestDma(shared_guest.memory)
    held: dict[int, int] = {}
    for take_one, size, align, which in steps:
        if take_one:
            try:
                iova, hva = dma.alloc(size, align)
            except VirtfnError:
                pages = -(-size // PAGE) * PAGE
                assert not any(-(-start // align) * align + pages <= start + length for start, length in dma._free)
                continue
            assert iova % max(align, PAGE) == 0
            assert iova + size <= shared_guest.memory.size
            assert hva == shared_guest.memory.base + iova
            assert all(iova + size <= at or at + had <= iova for at, had in held.items())
            held[iova] = -(-size // PAGE) * PAGE
        elif held:
            at = sorted(held)[which % len(held)]
            dma.free(Iova(at))
            del held[at]
        free = sum(length for _, length in dma._free)
        assert free + sum(held.values()) == shared_guest.memory.size
    for at in list(held):
        dma.free(Iova(at))
    assert dma._free == [(0, shared_guest.memory.size)]


@pytest.fixture(scope="module")
def shared_guest():
    host = Host(VirtualClock(), 4 * MIB)
    guest = Guest(host, "allocator", 2 * MIB)
    guest.memory.bytes[:] = random.Random(1).randbytes(1)[0]
    yield guest
    guest.close()
    host.close()

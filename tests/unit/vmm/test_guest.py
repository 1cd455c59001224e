"""Guests: memory and its allocator, hot-plug, interrupts by vector."""

from __future__ import annotations

import pytest

from unit.rig import Rig, frame, send, take
from virtfn.hw.types import Iova, Rid
from virtfn.machine.clock import VirtualClock
from virtfn.machine.memory import PAGE
from virtfn.machine.ports import VirtfnError
from virtfn.vmm.guest import Guest, GuestDma
from virtfn.vmm.host import Host, HostBar

MIB = 1 << 20


@pytest.fixture
def host():
    made = Host(VirtualClock(), 64 * MIB)
    yield made
    made.close()


def refusal(call) -> str:
    with pytest.raises(VirtfnError) as caught:
        call()
    return caught.value.errno_name


# Memory.


def test_the_allocator_gives_whole_zeroed_pages(host):
    guest = Guest(host, "g", 4 * MIB)
    guest.memory.bytes[:] = 0xEE
    iova, hva = guest.dma.alloc(5000)
    assert iova % PAGE == 0
    assert hva == guest.memory.base + iova
    assert not guest.memory.bytes[iova : iova + 2 * PAGE].any()
    assert guest.memory.bytes[iova + 2 * PAGE] == 0xEE
    wide, _ = guest.dma.alloc(1, align=1 << 16)
    assert wide % (1 << 16) == 0
    guest.close()


def test_the_allocator_refuses_nonsense(host):
    guest = Guest(host, "g", 2 * MIB)
    for size, align in ((0, PAGE), (-1, PAGE), (1, 0), (1, 3), (1, -4096)):
        assert refusal(lambda size=size, align=align: guest.dma.alloc(size, align)) == "EINVAL"
    iova, _ = guest.dma.alloc(PAGE)
    guest.dma.free(iova)
    assert refusal(lambda: guest.dma.free(iova)) == "EINVAL"
    assert refusal(lambda: guest.dma.free(Iova(12345))) == "EINVAL"
    assert refusal(lambda: guest.dma.alloc(2 * MIB + 1)) == "ENOMEM"
    guest.dma.alloc(2 * MIB)
    assert refusal(lambda: guest.dma.alloc(1)) == "ENOMEM"
    guest.close()


def test_no_dma_memory_lies_where_messages_go():
    hole = range(0xFEE00000, 0xFF000000)
    host = Host(VirtualClock(), 4096 * MIB)
    guest = Guest(host, "large", 4096 * MIB)
    assert not any(gpa in hole for gpa, _, _ in guest.mappings())
    assert sum(size for _, _, size in guest.mappings()) == 4096 * MIB - len(hole)
    dma = GuestDma(guest.memory)
    assert dma._free == [(0, hole.start), (hole.stop, 4096 * MIB - hole.stop)]
    guest.close()
    host.close()


# Hot-plug.


class NoFunction:
    """A configuration space of something the guest has no driver for."""

    def __init__(self, config, ids=0x10CA8087):
        self.config, self.ids = config, ids

    def read(self, offset, size):
        return self.ids if offset == 0 and size == 4 else self.config.read(offset, size)

    def write(self, offset, size, value):
        self.config.write(offset, size, value)


def test_an_unknown_function_is_refused():
    with Rig() as rig:
        guest = rig.spare_guest()
        vf = rig.vf(2)
        entries = rig.machine.host.interrupt_table.entries()
        with pytest.raises(VirtfnError, match="no driver for 8087:10ca"):
            guest.plug(rig.nic, vf.rid, NoFunction(vf.config))
        assert guest.nics == []
        assert rig.machine.host.interrupt_table.entries() == entries


def test_a_function_without_msix_is_refused():
    class Bare:
        def read(self, offset, size):
            return 0x40 if offset == 0x34 else 0

        def write(self, offset, size, value):
            pass

    with Rig() as rig, pytest.raises(VirtfnError, match="no capability 0x11"):
        rig.spare_guest().plug(rig.nic, rig.vf(2).rid, Bare())


def test_a_loop_of_capabilities_ends():
    class Loop:
        def read(self, offset, size):
            return {0x34: 0x40, 0x40: 5, 0x41: 0x40}.get(offset, 0)

        def write(self, offset, size, value):
            pass

    with Rig() as rig, pytest.raises(VirtfnError, match="no capability 0x11"):
        rig.spare_guest().plug(rig.nic, rig.vf(2).rid, Loop())


def test_unplugging_what_is_not_there_is_refused():
    with Rig() as rig:
        assert refusal(lambda: rig.guest(0).unplug(Rid(0xFFF0))) == "ENODEV"


def test_a_driver_that_cannot_say_goodbye_is_not_waited_for():
    with Rig() as rig:
        driver = rig.driver(0)
        rig.igb.stop()
        rig.guest(0).unplug(rig.vf(0).rid)
        assert driver.state.value == "gone"
        assert rig.guest(0).dma._used == {}


def test_interrupts_pending_for_a_removed_function_vanish():
    with Rig() as rig:
        send(rig.driver(1), frame(rig.driver(0).mac, rig.driver(1).mac))
        rig.nic.serve()
        assert rig.guest(0).interrupted
        rig.guest(0).unplug(rig.vf(0).rid, surprise=True)
        assert not rig.guest(0).interrupted
        assert rig.guest(0).run_interrupts() == 0


def test_two_functions_of_one_guest_have_their_own_bars_and_vectors():
    with Rig() as rig:
        guest = rig.guest(0)
        rig.iovm.assign(rig.vf(2), guest)
        second = guest.nic(rig.vf(2).rid)
        second.driver.start()
        bars = {nic.function.config.read(0x10, 4) & ~0xF for nic in guest.nics}
        assert len(bars) == 2
        send(rig.driver(1), frame(second.driver.mac, rig.driver(1).mac))
        rig.serve()
        assert second.driver.netdev["polling"] == 1
        assert not rig.driver(0).netdev["polling"]


# Scattered memory.


def test_a_guest_scattered_page_by_page_works_end_to_end():
    with Rig() as rig:
        guests = [rig.spare_guest(name, mib=8, chunk=PAGE, mtu=9000, ring=128) for name in "xy"]
        for n, guest in enumerate(guests, 2):
            rig.iovm.assign(rig.vf(n), guest)
            guest.nics[0].driver.start()
        x, y = (guest.nics[0].driver for guest in guests)
        bodies = [frame(y.mac, x.mac, bytes(range(256)) * 35, length=9000), frame(y.mac, x.mac, b"small")]
        for _ in range(3 * 128 // 2):
            send(x, *bodies)
            rig.nic.serve()
            assert take(y) == bodies
        assert rig.machine.host.iommu.stats()["faults"] == 0


def test_memory_of_other_guests_stays_as_it_is():
    with Rig() as rig:
        watched = rig.spare_guest("watched", chunk=PAGE)
        watched.memory.bytes[:] = 0x5A
        assert rig.engine("pairs", 2000).run()
        assert (watched.memory.bytes == 0x5A).all()


# The host's side.


def test_a_host_bar_is_32_bits_wide_and_nothing_is_mapped():
    with Rig() as rig:
        csr = next(bar for bar in rig.pf.found.bars if bar.bar == 0)
        bar = HostBar(rig.machine.host.root, csr.address)
        bar.write(0x5004, 0x1_0000_0600)
        assert bar.read(0x5004) == 0x600
        assert bar.mapped(0x2818) is None
        assert HostBar(rig.machine.host.root, 0x10).read(0) == 0xFFFFFFFF


def test_faults_are_told_by_interrupt_and_their_records_are_freed():
    with Rig() as rig:
        host = rig.machine.host
        for k in range(20):
            assert host.dma_read(rig.vf(0).rid, Iova((1 << 40) + 4096 * k), 4) is None
        assert host.faults_read == 20
        assert host.iommu.stats()["faults_lost"] == 0

"""A card with VFs that its guest makes, behind sockets: how who plays QEMU learns where VFs are, and when not."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from concurrent.futures import Future

import pytest

from unit.slotrig import SILICON_MAC
from unit.vmm.vfio_user.peer import Peer, memory_file, settle
from virtfn.devices.nic82576 import Card, Nic82576
from virtfn.hw.pci import Command as PciCommand
from virtfn.iovm.nested import NestedPf, NestedVf
from virtfn.iovm.pcim import Pcim
from virtfn.machine.clock import MS_PS, S_PS, VirtualClock
from virtfn.machine.memory import CHUNK
from virtfn.machine.ports import VirtfnError
from virtfn.vmm.host import Host
from virtfn.vmm.hostcard import ConfigWrite, Member, Placement
from virtfn.vmm.served import SharedFiles
from virtfn.vmm.vfio_user.messages import Command

CONFIG, BAR0, BAR3 = 7, 0, 3
SRIOV = 0x160
WINDOW, BUS, PORT = 0xB000_0000, 5, 0x80
ADDRESS0, ADDRESS3 = 0xFD82_4000, 0xFD84_4000
VFS = 3


class Machinery:
    """What QEMU does from outside: notes what it is asked, and does it to the peers of VFs."""

    port = PORT

    def __init__(self) -> None:
        self.asked: list[tuple[ConfigWrite, ...] | None] = []
        self.futures: list[Future] = []

    def config_window(self) -> Future[int]:
        self.asked.append(None)
        self.futures.append(Future())
        return self.futures[-1]

    def write_config(self, writes) -> Future[None]:
        self.asked.append(tuple(writes))
        self.futures.append(Future())
        return self.futures[-1]


class Rig:
    """A card of three VFs at sockets, and a peer at each: a guest's configuration accesses, and QEMU's."""

    def __init__(self, folder) -> None:
        self.clock = VirtualClock()
        self.host = Host(self.clock, CHUNK, slots=1, foreign_bytes=16 * CHUNK)
        self.nic = Nic82576(self.host, self.host.iommu.iommu, Card(SILICON_MAC, total_vfs=VFS))
        self.host.root.attach(self.nic)
        pcim = Pcim(self.host.root, self.clock)
        pcim.scan()
        found = pcim.functions[self.nic.pf_rid]
        self.space = NestedPf(pcim.bus, found, self.clock.now)
        self.spaces = [NestedVf(pcim.bus, vf, self.space) for vf in pcim.enable_vfs(found.rid, VFS)]
        pcim.disable_vfs(found.rid, last=True)
        self.files = SharedFiles(self.host.memory, 16 * CHUNK)
        self.members = []
        for n, space in enumerate((self.space, *self.spaces)):
            domain = self.host.remapping.create_domain(n + 1)
            self.host.remapping.attach(space.vf.rid, domain)
            self.members.append(Member(self.host, self.nic, space.vf.rid, space, domain, self.files, folder / f"s{n}"))
        self.machinery = Machinery()
        pairs = list(zip(self.members[1:], self.spaces, strict=True))
        self.placement = Placement(self.members[0], self.space, pairs, self.machinery, self.clock)
        self.peers = [Peer(member.server) for member in self.members]
        self.pf, *self.vfs = self.peers

    def close(self) -> None:
        for peer in self.peers:
            peer.close()
        for member in self.members:
            member.close()
        self.files.close()
        self.nic.close()
        self.host.close()

    def turn(self) -> None:
        for member in self.members:
            settle(member.server)
        self.placement.follow()

    # The guest.

    def boot(self, *, master: bool = True, memory_at: int = 0) -> None:
        """QEMU has looked and resets; the guest places BARs of VFs, and lets the PF master the bus."""
        for peer in self.peers:
            peer.call(Command.DEVICE_RESET)
        self.pf.map(memory_at, CHUNK, memory_file(CHUNK))
        self.sriov(0x08, 0x10, 2)
        for at, value in ((0x24, ADDRESS0), (0x28, 0), (0x30, ADDRESS3), (0x34, 0)):
            self.sriov(at, value, 4)
        if master:
            self.pf.write(CONFIG, 4, (6).to_bytes(2, "little"))

    def sriov(self, at: int, value: int, size: int) -> None:
        self.pf.write(CONFIG, SRIOV + at, value.to_bytes(size, "little"))

    def enable(self, count: int) -> None:
        self.sriov(0x10, count, 2)
        self.sriov(0x08, 0x19, 2)
        self.clock.sleep(100 * MS_PS)

    def disable(self) -> None:
        self.sriov(0x08, 0x10, 2)

    # QEMU.

    def tell_window(self) -> None:
        self.turn()
        self.machinery.futures.pop().set_result(WINDOW)
        self.turn()

    def answer_round(self, *, refuse: int = 0) -> list[ConfigWrite]:
        """Answer a question for the bus, then writes, and do them to VFs; return them."""
        self.turn()
        header, address, count, _ = self.pf.take_dma(Command.DMA_READ)
        assert (address, count) == (WINDOW | PORT << 12 | 0x19, 1)
        self.pf.answer(header, header_body(address, count) + bytes([BUS]), refuse)
        self.turn()
        done = []
        while not self.pf.quiet():
            header, address, count, data = self.pf.take_dma(Command.DMA_WRITE)
            assert address >> 20 == (WINDOW >> 20) + BUS
            write = ConfigWrite(address >> 12 & 0xFF, address & 0xFFF, count, int.from_bytes(data, "little"))
            self.do(write)
            done.append(write)
            self.pf.answer(header)
        self.turn()
        return done

    def do(self, write: ConfigWrite) -> None:
        n = next(n for n, space in enumerate(self.spaces) if space.function == write.function)
        self.vfs[n].write(CONFIG, write.offset, write.value.to_bytes(write.size, "little"))


def header_body(address: int, count: int) -> bytes:
    return address.to_bytes(8, "little") + count.to_bytes(8, "little")


@pytest.fixture
def rig(tmp_path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.close()


def bars(rig: Rig, count: int = VFS) -> list[tuple[int, int, bool]]:
    return [(space.bar_address(0), space.bar_address(3), space.memory_enabled) for space in rig.spaces[:count]]


def where(n: int, *, on: bool) -> tuple[int, int, bool]:
    return ADDRESS0 + n * 0x4000, ADDRESS3 + n * 0x4000, on


def test_extended_capabilities_and_msi_x_come_with_the_first_reset(rig):
    for peer in rig.peers:
        assert peer.read(CONFIG, 0x70, 1) == b"\x09"
        whole = peer.read(CONFIG, 0, 4096)
        assert not any(whole[0x100:])
        assert peer.read(CONFIG, 0xFE, 4)[2:] == bytes(2)
        peer.call(Command.DEVICE_RESET)
        assert (peer.read(CONFIG, 0x70, 1), peer.read(CONFIG, 0x100, 1)) == (b"\x11", b"\x01")
    assert rig.pf.read(CONFIG, SRIOV, 2) == b"\x10\x00"
    assert rig.vfs[0].read(CONFIG, 0, 4) == b"\xff" * 4


def test_ring_pages_of_vfs_that_are_not_there_yet_can_be_mapped(rig):
    _, fds = rig.vfs[2].region_info(BAR0, 64)
    assert len(fds) == 1
    assert rig.pf.region_info(BAR0, 64)[1] == []


def test_bars_are_placed_early_and_opened_with_vf_enable_by_dma_of_the_pf(rig):
    rig.boot()
    rig.tell_window()
    assert len(rig.answer_round()) == 2 * VFS, "their high halves are 0 already"
    assert bars(rig) == [where(n, on=False) for n in range(VFS)]
    rig.enable(2)
    writes = rig.answer_round()
    assert [(write.function, write.offset, write.value) for write in writes] == [(0x80, 4, 2), (0x82, 4, 2)]
    assert bars(rig) == [where(0, on=True), where(1, on=True), where(2, on=False)]
    rig.turn()
    assert rig.pf.quiet(), "there is nothing left to say"
    rig.disable()
    assert [(write.offset, write.value & 2) for write in rig.answer_round()] == [(4, 0), (4, 0)]
    assert bars(rig, 1) == [where(0, on=False)]
    assert rig.placement.counts == {"by dma": 3}
    assert rig.machinery.asked == [None], "the window is asked for once"


def test_bars_beyond_all_addresses_are_not_placed(rig):
    rig.boot()
    rig.sriov(0x24, 0xFFFFFFFF, 4)
    rig.sriov(0x28, 0xFFFFFFFF, 4)
    rig.tell_window()
    rig.answer_round()
    assert bars(rig) == [(0xFFFF_FFFF_FFFF_C000, ADDRESS3, False)] + [(0, ADDRESS3 + n * 0x4000, False) for n in (1, 2)]


@pytest.mark.parametrize("error", [ValueError("no"), OverflowError("no")])
def test_a_round_with_numbers_that_nobody_takes_has_failed(rig, error):
    rig.boot(master=False)
    rig.enable(1)
    rig.turn()
    rig.machinery.futures.pop().set_exception(error)
    rig.turn()
    assert (rig.placement.counts, rig.placement.why) == ({"failed": 1}, "no")


def test_a_guest_that_closes_a_vf_finds_it_open_again(rig):
    rig.boot()
    rig.tell_window()
    rig.answer_round()
    rig.enable(1)
    rig.answer_round()
    rig.vfs[0].write(CONFIG, 4, (0x404).to_bytes(2, "little"))
    (write,) = rig.answer_round()
    assert PciCommand(write.value) == PciCommand.of(MEM=1, BME=1, INTX_DISABLE=1)


def test_a_guest_that_masters_the_bus_meanwhile_stays_a_master(rig):
    rig.boot()
    rig.tell_window()
    rig.answer_round()
    rig.enable(1)
    rig.turn()
    rig.vfs[0].write(CONFIG, 4, (6).to_bytes(2, "little"))
    assert rig.spaces[0].bus_master
    (stale,) = rig.answer_round()
    assert stale.value == 2, "decided on before"
    assert rig.spaces[0].bus_master
    (again,) = rig.answer_round()
    assert again.value == 6
    rig.turn()
    assert rig.pf.quiet()
    rig.vfs[0].write(CONFIG, 4, (2).to_bytes(2, "little"))
    assert not rig.spaces[0].bus_master
    rig.turn()
    assert rig.pf.quiet()


def test_what_a_vf_had_is_gone_with_it(rig):
    rig.boot()
    rig.tell_window()
    rig.answer_round()
    rig.enable(1)
    rig.answer_round()
    vf = rig.vfs[0]
    for at, value in ((0, 0xFEE0_1000), (4, 0), (8, 0x4021), (12, 0)):
        vf.write(BAR3, at, value.to_bytes(4, "little"))
    assert vf.read(BAR3, 0, 16) == bytes.fromhex("0010e0fe000000002140000000000000")
    entries = len(rig.host._vectors)
    rig.disable()
    assert len(rig.host._vectors) == entries - 1
    assert vf.read(BAR3, 8, 4) == bytes(4)
    assert int.from_bytes(vf.read(BAR0, 8, 4), "little") == 0xFFFFFFFF, "no register answers"


@pytest.mark.parametrize("why", ["translated", "no bus master"])
def test_where_dma_of_the_pf_does_not_get_there_ports_do_after_a_while(rig, why):
    rig.boot(master=why == "translated", memory_at=0x1_0000_0000 if why == "translated" else 0)
    rig.turn()
    rig.sriov(0x10, 1, 2)
    rig.sriov(0x08, 0x19, 2)
    rig.turn()
    if why == "no bus master":
        assert not rig.machinery.asked, "it may master it soon"
    rig.clock.sleep(100 * MS_PS)  # VFs settle so long
    rig.turn()
    assert rig.pf.quiet()
    (writes,) = rig.machinery.asked
    assert writes is not None
    assert [write.offset for write in writes] == [0x10, 0x1C, 4]
    for write in writes:
        rig.do(write)
    rig.machinery.futures.pop().set_result(None)
    rig.turn()
    assert bars(rig, 1) == [where(0, on=True)]
    assert rig.placement.counts == {"by ports": 1}


def test_a_bar_above_4_gib_is_placed_with_both_its_halves(rig):
    rig.boot()
    rig.sriov(0x28, 1, 4)
    rig.tell_window()
    assert [write.offset for write in rig.answer_round()] == [0x10, 0x14, 0x1C] * VFS
    assert rig.spaces[1].bar_address(0) == 1 << 32 | ADDRESS0 + 0x4000
    rig.sriov(0x28, 0, 4)
    assert [(write.offset, write.value) for write in rig.answer_round()][:2] == [(0x10, ADDRESS0), (0x14, 0)]


def test_a_guest_that_has_its_processors_stopped_all_the_time_waits_longer_and_longer(rig):
    rig.boot(master=False)
    rig.enable(1)
    allowance = rig.members[0].allowance
    allowance.left_ps = full = 30 * MS_PS

    def rounds(count: int) -> list[int]:
        """Move a BAR whenever it is where it was told to be; return how many ms each round waits, 5 of them at work."""
        waited, last = [], rig.clock.now()
        for n in range(count):
            rig.sriov(0x24, ADDRESS0 + (1 + n % 2) * 0x10_0000, 4)
            while not rig.machinery.futures:
                rig.clock.sleep(5 * MS_PS)
                rig.turn()
            waited.append((rig.clock.now() - last) // MS_PS)
            last = rig.clock.now()
            for write in rig.machinery.asked[-1] or ():
                rig.do(write)
            rig.clock.sleep(5 * MS_PS)
            rig.machinery.futures.pop().set_result(None)
            rig.turn()
        return waited

    assert max(rounds(6)) <= 70, "who makes VFs now and then is not held up"
    assert allowance.left_ps == full - 6 * 5 * MS_PS
    assert min(rounds(20)[10:]) > 900
    rig.clock.sleep(20 * S_PS)
    assert max(rounds(6)) <= 70


def test_a_placement_that_ends_gives_its_round_up(rig):
    rig.boot(master=False)
    rig.enable(1)
    rig.clock.sleep(30 * MS_PS)
    rig.turn()
    (asked,) = rig.machinery.futures
    rig.placement.end()
    assert asked.cancelled()
    rig.pf.write(CONFIG, 4, (6).to_bytes(2, "little"))
    rig.disable()
    rig.turn()
    assert (rig.machinery.futures, rig.pf.quiet()) == ([asked], True)


def test_an_answer_that_comes_after_the_end_is_nobodys(rig):
    rig.boot()
    rig.tell_window()
    header, address, count, _ = rig.pf.take_dma(Command.DMA_READ)
    rig.placement.end()
    rig.pf.answer(header, header_body(address, count) + bytes([BUS]))
    rig.turn()
    assert rig.placement.counts == {}


def test_dma_that_is_refused_is_done_by_ports(rig):
    rig.boot()
    rig.tell_window()
    header, *_ = rig.pf.take_dma(Command.DMA_READ)
    rig.pf.answer(header, number=errno.ENODEV)
    rig.turn()
    assert len(rig.machinery.asked) == 2
    rig.machinery.futures.pop().set_exception(VirtfnError("the monitor is gone"))
    rig.turn()
    assert rig.placement.counts["failed"] == 1
    assert rig.placement.why == "the monitor is gone"


def test_what_cannot_be_done_is_tried_a_few_times_and_not_for_ever(rig):
    rig.boot(master=False)
    rig.enable(1)
    for _ in range(20):
        rig.clock.sleep(30 * MS_PS)
        rig.turn()
        if rig.machinery.futures:
            rig.machinery.futures.pop().set_exception(VirtfnError("no"))
    assert rig.placement.counts == {"failed": 3}
    rig.disable()
    rig.enable(2)
    rig.clock.sleep(30 * MS_PS)
    rig.turn()
    assert len(rig.machinery.asked) == 4, "something has changed"


def test_a_machine_that_is_reset_has_forgotten_all_and_is_asked_anew(rig):
    rig.boot()
    rig.tell_window()
    rig.answer_round()
    rig.enable(2)
    rig.answer_round()
    for peer in rig.peers:
        peer.call(Command.DEVICE_RESET)
    assert bars(rig) == [(0, 0, False)] * VFS
    assert rig.nic.vfs == 0
    rig.sriov(0x08, 0x10, 2)
    for at, value in ((0x24, ADDRESS0), (0x30, ADDRESS3)):
        rig.sriov(at, value, 4)
    rig.pf.write(CONFIG, 4, (6).to_bytes(2, "little"))
    rig.tell_window()
    rig.answer_round()
    assert bars(rig, 1) == [where(0, on=False)]


def test_a_machine_that_is_gone_leaves_a_card_as_new(rig):
    rig.boot()
    rig.tell_window()
    rig.answer_round()
    rig.enable(2)
    for peer in rig.peers:
        peer.close()
    assert rig.nic.vfs == 0
    assert bars(rig) == [(0, 0, False)] * VFS
    rig.turn()


def test_a_client_that_never_answers_is_waited_for_by_nobody(rig):
    rig.boot()
    rig.tell_window()
    rig.pf.take_dma(Command.DMA_READ)
    for count in (1, 2, 3):
        rig.enable(count)
        rig.disable()
        rig.turn()
    assert rig.pf.quiet(), "one round at a time"

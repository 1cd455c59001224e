"""A VF behind a socket: what a virtual machine's end sees, reaches, and gets, against a client that plays QEMU."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

import pytest

from unit.slotrig import SILICON_MAC
from unit.vmm.vfio_user.peer import TRIGGER_FD, Peer, ToldError, memory_file, open_fds, settle
from virtfn.devices.nic82576 import Card, Nic82576
from virtfn.hw.types import Iova
from virtfn.hw.vtd.tables import FaultReason
from virtfn.iovm.pcim import Pcim
from virtfn.iovm.vconfig import VirtualConfig
from virtfn.machine.clock import VirtualClock
from virtfn.machine.memory import CHUNK
from virtfn.machine.ports import Clock, VirtfnError
from virtfn.vmm.host import MOST_TABLES, Host, room_for
from virtfn.vmm.served import ServedFunction, SharedFiles
from virtfn.vmm.vfio_user import IrqIndex
from virtfn.vmm.vfio_user.messages import IRQ_INFO, REGION_INFO, Command

BAR0, BAR3, CONFIG = 0, 3, 7
MSIX = 0x70
RDT = 0x2818
MESSAGE_ADDRESS = 0xFEE0_1000


class Rig:
    """A card with two VFs that nobody drives, each behind a socket."""

    def __init__(self, folder, *, mapped: bool = True, clock: Clock | None = None) -> None:
        self.host = Host(clock or VirtualClock(), CHUNK, slots=1, foreign_bytes=8 * CHUNK)
        self.nic = Nic82576(self.host, self.host.iommu.iommu, Card(SILICON_MAC))
        self.host.root.attach(self.nic)
        pcim = Pcim(self.host.root, self.host.clock)
        pcim.scan()
        pcim.enable_function(self.nic.pf_rid)
        self.files = SharedFiles(self.host.memory, 8 * CHUNK)
        self.functions = []
        for n, vf in enumerate(pcim.enable_vfs(self.nic.pf_rid, 2)):
            domain = self.host.remapping.create_domain(n + 1)
            self.host.remapping.attach(vf.rid, domain)
            config = VirtualConfig(pcim.bus, vf)
            served = ServedFunction(
                self.host, self.nic, vf.rid, config, domain, self.files, folder / f"s{n}", mapped=mapped
            )
            self.functions.append(served)
        self.rids = [served.function.rid for served in self.functions]

    def close(self) -> None:
        for served in self.functions:
            served.close()
        self.files.close()
        self.nic.close()
        self.host.close()

    def dma(self, n: int, iova: int) -> bytes | None:
        return self.host.dma_read(self.rids[n], Iova(iova), 4)


@pytest.fixture
def rig(tmp_path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.close()


@pytest.fixture
def peer(rig) -> Iterator[Peer]:
    with Peer(rig.functions[0].server) as made:
        yield made


def enable(peer: Peer) -> None:
    """Do what a guest does to get messages: vector 1 at its address, MSI-X on, Bus Master Enable on."""
    peer.call(Command.DEVICE_RESET)
    for at, value in ((0, MESSAGE_ADDRESS), (4, 0), (8, 0x4021), (12, 0)):
        peer.write(BAR3, 16 + at, value.to_bytes(4, "little"))
    peer.write(CONFIG, MSIX + 2, (0x8000).to_bytes(2, "little"))
    peer.write(CONFIG, 4, (6).to_bytes(2, "little"))


# What it finds.


def test_msi_x_is_hidden_until_the_first_reset_and_again_for_the_next_machine(rig):
    for _ in range(2):
        with Peer(rig.functions[0].server) as peer:
            assert peer.read(CONFIG, MSIX, 1) == b"\x09"
            whole = peer.read(CONFIG, 0, 4096)
            assert whole[MSIX] == 0x09
            assert whole[:4] == bytes.fromhex("8680ca10")
            peer.call(Command.DEVICE_RESET)
            assert peer.read(CONFIG, MSIX, 1) == b"\x11"
            assert peer.read(CONFIG, MSIX - 1, 3)[1:2] == b"\x11"


def test_it_offers_no_eventfd_to_be_signalled(rig, peer):
    event = os.eventfd(0)
    for index in range(5):
        with pytest.raises(ToldError) as caught:
            peer.set_irqs(TRIGGER_FD, index, 0, 1, fds=[event])
        assert caught.value.errno == errno.EINVAL
        if index == IrqIndex.ERR:  # QEMU complains of a count of none, of an error it does not
            with pytest.raises(ToldError):
                peer.call(Command.DEVICE_GET_IRQ_INFO, IRQ_INFO.pack(16, 0, index, 0))
        else:
            assert IRQ_INFO.unpack(peer.call(Command.DEVICE_GET_IRQ_INFO, IRQ_INFO.pack(16, 0, index, 0)))[3] == 0
    os.close(event)


def test_only_its_own_ring_pages_can_be_mapped(rig, peer):
    body, fds = peer.region_info(BAR0, 64)
    argsz, flags, index, _, size, offset = REGION_INFO.unpack_from(body)
    assert (argsz, flags, index, size, offset) == (64, 0xF, 0, 0x4000, 0)
    assert [int.from_bytes(body[at : at + 8], "little") for at in (48, 56)] == [0x2000, 0x2000]
    (fd,) = fds
    assert os.fstat(fd).st_size == 0x4000, "nothing of another function is in this file"
    os.pwrite(fd, (0x55).to_bytes(4, "little"), RDT)
    assert rig.nic.bar_read(rig.rids[0], 0, RDT, 4) == 0x55
    assert rig.nic.bar_read(rig.rids[1], 0, RDT, 4) == 0
    assert int.from_bytes(peer.read(BAR0, RDT, 4), "little") == 0x55
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 0)
    os.close(fd)


def test_of_a_function_that_is_not_mapped_each_access_is_a_message(tmp_path):
    rig = Rig(tmp_path, mapped=False)
    with Peer(rig.functions[0].server) as peer:
        body, fds = peer.region_info(BAR0, 64)
        assert (REGION_INFO.unpack_from(body)[1], fds) == (3, [])
        peer.write(BAR0, RDT, (7).to_bytes(4, "little"), posted=True)
        assert int.from_bytes(peer.read(BAR0, RDT, 4), "little") == 7
        assert rig.functions[0].messages == 2
    rig.close()


# Its memory.


def test_memory_is_in_its_own_domain_from_map_to_unmap(rig, peer):
    fd = memory_file(2 * CHUNK)
    os.pwrite(fd, b"mine", CHUNK + 8)
    peer.map(0x10_0000, CHUNK, fd, offset=CHUNK)
    assert rig.dma(0, 0x10_0008) == b"mine"
    assert rig.dma(1, 0x10_0008) is None, "the other function has not been told of it"
    assert rig.host.dma_write(rig.rids[0], Iova(0x10_0000), b"theirs")
    assert os.pread(fd, 6, CHUNK) == b"theirs"
    peer.unmap(0x10_0000, CHUNK)
    assert rig.dma(0, 0x10_0008) is None
    assert [fault.reason for fault in rig.host.iommu.faults()] == [FaultReason.READ_NOT_ALLOWED] * 2
    os.close(fd)


def test_rights_and_the_interrupt_range(rig, peer):
    fd = memory_file(4 * CHUNK)
    peer.map(0, 4096, fd, prot=1)
    assert rig.dma(0, 0) == bytes(4)
    assert not rig.host.dma_write(rig.rids[0], Iova(0), b"no")
    peer.map(0xFEE0_0000 - CHUNK, 2 * CHUNK, fd)
    assert rig.dma(0, 0xFEDF_FFFC) == bytes(4)
    assert rig.dma(0, 0xFEF0_0000) == bytes(4)
    assert rig.dma(0, 0xFEE0_0000) is None
    peer.unmap(0xFEE0_0000 - CHUNK, 2 * CHUNK)
    assert rig.dma(0, 0xFEF0_0000) is None
    os.close(fd)


def test_a_machine_that_boots_maps_its_file_many_times_and_it_has_one_place(rig, peer):
    fd = memory_file(4 * CHUNK)
    for first in (0, 4096, 0x10_0000, 0):
        peer.map(first, 4 * CHUNK - first, fd, offset=first)
        assert len(rig.files._room._adopted) == 1
        peer.unmap(first, 4 * CHUNK - first)
    with Peer(rig.functions[1].server) as other:
        peer.map(0, 4 * CHUNK, fd)
        other.map(0, 4 * CHUNK, fd)
        peer.unmap(0, 4 * CHUNK)
        assert rig.dma(0, 0) is None
        assert rig.dma(1, 0) == bytes(4)
        assert len(rig.files._room._adopted) == 1
    os.close(fd)


def test_memory_that_does_not_fit_or_could_shrink_is_refused_and_leaves_nothing(rig, peer):
    before = open_fds()
    for size, seals, wanted in ((16 * CHUNK, 2, errno.ENOMEM), (CHUNK, 0, errno.EPERM)):
        fd = memory_file(size, seals)
        with pytest.raises(ToldError) as caught:
            peer.map(0, size, fd)
        assert caught.value.errno == wanted
        os.close(fd)
    assert rig.functions[0].server.last_refusal
    assert open_fds() == before
    assert not rig.files._room._adopted
    fd = memory_file(CHUNK)
    peer.map(0, CHUNK, fd)
    assert rig.dma(0, 0) == bytes(4)
    os.close(fd)


def test_a_file_that_grows_does_not_grow_into_anothers_memory(rig, peer):
    mine, theirs = memory_file(CHUNK), memory_file(CHUNK)
    os.pwrite(theirs, b"them", 0)
    peer.map(0, CHUNK, mine)
    with Peer(rig.functions[1].server) as other:
        other.map(0, CHUNK, theirs)
        os.ftruncate(mine, 2 * CHUNK)
        with pytest.raises(ToldError) as caught:
            peer.map(CHUNK, CHUNK, mine, offset=CHUNK)
        assert caught.value.errno == errno.EINVAL
        assert rig.dma(0, CHUNK) is None
        os.pwrite(mine, b"more", CHUNK)
        peer.unmap(0, CHUNK)
        peer.map(CHUNK, CHUNK, mine, offset=CHUNK)
        assert rig.dma(0, CHUNK) == b"more", "once nobody uses it, it gets the room that it needs"
        assert len(rig.files._room._adopted) == 2
    for fd in (mine, theirs):
        os.close(fd)


def test_a_machine_that_scatters_its_memory_leaves_the_others_room_for_tables(rig, peer):
    fd, pages = memory_file(CHUNK), rig.host.remapping.pages
    before = pages.count()

    def scatter(times: int) -> None:
        for n in range(times):
            peer.map(n << 30, 4096, fd)

    with pytest.raises(ToldError) as caught:
        scatter(1000)
    assert caught.value.errno == errno.ENOSPC
    assert pages.count() - before <= 512
    with Peer(rig.functions[1].server) as other:
        other.map(0, CHUNK, fd)
        assert rig.dma(1, 0) == bytes(4)
    peer.unmap(0, 0, flags=2)
    assert pages.count() == before
    peer.map(0, CHUNK, fd)
    os.close(fd)


def test_much_memory_that_large_pages_do_not_fit_is_refused(rig, peer):
    fd = memory_file(6 * CHUNK)
    with pytest.raises(ToldError) as caught:
        peer.map(4096, 5 * CHUNK, fd)
    assert caught.value.errno == errno.EINVAL
    assert rig.dma(0, 4096) is None
    peer.map(4096, CHUNK, fd)
    assert rig.dma(0, 4096) == bytes(4)
    os.close(fd)


def test_one_access_is_short(rig, peer):
    assert len(peer.read(BAR0, 0, 4096)) == 4096
    with pytest.raises(ToldError):
        peer.read(BAR0, 0, 4100)


# Its interrupts.


def test_a_vector_is_the_guests_own_message(rig, peer):
    enable(peer)
    assert rig.nic._tables[0].raise_vector(1)
    header, address, count, data = peer.take_dma(Command.DMA_WRITE)
    assert (header.flags, address, count, data) == (0x10, MESSAGE_ADDRESS, 4, bytes.fromhex("21400000"))
    assert rig.functions[0].interrupts == 1
    stats = rig.host.iommu.stats()
    assert (stats["interrupts"], stats["delivered"], stats["blocked"]) == (1, 1, 0)


def test_what_waits_comes_with_the_unmask_and_with_bus_master_enable(rig, peer):
    enable(peer)
    peer.write(BAR3, 16 + 12, (1).to_bytes(4, "little"))
    assert not rig.nic._tables[0].raise_vector(1)
    assert peer.quiet()
    peer.write(CONFIG, 4, (2).to_bytes(2, "little"))
    peer.write(BAR3, 16 + 12, (0).to_bytes(4, "little"))
    assert peer.quiet()
    number = peer.send(Command.REGION_WRITE, bytes.fromhex("0400000000000000 07000000 02000000 0600"))
    taken = [peer.take()[0] for _ in range(2)]
    assert sorted((header.command, header.id == number) for header in taken) == [
        (Command.REGION_WRITE, True),
        (Command.DMA_WRITE, False),
    ]


def test_a_message_to_memory_is_no_way_around_the_iommu(rig, peer):
    enable(peer)
    peer.write(BAR3, 16 + 12, (1).to_bytes(4, "little"))
    peer.write(BAR3, 16, (0x1000).to_bytes(4, "little"))
    peer.write(BAR3, 16 + 12, (0).to_bytes(4, "little"))
    rig.nic._tables[0].raise_vector(1)
    assert peer.quiet()
    assert rig.functions[0].interrupts == 0


# Its end.


def test_a_machine_that_dies_leaves_an_empty_domain_and_a_function_as_new(rig):
    before = open_fds()
    fd = memory_file(CHUNK)
    peer = Peer(rig.functions[0].server)
    enable(peer)
    peer.map(0, CHUNK, fd)
    peer.write(BAR0, RDT, (7).to_bytes(4, "little"))
    peer.sock.close()
    settle(rig.functions[0].server)
    os.close(fd)
    assert open_fds() == before
    assert not rig.functions[0].connected_now
    assert rig.dma(0, 0) is None
    assert rig.host.root.config_read(rig.rids[0], 4, 2) & 4 == 0
    assert not rig.nic._tables[0].raise_vector(1)
    rig.host.clock.sleep(10**11)
    with Peer(rig.functions[0].server) as again:
        enable(again)
        rig.nic._tables[0].raise_vector(1)
        assert again.take_dma(Command.DMA_WRITE)[1] == MESSAGE_ADDRESS


def test_who_keeps_the_ring_pages_does_not_reach_those_of_the_next_owner(rig):
    peer = Peer(rig.functions[0].server)
    _, (kept,) = peer.region_info(BAR0, 64)
    os.pwrite(kept, (0x55).to_bytes(4, "little"), RDT)
    first = rig.functions[0]
    first.close()
    peer.sock.close()
    os.pwrite(kept, (0x66).to_bytes(4, "little"), RDT)
    rig.host.clock.sleep(10**11)
    assert rig.nic.bar_read(rig.rids[0], 0, RDT, 4) == 0
    rig.functions[0] = ServedFunction(
        rig.host, rig.nic, rig.rids[0], first._config, first._domain, rig.files, first.server.path
    )
    with Peer(rig.functions[0].server) as other:
        _, (fd,) = other.region_info(BAR0, 64)
        os.pwrite(kept, (0x77).to_bytes(4, "little"), RDT)
        os.pwrite(fd, (0x44).to_bytes(4, "little"), RDT)
        assert rig.nic.bar_read(rig.rids[0], 0, RDT, 4) == 0x44
        os.close(fd)
    os.close(kept)


def test_a_machine_that_shares_a_huge_file_leaves_the_others_their_room(tmp_path):
    mib = 1 << 20
    host = Host(VirtualClock(), CHUNK, slots=1, foreign_bytes=2 * room_for(512 * mib), foreign_functions=2)
    greedy, other = (SharedFiles(host.memory, room_for(512 * mib)) for _ in range(2))
    for size in (2 * room_for(512 * mib), room_for(512 * mib)):
        fd = memory_file(size)
        if size == room_for(512 * mib):
            greedy.take(fd, size)
        else:
            with pytest.raises(VirtfnError, match="1024 MiB in all") as caught:
                greedy.take(fd, size)
            assert caught.value.errno_name == "ENOMEM"
        os.close(fd)
    fd = memory_file(512 * mib)
    other.take(fd, 512 * mib)
    os.close(fd)
    host.close()


def test_a_machine_shares_so_many_files_and_no_more(tmp_path):
    host = Host(VirtualClock(), CHUNK, slots=1, foreign_bytes=300 * CHUNK)
    files = SharedFiles(host.memory, 300 * CHUNK)
    for n in range(257):
        fd = memory_file(4096)
        if n < 256:
            files.take(fd, 4096)
        else:
            with pytest.raises(VirtfnError, match="256 files"):
                files.take(fd, 4096)
        os.close(fd)
    host.close()


def test_tables_for_as_many_functions_as_are_foreseen():
    """Each may have its most, and none takes those of another."""
    host = Host(VirtualClock(), 0, slots=1, foreign_bytes=CHUNK, foreign_functions=40)
    pages = [host.memory.alloc_page() for _ in range(40 * MOST_TABLES)]
    assert len(set(pages)) == 40 * MOST_TABLES
    host.close()

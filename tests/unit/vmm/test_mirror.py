"""A function whose client shares no memory: against a client that plays QEMU, its memory a bytearray, byte for byte."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator

import pytest

from unit.vmm.test_served import CONFIG, MESSAGE_ADDRESS, Rig, enable
from unit.vmm.vfio_user.peer import Peer, memory_file, open_fds, settle
from virtfn.hw.i82576 import Regs, VfRegs
from virtfn.hw.i82576.fields import CTRL
from virtfn.hw.i82576.rxtx import DTXSWC, MRQC, RCTL, TCTL
from virtfn.machine.clock import MS_PS
from virtfn.machine.memory import CHUNK
from virtfn.vmm.vfio_user.messages import Command, Header

TX, RX, REPORT, HEADERS, BUFFERS, DATA = 0x1000, 0x3000, 0x5000, 0x10000, 0x80000, 0x100000
ENABLE, EOP, RS, DEXT, DTYP, DD = 1 << 25, 1 << 24, 1 << 27, 1 << 29, 3 << 20, 1
ONE_BUFFER, LEGACY, SPLIT = 0x82000002, 0x80000002, 0x8A000402  # drop, 2 KiB, header 256 bytes
SIZE = 256


def mac(n: int) -> bytes:
    return bytes([2, 0, 0, 0, 0, 0x10 + n])


def frame(source: int, target: int, size: int = 200, seed: int = 0, kind: int = 0x88B5) -> bytes:
    head = mac(target) + mac(source) + kind.to_bytes(2, "big")
    return head + bytes(seed + 7 * i & 0xFF for i in range(size - 14))


class Machine:
    """A machine with VF `n`: 2 MiB of memory of its own, and a driver that knows rings. It answers when told to.

    said: what came by DMA_WRITE, in order. asked: reads that wait for an answer. deaf: answers none.
    """

    def __init__(self, rig: Net, n: int, *, layout: int = ONE_BUFFER, size: int = SIZE) -> None:
        self.rig, self.n, self.size = rig, n, size
        self.function = rig.functions[n]
        self.peer = Peer(self.function.server)
        self.memory = bytearray(CHUNK)
        self.said: list[tuple[int, bytes]] = []
        self.asked: list[tuple[Header, int, int]] = []
        self.deaf = False
        self.refusing = 0
        enable(self.peer)
        rig.allow()
        _, (self.file,) = self.peer.region_info(0, 64)
        self.peer.map(0, CHUNK)
        self.sent = self.taken = 0
        self.open(layout)

    def close(self) -> None:
        self.peer.close()
        os.close(self.file)

    def set(self, decl, value: int) -> None:
        """Write a ring register where it is mapped: without a message."""
        os.pwrite(self.file, (value & 0xFFFFFFFF).to_bytes(4, "little"), decl.at(0))

    def get(self, decl) -> int:
        return int.from_bytes(os.pread(self.file, 4, decl.at(0)), "little")

    def put(self, at: int, content: bytes) -> None:
        self.memory[at : at + len(content)] = content

    def words(self, at: int) -> tuple[int, int]:
        return struct.unpack_from("<QQ", self.memory, at)

    def open(self, layout: int = ONE_BUFFER) -> None:
        for i in range(self.size):
            self.fill(i)
        self.sent = self.taken = 0
        for decl, value in (
            (VfRegs.RDBAL, RX), (VfRegs.RDLEN, 16 * self.size), (VfRegs.SRRCTL, layout), (VfRegs.RDH, 0),
            (VfRegs.RXDCTL, ENABLE), (VfRegs.RDT, self.size - 1), (VfRegs.TDBAL, TX), (VfRegs.TDLEN, 16 * self.size),
            (VfRegs.TDH, 0), (VfRegs.TDT, 0), (VfRegs.TXDCTL, ENABLE),
        ):  # fmt: skip
            self.set(decl, value)

    def fill(self, i: int) -> None:
        self.put(RX + 16 * i, struct.pack("<QQ", BUFFERS + 2048 * i, HEADERS + 256 * i))

    def send(self, *frames: bytes, flags: int = EOP | RS | DEXT | DTYP) -> None:
        """Hand frames over, each in a buffer of its own."""
        for body in frames:
            at = DATA + 2048 * self.sent
            self.put(at, body)
            paylen = len(body) << 46 if flags & DEXT else 0
            self.hand(at, len(body) | flags | paylen)

    def hand(self, q0: int, q1: int) -> None:
        self.put(TX + 16 * self.sent, struct.pack("<QQ", q0, q1))
        self.sent = (self.sent + 1) % self.size
        self.set(VfRegs.TDT, self.sent)

    def finished(self) -> list[int]:
        """Tell which transmit descriptors have their done bit."""
        return [i for i in range(self.size) if self.words(TX + 16 * i)[1] >> 32 & DD]

    def received(self) -> list[bytes]:
        """Take what came in, and give the descriptors back."""
        got = []
        while (q1 := self.words(RX + 16 * self.taken)[1]) & DD:
            at = BUFFERS + 2048 * self.taken
            got.append(bytes(self.memory[at : at + (q1 >> 32 & 0xFFFF)]))
            self.fill(self.taken)
            self.set(VfRegs.RDT, self.taken)
            self.taken = (self.taken + 1) % self.size
        return got

    def attend(self) -> None:
        """Do what QEMU does: take in what was written, answer what is read."""
        while not self.peer.quiet():
            header, body, fds = self.peer.take()
            address, count = struct.unpack_from("<QQ", body)
            assert not fds
            if header.command == Command.DMA_WRITE:
                assert len(body) == 16 + count
                self.said.append((address, body[16:]))
                if address != MESSAGE_ADDRESS:
                    assert address + count <= len(self.memory), "a write outside the memory that was given"
                    self.put(address, body[16:])
            else:
                assert header.command == Command.DMA_READ
                assert address + count <= len(self.memory), "a read outside the memory that was given"
                self.asked.append((header, address, count))
        if not self.deaf:
            self.answer()

    def answer(self) -> None:
        for header, address, count in self.asked:
            body = b"" if self.refusing else struct.pack("<QQ", address, count) + self.memory[address : address + count]
            self.peer.answer(header, body, self.refusing)
        self.asked.clear()


class Net(Rig):
    """Two VFs that reach each other, without a driver of the host. faulty: whether the IOMMU must refuse something."""

    faulty = False

    def __init__(self, folder) -> None:
        super().__init__(folder)
        for decl, index, value in (
            (Regs.CTRL, 0, CTRL.of(SLU=1).value), (Regs.MRQC, 0, MRQC.of(MODE=3).value), (Regs.VT_CTL, 0, 3 << 29),
            (Regs.DTXSWC, 0, DTXSWC.of(LOOPBACK_EN=1).value), (Regs.RPLOLR, 0, 1 << 31), (Regs.QDE, 0, 0xFFFF),
            (Regs.RCTL, 0, RCTL.of(RXEN=1, BAM=1).value), (Regs.TCTL, 0, TCTL.of(EN=1, PSP=1).value),
            *((Regs.VMOLR, n, 0x8901_0000 | 1522) for n in (0, 1)),
            *((Regs.RAL, n, int.from_bytes(mac(n)[:4], "little")) for n in (0, 1)),
            *((Regs.RAH, n, int.from_bytes(mac(n)[4:], "little") | 1 << 18 + n | 1 << 31) for n in (0, 1)),
        ):  # fmt: skip
            self.nic.bar_write(self.nic.pf_rid, 0, decl.at(index), 4, value)
        self.machines: list[Machine] = []

    def allow(self) -> None:
        """Let the VFs receive and send, as the PF's driver does after their resets."""
        for decl in (Regs.VFRE, Regs.VFTE):
            self.nic.bar_write(self.nic.pf_rid, 0, decl.offset, 4, 0xFF)

    def machine(self, n: int, **settings: int) -> Machine:
        self.machines.append(Machine(self, n, **settings))
        return self.machines[-1]

    def turn(self, times: int = 12) -> None:
        for _ in range(times):
            self.step()
            self.host.clock.sleep(MS_PS)

    def step(self) -> None:
        for served in self.functions:
            served.serve(64)
        self.nic.serve()
        for machine in self.machines:
            machine.attend()

    def close(self) -> None:
        for machine in self.machines:
            machine.close()
        super().close()


@pytest.fixture
def net(tmp_path) -> Iterator[Net]:
    made = Net(tmp_path)
    yield made
    faults = made.host.iommu.faults()
    made.close()
    assert bool(faults) == made.faulty


@pytest.fixture
def pair(net) -> tuple[Machine, Machine]:
    return net.machine(0), net.machine(1)


# What works.


def test_frames_go_both_ways_byte_for_byte(net, pair):
    a, b = pair
    there = [frame(0, 1, size, size) for size in (60, 61, 200, 1514)]
    back = [frame(1, 0, size, size) for size in (60, 999, 1514)]
    a.send(*there)
    b.send(*back)
    net.turn()
    assert b.received() == there
    assert a.received() == back
    assert (a.finished(), b.finished()) == ([0, 1, 2, 3], [0, 1, 2])
    assert (a.get(VfRegs.TDH), b.get(VfRegs.TDH), a.get(VfRegs.RDH), b.get(VfRegs.RDH)) == (4, 3, 3, 4)


def test_only_what_the_device_wrote_is_written(net, pair):
    a, b = pair
    a.send(frame(0, 1, 100), frame(0, 1, 100), flags=EOP | DEXT | DTYP)
    a.send(frame(0, 1, 100))
    net.turn()
    assert sorted((at, len(content)) for at, content in a.said) == [(TX + 32, 16)], "RS was in the last alone"
    assert sorted((at, len(content)) for at, content in b.said if at != MESSAGE_ADDRESS) == sorted(
        [(RX + 16 * i, 16) for i in range(3)] + [(BUFFERS + 2048 * i, 100) for i in range(3)]
    )


def test_rings_go_round(net, pair):
    a, b = pair
    bodies = [frame(0, 1, 60 + n % 200, n) for n in range(3 * SIZE)]
    got = []
    for at in range(0, len(bodies), 80):
        a.send(*bodies[at : at + 80])
        net.turn(8)
        got += b.received()
    assert got == bodies
    assert not net.nic.all_drops()


def test_legacy_descriptors_and_chains(net, pair):
    a, b = pair
    body = frame(0, 1, 300)
    a.put(DATA, body)
    a.hand(DATA, 100 | DTYP | DEXT | 300 << 46)
    net.turn()
    assert not b.received()
    a.hand(DATA + 100, 200 | EOP | RS | DTYP | DEXT)
    a.sent = 2
    net.turn()
    a.send(frame(0, 1, 80, 5), flags=EOP | RS)
    net.turn()
    assert b.received() == [body, frame(0, 1, 80, 5)]
    assert a.finished() == [1, 2]


def test_large_sends_come_in_segments(net, pair):
    a, b = pair
    head = mac(1) + mac(0) + b"\x08\x00" + bytes.fromhex("4500000000000000400600000a0000010a000002")
    head += bytes.fromhex("13881389000000010000000250180100") + bytes(4)
    payload = bytes(i * 31 + i // 256 & 0xFF for i in range(5000))
    a.put(DATA, head + payload)
    a.hand(20 | 14 << 9, 2 << 20 | DEXT | 1 << 10 | 1 << 11 | 20 << 40 | 1000 << 48)
    a.hand(DATA, len(head + payload) | EOP | RS | DTYP | DEXT | 1 << 31 | 3 << 40 | 5000 << 46)
    net.turn()
    got = b.received()
    assert [len(body) for body in got] == [1054] * 5
    assert b"".join(body[54:] for body in got) == payload
    assert a.finished() == [1]


def test_headers_are_split(net):
    a, b = net.machine(0), net.machine(1, layout=SPLIT)
    head = mac(1) + mac(0) + b"\x08\x00" + bytes.fromhex("4500012c0000000040110000" + "0a0000010a000002")
    body = head + bytes.fromhex("1388138901180000") + bytes(i & 0xFF for i in range(272))
    a.send(body)
    net.turn()
    q0, q1 = b.words(RX)
    split = q0 >> 21 & 0x3FF
    assert (q0 >> 31 & 1, split, q1 >> 32 & 0xFFFF) == (1, 42, 272)
    assert b.memory[HEADERS : HEADERS + split] + b.memory[BUFFERS : BUFFERS + 272] == body


def test_the_legacy_receive_layout(net):
    a, b = net.machine(0), net.machine(1, layout=LEGACY)
    a.send(frame(0, 1, 333))
    net.turn()
    q0, q1 = b.words(RX)
    assert (q0, q1 & 0xFFFF, q1 >> 32 & 3) == (BUFFERS, 333, 3)
    assert b.memory[BUFFERS : BUFFERS + 333] == frame(0, 1, 333)


def test_heads_are_written_back(net, pair):
    a, b = pair
    a.set(VfRegs.TDWBAH, 0)
    a.set(VfRegs.TDWBAL, REPORT | 1)
    a.send(frame(0, 1), frame(0, 1), frame(0, 1))
    net.turn()
    assert len(b.received()) == 3
    assert a.said == [(REPORT, (3).to_bytes(4, "little"))]
    assert not a.finished()


def test_an_interrupt_comes_behind_what_it_is_about(net, pair):
    a, b = pair
    net.nic.bar_write(net.rids[1], 0, VfRegs.VTIVAR.offset, 4, 0x81)
    net.nic.bar_write(net.rids[1], 0, VfRegs.VTEIMS.offset, 4, 7)
    a.send(frame(0, 1, 100))
    net.turn()
    assert [at for at, _ in b.said] == [BUFFERS, RX, MESSAGE_ADDRESS]


def test_a_tail_one_past_the_end_hands_over_the_whole_ring_once(net):
    a, b = net.machine(0), net.machine(1, size=16)
    b.set(VfRegs.RDT, 16)
    net.turn()
    bodies = [frame(0, 1, 100, n) for n in range(14)]
    a.send(*bodies)
    net.turn()
    assert [len(queue.given) for queue in b.function.mirror._queues if queue.copy.receive] == [2, 0]
    assert [b.words(RX + 16 * i)[1] >> 32 & 0xFFFF for i in range(14)] == [100] * 14


def test_kernels_send_no_interrupt_past_what_it_is_about(net, pair):
    vectors = net.nic.vectors(net.rids[0])
    for running in (False, True):
        pair[0].function.lend(vectors)
        assert (pair[0].function._link[0] < 0) == running == pair[0].function.mirror.running
        net.turn()


def test_one_shares_its_memory_and_the_other_does_not(net, pair):
    a, b = pair
    b.peer.unmap(0, CHUNK)
    fd = memory_file(CHUNK)
    b.peer.map(0, CHUNK, fd)
    os.pwrite(fd, bytes(b.memory), 0)
    b.said.clear()
    a.send(frame(0, 1, 500))
    net.turn()
    assert os.pread(fd, 500, BUFFERS) == frame(0, 1, 500)
    assert b.said == []
    assert not b.function.mirror.counters["writes"]
    os.close(fd)


def test_registers_that_trap_work_too(net, pair):
    a, b = pair
    a.put(DATA, frame(0, 1))
    a.put(TX, struct.pack("<QQ", DATA, 200 | EOP | RS | DEXT | DTYP | 200 << 46))
    net.nic.bar_write(net.rids[0], 0, VfRegs.TDT.offset, 4, 1)
    net.turn()
    assert b.received() == [frame(0, 1)]
    assert net.nic.bar_read(net.rids[0], 0, VfRegs.TDH.offset, 4) == 1


# Who does not play along.


def test_a_machine_that_never_answers_hurts_only_itself(net, pair):
    a, b = pair
    net.turn()
    a.deaf = True
    got = []
    for _ in range(8):
        a.send(*[frame(0, 1)] * 20)
        b.send(*[frame(1, 0, seed=n) for n in range(20)])
        net.turn(20)
        got += a.received()
        assert len(a.asked) <= 4
    assert 160 > len(got) >= 64
    assert len(b.finished()) == 160, "its frames wait for nobody"
    assert net.nic.all_drops() == {"no-descriptor": 160 - len(got)}
    assert got == ([frame(1, 0, seed=n) for n in range(20)] * 8)[: len(got)]
    a.deaf = False
    net.turn(40)
    assert len(a.finished()) == 160, "once it answers, all goes on"
    assert b.received() == [frame(0, 1)] * 160


def test_what_was_asked_for_before_a_reset_is_not_used_after_it(net, pair):
    a, b = pair
    net.turn()
    a.deaf = True
    a.send(frame(0, 1, seed=1))
    net.turn()
    assert a.asked
    net.nic.bar_write(net.rids[0], 0, VfRegs.VTCTRL.offset, 4, 1 << 26)
    assert a.get(VfRegs.TDT) == 0
    net.allow()
    a.said.clear()
    a.answer()
    net.turn()
    assert b.received() == []
    assert a.said == []
    a.deaf = False
    a.open()
    a.send(frame(0, 1, seed=2))
    net.turn()
    assert b.received() == [frame(0, 1, seed=2)]


def test_descriptors_from_before_a_reset_take_no_frame(net, pair):
    a, b = pair
    net.turn()
    net.nic.bar_write(net.rids[1], 0, VfRegs.VTCTRL.offset, 4, 1 << 26)
    net.allow()
    for decl, value in ((VfRegs.RXDCTL, ENABLE), (VfRegs.RDT, 0)):  # the same ring, at once, and nothing in it
        b.set(decl, value)
    a.send(frame(0, 1))
    net.turn()
    assert b.said == []
    assert net.nic.all_drops() == {"no-descriptor": 1}


def test_memory_that_goes_and_comes_back_is_fetched_again(net, pair):
    net.faulty = True
    a, b = pair
    net.turn()
    a.deaf = True
    a.send(frame(0, 1, seed=1))
    net.turn(3)
    settle(a.function.server)
    a.peer.unmap(0, CHUNK)
    a.asked.clear()
    assert net.dma(0, DATA) is None
    a.deaf = False
    a.peer.map(0, CHUNK)
    net.turn(20)
    assert b.received() == [frame(0, 1, seed=1)]
    b.send(frame(1, 0, seed=3))
    net.turn()
    assert a.received() == [frame(1, 0, seed=3)]


def test_what_was_received_is_sent_before_its_memory_goes(net, pair):
    a, b = pair
    net.turn()
    a.send(frame(0, 1))
    for _ in range(20):
        if net.nic.port.nic["counters"]["rpthc"]:
            break
        a.function.serve(64)
        a.attend()
        net.nic.serve()
    assert b.said == []
    number = b.peer.send(Command.DMA_UNMAP, struct.pack("<IIQQ", 24, 0, 0, CHUNK))
    taken = [b.peer.take() for _ in range(3)]
    assert [header.command for header, _, _ in taken] == [Command.DMA_WRITE, Command.DMA_WRITE, Command.DMA_UNMAP]
    assert taken[2][0].id == number
    b.said.clear()


def test_a_machine_that_hangs_up_with_reads_under_way(net, pair, tmp_path):
    net.faulty = True
    a, b = pair
    net.turn()
    a.deaf = True
    a.send(*[frame(0, 1)] * 5)
    net.turn()
    assert a.asked
    before = open_fds()
    a.peer.sock.close()
    net.machines.remove(a)
    settle(a.function.server)
    assert open_fds() <= before
    assert not net.nic.port.registers.copies.keys() & {0, 8}
    assert net.dma(0, 0) is None
    b.send(frame(1, 0))
    net.turn()
    assert b.finished() == [0]
    net.host.clock.sleep(100 * MS_PS)
    again = net.machine(0)
    again.send(frame(0, 1, seed=9))
    net.turn()
    assert b.received() == [frame(0, 1, seed=9)]
    os.close(a.file)


def test_a_function_taken_back_with_reads_under_way(net, pair):
    a, b = pair
    net.turn()
    a.deaf = True
    a.send(*[frame(0, 1)] * 5)
    net.turn()
    assert a.asked
    a.function.close()
    assert not net.nic.port.registers.copies.keys() & {0, 8}
    b.send(frame(1, 0))
    net.machines.remove(a)
    net.turn()
    assert b.finished() == [0]
    a.peer.sock.close()
    os.close(a.file)


def test_a_read_that_is_refused_stops_the_queue(net, pair):
    a, b = pair
    net.turn()
    a.refusing = errno.EFAULT
    a.send(frame(0, 1))
    net.turn()
    assert a.get(VfRegs.TXDCTL) & ENABLE == 0
    assert a.function.mirror.counters["refused"] == 1
    assert b.received() == []
    a.refusing = 0
    a.set(VfRegs.TXDCTL, ENABLE)
    net.turn()
    assert b.received() == [frame(0, 1)]


# What the IOMMU refuses.


def test_buffers_outside_its_memory_are_neither_asked_for_nor_written(net, pair):
    net.faulty = True
    a, b = pair
    net.turn()
    b.received()
    a.hand(CHUNK - 100, 200 | EOP | RS | DEXT | DTYP | 200 << 46)
    a.hand(0xFEE0_1000, 200 | EOP | RS | DEXT | DTYP | 200 << 46)
    a.hand((1 << 64) - 8, 200 | EOP | RS | DEXT | DTYP | 200 << 46)
    a.send(frame(0, 1))
    net.turn()
    assert b.received() == [frame(0, 1)]
    assert a.finished() == [0, 1, 2, 3]
    assert net.nic.drops(0) == {"dma-fault": 3}


def test_receive_buffers_outside_its_memory_get_nothing(net):
    net.faulty = True
    a, b = net.machine(0), net.machine(1)
    for i, at in enumerate((CHUNK - 50, 0xFEE0_1000, (1 << 64) - 8, 0xFFFF_F000)):
        b.put(RX + 16 * i, struct.pack("<QQ", at, 0))
    a.send(*[frame(0, 1)] * 5)
    net.turn()
    assert {at for at, _ in b.said} == {*(RX + 16 * i for i in range(5)), BUFFERS + 4 * 2048}
    assert b.memory[BUFFERS + 4 * 2048 :][:200] == frame(0, 1)


def test_a_ring_outside_its_memory_stops_as_ever(net, pair):
    net.faulty = True
    a, b = pair
    a.set(VfRegs.TDBAL, 0x8000_0000)
    a.set(VfRegs.TDT, 5)
    net.turn()
    assert a.get(VfRegs.TXDCTL) & ENABLE == 0
    assert b.received() == []


def test_a_tail_outside_the_ring_is_for_the_device_to_judge(net, pair):
    a, b = pair
    net.turn()
    a.set(VfRegs.TDT, SIZE + 5)
    net.turn()
    assert net.nic.bar_read(net.nic.pf_rid, 0, Regs.WVBR.offset, 4) & 0xFF
    a.send(frame(0, 1))
    net.turn()
    assert b.received() == [frame(0, 1)]


def test_without_bus_mastering_nothing_is_asked(net, pair):
    a, b = pair
    a.peer.write(CONFIG, 4, (2).to_bytes(2, "little"))
    a.send(frame(0, 1))
    net.turn()
    assert not a.function.mirror.counters
    a.peer.write(CONFIG, 4, (6).to_bytes(2, "little"))
    net.turn()
    assert b.received() == [frame(0, 1)]


# What it may take.


def test_memory_without_room_is_refused_by_the_iommu_alone(net):
    net.faulty = True
    with Peer(net.functions[0].server) as peer:
        enable(peer)
        before = open_fds()
        for iova, size in ((1 << 41, 1 << 61), (1 << 62, 1 << 40), (1 << 63, 16 * CHUNK)):
            peer.map(iova, size)
        for _ in range(4):
            net.functions[0].serve(8)
        assert net.functions[0].mirror.counters == {"no-room": 3}
        assert open_fds() == before
        assert not net.files._room._adopted
        peer.map(1 << 30, CHUNK)
        net.functions[0].serve(8)
        assert net.dma(0, 1 << 30) == bytes(4)
        peer.unmap(0, 0, flags=2)
        assert net.dma(0, 1 << 30) is None


def test_a_machine_that_shares_memory_is_not_mirrored(net):
    net.faulty = True
    fd = memory_file(CHUNK)
    with Peer(net.functions[0].server) as peer:
        enable(peer)
        peer.map(0, CHUNK, fd)
        peer.map(0x8000_0000, 0x2000)
        peer.map(0x9000_0000, 0x2000, prot=1)
        net.turn(3)
        assert net.dma(0, 0x8000_0000) is None
        assert not net.nic.port.registers.copies
        peer.unmap(0, CHUNK)
        net.turn(3)
        peer.map(0, CHUNK, fd)
        net.turn(3)
        assert not net.nic.port.registers.copies
        assert net.dma(0, 0x8000_0000) is None
    os.close(fd)

"""The pump: what its kernel does between turns is what a turn does, and it rests with whatever is there to wait for."""

from __future__ import annotations

import os
import random
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import pairwise
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest

from unit.vmm.test_served import BAR0, BAR3, CONFIG, MESSAGE_ADDRESS, Rig, enable
from unit.vmm.vfio_user.peer import Lingering, Peer, memory_file, open_fds, settle
from virtfn.hw.i82576 import Regs
from virtfn.kernels.card import EV_UPLINK
from virtfn.kernels.link import SCRATCH_BYTES
from virtfn.kernels.posix import POLLIN, monotonic_ps, poll, wake_promptly
from virtfn.kernels.pump import answer_at_once, take_all
from virtfn.kernels.ranges import address_of
from virtfn.kernels.stray import CHECKED
from virtfn.machine.clock import MS_PS, S_PS, US_PS, WallClock
from virtfn.vmm.host import Host
from virtfn.vmm.pump import Pump
from virtfn.vmm.vfio_user.messages import DMA_ACCESS, HEADER, NO_REPLY, REGION_ACCESS, REPLY, Command

TAILS = (Regs.RDT, Regs.TDT, Regs.RDH, Regs.TDH)
EIMS, EIMC, EICS, EICR = 0x1524, 0x1528, 0x1520, 0x1580


class Line:
    """Two VFs of a card behind sockets, a client at each that has its messages on, and a pump.

    by_python: let turns do all.
    """

    def __init__(self, folder, *, by_python: bool = False) -> None:
        folder.mkdir()
        self.rig = Rig(folder, clock=WallClock())
        self.by_python = by_python
        self.peers = [Peer(served.server) for served in self.rig.functions]
        vm = SimpleNamespace(functions=dict(zip(self.rig.rids, self.rig.functions, strict=True)))
        self.pump = Pump(self.rig.host, [self.rig.nic], [vm])
        for peer in self.peers:
            enable(peer)
            peer.write(BAR0, 0x1700, (0x8180).to_bytes(4, "little"))

    def run(self) -> None:
        for served in self.rig.functions:
            served.allowance.left_ps = S_PS  # on a busy machine, too, nobody has to wait here
        if self.by_python:
            while self.pump.turn():
                pass
        else:
            with patch.object(self.pump, "_answer", lambda: 0):  # the kernel alone
                self.pump.rest(MS_PS)

    def close(self) -> None:
        for peer in self.peers:
            peer.sock.close()
        self.rig.close()


@pytest.fixture
def line(tmp_path) -> Iterator[Line]:
    made = Line(tmp_path / "line")
    yield made
    made.close()


def write(offset: int, value: int, region: int = BAR0) -> bytes:
    return REGION_ACCESS.pack(offset, region, 4) + value.to_bytes(4, "little")


def heard(peer: Peer) -> bytes:
    """Take all that has come."""
    said = b""
    while select.select([peer.sock], [], [], 0)[0] and (more := peer.sock.recv(1 << 16)):
        said += more
    return said


def message(vector: int = 0x4021) -> bytes:
    body = DMA_ACCESS.pack(MESSAGE_ADDRESS, 4) + vector.to_bytes(4, "little")
    return HEADER.pack(0, Command.DMA_WRITE, HEADER.size + len(body), NO_REPLY, 0) + body


# What the kernel does.


def test_a_write_to_eims_is_answered_and_counted_without_python(line):
    served, peer = line.rig.functions[1], line.peers[1]
    before, exits = served.server.counters["REGION_WRITE"], served.messages
    number = peer.send(Command.REGION_WRITE, write(EIMS, 5))
    served.server.serve = None  # type: ignore[method-assign,assignment]  # whoever calls it fails
    line.run()
    assert heard(peer) == HEADER.pack(number, Command.REGION_WRITE, 32, REPLY, 0) + write(EIMS, 5)[:16]
    assert line.rig.nic.port.registers.read(Regs.VTEIMS.at(1), 4) == 5
    assert line.rig.nic.port.registers.read(Regs.VTEIMS.at(0), 4) == 0
    assert served.server.counters["REGION_WRITE"] == before + 1
    assert served.messages == exits + 1


def read(offset: int, region: int = BAR0, count: int = 4) -> bytes:
    return REGION_ACCESS.pack(offset, region, count)


def test_a_register_is_read_without_python(line):
    served, peer = line.rig.functions[1], line.peers[1]
    before, exits = served.server.counters.get("REGION_READ", 0), served.messages
    line.rig.nic.port.registers.poke(Regs.VMBMEM, 16, 0x12345678)
    served.server.serve = None  # type: ignore[method-assign,assignment]  # whoever calls it fails
    number = peer.send(Command.REGION_READ, read(0x800))
    line.run()
    answer = HEADER.pack(number, Command.REGION_READ, 36, REPLY, 0) + read(0x800) + (0x12345678).to_bytes(4, "little")
    assert heard(peer) == answer
    assert served.server.counters["REGION_READ"] == before + 1
    assert served.messages == exits + 1


@pytest.mark.parametrize("flags", [0, NO_REPLY])
def test_a_plain_register_is_written_without_python(line, flags):
    served, peer = line.rig.functions[1], line.peers[1]
    served.server.serve = None  # type: ignore[method-assign,assignment]  # whoever calls it fails
    number = peer.send(Command.REGION_WRITE, write(0x804, 0x12345678), flags=flags)
    line.run()
    answer = HEADER.pack(number, Command.REGION_WRITE, 32, REPLY, 0) + write(0x804, 0)[:16]
    assert heard(peer) == (b"" if flags else answer)
    assert line.rig.nic.port.registers.peek(Regs.VMBMEM, 17) == 0x12345678


@pytest.mark.parametrize("offset", [0xC40, 0x0, 0x1520, 0x4000, 0x806])
def test_other_writes_are_left_for_python(line, offset):
    peer = line.peers[1]
    peer.send(Command.REGION_WRITE, write(offset, 4))
    line.run()
    assert heard(peer) == b""
    line.pump.turn()
    line.pump.turn()
    assert len(heard(peer)) == 32 or offset == 0x4000


def test_a_register_is_read_before_there_are_messages_and_bus_mastering(line):
    peer = line.peers[0]
    line.rig.nic.config_write(line.rig.rids[0], 4, 2, 2)
    line.rig.functions[0].region_write(CONFIG, 4, b"\2\0")
    line.rig.functions[0].server.serve = None  # type: ignore[method-assign,assignment]
    peer.send(Command.REGION_READ, read(0xC40))
    line.run()
    assert len(heard(peer)) == 36


@pytest.mark.parametrize(
    "asked",
    [
        read(EICR),  # a read has side effects that Python knows
        read(0x800, count=2),
        read(0x800, CONFIG),
        read(0x4000),  # beyond
        read(0x802),
        read(-4 & (1 << 64) - 1),
        read(0x800) + b"more",
    ],
)
def test_other_reads_are_left_for_python(line, asked):
    peer = line.peers[1]
    peer.send(Command.REGION_READ, asked)
    line.run()
    assert heard(peer) == b""
    assert line.pump.turn() >= 1
    line.pump.turn()
    assert heard(peer) != b""


def test_whoever_watches_sees_reads(line):
    seen, peer = [], line.peers[1]
    line.rig.nic.on_access = lambda *access: seen.append(access[2])
    peer.send(Command.REGION_READ, read(0xC40))
    line.run()
    assert heard(peer) == b""
    line.pump.turn()
    assert seen == [0xC40]


def test_a_vf_that_is_gone_reads_as_all_ones(line):
    peer = line.peers[1]
    line.rig.nic.config_write(line.rig.nic.pf_rid, 0x168, 2, 0)
    peer.send(Command.REGION_READ, read(0x8))
    for _ in range(3):
        line.run()
        line.pump.turn()
    assert heard(peer)[-4:] == b"\xff" * 4


def test_answers_that_nobody_takes_are_not_lost_nor_reads_done_twice(line):
    """More than the socket takes: the rest waits until the client has read."""
    peer = line.peers[1]
    line.rig.nic.port.registers.poke(Regs.V2PMAILBOX, 1, 0x50)  # both bits are cleared by reading
    numbers, said = [], b""
    with suppress(BlockingIOError):
        for _ in range(1500):
            numbers.append(peer.send(Command.REGION_READ, read(0xC40)))
            if len(numbers) % 50 == 0:
                line.run()
    assert len(numbers) > 300
    for _ in range(200):
        line.run()
        line.pump.turn()
        said += heard(peer)
    answers = [said[at : at + 36] for at in range(0, len(said), 36)]
    assert [HEADER.unpack(answer[:16])[0] for answer in answers] == numbers
    assert [answer[-4:] for answer in answers].count((0x50).to_bytes(4, "little")) == 1
    assert line.rig.functions[1].server.counters["REGION_READ"] >= len(numbers)


def test_a_tail_is_written_without_python(line):
    served, peer = line.rig.functions[1], line.peers[1]
    served.server.serve = None  # type: ignore[method-assign,assignment]  # whoever calls it fails
    for offset, value in ((0x2818, 0x12345), (0x3818, 2), (0x2918, 3), (0x3918, 4)):
        peer.send(Command.REGION_WRITE, write(offset, value), flags=NO_REPLY)
        line.run()
    registers = line.rig.nic.port.registers
    assert [registers.peek(decl, q) for q in (1, 9) for decl in (Regs.RDT, Regs.TDT)] == [0x2345, 2, 3, 4]
    assert not any(registers.peek(decl, q) for q in range(16) if q % 8 != 1 for decl in (Regs.RDT, Regs.TDT))


def test_a_tail_of_a_function_that_may_not_master_the_bus_is_a_register_as_others(line):
    peer = line.peers[0]
    line.rig.nic.config_write(line.rig.rids[0], 4, 2, 2)
    peer.send(Command.REGION_WRITE, write(0x2818, 5))
    line.run()
    assert len(heard(peer)) == 32
    assert line.rig.nic.port.registers.peek(Regs.RDT, 0) == 5


def test_a_vector_that_fires_is_sent_without_python(line):
    nic, (served, _) = line.rig.nic, line.rig.functions
    before = line.rig.host.iommu.stats()
    nic.port.nic["port"]["eicr"] |= 7 << 22
    line.peers[0].send(Command.REGION_WRITE, write(EIMS, 2), flags=NO_REPLY)
    nic.port.interrupts.deliver = None  # whoever calls it fails
    line.run()
    assert heard(line.peers[0]) == message()
    assert heard(line.peers[1]) == b""
    assert served.interrupts == 1
    after = line.rig.host.iommu.stats()
    assert (after["interrupts"] - before["interrupts"], after["delivered"] - before["delivered"]) == (1, 1)
    assert nic.port.registers.read(Regs.IAC.offset, 4) == 1


def test_the_iommu_judges_what_the_kernel_sends(line):
    served, peer = line.rig.functions[0], line.peers[0]
    made = next(iter(served.function._messages.values()))[1]
    line.rig.host.interrupt_table.free(made[0])
    line.rig.nic.bar_write(line.rig.rids[0], 0, EICS, 4, 0)
    peer.send(Command.REGION_WRITE, write(EIMS, 2), flags=NO_REPLY)
    line.rig.nic.port.nic["port"]["eicr"] |= 7 << 22
    line.run()
    assert heard(peer) == b""
    assert line.rig.host.iommu.stats()["blocked"] == 1
    assert served.interrupts == 0
    served.function._messages.clear()


def test_whoever_watches_accesses_sees_all_of_them(line):
    seen = []
    line.rig.nic.on_access = lambda rid, regmap, offset, value, write: seen.append((rid, offset, value, write))
    line.peers[0].send(Command.REGION_WRITE, write(EIMS, 2))
    line.run()
    assert line.pump.turn() == 1
    assert seen == [(line.rig.rids[0], EIMS, 2, True)]


def test_whoever_watches_messages_sees_all_of_them(line):
    seen = []
    line.rig.host.iommu.interrupts.on_message = lambda *what: seen.append(what)
    line.rig.nic.port.nic["port"]["eicr"] |= 7 << 22
    line.peers[0].send(Command.REGION_WRITE, write(EIMS, 2))
    line.run()
    while line.pump.turn():
        pass
    assert len(seen) == 1


@pytest.mark.parametrize(
    "said",
    [
        HEADER.pack(9, Command.REGION_WRITE, 35, 0, 0) + write(EIMS, 7)[:-1],
        HEADER.pack(9, Command.REGION_WRITE, 36, 0, 0) + write(EIMC, 7),
        HEADER.pack(9, Command.REGION_WRITE, 36, 0, 0) + write(EIMS, 7, BAR3),
        HEADER.pack(9, Command.REGION_WRITE, 36, 0, 5) + write(EIMS, 7),
        HEADER.pack(9, Command.REGION_WRITE, 36, 1, 0) + write(EIMS, 7),
        HEADER.pack(9, Command.REGION_WRITE, 36, 0, 0) + REGION_ACCESS.pack(EIMS, 0, 8) + bytes([7, 0, 0, 0]),
        HEADER.pack(9, Command.REGION_WRITE, 36, 0, 0) + REGION_ACCESS.pack(EIMS - 2, 0, 4) + bytes([7, 7, 7, 7]),
        HEADER.pack(9, Command.REGION_READ, 32, 0, 0) + write(EIMS, 0)[:16],
        HEADER.pack(9, Command.REGION_WRITE, 36, 0, 0)[:10],
    ],
)
def test_other_messages_are_left_for_python(line, said):
    line.peers[0].raw(said)
    line.run()
    assert heard(line.peers[0]) == b""
    assert line.rig.nic.port.registers.read(Regs.VTEIMS.at(0), 4) == 0
    assert line.pump.turn() <= 1


def test_a_message_in_two_pieces_is_one(line):
    said = HEADER.pack(9, Command.REGION_WRITE, 36, 0, 0) + write(EIMS, 7)
    for cut in (10, 16, 20, 35):
        line.peers[0].raw(said[:cut])
        line.run()
        line.pump.turn()
        line.run()
        assert heard(line.peers[0]) == b""
        line.peers[0].raw(said[cut:])
        line.run()
        line.pump.turn()
        assert heard(line.peers[0]) == HEADER.pack(9, Command.REGION_WRITE, 32, REPLY, 0) + write(EIMS, 7)[:16]


def test_descriptors_that_nobody_wants_are_closed(line):
    fd = memory_file(4096)
    before = open_fds()
    line.peers[0].send(Command.REGION_WRITE, write(EIMS, 2), [fd, fd])
    line.run()
    assert heard(line.peers[0]) == b"", "it is left to whoever can close them without waiting"
    line.pump.turn()
    assert heard(line.peers[0])
    settle(line.rig.functions[0].server)
    assert open_fds() == before
    os.close(fd)


def test_a_descriptor_that_nobody_can_close_holds_nothing_up(line, hurry):
    server, lingering = line.rig.functions[0].server, Lingering()
    with hurry(5):
        message = HEADER.pack(9, Command.REGION_WRITE, 36, 0, 0) + write(EIMS, 7)
        lingering.put(line.peers[0].sock, message)
        line.run()
        line.pump.turn()
        line.run()
        assert heard(line.peers[0]) == HEADER.pack(9, Command.REGION_WRITE, 32, REPLY, 0) + write(EIMS, 7)[:16]
    assert server.closing == 1
    lingering.release()
    settle(server)


def test_a_client_that_reads_nothing_gets_it_all_later(line):
    peer, nic = line.peers[0], line.rig.nic
    peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sent = 0
    for _ in range(600):
        nic.port.nic["port"]["eicr"] |= 7 << 22
        peer.send(Command.REGION_WRITE, write(EIMS, 2), flags=NO_REPLY)
        line.run()
        while line.pump.turn():
            pass
        sent += 1
    assert line.rig.functions[0].interrupts == sent
    said = b""
    while more := heard(peer):
        said += more
        line.pump.turn()
    assert len(said) == sent * len(message())
    assert {said[at + 2 : at + 36] for at in range(0, len(said), 36)} == {message()[2:]}


def messages(said: bytes) -> list[bytes]:
    """Cut a stream into messages, in an order of its own; posted ones have no number that matters."""
    found = []
    while said:
        size = HEADER.unpack_from(said)[2]
        posted = HEADER.unpack_from(said)[3] & NO_REPLY
        found.append(said[2:size] if posted else said[:size])
        said = said[size:]
    return sorted(found)


@pytest.mark.parametrize("seed", range(4))
def test_it_is_the_same_with_and_without_the_kernel(tmp_path, request, seed):
    lines = [Line(tmp_path / "kernel"), Line(tmp_path / "python", by_python=True)]
    request.addfinalizer(lambda: [line.close() for line in lines])
    choice = random.Random(seed)
    for step in range(250):
        who, bits = choice.randrange(2), choice.randrange(16)
        number, tail = choice.randrange(12), choice.choice((0x2818, 0x2918, 0x3818, 0x3918, 0x2A18, 0x3819, 0x2810))
        posted = choice.choice((0, NO_REPLY))
        register, value = (
            choice.choice((0x0, 0x8, 0x800, 0x83C, 0xC40, 0xF10, EIMS, 0x2800, 0x3828)),
            choice.getrandbits(26),
        )
        for line in lines:
            peer, port = line.peers[who], line.rig.nic.port.nic["port"]
            peer.number = step
            if number < 4:
                offset = (EIMS, EIMS, EIMC, EICS)[number]
                peer.send(Command.REGION_WRITE, write(offset, bits), flags=posted)
                peer.send(Command.REGION_WRITE, write(EIMS, bits >> 1))
            elif number == 4:
                offset = choice_of(bits, (0x152C, 0x1530, EICR))
                peer.send(Command.REGION_WRITE, write(offset, bits), flags=posted)
            elif number == 5:
                peer.send(Command.REGION_WRITE, write(16 + 12, bits & 1, BAR3))
            elif number == 6:
                body = REGION_ACCESS.pack(4, CONFIG, 2) + (6 if bits & 3 else 2).to_bytes(2, "little")
                peer.send(Command.REGION_WRITE, body)
            elif number < 9:
                peer.send(Command.REGION_WRITE, write(tail, bits << 13), flags=posted)
                peer.send(Command.REGION_WRITE, write(EIMS, bits))
            elif number == 9:
                peer.send(Command.REGION_WRITE, write(register, value), flags=posted)
                peer.send(Command.REGION_READ, read(register))
            elif number == 10:
                line.rig.nic.port.nic["pools"][who]["gprc"] += bits
                line.rig.nic.port.mailboxes._set(who, PFSTS=bits & 1, PFACK=bits >> 1 & 1)
                peer.send(Command.REGION_READ, read(register))
                peer.send(Command.REGION_READ, read(0xC40))
            else:
                port["eicr"] |= bits << 19
                port["pending"] |= bits << 19
            line.run()
            line.run()
            if not line.by_python:
                while line.pump.turn():
                    line.run()
        kernel, python = lines
        for one, other in zip(kernel.peers, python.peers, strict=True):
            assert messages(heard(one)) == messages(heard(other)), step
        for name in ("eicr", "eims", "eiac", "eiam", "pending"):
            assert kernel.rig.nic.port.nic["port"][name] == python.rig.nic.port.nic["port"][name], name
        for name in ("fired", "messages"):
            assert kernel.rig.nic.port.nic["card"][name] == python.rig.nic.port.nic["card"][name], name
        for q in range(16):
            rows = [[line.rig.nic.port.registers.peek(decl, q) for decl in TAILS] for line in lines]
            assert rows[0] == rows[1], q
        assert kernel.rig.host.iommu.stats() == python.rig.host.iommu.stats()
        assert [f.messages for f in kernel.rig.functions] == [f.messages for f in python.rig.functions]
        assert [f.interrupts for f in kernel.rig.functions] == [f.interrupts for f in python.rig.functions]
    assert sum(f.interrupts for f in lines[0].rig.functions) > 3


@pytest.mark.parametrize("seed", range(3))
def test_whatever_a_client_says_the_other_is_answered(line, seed):
    choice, (hostile, peer) = random.Random(seed), line.peers
    said = b""
    for step in range(300):
        if line.rig.functions[0].server.client is None:  # it was dropped, for nonsense
            hostile.sock.close()
            hostile = line.peers[0] = Peer(line.rig.functions[0].server)
        whole = HEADER.pack(step, Command.REGION_WRITE, 36, choice.choice((0, NO_REPLY)), 0) + write(EIMS, 7)
        kind = choice.randrange(6)
        if kind == 0:
            whole = bytes(b ^ (1 << choice.randrange(8)) if choice.random() < 0.05 else b for b in whole)
        elif kind == 1:
            whole = whole[: choice.randrange(1, 36)]
        elif kind == 2:
            whole = whole * choice.randrange(1, 20)
        elif kind == 3:
            whole = choice.randbytes(choice.randrange(1, 200))
        with suppress(BrokenPipeError, ConnectionResetError):
            hostile.sock.send(whole)
        number = peer.send(Command.REGION_WRITE, write(EIMS, 1))
        for _ in range(100):
            line.run()
            line.pump.turn()
            said += heard(peer)
            if said:
                break
        assert said == HEADER.pack(number, Command.REGION_WRITE, 32, REPLY, 0) + write(EIMS, 1)[:16]
        said = b""
        if choice.random() < 0.7:
            with suppress(ConnectionResetError):
                heard(hostile)


def choice_of(bits: int, among: tuple[int, ...]) -> int:
    return among[bits % len(among)]


# How it rests.


@contextmanager
def processors_awake() -> Iterator[None]:
    """Let no processor sleep: on a virtual one, its host's slack would come on top."""
    command = [sys.executable, "-c", "import os; os.nice(19)\nwhile True: pass"]
    with ExitStack() as stack:
        for _ in os.sched_getaffinity(0):
            busy = stack.enter_context(subprocess.Popen(command))
            stack.callback(busy.kill)
        yield


def test_what_waits_is_woken_at_once_and_a_short_wait_is_short():
    ours, theirs = socket.socketpair()
    scratch = np.zeros(2, np.int64)
    asked = np.array([ours.fileno() | POLLIN], np.int64)
    clock = WallClock()
    with ours, theirs, processors_awake():
        wake_promptly()
        shortest, enough = S_PS, (250 if CHECKED else 145) * US_PS  # checks cost as much as that slack
        for _ in range(10):  # a busy machine may be late each time for a while
            times = [clock.now()]
            for _ in range(500):
                assert poll(address_of(asked), 1, 100 * US_PS, address_of(scratch)) == 0
                times.append(clock.now())
            shortest = min(shortest, *(later - earlier for earlier, later in pairwise(times)))
            if shortest < enough:
                break
        assert 100 * US_PS <= shortest < enough, "neither rounded up to milliseconds, nor late by the usual slack"
        theirs.send(b"x")
        assert poll(address_of(asked), 1, S_PS, address_of(scratch)) == 1
        assert asked[0] >> 48 == 1
        assert abs(monotonic_ps(address_of(scratch)) - clock.now()) < S_PS


def test_a_tick_is_some_milliseconds_long(line):
    clock = WallClock()
    began = clock.now()
    for _ in range(10):
        line.pump()
    assert 40 * MS_PS < clock.now() - began < 500 * MS_PS


def test_nothing_to_wait_for_is_rest_too():
    host = Host(WallClock(), 2 << 20)
    began = host.now()
    Pump(host, [], [])()
    assert host.now() - began > 4 * MS_PS
    host.close()


def test_a_function_that_is_being_torn_out_is_not_waited_for(line):
    line.pump()
    line.rig.functions[0].server.close()
    assert line.rig.functions[0].server.fileno() == -1
    line.pump()
    line.rig.functions[1].server.close()
    line.pump()


@pytest.mark.parametrize("asks", [False, True])
def test_a_cable_that_never_ends_holds_up_nobodys_messages(line, monkeypatch, asks):
    carried = []
    wire = SimpleNamespace(fileno=lambda: -1, serve=lambda budget: (carried.append(budget) or 1, 0), far_card=None)
    vm = SimpleNamespace(functions=dict(zip(line.rig.rids, line.rig.functions, strict=True)))
    pump = Pump(line.rig.host, [line.rig.nic], [vm], [wire])

    def frames_leave(*given):
        given[7][0] = EV_UPLINK

    monkeypatch.setattr("virtfn.vmm.pump.run_pump", frames_leave)
    if asks:
        line.peers[1].send(Command.DEVICE_GET_INFO, bytes(16))
    times = []
    for _ in range(5):
        carried.clear()
        pump.rest(MS_PS)
        times.append(len(carried))
    assert max(times) > 1
    assert bool(heard(line.peers[1])) == asks


@pytest.mark.parametrize("more", [3, 10**6])
def test_who_asks_again_at_once_is_answered_in_the_same_turn(line, monkeypatch, more):
    peer, asked = line.peers[0], [0]

    def ask() -> None:
        peer.send(Command.DEVICE_GET_INFO, bytes(16))
        settle_reader(peer)

    def asks_again(*given: object) -> tuple[int, int, int]:
        if asked[0] == more:
            return 0, 0, 0
        asked[0] += 1
        ask()
        return 0, 1, 0

    monkeypatch.setattr("virtfn.vmm.pump.answer_at_once", asks_again)
    monkeypatch.setattr("virtfn.vmm.pump.WHOLE_PS", 20 * MS_PS)
    ask()
    time.sleep(0.01)  # it is alone now
    began = line.rig.host.now()
    answered = line.pump.turn()
    assert line.rig.host.now() - began < 100 * MS_PS, "its slice of time ends it"
    assert 1 < answered <= 1 + more


def test_who_reads_at_once_is_answered_in_the_same_turn_by_the_kernel(line, monkeypatch):
    served, peer = line.rig.functions[0], line.peers[0]
    came = []

    def reads(*given):
        peer.send(Command.REGION_READ, read(0xC40))
        came.append(answer_at_once(*given))
        return came[-1]

    monkeypatch.setattr("virtfn.vmm.pump.answer_at_once", reads)
    monkeypatch.setattr("virtfn.vmm.pump.WHOLE_PS", 20 * MS_PS)
    exits = served.messages
    peer.send(Command.DEVICE_GET_INFO, bytes(16))
    time.sleep(0.01)  # it is alone now
    assert line.pump.turn() == 2
    assert came == [(1, 0, 0)]
    assert len(heard(peer)) == 16 + 36
    assert served.messages == exits + 1


@pytest.mark.parametrize("by_kernel", [True, False])
def test_a_vector_that_fires_meanwhile_is_sent_or_pending_before_the_next_answer(line, monkeypatch, by_kernel):
    peer, nic = line.peers[0], line.rig.nic
    monkeypatch.setattr("virtfn.vmm.pump.WHOLE_PS", 20 * MS_PS)
    if not by_kernel:
        monkeypatch.setattr("virtfn.vmm.pump.answer_at_once", lambda *_: (0, 1, 0))
    nic.port.nic["port"]["eicr"] |= 7 << 22
    for _ in range(8):
        peer.send(Command.DEVICE_GET_INFO, bytes(16))
    peer.send(Command.REGION_WRITE, write(EIMS, 1), flags=NO_REPLY)  # vector 0, which is masked
    peer.send(Command.REGION_READ, read(nic._tables[0]._pba, BAR3))
    time.sleep(0.01)  # it is alone now
    line.pump.turn()
    assert heard(peer)[-4:] == bytes([1, 0, 0, 0])


def test_a_read_does_not_overtake_an_interrupt_that_is_owed(line):
    served, peer = line.rig.functions[0], line.peers[0]
    scratch, now = np.zeros(SCRATCH_BYTES, np.uint8), line.rig.host.now()
    peer.send(Command.REGION_READ, read(0x800))
    links = np.array([[served.lend(line.rig.nic.vectors(served.function.rid)), 0]], np.int64)
    served._block["link"]["owed"] = 1 << int(np.flatnonzero(served._routes["guest_address"])[0])
    asked = np.array([served.server.fileno() | POLLIN << 16 | POLLIN], np.int64)
    assert take_all(np.array([line.rig.nic.address]), links, asked, now, address_of(scratch)) == (1, 0)
    served.take_back()
    assert served.interrupts == 1
    said = heard(peer)
    assert [HEADER.unpack(said[at : at + 16])[1] for at in (0, 36)] == [Command.DMA_WRITE, Command.REGION_READ]


def test_who_reads_all_the_time_hides_nobody_elses_descriptor(line):
    bell = os.eventfd(1, os.EFD_NONBLOCK)
    wire = SimpleNamespace(fileno=lambda: bell, serve=lambda budget: (0, 0), far_card=None)
    vm = SimpleNamespace(functions=dict(zip(line.rig.rids, line.rig.functions, strict=True)))
    pump = Pump(line.rig.host, [line.rig.nic], [vm], [wire])
    for _ in range(100):
        line.peers[0].send(Command.REGION_READ, read(0x800))
    with patch.object(pump, "_answer", lambda: 0):
        pump.rest(5 * MS_PS)
    os.close(bell)
    assert 0 < len(heard(line.peers[0])) // 36 <= 16, "between two looks, eight at most"


def settle_reader(peer: Peer) -> None:
    """Read all that has come, so that the server's answers have room."""
    with suppress(BlockingIOError):
        while peer.sock.recv(1 << 16):
            pass

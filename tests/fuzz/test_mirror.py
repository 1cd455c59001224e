"""A machine that shares no memory and means harm, on a ring of its own: whatever it hands over, answers or withholds,
no byte outside its memory is read or written, each turn is short, and its neighbour's frames arrive.

VIRTFN_SEED repeats a run, VIRTFN_FUZZ_SECONDS makes it longer.
"""

from __future__ import annotations

import errno
import os
import random
import struct
import time

import pytest

from unit.vmm.test_mirror import DATA, RX, SIZE, TX, Machine, Net, frame, mac
from unit.vmm.vfio_user.peer import open_fds
from virtfn.hw.i82576 import VfRegs
from virtfn.machine.memory import CHUNK
from virtfn.vmm.vfio_user.messages import DMA_MAP, DMA_UNMAP, NO_REPLY, Command

SECONDS = float(os.environ.get("VIRTFN_FUZZ_SECONDS", "4"))
SEED = int(os.environ.get("VIRTFN_SEED", "82576"))
TURN_S = 1.0  # bounded ones take milliseconds
ENABLE = 1 << 25
EDGES = (0, 16, CHUNK - 8, CHUNK - 1, CHUNK, 0xFEDF_FFF0, 0xFEE0_1000, 0xFEF0_0000, (1 << 47) - 8, (1 << 64) - 8)


class Hostile(Machine):
    """A machine whose driver makes no sense; some of the time it does."""

    rng = random.Random(SEED)

    def address(self) -> int:
        return self.rng.choice(
            (self.rng.choice(EDGES), self.rng.randrange(CHUNK), DATA + 2048 * self.rng.randrange(64))
        )

    def act(self) -> None:
        rng = self.rng
        match rng.randrange(12):
            case 0 | 1:
                for i in range(SIZE):
                    words = self.address(), rng.getrandbits(64)
                    self.put(rng.choice((TX, RX)) + 16 * i, struct.pack("<QQ", *words))
            case 2 | 3:
                for i in range(SIZE):
                    size = rng.choice((0, 1, 14, 60, 1514, 9000, 65535))
                    flags = rng.choice((3 << 24, 0x09 << 24, 0x2B << 24 | 3 << 20, 0xAB << 24 | 3 << 20, 0x20 << 24))
                    self.put(TX + 16 * i, struct.pack("<QQ", self.address(), size | flags | (size & 0x3FFFF) << 46))
            case 4 | 5:
                for decl in (VfRegs.TDT, VfRegs.RDT):
                    self.set(decl, rng.choice((rng.randrange(SIZE), rng.randrange(SIZE), SIZE, rng.getrandbits(16))))
            case 6:
                decl = rng.choice((VfRegs.TDH, VfRegs.RDH, VfRegs.SRRCTL, VfRegs.RXDCTL, VfRegs.TXDCTL, VfRegs.TDWBAL))
                self.set(decl, rng.choice((0, ENABLE, rng.getrandbits(32), 0x8A000402, 0x80000002, rng.randrange(64))))
            case 7:
                decl = rng.choice((VfRegs.RDBAL, VfRegs.TDBAL, VfRegs.RDLEN, VfRegs.TDLEN))
                self.set(decl, rng.choice((self.address(), 16 * SIZE, 0, 128, 0xFFF80)))
            case 8:
                self.deaf, self.refusing = rng.random() < 0.3, rng.choice((0, 0, errno.EFAULT, errno.EAGAIN))
            case 9:
                self.peer.send(Command.DMA_UNMAP, DMA_UNMAP.pack(24, 2, 0, 0), flags=NO_REPLY)
                self.peer.send(Command.DMA_MAP, DMA_MAP.pack(32, rng.randrange(1, 4), 0, 0, CHUNK), flags=NO_REPLY)
            case 10:
                self.rig.nic.bar_write(self.function.function.rid, 0, VfRegs.VTCTRL.offset, 4, 1 << 26)
                self.rig.allow()
            case _:
                self.open(rng.choice((0x82000002, 0x80000002, 0x8A000402)))
                self.put(DATA, bytes(mac(1)) + bytes(mac(0)) + rng.randbytes(200))


@pytest.fixture
def net(tmp_path):
    made = Net(tmp_path)
    yield made
    made.close()


def test_whatever_it_does_it_reaches_only_its_own_memory(net):
    print(f"VIRTFN_SEED={SEED}")
    a = Hostile(net, 0)
    net.machines.append(a)
    b = net.machine(1)
    before, sent, end = open_fds(), 0, time.monotonic() + SECONDS
    while time.monotonic() < end:
        a.act()
        started = time.monotonic()
        net.turn(a.rng.randrange(1, 6))
        assert time.monotonic() - started < TURN_S
        b.received()
        b.send(frame(1, 0, seed=sent & 0xFF))
        net.turn(5)
        sent += 1
        assert len(b.finished()) == min(sent, SIZE), "its neighbour waits for nothing"
    assert open_fds() <= before + 2, "a file for each mirror at most: what it may not write is not mirrored"
    assert a.function.connected_now
    a.deaf, a.refusing = False, 0
    a.peer.send(Command.DMA_UNMAP, DMA_UNMAP.pack(24, 2, 0, 0), flags=NO_REPLY)
    a.peer.send(Command.DMA_MAP, DMA_MAP.pack(32, 3, 0, 0, CHUNK), flags=NO_REPLY)
    net.nic.bar_write(a.function.function.rid, 0, VfRegs.VTCTRL.offset, 4, 1 << 26)
    net.allow()
    a.set(VfRegs.TDWBAL, 0)
    a.set(VfRegs.RDBAH, 0)
    a.set(VfRegs.TDBAH, 0)
    net.turn(50)
    a.memory[:] = bytes(CHUNK)
    a.open()
    net.turn()
    b.received()
    a.send(frame(0, 1, seed=77))
    b.send(frame(1, 0, seed=78))
    net.turn(20)
    assert (b.received(), a.received()) == ([frame(0, 1, seed=77)], [frame(1, 0, seed=78)])

"""A hostile guest changes nothing but its own memory, raises nothing, hangs nothing, and leaves everyone else at work.

All of the machine's memory but the attacker's is compared after every few attacks: the other guest's, with canaries in
it, the page tables, the memory that nobody has. Where the other guest posts buffers, frames may come into those, and
into nothing else. VIRTFN_SEED repeats a run, VIRTFN_FUZZ_SECONDS makes it longer.
"""

from __future__ import annotations

import os
import random
import time

import numpy as np
import pytest

from fuzz.hostile import Hostile, pattern
from fuzz.structures import Structures
from unit.rig import Rig, frame, send, take
from virtfn.hw.i82576 import Regs, VfRegs, vf_view
from virtfn.kernels import warm
from virtfn.kernels.i82576.port import wire_in
from virtfn.kernels.i82576.state import CAPTURE_BYTES, CAPTURE_SLOTS
from virtfn.kernels.ranges import address_of
from virtfn.machine.clock import MS_PS
from virtfn.machine.memory import CHUNK

SECONDS = float(os.environ.get("VIRTFN_FUZZ_SECONDS", "10"))
SEED = int(os.environ.get("VIRTFN_SEED", "82576"))
ROUNDS, ATTACKS = 12, 40
PATIENCE_S = 20.0  # for one call; a bounded one takes milliseconds

# What the host chose: (name, spoof checks, protection, every queue drops, capture, other guest has posted buffers).
SETTINGS = [
    ("as the driver has it, quiet neighbour", True, True, True, False, False),
    ("no checks, capturing", False, False, True, True, True),
    ("queues that do not drop", False, False, False, False, True),
    ("everything mirrored and hashed", False, False, True, True, False),
]


class World:
    """Two guests: the attacker on VF 0, the other one on VF 1; and a copy of all memory that must not change."""

    def __init__(self, seed: str, settings: tuple[str, bool, bool, bool, bool, bool]) -> None:
        self.rng = random.Random(seed)
        self.name, spoof, protect, drop, capture, self.posts = settings
        self.rig = Rig((("pf0", 0), ("pf0", 1)), ring=80)
        self.machine = self.rig.machine.__enter__()
        self.nic, self.host = self.rig.nic, self.machine.host
        self.other = self.rig.guest(1)
        self.driver = self.rig.driver(1)
        for n in (0, 1):
            self.rig.igb.set_spoof_check(n, spoof)
            self.rig.igb.set_trust(n, not spoof)
        if not self.posts:
            self.driver.stop()
        attacker = self.rig.guest(0)
        nic = attacker.nics[0]
        self.own = set(attacker.memory.pieces)
        self.structures = Structures(self.host, nic.function.rid)
        targets = [int(p) for p in self.other.memory.pieces] + self.structures.addresses()
        targets += [int(self.nic.port.block.ctypes.data), int(self.host.memory.base)]
        macs = [int(nic.driver.mac), int(self.driver.mac)]
        self.hostile = Hostile(attacker, nic, self.rng, targets, macs)
        attacker.nics[0].driver.netdev["up"] = 0
        self.protect, self.drop, self.capture = protect, drop, capture
        self.set_up_port()
        self.plant()
        self.served = 0
        self.waiting: list[bytes] = []

    def pf(self, decl, value: int, index: int = 0) -> None:
        self.nic.bar_write(self.nic.pf_rid, 0, decl.at(index), 4, value)

    def set_up_port(self) -> None:
        """Choose what a PF driver may choose, from tame to permissive."""
        self.pf(Regs.QDE, 0xFFFF if self.drop else 0)
        self.pf(Regs.DTXCTL, 0x64 if self.protect else 0x44)
        if self.name.startswith("everything"):
            self.pf(Regs.MRQC, 5 | 0x1FF << 16)
            for i in range(32):
                self.pf(Regs.RETA, 0x01000100, i)
            self.pf(Regs.RXCSUM, 0x2300)
            self.pf(Regs.VMRCTL, 0x00000007)
            self.pf(Regs.VMRVM, 0x3)
            self.pf(Regs.DTXSWC, 0x80FF0000)
            for n in range(8):
                self.pf(Regs.VMOLR, 0x9F832600 | 1 << 16, n)
        if self.capture:
            self.nic.start_capture()

    def plant(self) -> None:
        """Put canaries wherever nobody is at home, and remember all memory."""
        memory = self.host.memory
        for offset in memory._chunks:
            pattern(memory.base + offset, CHUNK)
        used = self.other.dma._used
        free = np.ones(self.other.memory.size, bool)
        for at, size in used.items():
            free[at : at + size] = False
        view = self.other.memory.bytes
        view[free] = np.resize(np.arange(1, 252, dtype=np.uint8), view.size)[free]
        self.before = memory.bytes.copy()
        self.watched = np.ones(memory.size // 4096, bool)
        for piece in self.own:
            first = (piece - memory.base) // 4096
            self.watched[first : first + self.rig.guest(0).memory.chunk // 4096] = False
        for page in self.structures.of_host:
            self.watched[(page - memory.base) // 4096] = False
        self.structures.remember()
        self.interrupted = self.other.interrupts, self.host.interrupts.spurious
        if self.posts:
            self._exempt_posted()
        self.registers = self.others_registers()

    def _exempt_posted(self) -> None:
        """Leave out what frames to and from the other guest may change: rings, buffers, the head written back."""
        d, memory = self.driver.netdev, self.other.memory
        step = int(d["buffer_bytes"])
        places = [(int(d["tx_done_head"]) - memory.base, 4)]
        for side in ("rx", "tx"):
            size = int(d[f"{side}_size"])
            places += [(int(d[f"{side}_ring"]) - memory.base, size * 16), (int(d[f"{side}_iova"]), size * step)]
        for start, length in places:
            for at in range(start & ~4095, start + length, 4096):
                hpa = memory.pieces[at // memory.chunk] + at % memory.chunk
                self.watched[(hpa - self.host.memory.base) // 4096] = False

    def others_registers(self) -> dict[int, int]:
        """Read, without side effects, what the other guest's driver wrote."""
        port = self.nic.port.registers
        moving = {
            VfRegs.VTSTATUS,
            VfRegs.VTFRTIMER,
            VfRegs.RDH,
            VfRegs.TDH,
            VfRegs.TDT,
            VfRegs.V2PMAILBOX,
            VfRegs.RQDPC,
        }
        found = {}
        for offset, source in vf_view(1).items():
            decl = VfRegs.INDEX[offset][0]
            if decl not in moving and not decl.name.startswith("VFG"):
                found[offset] = port.peek(*Regs.INDEX[source])
        return found

    # One round.

    def attack(self) -> None:
        for _ in range(ATTACKS):
            self.hostile.act()
            if self.rng.random() < 0.6:
                self.serve()
            if self.rng.random() < 0.15:
                self.burst()
            if self.rng.random() < 0.15:
                self.wire(*([] if len(self.waiting) > 8 else self.wire_frames()))

    def burst(self) -> None:
        """Let the other guest send the attacker more frames at once than a short ring takes: honest traffic."""
        if self.posts and self.driver.netdev["up"] and not self.driver.tx_pending:
            send(self.driver, *[frame(self.hostile.macs[0], self.driver.mac)] * 70)

    def timed(self, work, *args):
        started = time.monotonic()
        result = work(*args)
        assert time.monotonic() - started < PATIENCE_S, "a call must be bounded"
        return result

    def serve(self) -> None:
        self.rig.clock.sleep(self.rng.choice((0, MS_PS // 10, 10 * MS_PS)))
        frames, events = self.timed(self.nic.serve, self.rng.choice((1, 4, 64)))
        self.served += frames
        self._after(events)

    def _after(self, events: int) -> None:
        self.host.iommu.service()
        port = self.nic.port.nic["port"]
        assert 0 <= int(port["capture_head"]) <= CAPTURE_SLOTS
        assert 0 <= int(port["capture_bytes"]) <= CAPTURE_BYTES
        if self.capture and self.rng.random() < 0.5:
            self.nic.take_capture()
        self.hostile.guest._pending.clear()

    def wire(self, *bodies: bytes) -> None:
        """Let frames come from the wire; those that the port does not take wait, the first of them at its door."""
        self.waiting += bodies
        if not self.waiting:
            return
        self.nic.port.settle()
        joined = np.frombuffer(b"".join(self.waiting), np.uint8)
        lengths = np.array([len(b) for b in self.waiting], np.int64)
        address, offsets = self.nic.port.block.ctypes.data, np.cumsum(lengths) - lengths
        taken, events = self.timed(
            wire_in, address, self.rig.clock.now(), address_of(joined), offsets, lengths, 0, len(lengths)
        )
        self.waiting = self.waiting[taken:]
        self.nic.handle(events)
        self._after(events)

    def wire_frames(self) -> list[bytes]:
        """Make frames to the attacker and to everyone."""
        return [self.hostile.frame()[: self.rng.choice((10, 14, 60, 64, 1518, 9000, 12000))] for _ in range(4)]

    # What must hold.

    def check(self) -> None:
        now = self.host.memory.bytes.reshape(-1, 4096)
        then = self.before.reshape(-1, 4096)
        changed = self.watched & (now != then).any(axis=1)
        assert not changed.any(), f"pages {np.flatnonzero(changed)[:8]} changed"
        assert self.others_registers() == self.registers
        self.structures.check()
        interrupts, spurious = self.interrupted
        assert self.host.interrupts.spurious == spurious, "a vector was raised that nobody gave out"
        if not self.posts:
            assert self.other.interrupts == interrupts, "the other guest was interrupted"

    def explain(self) -> dict[str, int]:
        """Sum up what the attacks came to."""
        stats = self.host.iommu.stats()
        delivered = int(self.nic.port.nic["pools"][1]["gprc"])
        counts = {name: stats[name] for name in ("faults", "interrupts", "blocked", "posted")}
        return {"served": self.served, "delivered": delivered, **counts, **self.nic.drops(0)}

    def end(self) -> None:
        """Let the PF take the VF out of action; the other guest's traffic must flow."""
        self.pf(Regs.QDE, 0xFFFF)
        self.pf(Regs.MRQC, 3)
        self.pf(Regs.VMRCTL, 0)
        self.rig.igb.stop_vf(0)
        for _ in range(8):
            self.rig.clock.sleep(100 * MS_PS)
            self.timed(self.nic.serve)
            self.wire()
        assert self.waiting == [], "nothing holds the line up any more"
        if self.posts:
            while take(self.driver):
                pass
            body = frame(self.driver.mac, 0x99, b"still here")
            self.rig.clock.sleep(100 * MS_PS)
            self.wire(body)
            assert body in take(self.driver), "the other guest still gets its frames"

    def close(self) -> None:
        self.rig.machine.close()


def live(seed: str, settings: tuple[str, bool, bool, bool, bool, bool], until: float) -> dict[str, int]:
    """Attack one machine for a number of rounds; return what it came to."""
    world = World(seed, settings)
    try:
        for _ in range(ROUNDS):
            world.attack()
            world.check()
            if time.monotonic() > until:
                break
        world.end()
        return world.explain()
    except BaseException:
        print(f"seed {seed!r}, {settings[0]}; last attacks: {', '.join(world.hostile.log)}")
        raise
    finally:
        world.close()


@pytest.fixture(autouse=True, scope="module")
def compiled():
    """Compile before the first call is timed."""
    warm.load()


def test_the_watch_sees_one_byte_wherever_it_changes():
    world = World("watch", SETTINGS[1])
    memory = world.host.memory
    free = memory._chunks[0] + 5
    table = int(world.host.iommu.iommu.unit[0]["root"]) - memory.base + 8
    others = world.other.memory.pieces[-1] - memory.base + 77
    own = world.rig.guest(0).memory.pieces[0] - memory.base
    memory.bytes[own] ^= 1
    world.check()
    for at in (free, table, others):
        memory.bytes[at] ^= 1
        with pytest.raises(AssertionError, match="changed"):
            world.check()
        memory.bytes[at] ^= 1
    world.check()
    world.nic.bar_write(world.nic.vf_rid(1), 0, VfRegs.VTIVAR.offset, 4, 0x12345678)
    with pytest.raises(AssertionError):
        world.check()
    world.close()


@pytest.mark.slow
@pytest.mark.parametrize("settings", SETTINGS, ids=[s[0] for s in SETTINGS])
def test_a_hostile_guest_harms_only_itself(settings):
    print(f"VIRTFN_SEED={SEED}")
    live(f"{SEED}/first", settings, time.monotonic() + 0.5)  # what compiles at its first call does so now
    share = SECONDS / len(SETTINGS)
    until = time.monotonic() + share
    total: dict[str, int] = {}
    life = 0

    def seen_enough() -> bool:
        return all(total.get(name, 0) > 0 for name in ("served", "faults", "dma-fault", "blocked"))

    while life == 0 or time.monotonic() < until or (not seen_enough() and life < 20):  # a slow machine takes longer
        ends = until if time.monotonic() < until else time.monotonic() + share
        for name, count in live(f"{SEED}/{settings[0]}/{life}", settings, ends).items():
            total[name] = total.get(name, 0) + count
        life += 1
    print(f"{life} machines: {total}")
    assert total["served"] > 0
    assert total["faults"] > 0, "the IOMMU has seen it"
    assert total.get("dma-fault", 0) > 0
    assert total["blocked"] > 0, "messages were forged, and blocked"
    assert (total["delivered"] > 0) == settings[-1], "frames reach a neighbour that wants some, and only such a one"

"""Software that makes no sense cannot break the remapping unit: registers, queues, tables, requests, in any order.

Tables and queue are real ones that random words spoil, so that what follows gets deep into the unit. After each few
blows every request is still counted exactly once, every call was bounded, and after a reset the unit works as new.
VIRTFN_SEED repeats a run, VIRTFN_FUZZ_SECONDS makes it longer.
"""

from __future__ import annotations

import os
import random
import time

import pytest

from unit.devices.iommu.rig import TYPES, FakeTlb, Queued, descriptor
from unit.remapping import RID
from virtfn.hw.types import Iova, Rid
from virtfn.hw.vtd.interrupts import IRTE_BYTES
from virtfn.hw.vtd.queue import IotlbInvalidation
from virtfn.hw.vtd.regs import GCMD, IQA, WINDOW_BYTES, Regs
from virtfn.machine.memory import PAGE

SECONDS = float(os.environ.get("VIRTFN_FUZZ_SECONDS", "10"))
SEED = int(os.environ.get("VIRTFN_SEED", "82576"))
BLOWS = 400
PATIENCE_S = 10.0
EDGES = (0, 1, 0xFFF, 0x1000, 1 << 21, 1 << 30, 1 << 39, (1 << 47) - 1, 1 << 47, 1 << 48, 1 << 63, (1 << 64) - 1,
         0xFEE00000, 0xFEE00010, 0xFEDFFFFF, 0xFEEFFFFF, 0xFEF00000)  # fmt: skip
COMMANDS = (0, 1 << 31, 1 << 30, 1 << 26, 1 << 25, 1 << 24, 1 << 23, 1 << 26 | 1 << 31, 1 << 25 | 1 << 26 | 1 << 31)


class Software:
    """A unit, tables and a queue, and the software that owns them and has gone mad."""

    def __init__(self, seed: str) -> None:
        self.rng = random.Random(seed)
        self.q = Queued(qs=self.rng.choice((0, 0, 1)))
        self.irt = self.q.memory.alloc_page()
        self.tlb = FakeTlb(self.q.device)
        FakeTlb(self.q.device, RID + 1, prompt=True)
        self.q.set_context(RID + 1, self.q.ss[4] | 1, 2 | 6 << 8)
        for i in range(64):
            self.q.put(self.q.ss[1] + 8 * i, self.q.page | 3)
        self.log: list[str] = []
        self.acts = {
            self.on_register: 10, self.on_anywhere: 3, self.on_command: 4, self.on_queue: 10, self.on_table: 10,
            self.on_interrupt_table: 6, self.on_dma: 20, self.on_message: 12, self.on_answer: 4, self.on_time: 3,
            self.on_repair: 3,
        }  # fmt: skip

    def act(self) -> None:
        (act,) = self.rng.choices(list(self.acts), list(self.acts.values()))
        self.log = [*self.log[-7:], act.__name__]
        started = time.monotonic()
        act()
        assert time.monotonic() - started < PATIENCE_S, "a call must be bounded"

    def address(self) -> int:
        rng, q = self.rng, self.q
        places = (q.root, q.context, *q.ss.values(), q.page, q.ring, q.status, self.irt, q.memory.base)
        inside = rng.choice(places) + rng.randrange(0, PAGE, 8)
        end = q.memory.base + q.memory.size + rng.randrange(-64, 64)
        return rng.choice((inside, inside, inside, end, rng.choice(EDGES), rng.getrandbits(64)))

    def value(self) -> int:
        rng = self.rng
        return rng.choice((self.address(), self.address() & -PAGE | rng.randrange(8), rng.getrandbits(64), 0, 1 << 63))

    def on_register(self) -> None:
        decl, index, _ = self.rng.choice(list(Regs.elements()))
        self.q.device.write(decl.at(index), decl.size, self.value() & (1 << 8 * decl.size) - 1)
        self.q.device.read(decl.at(index), decl.size)

    def on_anywhere(self) -> None:
        offset, size = self.rng.randrange(-16, WINDOW_BYTES + 16), self.rng.choice((1, 2, 3, 4, 8, 16, 0, -1))
        self.q.device.write(offset, size, self.value())
        self.q.device.read(offset, size)

    def on_command(self) -> None:
        self.q.write(Regs.GCMD, self.rng.choice((*COMMANDS, self.rng.getrandbits(32))))

    def on_queue(self) -> None:
        rng, q = self.rng, self.q
        for _ in range(rng.choice((1, 2, 8, 300))):
            kind, number = rng.choice(list(TYPES.items()))
            fields = {f.name: rng.choice((0, 1, rng.getrandbits(f.width))) for f in kind.FIELDS if f.name != "TYPE"}
            fields = {name: n & (1 << getattr(kind, name).width) - 1 for name, n in fields.items()}
            sane = kind.of(**fields).value | number
            q.place(rng.choice((sane, sane, rng.getrandbits(128), q.wait(rng.getrandbits(32)))))
        q.write(Regs.IQT, rng.choice((q.tail, q.tail, rng.getrandbits(20))))

    def on_table(self) -> None:
        q = self.q
        for _ in range(self.rng.randrange(1, 4)):
            table = self.rng.choice((q.root, q.context, *q.ss.values()))
            slot = self.rng.choice((0, 1, RID >> 8, RID & 255, self.rng.randrange(512)))
            q.put(table + slot * 8 % PAGE, self.value())

    def on_interrupt_table(self) -> None:
        rng = self.rng
        slot = self.irt + IRTE_BYTES * rng.randrange(16)
        posted = 1 | 1 << 15 | (self.address() & 0xFFFFFFC0) << 32
        low = rng.choice((1 | rng.getrandbits(8) << 16, posted, self.value()))
        self.q.put(slot, low)
        self.q.put(slot + 8, rng.choice((RID | 1 << 18, self.address() >> 32 << 32 | RID, rng.getrandbits(64))))
        if rng.random() < 0.3:
            self.q.write(Regs.IRTA, self.irt | rng.randrange(16))
            self.q.write(Regs.GCMD, GCMD.TE.mask | GCMD.QIE.mask | GCMD.SIRTP.mask)
            self.q.write(Regs.GCMD, GCMD.TE.mask | GCMD.QIE.mask | GCMD.IRE.mask)

    def on_dma(self) -> None:
        rng, device = self.rng, self.q.device
        rid = Rid(rng.choice((RID, RID, RID + 1, rng.getrandbits(16))))
        near = Iova(rng.randrange(64) * PAGE + rng.choice((0, 0, 8, PAGE - 4)))
        iova = rng.choice((near, near, Iova(self.address())))
        size = rng.choice((0, 1, 4, 64, PAGE, 3 * PAGE, 1 << 20))
        if rng.random() < 0.5:
            payload = device.dma_read(rid, iova, rng.choice((size, size, -1, 1 << 40)))
            assert payload is None or len(payload) == size
        else:
            assert device.dma_write(rid, iova, bytes(min(size, 3 * PAGE))) in (True, False)

    def on_message(self) -> None:
        rng, device = self.rng, self.q.device
        address = 0xFEE00000 | rng.choice((rng.randrange(20) << 5 | 0x10, rng.getrandbits(20)))
        rid, message = Rid(rng.choice((RID, RID, rng.getrandbits(16)))), rng.getrandbits(rng.choice((8, 16, 32)))
        if rng.random() < 0.5:
            device.interrupts.send(rid, rng.choice((address, address, self.address())), message)
        else:
            device.dma_write(rid, Iova(address & ~3), message.to_bytes(4, "little"))

    def on_answer(self) -> None:
        rng, device = self.rng, self.q.device
        device.complete_device_tlb(Rid(RID + rng.randrange(3)), rng.randrange(-1, 34))
        page = Iova(rng.choice((rng.getrandbits(48), self.address())))
        read, last = bool(rng.getrandbits(1)), bool(rng.getrandbits(1))
        device.page_request(Rid(RID), page, read, True, last, rng.getrandbits(9))

    def on_time(self) -> None:
        self.q.clock.sleep(self.rng.randrange(2000))
        self.q.device.service()

    def on_repair(self) -> None:
        """Come to its senses for a moment: what follows gets deeper."""
        q = self.q
        q.write(Regs.FSTS, 0x71)
        for i in range(8):
            q.write(Regs.FRCD_HIGH, 1 << 63, i)
        q.put(q.root + (RID >> 8) * 16, q.context | 1)
        q.put(q.root + (RID >> 8) * 16 + 8, 0)
        q.set_context(RID, q.ss[4] | 1, 2 | 5 << 8)
        for level in (4, 3, 2):
            q.put(q.ss[level], q.ss[level - 1] | 3)
        q.enable()
        q.tail = 0
        q.write(Regs.GCMD, GCMD.TE.mask)
        q.write(Regs.IQA, IQA(q.ring).value)
        q.write(Regs.GCMD, GCMD.TE.mask | GCMD.QIE.mask)
        for i in range(16):
            posted = 1 | 1 << 15 | 0x40 << 16 | (q.status & 0xFFFFFFC0) << 32
            q.put(self.irt + IRTE_BYTES * i, posted if i & 1 else 1 | 0x41 << 16)
            q.put(self.irt + IRTE_BYTES * i + 8, RID | 1 << 18 | (q.status >> 32 << 32 if i & 1 else 0))
        q.write(Regs.IRTA, self.irt | 3)
        q.write(Regs.GCMD, GCMD.TE.mask | GCMD.QIE.mask | GCMD.SIRTP.mask)
        q.write(Regs.GCMD, GCMD.TE.mask | GCMD.QIE.mask | GCMD.IRE.mask)

    # What must hold.

    def check(self) -> dict[str, int]:
        stats = self.q.device.stats()
        assert all(count >= 0 for count in stats.values()), stats
        assert stats["interrupts"] == stats["delivered"] + stats["posted"] + stats["blocked"]
        assert stats["faults"] >= stats["suppressed"]
        return stats

    def end(self) -> None:
        """After a reset, and with tables as they should be, the unit translates, forgets and answers."""
        q = self.q
        q.device.reset()
        self.on_repair()
        q.put(q.ss[1] + 8, q.page | 3)
        assert q.reaches(0x1000)
        q.put(q.ss[1] + 8, 0)
        q.go(descriptor(IotlbInvalidation, G=1), q.wait(0x600D, 1))
        assert q.word(q.status + 4) == 0x600D
        assert not q.reaches(0x1000)
        q.memory.close()


def live(seed: str, until: float) -> dict[str, int]:
    software = Software(seed)
    try:
        for blow in range(BLOWS):
            software.act()
            if blow % 8 == 0:
                software.check()
            if time.monotonic() > until:
                break
        stats = software.check()
        software.end()
    except BaseException:
        print(f"seed {seed!r}; last blows: {', '.join(software.log)}")
        raise
    return stats


@pytest.fixture(autouse=True, scope="module")
def compiled():
    """Compile before the first call is timed."""
    q = Queued()
    assert q.device.dma_write(Rid(RID), Iova(0x1000), q.device.dma_read(Rid(RID), Iova(0x1000), 8) or b"")
    q.device.dma_write(Rid(RID), Iova(0xFEE00000), bytes(4))
    q.go(descriptor(IotlbInvalidation, G=1), descriptor(IotlbInvalidation, G=3, DID=5), 1 | 1 << 4, 4)
    q.memory.close()


@pytest.mark.slow
def test_software_that_makes_no_sense_breaks_nothing():
    print(f"VIRTFN_SEED={SEED}")
    until = time.monotonic() + SECONDS
    total: dict[str, int] = {}
    lives = 0
    while lives == 0 or time.monotonic() < until:
        for name, count in live(f"{SEED}/{lives}", until).items():
            total[name] = total.get(name, 0) + count
        lives += 1
    print(f"{lives} units: { {name: count for name, count in total.items() if count} }")
    for name in (
        "iotlb_hits",
        "page_walks",
        "faults",
        "delivered",
        "posted",
        "blocked",
        "invalidations",
        "invalidation_errors",
    ):
        assert total[name] > 0, f"the blows must get as far as {name}"

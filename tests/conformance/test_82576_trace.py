"""The VF against real silicon: the recording of an unmodified Linux igbvf, from probe to traffic, replayed.

The recording is not part of this repository; without it this test is not run. Every write goes to the model, every read
is made and compared. What the recording got from outside the VF is an input here, and taken from it:

    the PF's moment    the PF driver runs when a read of V2PMAILBOX shows that it had; each poll is compared exactly
    traffic            frames come in, and posted ones go out, when a read of a counter shows that they had: as many,
                       of as many bytes; what each counter makes of them is compared exactly
    the PF's answers   its driver there did not repeat MSGINFO in answers; word 0 of an answer is compared without it
    MSI-X tables       were the VMM's, which started with vector control 0, where the specification has 1: three reads
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from conformance.rig import BROADCAST, Rig, data_descriptor, ethernet
from virtfn.drivers.igb import OTHER_VECTOR
from virtfn.hw.i82576 import Opcode, Regs, VfRegs
from virtfn.hw.types import Iova, parse_mac
from virtfn.machine.clock import MS_PS
from virtfn.machine.memory import CHUNK

BAR_OF_PAGE = {0xF7CE0: 0, 0xF7CC0: 3}
MAC = "00:1b:21:4d:e2:e8"
PF_DID = 0x30  # PFSTS, PFACK
TX_RING, RX_RING, FRAMES, BUFFERS = 0x6E4C000, 0x6E68000, 0x6F00000, 0x7000000
FIRST_CONTROLS = {0xC, 0x1C, 0x2C}
MIN_FRAME, FCS = 64, 4


def recording() -> list[tuple[bool, int, int, int]]:
    """Read the recording: (is a write, BAR, offset, value)."""
    roots = [Path(__file__).parents[3] / "shared/data"]
    if os.environ.get("VIRTFN_DATA"):
        roots.insert(0, Path(os.environ["VIRTFN_DATA"]))
    path = next((r / "silicon/82576-vf-mmio-trace.txt" for r in roots if (r / "silicon").is_dir()), None)
    if path is None or not path.is_file():
        pytest.skip("not run: no recording of real silicon here (set VIRTFN_DATA)")
    rows = re.findall(r"PCI(READ|WRITE) ([0-9a-f]+) \(4\) ([0-9a-f]+)", path.read_text())
    assert len(rows) == len(path.read_text().splitlines()), "every line of the recording is understood"
    return [
        (kind == "WRITE", BAR_OF_PAGE[int(at, 16) >> 12 & ~3], int(at, 16) & 0x3FFF, int(value, 16))
        for kind, at, value in rows
    ]


class Replay:
    """The machine of the recording: a PF with 8 VFs at 100 Mb/s, the VF's rings where Linux had put them."""

    def __init__(self, accesses: list[tuple[bool, int, int, int]]) -> None:
        self.accesses = accesses
        self.at = 0
        self.rig = Rig(8, mbps=100, connected=True)
        self.asked = False
        self.driver = self.rig.start_driver(8, lambda: setattr(self, "asked", True))
        self.driver.interrupt(OTHER_VECTOR)
        self.asked = False
        self.driver.offer_mac(0, parse_mac(MAC))
        self.rig.config(0, 0x72, 0x8000)
        domain = self.rig.host.remapping.create_domain(1)
        self.chunks = self.rig.host.memory.alloc_chunks(2)
        for i, chunk in enumerate(self.chunks):
            domain.map(Iova((TX_RING & -CHUNK) + i * CHUNK), chunk, CHUNK)
        self.rig.host.remapping.attach(self.rig.nic.vf_rid(0), domain)
        for i in range(1024):
            self.put(RX_RING + 16 * i, BUFFERS + 2048 * i, 0)
        self.rig.take()
        self.received, self.groups, self.sent = self.traffic()
        self.wrong: list[str] = []
        self.exact = self.masked = self.writes = self.skipped = 0

    def put(self, iova: int, *words: int) -> None:
        """Write words where the VF sees them at `iova`."""
        self.rig.words(self.chunks[0] + iova - (TX_RING & -CHUNK), *words)

    def counted(self, name: str) -> int:
        return int(self.rig.nic.port.nic["pools"][0][name]) - self.base[name]

    def traffic(self) -> tuple[list[tuple[int, int]], ...]:
        """Find what had moved at each reading: (frames, total) of bytes received, groups, bytes sent."""

        def values(decl) -> list[int]:
            return [v for w, bar, at, v in self.accesses if not w and (bar, at) == (0, decl.offset)]

        frames, octets = values(VfRegs.VFGPRC), values(VfRegs.VFGORC)
        for k in range(1, len(frames)):
            # A frame that came between the two reads is in the second only.
            frames[k] += octets[k] > octets[k - 1] and frames[k] == frames[k - 1]
        sent = list(zip(values(VfRegs.VFGPTC), values(VfRegs.VFGOTC), strict=True))
        return list(zip(frames, octets, strict=True)), list(zip(frames, values(VfRegs.VFMPRC), strict=True)), sent

    def run(self) -> None:
        self.base = {name: int(self.rig.nic.port.nic["pools"][0][name]) for name in ("gprc", "gorc", "mprc", "gptc")}
        for at, (write, bar, offset, value) in enumerate(self.accesses):
            self.at = at
            self.rig.clock.sleep(10 * MS_PS)
            if write:
                self.write(bar, offset, value)
            else:
                self.read(bar, offset, value)

    def write(self, bar: int, offset: int, value: int) -> None:
        if bar == 0 and offset == VfRegs.TDT.offset:
            self.post(value)
        if bar == 0 and offset == VfRegs.RDT.offset and 0 < value < 0x3FE:
            self.receive(value + 1)  # a driver refills what it has received
        self.rig.nic.bar_write(self.rig.nic.vf_rid(0), bar, offset, 4, value)
        self.writes += 1

    def read(self, bar: int, offset: int, value: int) -> None:
        if bar == 0 and offset == VfRegs.V2PMAILBOX.offset and value & PF_DID and self.asked:
            self.asked = False
            self.driver.interrupt(OTHER_VECTOR)
        if bar == 0:
            self.move(offset, value)
        got = self.rig.nic.bar_read(self.rig.nic.vf_rid(0), bar, offset, 4)
        mask = 0xFFFFFFFF
        if bar == 3 and offset in FIRST_CONTROLS:
            assert (value, got) == (0, 1), "the one known difference, and no other"
            self.skipped += 1
            return
        if bar == 0 and offset == VfRegs.VMBMEM.offset and value & 0xFFFF == Opcode.SET_MULTICAST:
            mask = 0xFF00FFFF
            self.masked += 1
        else:
            self.exact += 1
        if (got ^ value) & mask:
            self.wrong.append(f"line {self.at + 1}: BAR{bar}+{offset:#x} read {got:#x}, silicon {value:#x}")

    # Traffic.

    def move(self, offset: int, value: int) -> None:
        """Let the frames move that a counter says have moved."""
        if offset == VfRegs.VFGPRC.offset:
            self.receive(value)
        elif offset == VfRegs.VFGORC.offset and value > self.counted("gorc"):
            self.receive(self.counted("gprc") + 1)  # it came between two reads
        elif offset == VfRegs.VFGPTC.offset and value > self.counted("gptc"):
            self.rig.nic.serve(value - self.counted("gptc"))

    def receive(self, count: int) -> None:
        """Let frames come in until there were `count`."""
        own = bytes.fromhex(MAC.replace(":", ""))
        for i in range(self.counted("gprc"), count):
            size = share(self.received, i)
            # Silicon's PF let no multicast in, so that what VFMPRC counted there was broadcast.
            group = share(self.groups, i)
            assert self.rig.receive(ethernet(BROADCAST if group else own, size - FCS)) == 1

    def post(self, tail: int) -> None:
        """Put frames into the transmit ring up to `tail`."""
        for i in range(self.rig.get(VfRegs.TDT, vf=0), tail):
            at, size = FRAMES + 2048 * i, share(self.sent, i) - FCS
            self.put(TX_RING + 16 * i, *data_descriptor(at, size))
            frame = ethernet(b"\x02\0\0\0\0\x77", size, source=bytes.fromhex(MAC.replace(":", "")))
            self.rig.store(self.chunks[0] + at - (TX_RING & -CHUNK), frame)


def share(checkpoints: list[tuple[int, int]], i: int) -> int:
    """Give frame `i` its share of the total that grew between two reads. checkpoints: (frames, total) at each."""
    before = (0, 0)
    for frames, total in checkpoints:
        if frames > i:
            count, grown, k = frames - before[0], total - before[1], i - before[0]
            return grown * (k + 1) // count - grown * k // count
        before = frames, total
    return MIN_FRAME


def test_the_vf_reads_back_what_silicon_read_back():
    replay = Replay(recording())
    try:
        replay.run()
        assert replay.wrong == []
        print(
            f"{replay.writes} writes, {replay.exact} reads exact, {replay.masked} masked, {replay.skipped} not compared"
        )
        assert (replay.writes, replay.exact, replay.masked, replay.skipped) == (423, 307, 4, 3)
        assert len(replay.accesses) == 737
        assert replay.rig.nic.drops(0) == {}
        assert replay.rig.get(Regs.WVBR) == 0
    finally:
        replay.rig.close()


def test_messages_in_the_replay_are_those_of_its_table():
    """Whatever the VF sent was one of the three messages that the recording wrote into the table, to its address."""
    replay = Replay(recording())
    try:
        replay.run()
        own = [(a, m) for rid, a, m in replay.rig.messages if rid == replay.rig.nic.vf_rid(0)]
        assert {a for a, _ in own} == {0xFEE0100C}
        assert {m for _, m in own} == {0x4149, 0x4151, 0x4159}
    finally:
        replay.rig.close()

"""A rig for the data plane: a NIC's state, a remapping domain for each pool, rings and buffers in guests' memory.

Nothing of devices and drivers: registers of queues are plain words, descriptors are made here bit by bit. The memory of
a pool is 2 MiB, by guest addresses:

    1000 rx rings   3000 tx rings   5000 head write-backs   40000 rx buffers   c0000 header buffers   100000 tx data

`scattered` pools have their pages shuffled, so that nothing longer than a page's rest is contiguous for the device.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np

from virtfn.kernels.i82576.port import serve_port, wire_in
from virtfn.kernels.i82576.state import DROP_NAMES, POOLS, QUEUES, new_nic
from virtfn.kernels.i82576.switch import mac_slot
from virtfn.kernels.ranges import address_of
from virtfn.kernels.tapring import TAP_DROP, TAP_RX, TAP_SWITCH, TAP_TX
from virtfn.kernels.vtd.iommu import new_iommu
from virtfn.kernels.vtd.iotlb import invalidate_contexts, invalidate_iotlb
from virtfn.machine.memory import CHUNK, PAGE, HostMemory
from virtfn.machine.taps import Tap, TapReader

Words = tuple[int, int]
EOP, IFCS, IC, RS, DEXT, VLE, TSE = (1 << bit for bit in (24, 25, 26, 27, 29, 30, 31))
IXSM, TXSM = 1 << 40, 1 << 41
UDP, TCP, SCTP = 0, 1, 2
BUFFER, HEADER, TX_DATA = 0x40000, 0xC0000, 0x100000
STANDARD, TAGGED = 1518, 1522
FILL = 0xEE
POINTS = {TAP_TX: "tx", TAP_SWITCH: "switch", TAP_RX: "rx", TAP_DROP: "drop"}


def rid(pool: int) -> int:
    return 0x180 + 2 * pool


def mac(n: int) -> int:
    """Address of pool `n`: 02:00:00:00:00:1n, first byte lowest."""
    return 0x000000000002 | 0x10 + n << 40


def ether(dst: int, src: int, kind: int = 0x88B5, payload: bytes = b"", size: int = 0) -> bytes:
    """Make a frame, filled up to `size` bytes with a pattern."""
    frame = dst.to_bytes(6, "little") + src.to_bytes(6, "little") + kind.to_bytes(2, "big") + payload
    return frame + bytes(i * 7 + 3 & 0xFF for i in range(len(frame), size))


def tagged(frame: bytes, tci: int, vet: int = 0x8100) -> bytes:
    return frame[:12] + vet.to_bytes(2, "big") + tci.to_bytes(2, "big") + frame[12:]


def data(iova: int, size: int, flags: int = EOP | RS | IFCS, payload: int | None = None, idx: int = 0) -> Words:
    """Make an advanced data descriptor. payload: PAYLEN, `size` if not given."""
    return iova, size | 3 << 20 | DEXT | flags | idx << 36 | ((size if payload is None else payload) & 0x3FFFF) << 46


def context(
    maclen: int = 14, iplen: int = 20, l4len: int = 20, mss: int = 0, l4t: int = TCP, v4: bool = True, vlan: int = 0,
    idx: int = 0,
) -> Words:  # fmt: skip
    """Make a context descriptor."""
    q1 = 2 << 20 | DEXT | int(v4) << 10 | l4t << 11 | idx << 36 | l4len << 40 | mss << 48
    return iplen | maclen << 9 | vlan << 16, q1


def legacy(iova: int, size: int, flags: int = EOP | RS | IFCS, cso: int = 0, css: int = 0, vlan: int = 0) -> Words:
    """Make a legacy transmit descriptor."""
    return iova, size | cso << 16 | flags | css << 40 | vlan << 48


@dataclass(frozen=True)
class Done:
    """One receive descriptor, written back. header, data: what its buffers hold."""

    q0: int
    q1: int
    header: bytes
    data: bytes
    clean: bool  # nothing was written behind header and data

    @property
    def status(self) -> int:
        return self.q1 & 0xFFFFFFFF

    @property
    def vlan(self) -> int:
        return self.q1 >> 48


@dataclass(frozen=True)
class Frame:
    """A received frame and its descriptors."""

    descriptors: tuple[Done, ...]

    @property
    def data(self) -> bytes:
        return b"".join(d.header + d.data for d in self.descriptors)

    @property
    def first(self) -> Done:
        return self.descriptors[0]

    @property
    def status(self) -> int:
        return self.descriptors[-1].status


class Rig:
    """A NIC with pools on, every pool enabled, local switching on, and nothing filtered but by address."""

    def __init__(self, *, scattered: bool = True, seed: int = 1) -> None:
        rng = random.Random(seed)
        self.memory = HostMemory((POOLS + 1) * CHUNK)
        self.iommu = new_iommu(int(self.memory.base), self.memory.size, 4096)
        self.block = new_nic(self.iommu)
        self.nic = self.block[0]
        self.address = int(self.block.ctypes.data)
        self.port = self.nic["port"]
        self.regs = np.zeros((2, QUEUES, 16), np.uint32)  # receive and transmit register blocks
        self.chunks = [int(c) for c in self.memory.alloc_chunks(POOLS)]
        self.pages: list[list[int]] = []
        self._tap: Tap | None = None
        self.tables: list[int] = []
        self._domains(rng, scattered)
        self.reset()

    def close(self) -> None:
        self.untap()
        self.memory.close()

    # Remapping.

    def _word(self, address: int, value: int) -> None:
        at = address - self.memory.base
        self.memory.bytes[at : at + 8] = np.frombuffer(value.to_bytes(8, "little"), np.uint8)

    def _domains(self, rng: random.Random, scattered: bool) -> None:
        root, contexts = self.memory.alloc_page(), self.memory.alloc_page()
        self._word(root + (rid(0) >> 8) * 16, contexts | 1)
        for pool in range(POOLS):
            tables = [int(self.memory.alloc_page()) for _ in range(3)]
            self._word(contexts + (rid(pool) & 255) * 16, tables[0] | 1)
            self._word(contexts + (rid(pool) & 255) * 16 + 8, 1 | pool + 1 << 8)
            self._word(tables[0], tables[1] | 3)
            self._word(tables[1], tables[2] | 3)
            order = list(range(CHUNK // PAGE))
            if scattered:
                rng.shuffle(order)
            pages = [self.chunks[pool] + n * PAGE for n in order]
            for i, page in enumerate(pages):
                self._word(tables[2] + i * 8, page | 3)
            if not scattered:
                self._word(tables[1], self.chunks[pool] | 0x83)
            self.pages.append(pages)
            self.tables.append(tables[2])
        unit = self.iommu.unit[0]
        unit["root"], unit["enabled"] = root, 1

    def protect(self, pool: int, iova: int, rights: int = 0) -> None:
        """Change the rights of one page of a scattered pool: 1 read, 2 write."""
        page = iova // PAGE
        self._word(self.tables[pool] + page * 8, self.pages[pool][page] | rights if rights else 0)
        invalidate_iotlb(self.iommu.row, -1)

    @property
    def faults(self) -> int:
        return int(self.iommu.unit[0]["faults"])

    # A pool's memory.

    def write(self, pool: int, iova: int, content: bytes) -> None:
        while content:
            room = PAGE - iova % PAGE
            at = self.pages[pool][iova // PAGE] + iova % PAGE - self.memory.base
            piece, content = content[:room], content[room:]
            self.memory.bytes[at : at + len(piece)] = np.frombuffer(piece, np.uint8)
            iova += len(piece)

    def read(self, pool: int, iova: int, size: int) -> bytes:
        out = b""
        while size:
            piece = min(size, PAGE - iova % PAGE)
            at = self.pages[pool][iova // PAGE] + iova % PAGE - self.memory.base
            out += self.memory.bytes[at : at + piece].tobytes()
            iova, size = iova + piece, size - piece
        return out

    def words(self, pool: int, iova: int) -> tuple[int, int]:
        raw = self.read(pool, iova, 16)
        return int.from_bytes(raw[:8], "little"), int.from_bytes(raw[8:], "little")

    # State.

    def reset(self) -> None:
        """Put everything back but the domains."""
        nic, keep = self.nic, {name: int(self.port[name]) for name in ("iommu", "scratch", "captured", "rss_key")}
        nic["card"] = 0
        self.untap()
        for name in ("port", "turn", "counters", "pools", "rx", "tx", "routes", "seen"):
            nic[name] = np.zeros((), nic[name].dtype)
        for name in (
            "drops",
            "vlans",
            "multicast",
            "unicast",
            "reta",
            "rss_key",
            "mirrors",
            "eitr",
            "credit",
            "scarce",
            "wanted",
            "claims",
            "had",
            "dropped_bytes",
            "to_wire",
        ):
            nic[name][:] = 0
        self.port = nic["port"]
        self.set(**keep)
        self.set(
            rx_enable=1, tx_enable=1, vmdq=1, pad=1, loopback=1, replicate=1, default_pool=-1,
            tag_at=12, tag_kind=0x0081, inner_kind=0x0081,
            multicast_shift=36, rx_pools=0xFF, tx_pools=0xFF, bam_pools=0xFF, aupe_pools=0xFF,
            max_frame=STANDARD, max_tagged=TAGGED, eims=-1,
            tcp_first=0xF6FF, tcp_middle=0x76FF, tcp_last=0x7FFF, tcp_only=0xFFFF,
        )  # fmt: skip
        self.regs[:] = 0
        for n in range(POOLS):
            nic["pools"][n]["max_frame"], nic["pools"][n]["max_tagged"] = STANDARD, TAGGED
        for q in range(QUEUES):
            for side, rows in enumerate((nic["rx"], nic["tx"])):
                rows[q]["regs"] = address_of(self.regs[side, q])
                rows[q]["rid"], rows[q]["pool"], rows[q]["cause"] = rid(q % POOLS), q % POOLS, 1 << q
                rows[q]["raw_control"] = -1
            nic["rx"][q]["default_bytes"] = 2048
        self.set_macs({mac(n): 1 << n for n in range(POOLS)})
        self.tails = np.zeros((2, QUEUES), int)
        self.sizes = np.zeros((2, QUEUES), int)
        self.next_rx = [0] * QUEUES
        self.fresh = [TX_DATA] * POOLS
        self.buffers = [(2048, 0)] * QUEUES
        unit = self.iommu.unit[0]
        unit["fault_head"] = unit["fault_tail"]
        unit["faults"] = 0
        invalidate_contexts(self.iommu.row, 0, 0, -1)
        invalidate_iotlb(self.iommu.row, -1)

    def set(self, **members: int) -> None:
        for name, value in members.items():
            self.port[name] = value

    def pool(self, n: int, **members: int) -> None:
        for name, value in members.items():
            self.nic["pools"][n][name] = value

    def set_macs(self, table: dict[int, int]) -> None:
        """Fill the address table: address -> bitmap of pools."""
        macs = self.nic["macs"]
        macs[:] = -1
        for address, pools in table.items():
            slot = int(mac_slot(address))
            while macs[slot, 0] != -1:
                slot = (slot + 1) % len(macs)
            macs[slot] = address, pools

    def counter(self, name: str) -> int:
        return int(self.nic["card" if name == "forwarded" else "counters"][name])

    def stat(self, pool: int, name: str) -> int:
        return int(self.nic["pools"][pool][name])

    def drops(self) -> dict[tuple[int, str], int]:
        """List what was dropped: (pool, or 8 for the wire; reason) -> frames."""
        table = self.nic["drops"]
        return {(int(p), DROP_NAMES[r]): int(table[p, r]) for p, r in zip(*np.nonzero(table), strict=True)}

    # A tap of everything.

    def tap(self, points: int = 15, interfaces: int = 0x1FF, snap: int = 1 << 16, size: int = 1 << 20) -> TapReader:
        self.untap()
        self._tap = Tap(self.nic["taps"][0], points, interfaces, snap, size)
        self.nic["seen"]["points"] = points
        self._reader = TapReader(self._tap.fd, size)
        return self._reader

    def untap(self) -> None:
        if self._tap is not None:
            self._tap.close()
            self._tap = None
            self._reader.close()
            self.nic["seen"]["points"] = 0

    def seen(self) -> list[tuple[str, int, bool, int, int, bytes]]:
        """Take what the tap has: (point, interface, outbound, detail, length, bytes)."""
        return [
            (POINTS[s.point], s.interface, s.outbound, s.detail, s.length, bytes(s.frame))
            for s in self._reader.read(1 << 20)
        ]

    # Rings. side: 0 receive, 1 transmit.

    def ring(self, side: int, q: int) -> int:
        return 0x1000 + side * 0x2000 + q // POOLS * 0x1000

    def head_wb(self, q: int) -> int:
        return 0x5000 + q // POOLS * 64

    def head(self, side: int, q: int) -> int:
        return int(self.regs[side, q, 4])

    def _open(self, side: int, q: int, size: int, more: dict[int, int]) -> None:
        regs = self.regs[side, q]
        regs[:] = 0
        regs[0], regs[2] = self.ring(side, q), size * 16
        for offset, value in more.items():
            regs[offset // 4] = value
        regs[10] = 1 << 25
        self.sizes[side, q] = size
        self.tails[side, q] = 0

    def open_rx(
        self, q: int, size: int = 16, *, layout: int = 1, kib: int = 2, header: int = 0, drop: bool = True,
        fill: int | None = None,
    ) -> None:  # fmt: skip
        """Start a receive queue. header: bytes of its header buffers. fill: descriptors given."""
        self._open(0, q, size, {0x0C: kib | header // 64 << 8 | layout << 25 | int(drop) << 31})
        self.buffers[q] = kib * 1024 or 2048, header
        self.next_rx[q] = 0
        self.refill(q, size - 1 if fill is None else fill)

    def places(self, q: int, slot: int) -> tuple[int, int]:
        """Addresses of packet and header buffer of a slot; packet buffers lie across pages."""
        return BUFFER + q // POOLS * 0x40000 + slot * PAGE + 0xE00, HEADER + q // POOLS * 0x20000 + slot * 1024

    def refill(self, q: int, count: int) -> None:
        size, tail = int(self.sizes[0, q]), int(self.tails[0, q])
        for _ in range(count):
            packet, header = self.places(q, tail)
            self.write(q % POOLS, packet, bytes([FILL]) * PAGE)
            self.write(q % POOLS, header, bytes([FILL]) * 1024)
            self.put(0, q, tail, packet, header if self.buffers[q][1] else 0)
            tail = (tail + 1) % size
        self.tails[0, q] = tail
        self.regs[0, q, 6] = tail

    def put(self, side: int, q: int, slot: int, q0: int, q1: int) -> None:
        """Write one descriptor."""
        words = (q0 & (1 << 64) - 1).to_bytes(8, "little") + (q1 & (1 << 64) - 1).to_bytes(8, "little")
        self.write(q % POOLS, self.ring(side, q) + slot * 16, words)

    def open_tx(self, q: int, size: int = 64, *, head_wb: bool = False) -> None:
        self._open(1, q, size, {0x38: self.head_wb(q) | 1 if head_wb else 0})

    def store(self, pool: int, content: bytes, offset: int = 0) -> int:
        """Put bytes to send into a pool's memory; returns where. offset: into a page."""
        at = (self.fresh[pool] + PAGE - 1) // PAGE * PAGE + offset
        self.fresh[pool] = at + len(content)
        if self.fresh[pool] > CHUNK:
            self.fresh[pool] = TX_DATA
            return self.store(pool, content, offset)
        self.write(pool, at, content)
        return at

    def post(self, q: int, *descriptors: tuple[int, int]) -> None:
        """Write transmit descriptors and move the tail."""
        size, tail = int(self.sizes[1, q]), int(self.tails[1, q])
        for q0, q1 in descriptors:
            self.put(1, q, tail, q0, q1)
            tail = (tail + 1) % size
        self.tails[1, q] = tail
        self.regs[1, q, 6] = tail

    def send(self, q: int, *frames: bytes, flags: int = EOP | RS | IFCS) -> None:
        """Post each frame in one descriptor."""
        self.post(q, *(data(self.store(q % POOLS, f), len(f), flags) for f in frames))

    def serve(self, now: int = 0, budget: int = 64) -> tuple[int, int]:
        return serve_port(self.address, now, budget)

    def wire(self, *frames: bytes, now: int = 0, first: int = 0) -> tuple[int, int]:
        """Let frames arrive from the wire. Returns (taken, events)."""
        store = np.frombuffer(b"".join(frames) + bytes(256), np.uint8)
        lengths = np.array([len(f) for f in frames], np.int64)
        offsets = np.cumsum(lengths) - lengths
        return wire_in(self.address, now, address_of(store), offsets, lengths, first, len(frames) - first)

    # What came.

    def done(self, q: int) -> list[Done]:
        """Take what was written back of a receive ring since the last time."""
        pool, out = q % POOLS, []
        room, header_room = self.buffers[q]
        is_legacy = int(self.regs[0, q, 3]) >> 25 & 7 == 0
        while len(out) < self.sizes[0, q]:
            slot = self.next_rx[q]
            q0, q1 = self.words(pool, self.ring(0, q) + slot * 16)
            if not q1 >> (32 if is_legacy else 0) & 1 or slot == self.tails[0, q]:
                break
            size = q1 & 0xFFFF if is_legacy else q1 >> 32 & 0xFFFF
            split = 0 if is_legacy else (q0 >> 21 & 0x3FF if q0 >> 31 & 1 else 0)
            packet, header = self.places(q, slot)
            content, heading = self.read(pool, packet, PAGE), self.read(pool, header, 1024)
            clean = set(content[size:]) | set(heading[split:]) <= {FILL} and size <= room and split <= header_room
            out.append(Done(q0, q1, heading[:split], content[:size], clean))
            self.next_rx[q] = (slot + 1) % int(self.sizes[0, q])
        return out

    def frames(self, q: int) -> list[Frame]:
        """Take whole frames."""
        out: list[Frame] = []
        parts: list[Done] = []
        for one in self.done(q):
            parts.append(one)
            assert one.clean
            if one.q1 >> (33 if int(self.regs[0, q, 3]) >> 25 & 7 == 0 else 1) & 1:
                out.append(Frame(tuple(parts)))
                parts = []
        assert not parts
        return out

    def captured(self, interface: int, *, outbound: bool) -> list[bytes]:
        """List the frames that the capture has of a pool, or of the wire (8)."""
        records = self.nic["capture"][: int(self.port["capture_head"])]
        return [
            self.nic["captured"][int(r["offset"]) : int(r["offset"]) + int(r["length"])].tobytes()
            for r in records
            if r["interface"] == interface and bool(r["outbound"]) == outbound
        ]

    def tx_done(self, q: int, slot: int) -> bool:
        return bool(self.words(q % POOLS, self.ring(1, q) + slot * 16)[1] >> 32 & 1)


def snapshot(row: Any) -> dict[str, int]:
    """List the members of a row that are not zero."""
    return {name: int(row[name]) for name in row.dtype.names if int(row[name])}

"""A second card, as small as a card can be: two VFs, a queue pair each, and what one sends the other gets. No filters.

    VF's BAR0   00 transmit ring   08 receive ring   10 descriptors   14 transmit tail   18 receive tail   1c on
                20 address (read only)   28 frames taken: interrupt me at the next one
    PF's BAR0   08 * n: address of VF n
    BAR3        MSI-X table

A descriptor is an address and a word: length, and bit 32 when the card has done it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from virtfn.cards import Limits, Model, Options
from virtfn.devices.pci import Endpoint, MsiXTable, Physical, Place, SrIovUnit
from virtfn.drivers.policy import Claim, SwitchPolicy, VfPolicy
from virtfn.hw.pci import NO_DEVICE, Ari, Command, DevCtl, Location, MsiX, Pcie, SrIov, Type0
from virtfn.hw.types import Hva, Mac, Rid
from virtfn.kernels._jit import (
    copy_bytes,
    entry,
    kernel,
    load32_acquire,
    load64,
    row_at,
    row_of,
    store64,
    store64_release,
)
from virtfn.kernels.card import CARD, EV_FAULT, EV_INTERRUPT
from virtfn.kernels.netdev import BATCH, ENTRY_BYTES, NETDEV_NAMES
from virtfn.kernels.ranges import address_of, row_address, start_call
from virtfn.kernels.vtd.dma import translate
from virtfn.kernels.vtd.iommu import iommu_at
from virtfn.machine.bars import BarShape
from virtfn.machine.function import Capability, Function, all_ones
from virtfn.machine.memory import view_bytes
from virtfn.machine.netports import Card, Moved, NetDriver, Vectors
from virtfn.machine.ports import Bar, Clock, DmaMemory

VENDOR, PF_DEVICE, VF_DEVICE = 0x1DE5, 0x0001, 0x0002
VFS, SIZE, BUFFER, DONE = 2, 64, 2048, 1 << 32
TX, RX, COUNT, TX_TAIL, RX_TAIL, ON, MAC, ARM = 0x00, 0x08, 0x10, 0x14, 0x18, 0x1C, 0x20, 0x28

VF = row_of("rid on tx rx count tx_head tx_tail rx_head rx_tail armed received received_bytes sent sent_bytes dropped")
TINY = np.dtype([("card", CARD), ("vf", VF, (VFS,))])
tiny_at = row_at(TINY)
RINGS = row_of(NETDEV_NAMES + "tx_ring rx_ring tx_iova rx_iova rx_buffers reaped rx_next rx_tail had")
rings_at = row_at(RINGS)


# The card.


@kernel
def serve_tiny(address: int, now: int, budget: int) -> tuple[int, int]:
    start_call()
    t = tiny_at(address)
    iommu = iommu_at(t.card.iommu)
    moved = events = 0
    for n in range(VFS):
        a, b = t.vf[n], t.vf[1 - n]
        while a.on and a.tx_head != a.tx_tail and budget > 0:
            budget -= 1
            at, run = translate(iommu, a.rid, a.tx + a.tx_head * 16, 16, 1)
            a.tx_head = (a.tx_head + 1) % a.count
            if run < 16:
                events |= EV_FAULT
                continue
            length = load64(at + 8) & 0xFFFF
            source, given = translate(iommu, a.rid, load64(at), length, 0)
            if not b.on or b.rx_head == b.rx_tail:
                a.dropped += 1
            elif given == length:
                slot, _ = translate(iommu, b.rid, b.rx + b.rx_head * 16, 16, 1)
                place, room = translate(iommu, b.rid, load64(slot) if slot else 0, length, 1)
                b.rx_head = (b.rx_head + 1) % b.count
                if room == length:
                    copy_bytes(place, source, length)
                    store64_release(slot + 8, length | DONE)
                    b.received += 1
                    b.received_bytes += length
                    t.card.forwarded += 1
            store64_release(at + 8, DONE)
            a.sent += 1
            a.sent_bytes += length
            moved += 1
        if b.armed and b.received != b.armed - 1:
            b.armed = 0
            t.card.fired |= 1 << (1 - n)
            events |= EV_INTERRUPT
    return moved, events


@kernel
def nothing(address: int, now: int) -> int:
    return 0


def _function(vendor: int, device: int, extended: list[Capability], bars: dict[int, BarShape]) -> Function:
    table = {MsiX.TABLE: Location.of(BIR=3).value, MsiX.PBA: Location.of(BIR=3, OFFSET=0x100).value}
    capabilities = [
        Capability(MsiX, 0x40, table),
        Capability(Pcie, 0x60, {Pcie.FLAGS: 2, Pcie.DEVCAP: 1 << 28}, {Pcie.DEVCTL: DevCtl.FLR.mask}),
        Capability(Ari, 0x100),
        *extended,
    ]
    values = {Type0.VENDOR_ID: vendor, Type0.DEVICE_ID: device, Type0.CLASS_REVISION: 0x02000001}
    writable = {} if bars else {Type0.COMMAND: Command.BME.mask}
    return Function(Type0, capabilities, values=values, bars=bars, writable=writable)


class TinyCard(Card):
    """The card."""

    def __init__(self, host, iommu, agent, options: Options) -> None:
        sriov = {SrIov.INITIAL_VFS: VFS, SrIov.TOTAL_VFS: VFS, SrIov.FIRST_VF_OFFSET: 1, SrIov.VF_STRIDE: 1}
        capability = Capability(SrIov, 0x120, {**sriov, SrIov.VF_DEVICE_ID: VF_DEVICE})
        pf = _function(VENDOR, PF_DEVICE, [capability], {0: BarShape(4096), 3: BarShape(4096)})
        shape = BarShape(4096, wide=False)
        unit = SrIovUnit(pf, {0: shape, 3: shape}, first_vf_offset=(1, 1), now=host.now)
        vfs = [_function(NO_DEVICE, NO_DEVICE, [], {}) for _ in range(VFS)]
        self.endpoint = Endpoint([Physical(pf, unit, vfs)])
        self.on_access = self.on_reset = self.on_message = None
        self.macs = [0] * VFS
        self.block = np.zeros(1, TINY)
        self.address = row_address(self.block, "a tiny card")
        self.row = self.block[0]
        self.row["card"]["serve"], self.row["card"]["fire"] = entry(serve_tiny, 3), entry(nothing, 2)
        self.row["card"]["iommu"] = iommu.address
        self.tables = [MsiXTable(vf, lambda a, m, n=n: host.msi(self.vf_rid(n), a, m)) for n, vf in enumerate(vfs)]
        self.pf_table = MsiXTable(pf, lambda a, m: host.msi(self.pf_rid, a, m))
        self.enabled = 0
        unit.on_change.append(self._vfs_changed)

    @property
    def bus(self) -> int:
        return self.endpoint.bus

    @bus.setter
    def bus(self, number: int) -> None:
        self.endpoint.bus = number

    def _vfs_changed(self, count: int) -> None:
        self.enabled = count

    # On the bus.

    def rids(self) -> list[Rid]:
        return self.endpoint.rids()

    def config_read(self, rid, offset, size):
        return self.endpoint.config_read(rid, offset, size)

    def config_write(self, rid, offset, size, value):
        self.endpoint.config_write(rid, offset, size, value)

    def bar_at(self, address, *, io=False):
        return self.endpoint.bar_at(address, io=io)

    def bar_mappings(self, rid, bar):
        return []

    def end_mappings(self, rid):
        return None

    def _table(self, place: Place) -> MsiXTable:
        return self.pf_table if place.vf is None else self.tables[place.vf]

    def bar_read(self, rid, bar, offset, size):
        place = self.endpoint.find(rid)
        if place is None or bar not in (0, 3):
            return all_ones(size)
        if bar == 3:
            return self._table(place).read(offset, size)
        if place.vf is None:
            return self.macs[offset // 8 % VFS] >> offset % 8 * 8 & 0xFFFFFFFF
        return self.macs[place.vf] >> (offset - MAC) * 8 & 0xFFFFFFFF if MAC <= offset < ARM else 0

    def bar_write(self, rid, bar, offset, size, value):
        place = self.endpoint.find(rid)
        if place is not None and bar == 3:
            self._table(place).write(offset, size, value)
        elif place is not None and bar == 0 and place.vf is None:
            n, shift = offset // 8 % VFS, offset % 8 * 8
            self.macs[n] = self.macs[n] & ~(0xFFFFFFFF << shift) | value << shift
        elif place is not None and bar == 0:
            self._vf_write(place.vf, rid, offset, value)

    def _vf_write(self, n: int, rid: Rid, offset: int, value: int) -> None:
        row = self.row["vf"][n]
        names = {TX: "tx", RX: "rx", COUNT: "count", TX_TAIL: "tx_tail", RX_TAIL: "rx_tail"}
        if offset in names:
            row[names[offset]] = value
        elif offset == ON:
            row["on"], row["rid"], row["tx_head"], row["rx_head"], row["armed"] = value, rid, 0, 0, 0
        elif offset == ARM:
            row["armed"] = value + 1

    # Frames.

    @property
    def pf_rid(self) -> Rid:
        return self.endpoint.rid(Place(0))

    def vf_rid(self, n: int) -> Rid:
        return self.endpoint.rid(Place(0, n))

    @property
    def vfs(self) -> int:
        return self.enabled

    def settle(self) -> None:
        return None

    def follow_time(self, limit_ps: int) -> None:
        return None

    def serve(self, budget: int = 64) -> tuple[int, int]:
        moved, events = serve_tiny(self.address, 0, budget)
        self.handle(events)
        return moved, events

    def handle(self, events: int) -> None:
        fired = int(self.row["card"]["fired"])
        self.row["card"]["fired"] = 0
        for n in range(VFS):
            if fired >> n & 1:
                self.tables[n].raise_vector(0)

    def vectors(self, rid: Rid) -> Vectors:
        return Vectors(0, 0, 0, 0, False)

    def set_wire(self, connected: bool, mbps: int) -> None:
        return None

    @property
    def frames(self) -> int:
        return int(self.row["card"]["forwarded"])

    def traffic(self) -> npt.NDArray[np.int64]:
        return self.row["vf"]["sent"] + self.row["vf"]["received"]

    def moved(self, rid: Rid) -> Moved:
        place = self.endpoint.find(rid)
        rows = self.row["vf"] if place is None or place.vf is None else self.row["vf"][place.vf : place.vf + 1]
        return Moved(*(int(rows[name].sum()) for name in ("sent", "sent_bytes", "received", "received_bytes")))

    def counters(self) -> dict[str, int]:
        return {"forwarded": self.frames, "flooded": 0}

    def drops(self, n: int | None) -> dict[str, int]:
        dropped = 0 if n is None else int(self.row["vf"][n]["dropped"])
        return {"no-descriptor": dropped} if dropped else {}

    def all_drops(self) -> dict[str, int]:
        return dict(sum((Counter(self.drops(n)) for n in range(VFS)), Counter()))

    def close(self) -> None:
        return None


# The host's driver.


class TinyPf:
    """The PF's driver: it knows only addresses."""

    def __init__(self, bar: Bar, clock: Clock) -> None:
        self._bar = bar
        self._policies = [VfPolicy()] * VFS

    def _set(self, n: int, mac: Mac) -> None:
        self._bar.write(8 * n, mac & 0xFFFFFFFF)
        self._bar.write(8 * n + 4, mac >> 32)

    def policy(self, n: int) -> VfPolicy:
        return self._policies[n]

    def set_policy(self, n: int, policy: VfPolicy) -> None:
        self._policies[n] = policy
        if policy.mac:
            self._set(n, policy.mac)

    def set_policies(self, policies: Mapping[int, VfPolicy]) -> None:
        for n, policy in policies.items():
            self.set_policy(n, policy)

    def switch_policy(self) -> SwitchPolicy:
        return SwitchPolicy()

    def set_switch(self, policy: SwitchPolicy) -> None: ...
    def address(self, n: int) -> Mac:
        return self._policies[n].mac

    @property
    def link_up(self) -> bool:
        return True

    def offer_mac(self, n: int, mac: Mac | None = None) -> None:
        self._set(n, mac or Mac(0x02 | n << 40))

    def watch_claims(self, tell: Callable[[Claim], None]) -> None: ...
    def claims(self, n: int) -> int:
        return 0

    def start(self, vfs: int) -> None: ...
    def end_vfs(self) -> None: ...
    def serve(self) -> None: ...
    def start_vf(self, n: int) -> None: ...
    def stop_vf(self, n: int) -> None: ...
    def throttle(self, n: int, mbps: int | None) -> None: ...
    def attend(self, n: int) -> None: ...
    def release_vf(self, n: int) -> None: ...
    def probe(self) -> None: ...
    def stop(self) -> None: ...
    def interrupt(self, vector: int) -> None: ...


# The guest's driver.


@kernel
def tx_room(address: int, _: int) -> int:
    d = rings_at(address)
    while d.reaped != d.tx_tail and load32_acquire(d.tx_ring + d.reaped * 16 + 12):
        d.reaped = (d.reaped + 1) % SIZE
    return (d.reaped - d.tx_tail - 1) % SIZE


@kernel
def tx_send(address: int, count: int) -> int:
    d = rings_at(address)
    for _ in range(count):
        length = load64(d.tx_lengths + d.tx_tail * 8)
        store64(d.tx_ring + d.tx_tail * 16, d.tx_iova + d.tx_tail * BUFFER)
        store64(d.tx_ring + d.tx_tail * 16 + 8, length)
        d.tx_tail = (d.tx_tail + 1) % SIZE
        d.tx_frames += 1
        d.tx_bytes += length
    return 0


@kernel
def rx_take(address: int, most: int) -> int:
    d = rings_at(address)
    count = 0
    at = d.rx_next
    while count < min(most, SIZE - 1) and load32_acquire(d.rx_ring + at * 16 + 12):
        length = load64(d.rx_ring + at * 16 + 8) & 0xFFFF
        store64(d.taken + count * ENTRY_BYTES, d.rx_buffers + at * BUFFER)
        store64(d.taken + count * ENTRY_BYTES + 8, length)
        d.rx_frames += 1
        d.rx_bytes += length
        count += 1
        at = (at + 1) % SIZE
    return count


@kernel
def rx_return(address: int, count: int) -> int:
    d = rings_at(address)
    for _ in range(count):
        store64(d.rx_ring + d.rx_next * 16 + 8, 0)
        d.rx_next = (d.rx_next + 1) % SIZE
        d.rx_tail = (d.rx_tail + 1) % SIZE
    d.had += count
    return 0


class TinyVf(NetDriver):
    """The VF's driver."""

    traps = True
    given_up = 0

    def __init__(self, bar: Bar, dma: DmaMemory, clock: Clock, *, ring: int, mtu: int) -> None:
        self._bar, self._dma = bar, dma
        self.mac = Mac(0)
        self.block = np.zeros(1, RINGS)
        row_address(self.block, "tiny rings")
        self.lengths, self.taken = np.zeros(SIZE, np.int64), np.zeros((BATCH, 3), np.int64)
        d = self.netdev
        for name, function in {
            "tx_room": tx_room,
            "tx_send": tx_send,
            "rx_take": rx_take,
            "rx_return": rx_return,
        }.items():
            d[name] = entry(function, 2)
        d["tx_lengths"], d["taken"] = address_of(self.lengths), address_of(self.taken)
        d["tx_size"] = d["rx_size"] = SIZE
        d["buffer_bytes"] = d["longest"] = BUFFER
        self._memory: list[int] = []

    @property
    def row(self) -> npt.NDArray[np.void]:
        return self.block

    @property
    def netdev(self) -> np.void:
        return self.block[0]

    def probe(self) -> None:
        self.mac = Mac(self._bar.read(MAC) | self._bar.read(MAC + 4) << 32)

    def _alloc(self, size: int) -> tuple[int, Hva]:
        iova, hva = self._dma.alloc(size)
        self._memory.append(iova)
        return iova, hva

    def start(self) -> None:
        d = self.netdev
        (tx, d["tx_ring"]), (rx, d["rx_ring"]) = self._alloc(SIZE * 16), self._alloc(SIZE * 16)
        d["tx_iova"], d["tx_buffers"] = self._alloc(SIZE * BUFFER)
        d["rx_iova"], d["rx_buffers"] = self._alloc(SIZE * BUFFER)
        ring = view_bytes(int(d["rx_ring"]), SIZE * 16).view(np.int64).reshape(-1, 2)
        ring[:, 0] = int(d["rx_iova"]) + np.arange(SIZE) * BUFFER
        for name in ("tx_tail", "reaped", "rx_next", "had"):
            d[name] = 0
        d["rx_tail"] = SIZE - 1
        for offset, value in ((TX, tx), (RX, rx), (COUNT, SIZE), (ON, 1)):
            self._bar.write(offset, value)
        d["up"] = d["polling"] = 1
        self.show_tails()

    def show_tails(self) -> None:
        self._bar.write(TX_TAIL, int(self.netdev["tx_tail"]))
        self._bar.write(RX_TAIL, int(self.netdev["rx_tail"]))

    @property
    def tx_pending(self) -> bool:
        d = self.netdev
        last = view_bytes(int(d["tx_ring"]), SIZE * 16).view(np.int64).reshape(-1, 2)[(int(d["tx_tail"]) - 1) % SIZE]
        return int(d["tx_frames"]) > 0 and not int(last[1]) & DONE

    def interrupt(self, vector: int) -> None:
        self.netdev["polling"], self.netdev["empty_polls"] = 1, 0

    def idle(self) -> None:
        self.netdev["polling"] = self.netdev["empty_polls"] = 0
        self._bar.write(ARM, int(self.netdev["had"]))

    def stop(self) -> None:
        self._bar.write(ON, 0)
        self.remove()

    def remove(self) -> None:
        self.netdev["up"] = self.netdev["polling"] = 0
        for iova in self._memory:
            self._dma.free(iova)
        self._memory.clear()


TINY_MODEL = Model("tiny", Limits(VFS, 1500, 1514), TinyCard, TinyPf, {(VENDOR, VF_DEVICE): TinyVf})

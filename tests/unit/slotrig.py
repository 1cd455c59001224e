"""A rig with an 82576's functions in a slot, for tests: BARs are plain memory, time is virtual."""

from __future__ import annotations

from dataclasses import dataclass

from virtfn.devices.nic82576.config import Card, build_endpoint
from virtfn.devices.pci import Endpoint
from virtfn.hw.types import Rid, parse_mac
from virtfn.iovm.pcim import Pcim
from virtfn.machine.clock import VirtualClock
from virtfn.machine.ports import Mapping
from virtfn.machine.rootcomplex import RootComplex

SILICON_MAC = parse_mac("00:1b:21:2b:46:e0")


class PlainCard(Endpoint):
    """The functions alone: a BAR returns what was written to it."""

    def __init__(self, pfs) -> None:
        super().__init__(pfs)
        self.written: dict[tuple[int, int, int], int] = {}

    def bar_read(self, rid: Rid, bar: int, offset: int, size: int) -> int:
        return self.written.get((rid, bar, offset), 0)

    def bar_write(self, rid: Rid, bar: int, offset: int, size: int, value: int) -> None:
        self.written[rid, bar, offset] = value

    def bar_mappings(self, rid: Rid, bar: int) -> list[Mapping]:
        return []

    def end_mappings(self, rid: Rid) -> None:
        return


@dataclass
class Rig:
    root: RootComplex
    card: PlainCard
    clock: VirtualClock
    pcim: Pcim

    @property
    def pf(self) -> Rid:
        return self.pcim.pfs()[0].rid


def build(*, ports: int = 1, total_vfs: int = 8, ari: bool = False, scan: bool = True) -> Rig:
    clock = VirtualClock()
    root = RootComplex(2)
    card = PlainCard(build_endpoint(Card(SILICON_MAC, ports=ports, total_vfs=total_vfs), clock.now).pfs)
    root.attach(card)
    rig = Rig(root, card, clock, Pcim(root, clock, ari=ari))
    if scan:
        rig.pcim.scan()
    return rig

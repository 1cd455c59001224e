"""A card's functions behind one link: which of them a routing ID or an address means.

    function f      routing ID = captured bus, function f       header BARs, gated by Command
    VF n of it      routing ID = that + offset + n * stride     VF BARs, gated by VF Enable and VF MSE

The card captures its bus number from Type 0 configuration writes (the port above sets `bus`), so that VFs can lie on
buses that nobody told it about. A request that no function supports is logged by every function of the card.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from virtfn.devices.pci.sriov import SrIovUnit
from virtfn.hw.types import Rid
from virtfn.machine.function import Function, all_ones

__all__ = ["Endpoint", "Physical", "Place"]


@dataclass(frozen=True, slots=True)
class Physical:
    """A PF's configuration space, its SR-IOV unit, and the configuration spaces of all VFs it can have.

    The owner of the card resets VFs when `sriov.on_change` says that they come or go.
    """

    function: Function
    sriov: SrIovUnit | None = None
    vfs: Sequence[Function] = ()


@dataclass(frozen=True, slots=True)
class Place:
    """Which function of the card: PF `pf` itself, or its VF `vf`."""

    pf: int
    vf: int | None = None


class Endpoint:
    """The functions of one card. pfs: by function number. `bus`: the captured bus number."""

    def __init__(self, pfs: Sequence[Physical]) -> None:
        self.pfs = list(pfs)
        self.bus = 0
        self._places: dict[Rid, Place | None] = {}  # that were asked for, as long as functions are at `_placed`
        self._placed: tuple[int, ...] = ()

    def rid(self, place: Place) -> Rid:
        """Compute the routing ID of a function of the card, as DMA and messages must carry it."""
        own = Rid(self.bus << 8 | place.pf)
        sriov = self.pfs[place.pf].sriov
        return own if place.vf is None or sriov is None else sriov.rid_of(own, place.vf)

    def rids(self) -> list[Rid]:
        """List the routing IDs that answer configuration accesses now: PFs first, then settled VFs."""
        found = [self.rid(Place(f)) for f in range(len(self.pfs))]
        for f, pf in enumerate(self.pfs):
            if pf.sriov is not None and pf.sriov.ready:
                found += [self.rid(Place(f, n)) for n in range(pf.sriov.count)]
        return found

    def find(self, rid: Rid) -> Place | None:
        """Tell which function has a routing ID, settled or not; None if none has."""
        placed = (self.bus, *[0 if pf.sriov is None else pf.sriov.count for pf in self.pfs])
        if placed != self._placed:
            self._placed = placed
            self._places.clear()
        if rid not in self._places:
            self._places[rid] = self._look_for(rid)
        return self._places[rid]

    def _look_for(self, rid: Rid) -> Place | None:
        if rid >> 8 == self.bus and rid & 0xFF < len(self.pfs):
            return Place(rid & 0xFF)
        for f, pf in enumerate(self.pfs):
            n = None if pf.sriov is None else pf.sriov.index_of(Rid(self.bus << 8 | f), rid)
            if n is not None:
                return Place(f, n)
        return None

    def function(self, place: Place) -> Function:
        """Get the configuration space of a function."""
        pf = self.pfs[place.pf]
        return pf.function if place.vf is None else pf.vfs[place.vf]

    def config_read(self, rid: Rid, offset: int, size: int) -> int:
        """Read configuration space; all ones if no function answers or the VF is still settling."""
        function = self._answering(rid)
        return all_ones(size) if function is None else function.config_read(offset, size)

    def config_write(self, rid: Rid, offset: int, size: int, value: int) -> None:
        """Write configuration space; lost if no function answers or the VF is still settling."""
        function = self._answering(rid)
        if function is not None:
            function.config_write(offset, size, value)

    def bar_at(self, address: int, *, io: bool = False) -> tuple[Rid, int, int] | None:
        """Find the (routing ID, BAR, offset) that claims an address now."""
        for f, pf in enumerate(self.pfs):
            own = pf.function.bar_at(address, io=io)
            if own is not None:
                return self.rid(Place(f)), *own
            virtual = pf.sriov.bar_at(address) if pf.sriov is not None and not io else None
            if virtual is not None:
                n, bar, offset = virtual
                return self.rid(Place(f, n)), bar, offset
        return None

    def _answering(self, rid: Rid) -> Function | None:
        place = self.find(rid)
        if place is None:
            for pf in self.pfs:
                pf.function.unsupported_request()
            return None
        sriov = self.pfs[place.pf].sriov
        if place.vf is not None and sriov is not None and not sriov.ready:
            # A settling VF answers Request Retry; a root complex that does not show those to software reads all ones.
            return None
        return self.function(place)

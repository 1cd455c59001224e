"""What a guest's I/O costs: one row a guest, one list of event names. Every report and comparison reads this.

    exit_config  exit_bar  exit_msix    accesses that trapped: configuration space, registers, MSI-X table
    notify_host  notify_guest           notifications between a front end and its back end, each way
    copies  copy_bytes                  frames, or pieces of one, that a processor of host or back end copied; bytes
    interrupts                          that reached the guest
    guest_switches                      of a processor from this guest to the back end's, or back
    iommu_walks                         page walks for the guest's functions
    dma_frames  dma_bytes               frames that devices moved from and to the guest's memory, and their bytes

Whoever makes an event happen counts it, in the row. What kernels of a device count in tables of their own is a source:
it belongs to the guest from `follow` to `release`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping

import numpy as np
import numpy.typing as npt

from virtfn.hw.types import Rid
from virtfn.machine.netports import CountsFrames
from virtfn.machine.ports import Device, WalksTables

__all__ = ["EVENTS", "Meter", "device_costs"]

EVENTS = (
    "exit_config",
    "exit_bar",
    "exit_msix",
    "notify_host",
    "notify_guest",
    "copies",
    "copy_bytes",
    "interrupts",
    "guest_switches",
    "iommu_walks",
    "dma_frames",
    "dma_bytes",
)
_EXITS = tuple(name for name in EVENTS if name.startswith("exit_"))
_PLACE = {name: i for i, name in enumerate(EVENTS)}

Source = Callable[[], Mapping[str, int]]
"""Returns totals of events, which only grow."""


class Meter:
    """The row of a guest. row: (len(EVENTS),) int64, for kernels that count into it; without the sources' part."""

    def __init__(self) -> None:
        self.row: npt.NDArray[np.int64] = np.zeros(len(EVENTS), np.int64)
        self._words = self.row.data  # a third of the time of NumPy's own way
        self._sources: dict[Hashable, tuple[Source, Mapping[str, int]]] = {}

    def add(self, event: str, count: int = 1) -> None:
        """Count an event. Raises KeyError for a name that is not in EVENTS."""
        self._words[_PLACE[event]] += count

    def follow(self, key: Hashable, source: Source) -> None:
        """Count what a source counts from now on, until `release`."""
        self._sources[key] = source, source()

    def release(self, key: Hashable) -> None:
        """Let a source go; what it has counted so far stays. Nothing happens if there is none."""
        if key in self._sources:
            for event, count in self._since(*self._sources.pop(key)).items():
                self.add(event, count)

    @staticmethod
    def _since(source: Source, before: Mapping[str, int]) -> dict[str, int]:
        return {event: total - before[event] for event, total in source().items()}

    def read(self) -> dict[str, int]:
        """Return the count of every event."""
        counts = dict(zip(EVENTS, self.row.tolist(), strict=True))
        for source, before in list(self._sources.values()):
            for event, count in self._since(source, before).items():
                counts[event] += count
        return counts

    def __getitem__(self, event: str) -> int:
        """Return the count of one event that no source has a part in."""
        return self._words[_PLACE[event]]

    @property
    def exits(self) -> int:
        """Accesses that trapped, of every kind."""
        return sum(self[event] for event in _EXITS)


def device_costs(device: Device, unit: WalksTables, rid: Rid) -> Source:
    """Make the source of what a device and the remapping unit do for a function."""

    def totals() -> dict[str, int]:
        counts = {"iommu_walks": unit.walks(rid)}
        if isinstance(device, CountsFrames):
            moved = device.moved(rid)
            counts["dma_frames"] = moved.tx_frames + moved.rx_frames
            counts["dma_bytes"] = moved.tx_bytes + moved.rx_bytes
        return counts

    return totals

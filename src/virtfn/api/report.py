"""What a run tells: the report's keys, which never change meaning, and the progress of a run under way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NotRequired, TypedDict

__all__ = ["GuestProgress", "GuestReport", "IommuReport", "PfReport", "Progress", "Report", "SwitchReport", "Totals"]


class SwitchReport(TypedDict):
    """What a NIC's switch did: frames to one pool, to several, and dropped by reason."""

    forwarded: int
    flooded: int
    dropped: dict[str, int]


class PfReport(TypedDict):
    """One PF."""

    name: str
    model: int
    address: str
    vfs: int
    switch: SwitchReport


class GuestReport(TypedDict):
    """One guest. lost: meant for it, and neither arrived nor counted as dropped anywhere. exits: accesses that trapped.

    copies: frames that software between guest and device copied.
    """

    name: str
    io: str
    vmm: str
    address: str
    mac: str
    tx_frames: int
    tx_bytes: int
    rx_frames: int
    rx_bytes: int
    lost: int
    corrupt: int
    reordered: int
    dropped: dict[str, int]
    exits: int
    interrupts: int
    copies: int
    mailbox_messages: int
    ping_ms: NotRequired[float]


class IommuReport(TypedDict):
    """What the IOMMU did."""

    domains: int
    translations: int
    iotlb_hits: int
    page_walks: int
    faults: int


class Totals(TypedDict):
    """Frames and bytes delivered to guests, and rates over the time that frames moved."""

    frames: int
    bytes: int
    mpps: float
    gbps: float


class Report(TypedDict):
    """The report of a run. compile_s: part of elapsed_s that compiled kernels."""

    virtfn: str
    lab: str
    elapsed_s: float
    compile_s: float
    pfs: list[PfReport]
    guests: list[GuestReport]
    iommu: IommuReport
    totals: Totals


@dataclass(frozen=True, slots=True)
class GuestProgress:
    """A guest in the middle of a run."""

    name: str
    tx_frames: int
    rx_frames: int
    dropped: int


@dataclass(frozen=True, slots=True)
class Progress:
    """A run in the middle. phase: `compiling`, `starting`, `running`, `stopping`."""

    phase: str
    elapsed_s: float
    frames: int = 0
    total_frames: int = 0
    mpps: float = 0.0
    gbps: float = 0.0
    guests: tuple[GuestProgress, ...] = ()

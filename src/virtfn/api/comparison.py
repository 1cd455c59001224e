"""What `virtfn compare` says: its document, key for key, and what of the models' nature its numbers show."""

from __future__ import annotations

from typing import NotRequired, TypedDict

__all__ = ["Comparison", "Latency", "Load", "Measured", "ModelResult", "PerFrame", "Priced", "Property", "Throttle"]


class PerFrame(TypedDict):
    """Events for each frame delivered, of all guests and of who serves them."""

    exits: float
    notifications: float
    copies: float
    bytes_copied: float
    interrupts: float
    guest_switches: float
    page_walks: float
    dma: float


class Latency(TypedDict):
    """From when a frame is written to when its receiver has it, in us."""

    p50: float
    p99: float
    p999: float


class Measured(TypedDict):
    """What this machine did, in wall-clock time. latency_curve: (percentile, us)."""

    mpps: float
    gbps: float
    latency_us: Latency
    latency_curve: NotRequired[list[tuple[float, float]]]


class Priced(TypedDict):
    """Cycles for each frame, by the price list: in all, by cause, and at the lowest and highest prices.

    host_cycles: of these, what Dom0 or the VMM do for all guests, on a processor of their own. core_mpps: frames that
    one such processor could serve, in millions a second; null: it does nothing for a frame.
    """

    cycles: float
    by_cause: dict[str, float]
    low: float
    high: float
    core_mpps: float | None


class Load(TypedDict):
    """One load, of each guest each way, in frames a second."""

    fps: int
    delivered: int
    lost: int
    per_frame: PerFrame
    latency_us: Latency
    frames_per_interrupt: float | None
    cycles: float
    by_cause: dict[str, float]


class ModelResult(TypedDict):
    """One model. refused: why it does not serve so many guests; then all numbers are 0. loads: below its capacity.

    dropped: by reason, all along. guest_driver: what guests run.
    """

    delivered: int
    lost: int
    corrupt: int
    per_frame: PerFrame
    measured: Measured
    priced: Priced
    refused: str | None
    dropped: dict[str, int]
    guest_driver: str
    loads: list[Load]


class Throttle(TypedDict):
    """SR-IOV at one interrupt interval, in us, null: by traffic, and one load of each guest each way.

    posted_cycles, injected_cycles: for each frame, if interrupts are posted, and if the VMM injects them.
    """

    interval_us: int | None
    fps: int
    interrupts: int
    frames_per_interrupt: float | None
    latency_us: Latency
    posted_cycles: float
    injected_cycles: float


class Property(TypedDict):
    """Something that the survey says of the models, the numbers of this run that bear on it, and whether they agree.

    timed: a clock has a part in it: on a machine that does much else it can fail.
    """

    name: str
    holds: bool
    words: str
    timed: bool


class Comparison(TypedDict):
    """The document of `virtfn compare --json`. It is of the largest number of guests; runs: of each number.

    prices: cycles, lowest and highest, and source, by name. properties, throttle, prices: once, at the top.
    """

    virtfn: NotRequired[str]
    cpu: NotRequired[str]
    workload: str
    frame_bytes: int
    guests: int
    vmm: str
    models: dict[str, ModelResult]
    runs: NotRequired[list[Comparison]]
    throttle: NotRequired[list[Throttle]]
    properties: NotRequired[list[Property]]
    prices: NotRequired[dict[str, dict[str, float | str]]]

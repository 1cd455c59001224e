"""What `compare` runs: a machine whose guests reach the NIC by one model, a partner at the end of the wire, and work.

guests --- I/O model --- NIC --- wire --- partner
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from hdrh.histogram import HdrHistogram

from virtfn.api.comparison import Latency, Load, PerFrame, Priced
from virtfn.api.lab import Lab
from virtfn.api.labmodel import STACK_FRAME, Guest, Nic, Pf, SrIov
from virtfn.api.machine import Machine
from virtfn.hw.eth import FCS_BYTES
from virtfn.hw.types import Mac
from virtfn.iomodels.engine import Engine
from virtfn.iomodels.workload import Station, Workload
from virtfn.machine.clock import S_PS, WallClock
from virtfn.machine.meter import EVENTS, Meter
from virtfn.machine.ports import VirtfnError
from virtfn.sim.costs import CLOCK_HZ, Price, price

__all__ = ["FRAMES", "GUESTS", "LOADS", "Outcome", "Plan", "Rig", "add_up", "empty_histogram", "make_lab"]

GUESTS = (1, 2, 4)
FRAMES = 20_000
LOADS = (2_000, 10_000, 50_000)
_PARTNER = Mac(0x99_00_00_00_00_02)
_WINDOW = 96  # frames under way to each receiver: what a ring holds easily, so that nobody is overrun
_PERCENTILES = (0.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.5, 99.9, 99.95, 99.99)
_LONGEST_NS = 10**10


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be compared. frame_bytes: with frame check sequence. frames: of each guest each way.

    memory_mib: of a guest. vmm: what runs guests. loads: of each guest each way, in frames a second.
    """

    name: str = "four models"
    pf: Pf = field(default_factory=lambda: Pf(name="pf0"))
    frame_bytes: int = 1518
    frames: int = FRAMES
    memory_mib: int = 16
    guests: tuple[int, ...] = GUESTS
    loads: tuple[int, ...] = LOADS
    seed: int = 1
    vmm: str = "embedded"

    @classmethod
    def of(cls, lab: Lab, guests: Sequence[int] = ()) -> Plan:
        """Take card, frames and memory from a lab. guests: how many there are to be.

        Without any: one, and the lab's; of Linux guests, two. Raises VirtfnError (EOPNOTSUPP) for what cannot be
        compared.
        """
        kinds = {guest.vmm for guest in lab.guests}
        if len(kinds) > 1:
            where = lab.where(("guests", [guest.vmm for guest in lab.guests].index("qemu"), "vmm"))
            raise VirtfnError(f"{where}: guests of one vmm are compared, not of both", errno_name="EOPNOTSUPP")
        if kinds == {"qemu"} and 1 in guests:
            raise VirtfnError("a Linux guest alone has nobody to talk to; use --guests 2,4", errno_name="EOPNOTSUPP")
        pf, work = lab.pfs[0], lab.workload
        if work.frame_bytes > STACK_FRAME:
            where = lab.where(("workload", "frame-bytes"))
            raise VirtfnError(f"{where}: Split and Direct take {STACK_FRAME} at most", errno_name="EOPNOTSUPP")
        return cls(
            lab.name,
            Pf(name=pf.name, model=pf.model, link_mbps=pf.link_mbps),
            work.frame_bytes,
            min(work.frames or FRAMES, 1_000_000),
            max(guest.memory_mib for guest in lab.guests),
            tuple(guests) or ((2,) if kinds == {"qemu"} else tuple(sorted({1, len(lab.guests)}))),
            vmm=kinds.pop(),
        )


def make_lab(plan: Plan, name: str, n: int) -> Lab:
    """Make the lab of `n` guests by one model."""
    # Not checked as a lab is that comes from a file: the partner is no guest, and one guest alone is enough.
    sr_iov = SrIov(total_vfs=n) if name == "sriov" else None
    guests = tuple(
        Guest(
            name=f"g{i}",
            memory_mib=plan.memory_mib,
            nic=Nic(pf=plan.pf.name, io=name, vf=i if name == "sriov" else None),  # type: ignore[arg-type]
        )
        for i in range(n)
    )
    work = {"kind": "pairs", "frame-bytes": plan.frame_bytes, "frames": plan.frames}
    pf = plan.pf.model_copy(update={"sr_iov": sr_iov})
    return Lab.model_validate({"name": "compare", "pfs": (pf,), "guests": guests, "workload": work})


class Rig:
    """A machine whose guests reach the NIC by one model, and a partner at the end of the wire."""

    def __init__(self, plan: Plan, machine: Machine, clock: WallClock) -> None:
        self.plan, self.machine, self.clock = plan, machine, clock
        self.pf = machine.pfs[0]
        card = self.pf.nic
        card.set_wire(True, plan.pf.link_mbps)
        card.set_carrier(True)
        self._far_end = card.far_end()
        self.stations = [Station(run.driver.row, run.driver.mac) for run in machine.guests]
        self.stations.append(Station(self._far_end, _PARTNER))

    def meters(self) -> list[Meter]:
        """The guests' meters, and the host's, if it has a part in this."""
        host = [] if self.pf.stack is None else [self.pf.stack.guest.meter]
        return [*(run.guest.meter for run in self.machine.guests), *host]

    def drops(self) -> dict[str, int]:
        """Frames that were dropped so far anywhere, by reason."""
        found = Counter(self.pf.nic.all_drops())
        for run in self.machine.guests:
            if self.pf.stack is not None:  # else they are the NIC's
                found.update(run.link.drops())
        if self.pf.stack is not None:
            found.update(self.pf.stack.drops())
        return dict(found)

    def work(self, frames: int, *, fps: int = 0) -> Outcome:
        """Let all exchange frames, as fast as can be, or `fps` of each guest each way."""
        workload = Workload(
            "outside",
            self.stations,
            length=self.plan.frame_bytes - FCS_BYTES,
            frames=frames,
            seed=self.plan.seed,
            delays=True,
            window=_WINDOW,
            pace_ps=S_PS // fps if fps else 0,
        )
        guests = [run.guest for run in self.machine.guests]
        engine = Engine(self.machine.host, self.pf.served, guests, workload, hosts=self.pf.hosts)
        before = [meter.read() for meter in self.meters()]
        began = self.clock.now()
        engine.start()
        while not engine.over():
            engine.turn(self.clock.now())
        elapsed = self.clock.now() - began
        costs = [
            {event: after[event] - then[event] for event in EVENTS}
            for after, then in zip([meter.read() for meter in self.meters()], before, strict=True)
        ]
        return Outcome.of(workload, elapsed, costs[: len(guests)], costs[len(guests) :])


def empty_histogram() -> HdrHistogram:
    """Make a histogram of delays, in ns."""
    return HdrHistogram(1, _LONGEST_NS, 3)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one piece of work. histogram: of delays, in ns. guests, host: costs by event, of all of them."""

    delivered: int
    lost: int
    corrupt: int
    elapsed_s: float
    histogram: HdrHistogram
    guests: Mapping[str, int]
    host: Mapping[str, int]

    @classmethod
    def of(
        cls, workload: Workload, elapsed_ps: int, guests: Iterable[Mapping[str, int]], host: Iterable[Mapping[str, int]]
    ) -> Outcome:
        """Account for a workload. elapsed_ps: wall clock. guests, host: costs of each."""
        findings = workload.findings()
        lost = sum(f.missing for f in findings)
        histogram = empty_histogram()
        for delay_ns, count in workload.delays():
            histogram.record_value(min(max(delay_ns, 1), _LONGEST_NS), count)
        return cls(
            delivered=workload.sent - lost - sum(f.corrupt for f in findings),
            lost=lost,
            corrupt=sum(f.corrupt + f.repeated + f.reordered for f in findings),
            elapsed_s=max(elapsed_ps / S_PS, 1e-9),
            histogram=histogram,
            guests=add_up(guests),
            host=add_up(host),
        )

    def per_frame(self) -> PerFrame:
        """Events for each frame delivered."""
        total, frames = add_up([self.guests, self.host]), max(self.delivered, 1)

        def rate(*events: str) -> float:
            return round(sum(total[event] for event in events) / frames, 5)

        return {
            "exits": rate("exit_config", "exit_bar", "exit_msix"),
            "notifications": rate("notify_host", "notify_guest"),
            "copies": rate("copies"),
            "bytes_copied": rate("copy_bytes"),
            "interrupts": rate("interrupts"),
            "guest_switches": rate("guest_switches"),
            "page_walks": rate("iommu_walks"),
            "dma": rate("dma_frames"),
        }

    def latency(self) -> Latency:
        """Percentiles, in us."""
        p50, p99, p999 = (round(self.histogram.get_value_at_percentile(p) / 1e3, 3) for p in (50.0, 99.0, 99.9))
        return {"p50": p50, "p99": p99, "p999": p999}

    def curve(self) -> list[tuple[float, float]]:
        """Latency by percentile, in us."""
        return [(p, round(self.histogram.get_value_at_percentile(p) / 1e3, 3)) for p in _PERCENTILES]

    def frames_per_interrupt(self) -> float | None:
        """Frames that guests received for each interrupt of theirs: half of all."""
        interrupts = self.guests["interrupts"]
        return round(self.delivered / 2 / interrupts, 3) if interrupts else None

    def at_load(self, fps: int, prices: Mapping[str, Price], *, posted: bool) -> Load:
        """Make the document of one load, of `fps` frames a second of each guest each way."""
        priced = self.cycles(prices, posted=posted)
        return {
            "fps": fps,
            "delivered": self.delivered,
            "lost": self.lost,
            "per_frame": self.per_frame(),
            "latency_us": self.latency(),
            "frames_per_interrupt": self.frames_per_interrupt(),
            "cycles": priced["cycles"],
            "by_cause": priced["by_cause"],
        }

    def cycles(self, prices: Mapping[str, Price], *, posted: bool) -> Priced:
        """Price the events. posted: whether interrupts reach guests without the VMM."""
        frames = max(self.delivered, 1)
        guests = price(_interrupts(self.guests, posted), prices)
        host = price(_interrupts(self.host, posted=False), prices)
        by_cause = {cause: round((guests[cause][0] + host[cause][0]) / frames, 2) for cause in guests}
        cycles, low, high = (
            round(sum(guests[cause][i] + host[cause][i] for cause in guests) / frames, 2) for i in range(3)
        )
        # Of a guest's events, what is not the delivery of an interrupt without an exit is the host's processor's work.
        own = round(cycles - by_cause["posted interrupts"] - by_cause["page walks"], 2)
        return {
            "cycles": cycles,
            "by_cause": by_cause,
            "low": low,
            "high": high,
            "core_mpps": round(CLOCK_HZ / own / 1e6, 3) if own >= 1 else None,
        }


def add_up(rows: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Add costs up, event by event."""
    rows = list(rows)
    return {event: sum(row[event] for row in rows) for event in EVENTS}


def _interrupts(counts: Mapping[str, int], posted: bool) -> dict[str, int]:
    return {**counts, "posted" if posted else "injected": counts["interrupts"]}

"""Compare the four I/O models: the same work through each, over the same NIC, for one guest and for more.

    guests --- I/O model --- NIC --- wire --- partner

Each guest exchanges numbered and checked frames with a partner at the other end of the wire: once as fast as that goes,
with so many frames under way, and then at given loads. Where a processor's time goes is counted by events, in the
guests' meters and in the host's, and priced. A run takes the same frames for the same seed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, cast

from hdrh.histogram import HdrHistogram

from virtfn import __version__
from virtfn.api.comparison import (
    Comparison,
    Latency,
    Load,
    Measured,
    ModelResult,
    PerFrame,
    Priced,
    Throttle,
)
from virtfn.api.lab import Lab
from virtfn.api.labfile import LabError, parse_text, quote, read_text
from virtfn.api.labmodel import Guest, Nic, Pf, SrIov
from virtfn.api.machine import Machine
from virtfn.api.processor import processor
from virtfn.api.progress import Progress
from virtfn.api.properties import properties
from virtfn.cards import MODELS
from virtfn.hw.eth import FCS_BYTES
from virtfn.hw.types import Mac
from virtfn.iomodels import model
from virtfn.iomodels.engine import Engine
from virtfn.iomodels.workload import Station, Workload
from virtfn.kernels import warm
from virtfn.machine.clock import S_PS, WallClock
from virtfn.machine.meter import EVENTS, Meter
from virtfn.machine.ports import VirtfnError
from virtfn.sim.costs import CLOCK_HZ, PRICES, Price, price

__all__ = ["GUESTS", "LOADS", "Plan", "load_prices", "run_compare"]

GUESTS = (1, 2, 4)
FRAMES = 20_000
LOADS = (2_000, 10_000, 50_000)
INTERVALS = (0, 30, 122, 488, None)
_PARTNER = Mac(0x99_00_00_00_00_02)
_RING = 256
_WINDOW = 96  # frames under way to each receiver: what a ring holds easily, so that nobody is overrun
_LOAD_S = 0.06
_THROTTLE_FPS = (10_000, 50_000)
_PERCENTILES = (0.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.5, 99.9, 99.95, 99.99)
_LONGEST_NS = 10**10
_NOTHING: Latency = {"p50": 0.0, "p99": 0.0, "p999": 0.0}


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be compared. frame_bytes: with frame check sequence. frames: of each guest each way.

    memory_mib: of a guest. loads: of each guest each way, in frames a second.
    """

    name: str = "four models"
    pf: Pf = field(default_factory=lambda: Pf(name="pf0"))
    frame_bytes: int = 1518
    frames: int = FRAMES
    memory_mib: int = 16
    guests: tuple[int, ...] = GUESTS
    loads: tuple[int, ...] = LOADS
    seed: int = 1

    @classmethod
    def of(cls, lab: Lab, guests: Sequence[int] = ()) -> Plan:
        """Take card, frames and memory from a lab. guests: how many there are to be; without any, one, and the lab's.

        Raises VirtfnError (EOPNOTSUPP) for what cannot be compared.
        """
        if any(guest.vmm != "embedded" for guest in lab.guests):
            where = lab.where(("guests", [guest.vmm for guest in lab.guests].index("qemu"), "vmm"))
            raise VirtfnError(f"{where}: only embedded guests are compared", errno_name="EOPNOTSUPP")
        pf, work = lab.pfs[0], lab.workload
        return cls(
            lab.name,
            Pf(name=pf.name, model=pf.model, link_mbps=pf.link_mbps),
            work.frame_bytes,
            min(work.frames or FRAMES, 1_000_000),
            max(guest.memory_mib for guest in lab.guests),
            tuple(guests) or tuple(sorted({1, len(lab.guests)})),
        )


def run_compare(
    plan: Plan | None = None,
    *,
    prices: Mapping[str, Price] = PRICES,
    progress: Callable[[Progress], None] | None = None,
) -> Comparison:
    """Compare the models. prices: of events. Raises VirtfnError as labs do."""
    plan = Plan() if plan is None else plan
    clock = WallClock()
    began = clock.now()

    def tell(phase: str) -> None:
        if progress is not None:
            progress(Progress(phase, (clock.now() - began) / S_PS))

    tell("starting" if warm.cached() else "compiling kernels (first run only)")
    warm.load()
    runs: list[Comparison] = []
    for n in sorted(set(plan.guests)):
        models: dict[str, ModelResult] = {}
        for name in model.MODELS:
            tell(f"{name}, {n} {'guest' if n == 1 else 'guests'}")
            models[name] = _run_model(plan, name, n, clock, prices)
        runs.append(_document(plan, n, models))
    tell("sriov, interrupts")
    throttle = _throttle(plan, clock, prices)
    whole = runs[-1].copy()
    whole["virtfn"], whole["cpu"] = __version__, processor()
    whole["runs"], whole["throttle"] = runs, throttle
    whole["properties"] = properties(runs, throttle)
    whole["prices"] = {
        name: {"cycles": p.cycles, "low": p.low, "high": p.high, "source": p.source} for name, p in prices.items()
    }
    return whole


def _document(plan: Plan, n: int, models: dict[str, ModelResult]) -> Comparison:
    words = f"each guest exchanges {plan.frames:,} numbered frames each way with a partner at the other end of the wire"
    return {"workload": words, "frame_bytes": plan.frame_bytes, "guests": n, "vmm": "embedded", "models": models}


# One machine.


def _lab(plan: Plan, name: str, n: int) -> Lab:
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


class _Rig:
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

    def work(self, frames: int, *, fps: int = 0) -> _Outcome:
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
        return _Outcome(workload, elapsed, costs[: len(guests)], costs[len(guests) :])


class _Outcome:
    """What came of one piece of work. elapsed_ps: wall clock. guests, host: costs by event."""

    def __init__(
        self, workload: Workload, elapsed_ps: int, guests: list[dict[str, int]], host: list[dict[str, int]]
    ) -> None:
        findings = workload.findings()
        self.elapsed_s = max(elapsed_ps / S_PS, 1e-9)
        self.corrupt = sum(f.corrupt + f.repeated + f.reordered for f in findings)
        self.lost = sum(f.missing for f in findings)
        self.delivered = workload.sent - self.lost - sum(f.corrupt for f in findings)
        self.histogram = HdrHistogram(1, _LONGEST_NS, 3)
        for delay_ns, count in workload.delays():
            self.histogram.record_value(min(max(delay_ns, 1), _LONGEST_NS), count)
        self.guests, self.host = _sum(guests), _sum(host)

    def per_frame(self) -> PerFrame:
        """Events for each frame delivered."""
        total, frames = _sum([self.guests, self.host]), max(self.delivered, 1)

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


def _sum(rows: Iterable[Mapping[str, int]]) -> dict[str, int]:
    rows = list(rows)
    return {event: sum(row[event] for row in rows) for event in EVENTS}


def _interrupts(counts: Mapping[str, int], posted: bool) -> dict[str, int]:
    return {**counts, "posted" if posted else "injected": counts["interrupts"]}


_POSTED = ("passthrough", "sriov")  # devices of the guest's own, whose interrupts are remapped and posted


@contextmanager
def _rig(plan: Plan, name: str, n: int, clock: WallClock) -> Iterator[_Rig]:
    mtu = max(1500, plan.frame_bytes - 18)
    with Machine(_lab(plan, name, n), clock, ring=_RING, mtu=mtu, seed=plan.seed) as machine:
        yield _Rig(plan, machine, clock)
        machine.stop()


def _run_model(plan: Plan, name: str, n: int, clock: WallClock, prices: Mapping[str, Price]) -> ModelResult:
    refused = _refusal(plan, name, n)
    if refused:
        return _refused(refused)
    with _rig(plan, name, n, clock) as rig:
        rig.work(min(1000, plan.frames))  # addresses are learned, pages known
        outcome = rig.work(plan.frames)
        posted = name in _POSTED
        loads = [_load(rig, fps, posted, prices) for fps in plan.loads]
        dropped, driver = rig.drops(), type(rig.machine.guests[0].driver).__name__
    mpps = outcome.delivered / outcome.elapsed_s / 1e6
    measured: Measured = {
        "mpps": round(mpps, 4),
        "gbps": round(mpps * (plan.frame_bytes - FCS_BYTES) * 8 / 1e3, 4),
        "latency_us": outcome.latency(),
        "latency_curve": outcome.curve(),
    }
    return {
        "delivered": outcome.delivered,
        "lost": outcome.lost,
        "corrupt": outcome.corrupt,
        "per_frame": outcome.per_frame(),
        "measured": measured,
        "priced": outcome.cycles(prices, posted=posted),
        "refused": None,
        "dropped": dropped,
        "guest_driver": driver,
        "loads": loads,
    }


def _load(rig: _Rig, fps: int, posted: bool, prices: Mapping[str, Price]) -> Load:
    outcome = rig.work(max(int(fps * _LOAD_S), 20), fps=fps)
    priced = outcome.cycles(prices, posted=posted)
    return {
        "fps": fps,
        "delivered": outcome.delivered,
        "lost": outcome.lost,
        "per_frame": outcome.per_frame(),
        "latency_us": outcome.latency(),
        "frames_per_interrupt": _frames_per_interrupt(outcome),
        "cycles": priced["cycles"],
        "by_cause": priced["by_cause"],
    }


def _frames_per_interrupt(outcome: _Outcome) -> float | None:
    """Frames that guests received for each interrupt of theirs: half of all."""
    interrupts = outcome.guests["interrupts"]
    return round(outcome.delivered / 2 / interrupts, 3) if interrupts else None


def _refusal(plan: Plan, name: str, n: int) -> str:
    """Say why a model does not serve so many guests; empty if it does."""
    limits = MODELS[str(plan.pf.model)].limits
    if name == "passthrough" and n > 1:
        return f"the NIC is one guest's, whole: no second guest, let alone {n}; use sriov, or a NIC for each guest"
    if name == "sriov" and n > limits.vfs:
        return f"a {plan.pf.model} has {limits.vfs} VFs, not {n}; use fewer guests, or more NICs"
    return ""


def _refused(reason: str) -> ModelResult:
    frame: PerFrame = {
        "exits": 0.0, "notifications": 0.0, "copies": 0.0, "bytes_copied": 0.0, "interrupts": 0.0,
        "guest_switches": 0.0, "page_walks": 0.0, "dma": 0.0,
    }  # fmt: skip
    return {
        "delivered": 0,
        "lost": 0,
        "corrupt": 0,
        "per_frame": frame,
        "measured": {"mpps": 0.0, "gbps": 0.0, "latency_us": _NOTHING},
        "priced": {"cycles": 0.0, "by_cause": {}, "low": 0.0, "high": 0.0, "core_mpps": None},
        "refused": reason,
        "dropped": {},
        "guest_driver": "",
        "loads": [],
    }


# Interrupts.


class _Moderated(Protocol):
    def set_interval(self, us: int | None) -> None:
        """Let receive interrupts be so far apart."""


def _throttle(plan: Plan, clock: WallClock, prices: Mapping[str, Price]) -> list[Throttle]:
    """Let one guest with a VF receive at several loads and intervals of interrupts."""
    found: list[Throttle] = []
    with _rig(plan, "sriov", 1, clock) as rig:
        driver = cast(_Moderated, rig.machine.guests[0].driver)
        rig.work(min(1000, plan.frames))
        for fps in _THROTTLE_FPS:
            for interval in INTERVALS:
                driver.set_interval(interval)
                outcome = rig.work(max(int(fps * _LOAD_S), 20), fps=fps)
                found.append(
                    {
                        "interval_us": interval,
                        "fps": fps,
                        "interrupts": outcome.guests["interrupts"],
                        "frames_per_interrupt": _frames_per_interrupt(outcome),
                        "latency_us": outcome.latency(),
                        "posted_cycles": outcome.cycles(prices, posted=True)["cycles"],
                        "injected_cycles": outcome.cycles(prices, posted=False)["cycles"],
                    }
                )
    return found


def load_prices(path: Path) -> dict[str, Price]:
    """Read a file of prices: `NAME: cycles`, or `NAME: {cycles, low, high, source}`; what it leaves out stays.

    Raises LabError for the first thing wrong in it.
    """
    text = read_text(path)
    if not text.strip():
        raise LabError(str(path), 1, (), "is empty; give prices, like exit: 3000")
    tree = parse_text(text, str(path))
    if not isinstance(tree.value, dict):
        tree.fail((), f"holds {quote(tree.value)}; prices are a mapping of names to cycles")
    found = dict(PRICES)
    for name, value in tree.value.items():
        if name not in PRICES:
            tree.fail((name,), f"is no price; there are {', '.join(PRICES)}")
        given = value if isinstance(value, dict) else {"cycles": value}
        numbers = {}
        for key in ("cycles", "low", "high"):
            number = given.get(key, given.get("cycles"))
            if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number <= 1e9:
                tree.fail((name,), f"{key} must be a number from 0 to 1e9, not {quote(number)}")
            numbers[key] = float(number)
        unknown = set(given) - {"cycles", "low", "high", "source"}
        if unknown:
            tree.fail((name,), f"{quote(min(unknown))} is not a key here; keys are cycles, low, high, source")
        if not numbers["low"] <= numbers["cycles"] <= numbers["high"]:
            tree.fail((name,), "low, cycles, high must be in this order")
        found[name] = Price(**numbers, source=str(given.get("source", f"from {path.name}")))
    return found

"""Compare the four I/O models: the same work through each, over the same NIC, for one guest and for more.

    guests --- I/O model --- NIC --- wire --- partner

Each guest exchanges numbered and checked frames with a partner at the other end of the wire: once as fast as that goes,
with so many frames under way, and then at given loads. Where a processor's time goes is counted by events, in the
guests' meters and in the host's, and priced. A run takes the same frames for the same seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol, cast

from virtfn import __version__
from virtfn.api.comparelinux import linux_properties, run_linux_model
from virtfn.api.comparerig import Plan, Rig, make_lab
from virtfn.api.comparison import (
    Comparison,
    Latency,
    Measured,
    ModelResult,
    PerFrame,
    Throttle,
)
from virtfn.api.machine import Machine
from virtfn.api.processor import processor
from virtfn.api.progress import Progress
from virtfn.api.properties import properties
from virtfn.cards import MODELS
from virtfn.hw.eth import FCS_BYTES
from virtfn.iomodels import model
from virtfn.kernels import warm
from virtfn.machine.clock import S_PS, WallClock
from virtfn.sim.costs import PRICES, Price

__all__ = ["run_compare"]

INTERVALS = (0, 30, 122, 488, None)
_RING = 256
_LOAD_S = 0.06
_THROTTLE_FPS = (10_000, 50_000)
_NOTHING: Latency = {"p50": 0.0, "p99": 0.0, "p999": 0.0}


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

    def tell(phase: str, steps: int = 0, total: int = 0) -> None:
        if progress is not None:
            progress(Progress(phase, (clock.now() - began) / S_PS, steps=steps, total_steps=total))

    phase = warm.phase()
    tell(phase)
    warm.load(watch=lambda steps, total: tell(phase, steps, total))
    runs: list[Comparison] = []
    for n in sorted(set(plan.guests)):
        models: dict[str, ModelResult] = {}
        for name in model.MODELS:
            tell(f"{name}, {n} {'guest' if n == 1 else 'guests'}")
            models[name] = _run_model(plan, name, n, clock, prices, tell)
        runs.append(_document(plan, n, models))
    throttle: list[Throttle] = []
    if plan.vmm == "embedded":
        tell("sriov, interrupts")
        throttle = _throttle(plan, clock, prices)
    whole = runs[-1].copy()
    whole["virtfn"], whole["cpu"] = __version__, processor()
    whole["runs"], whole["throttle"] = runs, throttle
    whole["properties"] = properties(runs, throttle) if plan.vmm == "embedded" else linux_properties(runs[0])
    whole["prices"] = {
        name: {"cycles": p.cycles, "low": p.low, "high": p.high, "source": p.source} for name, p in prices.items()
    }
    return whole


def _document(plan: Plan, n: int, models: dict[str, ModelResult]) -> Comparison:
    words = f"each guest exchanges {plan.frames:,} numbered frames each way with a partner at the other end of the wire"
    if plan.vmm == "qemu":
        who = "two Linux guests" if n == 2 else f"{n} Linux guests, {'each the next' if n % 2 else 'two by two'},"
        words = f"{who} ping each other, then send TCP by iperf3, one way after the other"
    return {"workload": words, "frame_bytes": plan.frame_bytes, "guests": n, "vmm": plan.vmm, "models": models}


_POSTED = ("passthrough", "sriov")  # devices of the guest's own, whose interrupts are remapped and posted


@contextmanager
def _rig(plan: Plan, name: str, n: int, clock: WallClock) -> Iterator[Rig]:
    mtu = max(1500, plan.frame_bytes - 18)
    with Machine(make_lab(plan, name, n), clock, ring=_RING, mtu=mtu, seed=plan.seed) as machine:
        yield Rig(plan, machine, clock)
        machine.stop()


def _run_model(
    plan: Plan, name: str, n: int, clock: WallClock, prices: Mapping[str, Price], tell: Callable[[str], None]
) -> ModelResult:
    refused = _refusal(plan, name, n)
    if refused:
        return _refused(refused)
    if plan.vmm == "qemu":
        return run_linux_model(plan, name, n, prices, tell)
    with _rig(plan, name, n, clock) as rig:
        rig.work(min(1000, plan.frames))  # addresses are learned, pages known
        outcome = rig.work(plan.frames)
        posted = name in _POSTED
        loads = [
            rig.work(max(int(fps * _LOAD_S), 20), fps=fps).at_load(fps, prices, posted=posted) for fps in plan.loads
        ]
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
                        "frames_per_interrupt": outcome.frames_per_interrupt(),
                        "latency_us": outcome.latency(),
                        "posted_cycles": outcome.cycles(prices, posted=True)["cycles"],
                        "injected_cycles": outcome.cycles(prices, posted=False)["cycles"],
                    }
                )
    return found

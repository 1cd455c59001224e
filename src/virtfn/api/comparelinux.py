"""Compare the I/O models with Linux guests: two or more of them on one NIC, by each model, with Linux's own drivers.

They ping each other, one round trip at a time, and send TCP by iperf3, one way after the other: all pairs at once, or,
where their number is odd, each to the next in turn. Events are counted over all of that, and then anew while two of
them ping each other at given rates: a frame each way for each round trip. A frame may be as long as
TCP's segmentation leaves it to the other side: of Split, up to 64 KiB.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from virtfn.api.comparerig import Outcome, Plan, add_up, empty_histogram
from virtfn.api.comparison import Comparison, ModelResult, Property
from virtfn.api.lab import Lab
from virtfn.api.labmodel import LINUX_MIB, Guest, Nic, SrIov
from virtfn.api.linux import LinuxGuest
from virtfn.api.progress import Progress
from virtfn.api.report import Report
from virtfn.api.session import Session
from virtfn.hw.eth import FCS_BYTES
from virtfn.machine.clock import S_PS
from virtfn.machine.meter import Meter
from virtfn.machine.ports import VirtfnError
from virtfn.sim.costs import Price

__all__ = ["linux_properties", "run_linux_model"]

_PINGS = 200
_LOADS = (50, 200)  # round trips a second
_LOAD_S = 2
_ECHO_BYTES = 14 + 20 + 8 + FCS_BYTES  # of a frame with an echo, around its payload
_TIME = re.compile(r"time=([0-9]{1,5}(?:\.[0-9]{1,6})?) ms")
_DRIVER = re.compile(r"[A-Za-z0-9_-]{1,32}")
_LIMIT_S = 60
_OWN = ("passthrough", "sriov")
_T = TypeVar("_T")


def _lab(plan: Plan, name: str, n: int) -> Lab:
    nics = [Nic(pf=plan.pf.name, io=name, vf=i if name == "sriov" else None) for i in range(n)]  # type: ignore[arg-type]
    memory = max(plan.memory_mib, LINUX_MIB)
    guests = tuple(Guest(name=f"g{i}", vmm="qemu", memory_mib=memory, nic=nic) for i, nic in enumerate(nics))
    pf = plan.pf.model_copy(update={"sr_iov": SrIov(total_vfs=n) if name == "sriov" else None})
    work = {"kind": "pairs", "frame-bytes": plan.frame_bytes}
    return Lab.model_validate({"name": f"compare-{name}", "pfs": (pf,), "guests": guests, "workload": work})


def run_linux_model(
    plan: Plan, name: str, n: int, prices: Mapping[str, Price], tell: Callable[[str], None]
) -> ModelResult:  # fmt: skip
    """Run `n` Linux guests by one model. Raises VirtfnError as labs do, and if a guest says that something failed."""

    def watch(progress: Progress) -> None:
        tell(f"{name}, {n} guests: {progress.phase}")

    with Session(_lab(plan, name, n), progress=watch) as session:
        session.start()
        costs = _counted(session, session.work)[0]
        report = session.report()
        failures = [f"{g['name']}: {g['failure']}" for g in report["guests"] if "failure" in g]
        if failures:
            raise VirtfnError(f"{name}: {'; '.join(failures)}")
        tell(f"{name}, {n} guests: ping")
        round_trips = _ping(session, session.linux_guests)
        driver = _driver(session, session.linux_guests[0])
        loads = []
        for fps in _LOADS if plan.loads else ():
            tell(f"{name}, {n} guests: {fps} pings a second")
            loads.append(_load(session, plan, n, fps).at_load(fps, prices, posted=name in _OWN))
        session.stop()
    return {**_result(report, costs[:n], costs[n:], round_trips, driver, name, prices), "loads": loads}


def _counted(session: Session, work: Callable[[], _T]) -> tuple[list[dict[str, int]], _T]:
    """Let something be done; return the events that it cost guests and host, and what it returned."""
    meters = _meters(session)
    before = [meter.read() for meter in meters]
    done = work()
    costs = [
        {event: count - then[event] for event, count in meter.read().items()}
        for meter, then in zip(meters, before, strict=True)
    ]
    return costs, done


def _load(session: Session, plan: Plan, n: int, fps: int) -> Outcome:
    """Let the first two guests exchange `fps` frames a second each way; what was sent in vain is lost."""
    first, second = session.linux_guests[:2]
    count = fps * _LOAD_S
    size = max(plan.frame_bytes - _ECHO_BYTES, 16)
    command = f"ping -i {1 / fps:g} -c {count} -s {size} -w {_LIMIT_S} -I {first.device} {second.ip}"
    costs, round_trips = _counted(session, lambda: _round_trips(session, first, command))
    histogram = empty_histogram()
    for ms in round_trips:
        histogram.record_value(max(int(ms * 1e6), 1))
    return Outcome(
        delivered=2 * len(round_trips),
        lost=max(count - len(round_trips), 0),
        corrupt=0,
        elapsed_s=float(_LOAD_S),
        histogram=histogram,
        guests=add_up(costs[:n]),
        host=add_up(costs[n:]),
    )


def _meters(session: Session) -> list[Meter]:
    stack = session.machine.pfs[0].stack
    return [*(guest.vm.meter for guest in session.linux_guests), *([] if stack is None else [stack.guest.meter])]


def _ping(session: Session, guests: Sequence[LinuxGuest]) -> list[float]:
    """Let one guest ping the other, and return each round trip in ms. Raises VirtfnError if there is none."""
    command = f"ping -A -c {_PINGS} -w {_LIMIT_S} -I {guests[0].device} {guests[1].ip}"
    return _round_trips(session, guests[0], command)


def _round_trips(session: Session, guest: LinuxGuest, command: str) -> list[float]:
    """Let a guest ping, and return each round trip in ms. Raises VirtfnError if there is none."""
    job = guest.start(command)
    session.run_until(lambda: job.done, (_LIMIT_S + 10) * S_PS)
    said = "" if job.outcome is None else job.outcome.output
    round_trips = [float(ms) for ms in _TIME.findall(said)]
    if not round_trips:
        raise VirtfnError(f"ping from {guest.lab.name}: nothing came back within {_LIMIT_S} s")
    return round_trips


def _driver(session: Session, guest: LinuxGuest) -> str:
    """Ask a guest for its interface's driver; empty if what it says is no name of one."""
    job = guest.start(f"basename $(readlink -f /sys/class/net/{guest.device}/device/driver)")
    session.run_until(lambda: job.done, 30 * S_PS)
    said = "" if job.outcome is None else job.outcome.output.strip()
    return said if _DRIVER.fullmatch(said) else ""


def _result(
    report: Report,
    guests: list[dict[str, int]],
    host: list[dict[str, int]],
    round_trips: Sequence[float],
    driver: str,
    name: str,
    prices: Mapping[str, Price],
) -> ModelResult:
    histogram = empty_histogram()
    for ms in round_trips:
        histogram.record_value(max(int(ms * 1e6), 1))
    frames, nbytes = (sum(g[key] for g in report["guests"]) for key in ("rx_frames", "rx_bytes"))
    outcome = Outcome(
        delivered=frames,
        lost=sum(g["lost"] for g in report["guests"]),
        corrupt=sum(g["corrupt"] + g["reordered"] for g in report["guests"]),
        elapsed_s=report["totals"]["moving_s"],
        histogram=histogram,
        guests=add_up(guests),
        host=add_up(host),
    )
    ways = [g["iperf_mbps"] for g in report["guests"] if "iperf_mbps" in g]
    gbps = sum(ways) / _turns(len(guests)) / 1e3
    dropped: Counter[str] = Counter()
    for g in report["guests"]:
        dropped.update(g["dropped"])
    return {
        "delivered": outcome.delivered,
        "lost": outcome.lost,
        "corrupt": outcome.corrupt,
        "per_frame": outcome.per_frame(),
        "measured": {
            "mpps": round(gbps * 1e3 / 8 / max(nbytes / max(frames, 1), 1), 5),
            "gbps": round(gbps, 4),
            "latency_us": outcome.latency(),
            "latency_curve": outcome.curve(),
        },
        "priced": outcome.cycles(prices, posted=name in _OWN),
        "refused": None,
        "dropped": dict(dropped),
        "guest_driver": driver,
        "loads": [],
    }


def _turns(n: int) -> int:
    """Tell in how many turns so many guests send to each other: pairs all at once, or each by itself."""
    return n if n % 2 else 2


def linux_properties(run: Comparison) -> list[Property]:
    """Judge what is said of the models by what Linux guests did."""
    split, direct, sriov = (run["models"][name] for name in ("split", "direct", "sriov"))
    exits = {name: run["models"][name]["per_frame"]["exits"] for name in ("split", "direct", "sriov")}
    copies = {name: run["models"][name]["per_frame"]["copies"] for name in ("split", "direct", "sriov")}
    return [
        {
            "name": "copies",
            "holds": copies["sriov"] == 0 < min(copies["split"], copies["direct"]),
            "words": f"Split and Direct copy each frame ({copies['split']:.2f} and {copies['direct']:.2f} times), "
            f"SR-IOV does not",
            "timed": False,
        },
        {
            "name": "exits",
            "holds": exits["split"] == 0 and exits["sriov"] < exits["direct"],
            "words": f"exits for each frame: Direct {exits['direct']:.3f}, SR-IOV {exits['sriov']:.3f}, Split none",
            "timed": False,
        },
        {
            "name": "passthrough-one-guest",
            "holds": run["models"]["passthrough"]["refused"] is not None,
            "words": "Passthrough serves one guest, and refuses a second",
            "timed": False,
        },
        {
            "name": "guest-driver",
            "holds": split["guest_driver"].startswith("virtio") and not direct["guest_driver"].startswith("virtio"),
            "words": f"Split needs a front end in the guest ({split['guest_driver']}), Direct runs the NIC's own "
            f"driver ({direct['guest_driver']}), SR-IOV the VF's ({sriov['guest_driver']})",
            "timed": False,
        },
    ]

"""Two Linux guests on this card, and the same two on QEMU's own cards: throughput, latency and processor time.

    python benchmarks/guests.py [ROUNDS] [--seconds S] [--streams N] [--only NAME ...] [--json FILE]

Each pair boots the same kernel and image; rounds alternate between the pairs, so that all see the same machine.
Medians, and the spread. QEMU's cards are joined by its stream and dgram networks. Processor time is that of both QEMUs
and, for this card, of the process that serves it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles

from virtfn.api.image import Platform, find_platform
from virtfn.api.lab import parse_lab
from virtfn.api.linux import LinuxGuests
from virtfn.api.linuxwork import iperf_mbps
from virtfn.api.machine import Machine
from virtfn.kernels import warm
from virtfn.machine.clock import WallClock
from virtfn.machine.ports import VirtfnError
from virtfn.vmm.qemu import Machine as QemuMachine
from virtfn.vmm.qemu import QemuGuest, rest
from virtfn.vmm.world import World

LAB = """
name: guests
pfs: [{{name: pf0, sr-iov: {{total-vfs: 2}}}}]
guests:
  - {{name: a, vmm: qemu, memory-mib: 256, nic: {{pf: pf0, vf: 0, map-rings: {mapped}}}}}
  - {{name: b, vmm: qemu, memory-mib: 256, nic: {{pf: pf0, vf: 1, map-rings: {mapped}}}}}
workload: {{kind: pairs}}
"""
Run = Callable[[int, str, float], str]
"""Runs a shell command in guest 0 or 1, for so many seconds at most, and returns what it printed."""
TICK = os.sysconf("SC_CLK_TCK")


@contextmanager
def on_virtfn(mapped: str, platform: Platform) -> Iterator[tuple[Run, list[int], list[str]]]:
    """Boot two guests with a VF each."""
    with Machine(parse_lab(LAB.format(mapped=mapped)), WallClock()) as machine:
        guests = LinuxGuests(machine, platform, World(machine.host.clock), lambda phase, since: None)
        try:
            guests.start()
            guests.boot()
            guests.set_up(1518)

            def run(n: int, command: str, seconds: float) -> str:
                return guests.wait([guests.guests[n].start(command)], command, seconds)[0].output

            pids = [guest.vm.guest.pid for guest in guests.guests]
            yield run, [*pids, os.getpid()], [guest.ip for guest in guests.guests]
        finally:
            guests.close()


@contextmanager
def on_qemu(card: str, network: str, platform: Platform) -> Iterator[tuple[Run, list[int], list[str]]]:
    """Boot two guests with one of QEMU's own cards each, joined by one of its networks."""
    with tempfile.TemporaryDirectory() as folder:
        extras = []
        for n in range(2):
            if network == "stream":
                ends = f"server={'off' if n else 'on'},addr.type=unix,addr.path={folder}/s"
            else:
                ends = f"local.type=unix,local.path={folder}/{n},remote.type=unix,remote.path={folder}/{1 - n}"
            device = f"{card},netdev=n0,mac=52:54:00:00:00:0{n + 1},bus=pcie.0,addr=5"
            extras.append(("-netdev", f"{network},id=n0,{ends}", "-device", device))
        with booted(extras, platform) as guests:
            yield guests


@contextmanager
def booted(extras: Sequence[tuple[str, ...]], platform: Platform) -> Iterator[tuple[Run, list[int], list[str]]]:
    """Boot two guests whose cards are given by arguments of QEMU's, and bring their interfaces up."""
    ips = ["10.82.0.1", "10.82.0.2"]
    guests: list[QemuGuest] = []
    assert platform.image is not None
    kernel, initrd = platform.image.kernel, platform.image.initrd

    def run(n: int, command: str, seconds: float) -> str:
        return guests[n].agent.run(command, timeout_s=seconds).output

    try:
        for n, extra in enumerate(extras):
            parts = QemuMachine(f"q{n}", kernel, initrd, append="quiet", memory_mib=256, slots=0, extra=extra)
            guests.append(QemuGuest(parts, platform.qemu, platform.acceleration))
            guests[n].start()
        for n, guest in enumerate(guests):
            guest.agent.wait_ready()
            run(n, f"ip link set eth0 up; ip address add {ips[n]}/24 dev eth0; sleep 3", 60)
        yield run, [guest.pid for guest in guests], ips
    finally:
        for guest in guests:
            guest.close()


def processor_s(pids: list[int]) -> float:
    """Add up the processor time that processes have used."""
    used = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        used += int(fields[11]) + int(fields[12])
    return used / TICK


def pings_ms(run: Run, ip: str, count: int = 300) -> list[float]:
    """Ping from guest 0; return the round trips. Raises VirtfnError if one is lost."""
    said = run(0, f"ping -c 5 {ip} >/dev/null; ping -c {count} -i 0.01 {ip}", 60)
    times = [float(ms) for ms in re.findall(r"time=([\d.]+) ms", said)]
    if len(times) != count:
        raise VirtfnError(f"{count - len(times)} of {count} pings were lost: {said[-300:]}")
    return times


def tcp_mbps(run: Run, ip: str, seconds: int, options: str = "") -> float:
    """Send from guest 0 to iperf3 in the other; return Mb/s of payload, as the receiver counted."""
    return iperf_mbps(run(0, f"iperf3 -J -t {seconds} -c {ip} {options}", seconds + 60))


def measure(run: Run, pids: list[int], ips: list[str], seconds: int, streams: int = 1) -> dict[str, float]:
    """Measure one pair: pings, then TCP both ways, by so many connections at a time."""
    times = pings_ms(run, ips[1])
    found = {"ping_ms": median(times), "ping_p99_ms": quantiles(times, n=100)[98]}
    run(1, "iperf3 -s -D", 10)
    before = processor_s(pids)
    rates = [tcp_mbps(run, ips[1], seconds, f"-P {streams} {reverse}") for reverse in ("", "-R")]
    moved_gbit = sum(rates) * seconds / 1000
    return {**found, "mbps": sum(rates) / 2, "cpu_s_per_gbit": (processor_s(pids) - before) / moved_gbit}


def main() -> None:
    """Measure all pairs in turn."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("rounds", nargs="?", type=int, default=3)
    arguments.add_argument("--seconds", type=int, default=5)
    arguments.add_argument("--streams", type=int, default=1)
    arguments.add_argument("--only", nargs="*", default=[])
    arguments.add_argument("--json", type=Path)
    given = arguments.parse_args()
    platform = find_platform(rest, parse_lab(LAB.format(mapped="true")).guests)
    warm.load()
    pairs = {"virtfn mapped": "true", "virtfn unmapped": "false"}
    cards = ("igb", "e1000e", "virtio-net-pci")
    networks = {f"qemu {card} {network}": (card, network) for card in cards for network in ("stream", "dgram")}
    found: dict[str, list[dict[str, float]]] = {
        name: [] for name in (*pairs, *networks) if not given.only or name in given.only
    }
    for _ in range(given.rounds):
        for name, results in found.items():
            context = on_virtfn(pairs[name], platform) if name in pairs else on_qemu(*networks[name], platform)
            with context as (run, pids, ips):
                results.append(measure(run, pids, ips, given.seconds, given.streams))
    print(f"{'':28}{'ping ms':>9}{'p99':>9}{'TCP Mb/s':>10}{'least to most':>18}{'CPU s per Gbit':>16}")
    for name, results in found.items():
        middle = {key: median(result[key] for result in results) for key in results[0]}
        rates = [result["mbps"] for result in results]
        spread = f"{min(rates):.0f} to {max(rates):.0f}"
        print(
            f"{name:28}{middle['ping_ms']:9.2f}{middle['ping_p99_ms']:9.2f}{middle['mbps']:10.0f}{spread:>18}"
            f"{middle['cpu_s_per_gbit']:16.2f}"
        )
    if given.json:
        given.json.write_text(json.dumps(found, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()

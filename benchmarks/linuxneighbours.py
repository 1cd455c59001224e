"""See what an honest pair of Linux guests keeps of its TCP rate beside a flood, and how much longer its pings take.

`neighbours.py` with two guests in QEMU on a VF each: ping, the median of 100, then iperf3, in turn in one run

    quiet     with nothing beside them
    busy      TCP alone, beside a process that spins
    beside    a flood: a client at the socket of a third VF, or a guest of this process that keeps its ring full

TCP of the pair takes two processors whole. On a machine with no more, whatever is busy beside it takes its part by the
host's scheduler, which no NIC can change; so what TCP keeps is counted from `busy`. Ping leaves processors free, so it
is compared with `quiet`. Medians, and the spread.
Usage: python benchmarks/linuxneighbours.py [-r ROUNDS] [-s SECONDS] [FLOOD ...]; `all` is every flood there is
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent))
import floods
from guests import pings_ms, tcp_mbps
from neighbours import DESCRIPTORS, Flood, House, client, descriptors

from virtfn.api.image import Platform, find_platform
from virtfn.api.lab import parse_lab
from virtfn.api.linux import LinuxGuest, LinuxGuests
from virtfn.api.machine import Machine
from virtfn.kernels import warm
from virtfn.machine.clock import S_PS, WallClock
from virtfn.machine.ports import VirtfnError
from virtfn.vmm.pump import Pump
from virtfn.vmm.qemu import rest
from virtfn.vmm.world import World

LAB = """
name: linux-neighbours
pfs: [{name: pf0, sr-iov: {total-vfs: 4}}]
guests:
  - {name: a, vmm: qemu, memory-mib: 256, nic: {pf: pf0, io: sriov, vf: 0}}
  - {name: b, vmm: qemu, memory-mib: 256, nic: {pf: pf0, io: sriov, vf: 1}}
  - {name: c, vmm: qemu, memory-mib: 256, nic: {pf: pf0, io: sriov, vf: 2}}
  - {name: d, vmm: qemu, memory-mib: 256, nic: {pf: pf0, io: sriov, vf: 3}}
workload: {kind: pairs}
"""
PINGS = 100
SETTLE_PS = S_PS // 4
CHOSEN = (
    "multi of resets", "FLR", "mailbox requests", "maps in pieces", "4 KiB BAR writes", "tiny segments",
    "frames to nobody",
)  # fmt: skip


class Kept(NamedTuple):
    """What a flood leaves, round by round. ping_ms: in quiet, beside it; mbps: in quiet, beside a busy process, it."""

    ping_ms: list[tuple[float, float]]
    mbps: list[tuple[float, float, float]]

    @property
    def slowdowns(self) -> list[float]:
        """How many times longer pings take."""
        return [beside / quiet for quiet, beside in self.ping_ms]

    @property
    def shares(self) -> list[float]:
        """What is kept of TCP."""
        return [beside / busy for _, busy, beside in self.mbps]


class LinuxStreet(House):
    """The pair, up and with addresses, and the house beside it."""

    def __init__(self, machine: Machine, folder: Path, guests: list[LinuxGuest]) -> None:
        super().__init__(machine, folder, guests[1].mac)
        self._guests = guests
        self._ip = guests[1].ip
        self.world.rest_by(Pump(machine.host, [self.pf.nic], [*(guest.vm for guest in guests), self.vm]))
        self.run(1, "iperf3 -s -D", 10)

    def run(self, n: int, command: str, seconds: float) -> str:
        """Run a command in guest 0 or 1: a `guests.Run`."""
        return self._guests[n].vm.guest.agent.run(command, timeout_s=seconds, tick=self.step).output

    def ping_ms(self) -> float:
        """Let the pair ping."""
        end = self.clock.now() + SETTLE_PS
        while self.clock.now() < end:
            self.step()
        return median(pings_ms(self.run, self._ip, PINGS))

    def mbps(self, seconds: int) -> float:
        """Let the pair speak TCP."""
        return tcp_mbps(self.run, self._ip, seconds)

    def measure(self, flood: Flood, rounds: int, seconds: int) -> Kept:
        """Alternate between quiet and a flood. flood: a context, in which it goes on."""
        kept = Kept([], [])
        for _ in range(rounds):
            ping, quiet = self.ping_ms(), self.mbps(seconds)
            with spinning():
                busy = self.mbps(seconds)
            try:
                with flood():
                    kept.ping_ms.append((ping, self.ping_ms()))
                    kept.mbps.append((quiet, busy, self.mbps(seconds)))
            finally:
                self.assign_anew()
        return kept


@contextmanager
def spinning() -> Iterator[None]:
    """Let a process be as busy as it can."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as child:
        try:
            yield
        finally:
            child.kill()


@contextmanager
def street(platform: Platform) -> Iterator[LinuxStreet]:
    """Boot the pair."""
    warm.load()
    with tempfile.TemporaryDirectory() as folder, Machine(parse_lab(LAB), WallClock()) as machine:
        machine.lab = machine.lab.model_copy(update={"guests": machine.lab.guests[:2]})  # nobody boots the others
        guests = LinuxGuests(machine, platform, World(machine.host.clock), lambda phase, since: None)
        try:
            guests.start()
            guests.boot()
            guests.set_up(1518)
            made = LinuxStreet(machine, Path(folder), guests.guests)
            try:
                yield made
            finally:
                made.close()
        finally:
            guests.close()


def main() -> None:
    every = [*DESCRIPTORS, *floods.FLOODS]
    parser = argparse.ArgumentParser(description="What a Linux pair keeps beside each flood.")
    parser.add_argument("-r", "--rounds", type=int, default=3)
    parser.add_argument("-s", "--seconds", type=int, default=2)
    parser.add_argument("floods", nargs="*", choices=[*every, "all", []])
    options = parser.parse_args()
    names = every if "all" in options.floods else options.floods or CHOSEN
    platform = find_platform(rest, parse_lab(LAB).guests)
    print(f"{'':24}  TCP, Mb/s: quiet   busy  beside  kept                  ping, ms: quiet  beside  times")
    with street(platform) as made:
        for name in names:
            try:
                kept = made.measure(
                    (descriptors if name in DESCRIPTORS else client)(made, name), options.rounds, options.seconds
                )
            except VirtfnError as error:
                print(f"{name:24}  {error}", flush=True)
                continue
            rates = [median(slices) for slices in zip(*kept.mbps, strict=True)]
            pings = [median(slices) for slices in zip(*kept.ping_ms, strict=True)]
            print(
                f"{name:24}  {rates[0]:16.0f}{rates[1]:7.0f}{rates[2]:8.0f}{spread(kept.shares, '.0%')}"
                f"{pings[0]:21.2f}{pings[1]:8.2f}{spread(kept.slowdowns, '.2f')}",
                flush=True,
            )


def spread(values: list[float], form: str) -> str:
    """Write the median, the least and the most."""
    middle = format(median(values), form)
    return f"{middle:>7} ({min(values):{form}} to {max(values):{form}})".ljust(22)


if __name__ == "__main__":
    main()

"""See what an honest pair of guests keeps of its rate beside a client that floods the server.

Two embedded guests send frames to each other as fast as they can. Beside them a function is served to a client in a
process of its own, which does one thing as often as it is let, or a guest of this process keeps its ring full of one
thing. Each flood alternates with quiet in the same run: rate in quiet, beside it, and what is kept; median and spread;
the longest turn of the pump in that time.
Usage: python benchmarks/neighbours.py [-r ROUNDS] [-s SECONDS] [FLOOD ...]
"""

from __future__ import annotations

import argparse
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent))
import floods

from virtfn.api.lab import parse_lab
from virtfn.api.machine import Machine
from virtfn.drivers.vtd import Domain
from virtfn.hw.i82576 import VfRegs
from virtfn.hw.i82576.desc import TXD_DEXT, TXD_DTYP_CONTEXT, TXD_DTYP_DATA, TXD_EOP, TXD_TXSM
from virtfn.hw.types import Mac, Ps, Rid
from virtfn.iomodels.attacker import Attacker, data_word
from virtfn.iomodels.attempts.sharing import large_sends
from virtfn.iomodels.engine import Engine
from virtfn.iomodels.workload import Station, Workload
from virtfn.kernels import warm
from virtfn.machine.clock import MS_PS, NS_PS, S_PS, WallClock
from virtfn.machine.memory import view_bytes
from virtfn.machine.ports import Actor, ConfigSpace, Device
from virtfn.vmm.guest import Guest
from virtfn.vmm.host import Host
from virtfn.vmm.pump import Pump
from virtfn.vmm.served import ServedFunction, SharedFiles
from virtfn.vmm.world import World

LAB = """name: neighbours
pfs: [{name: pf0, sr-iov: {total-vfs: 4}}]
guests:
  - {name: a, memory-mib: 32, nic: {pf: pf0, io: sriov, vf: 0}}
  - {name: b, memory-mib: 32, nic: {pf: pf0, io: sriov, vf: 1}}
  - {name: c, vmm: qemu, memory-mib: 256, nic: {pf: pf0, io: sriov, vf: 2}}
  - {name: d, vmm: qemu, memory-mib: 256, nic: {pf: pf0, io: sriov, vf: 3}}
workload: {kind: pairs}
"""
FRAME_BYTES = 60
ENDLESS = 1 << 60
SETTLE_PS = 60 * MS_PS
Flood = Callable[[], AbstractContextManager[None]]


class PlayedVm:
    """A virtual machine whose functions wait at sockets for whoever comes."""

    def __init__(self, host: Host, folder: Path) -> None:
        self.name = "flood"
        self.functions: dict[Rid, ServedFunction] = {}
        self.files = SharedFiles(host.memory)
        self._host = host
        self._folder = folder

    def address_space(self, rid: Rid) -> tuple[PlayedVm, Rid]:
        """Name a function's address space: its own."""
        return self, rid

    def populate(self, domain: Domain) -> None:
        """Map nothing yet."""

    def plug(self, device: Device, rid: Rid, config: ConfigSpace, domain: Domain, *, mapped: bool = True) -> None:
        """Open a socket for a function."""
        path = self._folder / f"{rid:04x}"
        self.functions[rid] = ServedFunction(self._host, device, rid, config, domain, self.files, path)

    def unplug(self, rid: Rid, *, surprise: bool = False) -> None:
        """Close a function's socket."""
        self.functions.pop(rid).close()

    def close(self) -> None:
        """Take everything back."""
        for rid in list(self.functions):
            self.unplug(rid)
        self.files.close()


class Kept(NamedTuple):
    """What a flood leaves. quiet, beside: rates, in frames a second; turns_ps: what each turn took beside it."""

    quiet: list[float]
    beside: list[float]
    turns_ps: list[int]

    @property
    def shares(self) -> list[float]:
        """What is kept, slice by slice, of the rates in quiet before and after."""
        pairs = zip(self.beside, self.quiet, self.quiet[1:], strict=False)
        return [2 * beside / (before + after) for beside, before, after in pairs]


class Timed(Pump):
    """A pump that notes how long its turns took."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.turns_ps: list[int] = []

    def turn(self, now: int = 0) -> int:
        """Take a turn."""
        began = time.perf_counter_ns()
        done = super().turn(now)
        self.turns_ps.append((time.perf_counter_ns() - began) * NS_PS)
        return done


class House(Actor):
    """What is beside an honest pair: VF 2 at a socket, and VF 3 for a guest of this process, while it is hostile.

    An actor of a world, in which everything happens as in a lab. peer: address of one of the pair. hostile: what such a
    guest does again and again.
    """

    def __init__(self, machine: Machine, folder: Path, peer: Mac) -> None:
        self.clock = WallClock()
        self.machine, self.host, self.pf = machine, machine.host, machine.pfs[0]
        self.peer = peer
        self.vm = PlayedVm(machine.host, folder)
        self.vf = machine.iovm.vf(self.pf.nic.pf_rid, 2)
        self.hostile: Callable[[], None] | None = None
        self.world = World(self.clock)
        self.world.add(self)
        self._assign()

    @property
    def path(self) -> Path:
        """The socket."""
        (served,) = self.vm.functions.values()
        return served.server.path

    def turn(self, now: Ps) -> int:
        """Let the guest of this process be hostile, which never rests."""
        if self.hostile is None:
            return 0
        self.hostile()
        return 1

    def step(self) -> None:
        """Do what a lab does again and again."""
        self.world.tick()

    def assign_anew(self) -> None:
        """Forget what is still to be answered: quiet is quiet then."""
        self.machine.iovm.take_back(self.vf, surprise=True)
        self._assign()

    def _assign(self) -> None:
        self.machine.iovm.assign(self.vf, self.vm, mac=self.machine.offered_mac(self.pf, self.vf.index))

    def close(self) -> None:
        """Take the socket back."""
        self.machine.iovm.take_back(self.vf, surprise=True)
        self.vm.close()


class Street(House):
    """The honest pair, and the house beside it."""

    def __init__(self, machine: Machine, folder: Path) -> None:
        drivers = [run.guest.nics[0].driver for run in machine.guests]
        super().__init__(machine, folder, drivers[0].mac)
        self.pump = Timed(machine.host, [self.pf.nic], [self.vm])
        stations = [Station(driver.row, driver.mac) for driver in drivers]
        self._rows = [driver.netdev for driver in drivers]
        workload = Workload("pairs", stations, length=FRAME_BYTES, frames=ENDLESS, raw=True)
        self.engine = Engine(machine.host, self.pf.nic, [run.guest for run in machine.guests], workload)
        self.world.add_lane(self.engine)
        self.world.rest_by(self.pump)

    def rate(self, duration_ps: int) -> float:
        """Let everything go on for a while; return the frames in a second that the pair received."""
        before, began = self._received(), self.clock.now()
        while self.clock.now() - began < duration_ps:
            self.step()
        return (self._received() - before) * S_PS / (self.clock.now() - began)

    def _received(self) -> int:
        return sum(int(row["rx_frames"]) for row in self._rows)

    def measure(self, flood: Flood, rounds: int, slice_ps: int) -> Kept:
        """Alternate between quiet and a flood. flood: a context, in which it goes on."""
        kept = Kept([], [], [])
        for _ in range(rounds):
            self.rate(SETTLE_PS)
            kept.quiet.append(self.rate(slice_ps))
            with flood():
                self.rate(SETTLE_PS)
                self.pump.turns_ps.clear()
                kept.beside.append(self.rate(slice_ps))
                kept.turns_ps.extend(self.pump.turns_ps)
            self.assign_anew()
        self.rate(SETTLE_PS)
        kept.quiet.append(self.rate(slice_ps))
        return kept


@contextmanager
def street() -> Iterator[Street]:
    """Bring everything up."""
    warm.load()
    with tempfile.TemporaryDirectory() as folder, Machine(parse_lab(LAB), WallClock()) as machine:
        made = Street(machine, Path(folder))
        try:
            yield made
        finally:
            made.close()


def client(house: House, name: str) -> Flood:
    """Make a flood of a client in a process of its own."""

    @contextmanager
    def flood() -> Iterator[None]:
        command = [sys.executable, floods.__file__, str(house.path), name]
        with subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=0) as child:
            assert child.stdout is not None
            try:
                # It begins when it has been answered, so the others have to go on meanwhile.
                while not select.select([child.stdout], [], [], 0)[0]:
                    house.step()
                assert child.stdout.read(1) == b"+"
                yield
                assert child.poll() is None
            finally:
                child.kill()

    return flood


RING = 4096
NOWHERE, BROADCAST, NOBODY = 1 << 40, Mac((1 << 48) - 1), Mac(0x99_00_00_00_00_02)
# What the descriptors of a hostile guest's ring are, all of them, or each second one.
Words = tuple[int, int]
DESCRIPTORS: dict[str, Callable[[Attacker, Mac], list[Words]]] = {
    "tiny segments": lambda guest, peer: large_sends(guest, 1),
    "large segments": lambda guest, peer: large_sends(guest, 1460, peer),
    "chain without an end": lambda guest, peer: [(guest.frames, TXD_DTYP_DATA | TXD_DEXT)],
    "checksums of too much": lambda guest, peer: [
        (guest.frames, data_word(0x8FFF, 0x8FFF * 4, last=i == 3) | TXD_TXSM) for i in range(4)
    ],
    "frames that lie nowhere": lambda guest, peer: [(NOWHERE, data_word(60, 60))],
    "nonsense": lambda guest, peer: [(guest.frames, data_word(60, 61))],
    "broadcasts": lambda guest, peer: [(guest.frame(BROADCAST, length=1514)[0], data_word(1514, 1514))],
    "frames of five bytes": lambda guest, peer: [(guest.frames, data_word(5, 5))],
    "receivers in turn": lambda guest, peer: [
        (guest.frame(mac, length=60)[0], data_word(60, 60)) for mac in (peer, NOBODY)
    ],
    "contexts alone": lambda guest, peer: [(0, TXD_DEXT | TXD_DTYP_CONTEXT)],
    "legacy, empty": lambda guest, peer: [(guest.frames, TXD_EOP)],
    "frames to nobody": lambda guest, peer: [(guest.frame(NOBODY, length=60)[0], data_word(60, 60))],
    "frames to one of the pair": lambda guest, peer: [(guest.frame(peer, length=60)[0], data_word(60, 60))],
}


def descriptors(house: House, name: str) -> Flood:
    """Make a flood of a guest of this process that keeps its transmit ring full."""

    @contextmanager
    def flood() -> Iterator[None]:
        machine, vf = house.machine, house.machine.iovm.vf(house.pf.nic.pf_rid, 3)
        guest = Guest(house.host, "hostile", 4 << 20, ring=80)
        machine.iovm.assign(vf, guest, mac=machine.offered_mac(house.pf, vf.index))
        guest.nic(vf.rid).driver.start()
        attacker = Attacker(guest)
        attacker.seize()
        attacker.renew()
        ring, here = attacker.alloc(RING * 16)
        words = DESCRIPTORS[name](attacker, house.peer)
        table = view_bytes(here, RING * 16).view("i8").reshape(-1, 2)
        for i in range(RING):
            table[i] = [word - (1 << 64) if word >> 63 else word for word in words[i % len(words)]]
        attacker.arm_transmit(ring=ring)
        attacker.regs.set(VfRegs.TXDCTL, 0)
        attacker.regs.set(VfRegs.TDLEN, RING * 16)
        attacker.regs.set(VfRegs.TXDCTL, 1 << 25)

        def refill() -> None:
            head = attacker.regs.get(VfRegs.TDH)
            attacker.regs.set(VfRegs.TDT, (head - 1) % RING // len(words) * len(words))

        house.hostile = refill
        try:
            yield
        finally:
            house.hostile = None
            machine.iovm.take_back(vf)
            guest.close()

    return flood


def main() -> None:
    parser = argparse.ArgumentParser(description="What an honest pair keeps beside each flood.")
    parser.add_argument("-r", "--rounds", type=int, default=3)
    parser.add_argument("-s", "--seconds", type=float, default=0.5)
    parser.add_argument("floods", nargs="*", choices=[*DESCRIPTORS, *floods.FLOODS, []])
    options = parser.parse_args()
    print(f"{'':24}  quiet, kpps           beside, kpps           kept                     turn, ms")
    with street() as made:
        for name in options.floods or [*DESCRIPTORS, *floods.FLOODS]:
            flood = (descriptors if name in DESCRIPTORS else client)(made, name)
            kept = made.measure(flood, options.rounds, int(options.seconds * S_PS))
            turns = sorted(kept.turns_ps)
            at99 = turns[len(turns) * 99 // 100] / MS_PS
            print(
                f"{name:24}"
                f"{median(kept.quiet) / 1e3:7,.0f} ({min(kept.quiet) / 1e3:,.0f} to {max(kept.quiet) / 1e3:,.0f})  "
                f"{median(kept.beside) / 1e3:7,.1f} ({min(kept.beside) / 1e3:,.1f} to {max(kept.beside) / 1e3:,.1f})  "
                f"{median(kept.shares):7.1%} ({min(kept.shares):.1%} to {max(kept.shares):.1%})  "
                f"{median(turns) / MS_PS:7.3f}, 99 %: {at99:.2f}, most: {turns[-1] / MS_PS:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()

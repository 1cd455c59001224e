"""A rig for tests with real Linux: one 82576, its PF driver, the IOVM, and QEMU guests with a function each.

    LinuxRig(guests=2)     VF n is plugged into guest n before it boots: stock igbvf probes it
    LinuxRig(whole=True)   the PF, without a driver of the host, is plugged into guest 0: stock igb probes it
    LinuxRig(host=True)    the PF with its SR-IOV capability is: stock igb can make VFs of it
    LinuxRig(unshared=[0]) guest 0 shares none of its memory

Whatever waits for a guest keeps the NIC going meanwhile. In the guests the function is `eth0`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from virtfn.devices.nic82576 import Card, Nic82576
from virtfn.drivers.igb import Igb
from virtfn.hw.types import Mac, parse_mac
from virtfn.iovm.iovm import Iovm, Vf
from virtfn.iovm.pcim import Pcim
from virtfn.iovm.pfdriver import start_pf
from virtfn.kernels.i82576.port import wire_in
from virtfn.kernels.ranges import address_of
from virtfn.machine.clock import MS_PS, WallClock
from virtfn.vmm.host import Host, room_for
from virtfn.vmm.pump import Pump
from virtfn.vmm.qemu import Job, Machine, Outcome, Qemu, QemuGuest, Watch, choose_acceleration
from virtfn.vmm.qemu.image import Image
from virtfn.vmm.qemu.vm import QemuVm
from virtfn.vmm.uplink import Wire

# igbvf warns of itself when an interface is closed just as it resets: a race of Linux's, after an FLR for example.
CLOSED_WHILE_RESETTING = re.compile(r"\[ cut here \](?:(?!cut here).)*? igbvf_close\+.*?end trace", re.DOTALL)
_STALLED = re.compile(r"rcu: INFO: .* stall")  # the machine had no time for the guest: traces of that are no complaint
_COMPLAINT = re.compile(r"BUG:|WARNING:|Oops|Call Trace|NETDEV WATCHDOG|Tx Unit Hang|lost CTS|DMAR:.*fault")
CARD_MAC = parse_mac("00:1b:21:2b:46:e0")


def guest_mac(n: int) -> Mac:
    """Return the address that guest `n` is offered: 02:00:00:00:00:1n."""
    return Mac(0x02 | (0x10 + n) << 40)


def address(n: int, net: str = "10.0.0") -> str:
    """Return the IPv4 address of guest `n`."""
    return f"{net}.{n + 1}"


class LinuxRig:
    """The rig, as a context manager. logs: a folder for what consoles say."""

    def __init__(
        self,
        qemu: Qemu,
        image: Image,
        logs: Path,
        *,
        guests: int = 2,
        vfs: int | None = None,
        memory_mib: int = 256,
        cpus: int = 1,
        extra: Sequence[str] = (),
        append: str = "",
        whole: bool = False,
        host: bool = False,
        reboot: bool = False,
        iommu: bool = False,
        mapped: bool = True,
        copies: int = 2,
        unshared: Sequence[int] = (),
        boot_s: float = 300.0,
    ) -> None:
        self._qemu, self._image, self._logs = qemu, image, logs
        self._memory_mib, self._cpus, self._extra, self._append = memory_mib, cpus, tuple(extra), append
        self._mapped, self._unshared, self._boot_s, self._iommu = mapped, unshared, boot_s, iommu
        self._whole, self._is_host, self._reboot = whole or host, host, reboot
        self._stack = ExitStack()
        self.acceleration = choose_acceleration(qemu, image.kernel)
        # A guest that is replaced after a crash needs room beside the one that is gone.
        self.host = Host(
            WallClock(),
            16 << 20,
            slots=1,
            foreign_bytes=copies * max(guests, 1) * room_for(memory_mib << 20),
            foreign_functions=9,
        )
        self._stack.callback(self.host.close)
        self.nic = Nic82576(self.host, self.host.iommu.iommu, Card(CARD_MAC, total_vfs=vfs or max(guests, 1)))
        self._stack.callback(self.nic.close)
        self.nic.port.set_wire(False, 0)
        self.host.root.attach(self.nic, 0)
        self.pcim = Pcim(self.host.root, self.host.clock)
        self.pcim.scan()
        self.iovm = Iovm(self.pcim, self.host.remapping, self.host.clock)
        self.vms: list[QemuVm] = []
        self.wires: list[Wire] = []
        self.pump = Pump(self.host, [self.nic], self.vms, self.wires)
        self.vfs: list[Vf] = []
        self._guests = guests
        if not self._whole:
            self.driver = start_pf(self.host, self.pcim, self.pcim.functions[self.nic.pf_rid], Igb)
            self.iovm.adopt(self.nic.pf_rid, self.nic, self.driver)
            self.vfs = self.iovm.create(self.nic.pf_rid, vfs or max(guests, 1))

    def __enter__(self) -> LinuxRig:
        try:
            for n in range(self._guests):
                shared = n not in self._unshared
                vm = self.add_guest(f"vm{n}", lambda machine, shared=shared: replace(machine, shared=shared))
                if self._is_host:
                    self.iovm.assign_host(self.pcim.functions[self.nic.pf_rid], self.nic, vm)
                elif self._whole:
                    self.iovm.assign_whole(self.pcim.functions[self.nic.pf_rid], self.nic, vm)
                else:
                    self.iovm.assign(self.vfs[n], vm, mac=guest_mac(n), mapped=self._mapped)
            self.boot(*self.vms)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all guests, and the machine."""
        try:
            for vm in self.vms:
                vm.close()
        finally:
            while self.wires:
                self.wires.pop().close()
            self._stack.close()

    # Guests.

    def add_guest(self, name: str, machine: Callable[[Machine], Machine] = lambda machine: machine) -> QemuVm:
        """Start QEMU for one more guest, whose processors do not run yet. machine: changes what it is made of."""
        made = machine(
            Machine(
                name,
                self._image.kernel,
                self._image.initrd,
                append=f"virtfn.name={name} quiet {self._append}".rstrip(),
                memory_mib=self._memory_mib,
                cpus=self._cpus,
                native_hotplug=self._is_host,
                iommu=self._iommu,
                reboot=self._reboot,
                extra=("-S", *self._extra),
            )
        )
        guest = QemuGuest(made, self._qemu, self.acceleration, log=self._logs / f"{name}.log")
        vm = QemuVm(self.host, guest, self.pump)
        self.vms.append(vm)
        vm.start()
        return vm

    def boot(self, *vms: QemuVm) -> None:
        """Let guests run, and wait until they take commands."""
        for vm in vms:
            vm.run()
        for vm in vms:
            vm.guest.agent.wait_ready(timeout_s=self._boot_s, tick=self.pump)

    def drop_guest(self, vm: QemuVm) -> None:
        """Forget a guest that has ended."""
        vm.close()
        self.vms.remove(vm)

    # Commands.

    def start(self, n: int, command: str) -> Job:
        """Start a shell command in guest `n`."""
        return self.vms[n].guest.agent.start(command)

    def finish(self, n: int, job: Job, *, timeout_s: float = 60.0) -> Outcome:
        """Wait for a command's end."""
        return self.vms[n].guest.agent.wait(job, timeout_s=timeout_s, tick=self.pump)

    def attempt(self, n: int, command: str, *, timeout_s: float = 60.0) -> Outcome:
        """Run a command in guest `n`, whatever comes of it."""
        return self.finish(n, self.start(n, command), timeout_s=timeout_s)

    def run(self, n: int, command: str, *, timeout_s: float = 60.0) -> str:
        """Run a command that must succeed in guest `n`, and return what it printed."""
        done = self.attempt(n, command, timeout_s=timeout_s)
        assert done.status == 0, f"vm{n}: {command}: status {done.status}: {done.output}"
        return done.output

    def json(self, n: int, command: str, *, timeout_s: float = 60.0) -> Any:
        """Run a command that prints JSON in guest `n`."""
        return json.loads(self.run(n, command, timeout_s=timeout_s))

    def together(self, *commands: tuple[int, str], timeout_s: float = 60.0) -> list[Outcome]:
        """Run commands at the same time, each in its guest."""
        jobs = [(n, self.start(n, command)) for n, command in commands]
        return [self.finish(n, job, timeout_s=timeout_s) for n, job in jobs]

    def until(self, done: Callable[[], bool], what: str, *, timeout_s: float = 30.0) -> None:
        """Keep everything going until `done()`; VirtfnError if that does not come."""
        Watch().until(done, what, timeout_s=timeout_s, tick=self.pump)

    def pause(self, milliseconds: float) -> None:
        """Keep everything going for a while."""
        end = self.host.now() + round(milliseconds * MS_PS)
        self.until(lambda: self.host.now() >= end, "time")

    # Usual commands.

    def up(self, n: int, *, net: str = "10.0.0", device: str = "eth0") -> None:
        """Bring an interface of guest `n` up with its address, and wait for the link."""
        self.run(n, f"ip link set {device} up && ip addr replace {address(n, net)}/24 dev {device}")
        self.until(lambda: self.carrier(n, device), f"a link at vm{n}")

    def carrier(self, n: int, device: str = "eth0") -> bool:
        """Tell whether guest `n` sees a link."""
        return self.attempt(n, f"cat /sys/class/net/{device}/carrier").output.strip() == "1"

    def ping(self, n: int, target: str, options: str = "-c 10 -i 0.05", *, timeout_s: float = 60.0) -> tuple[int, int]:
        """Ping from guest `n`; return (sent, received)."""
        said = self.attempt(n, f"ping -q {options} {target}", timeout_s=timeout_s).output
        line = next((line for line in said.splitlines() if "packets transmitted" in line), "")
        assert line, said
        words = line.split()
        return int(words[0]), int(words[3])

    def reaches(self, n: int, target: str) -> bool:
        """Tell whether pings from guest `n` are all answered; the first may wait for ARP."""
        sent, received = self.ping(n, target)
        return sent == received

    def iperf(self, n: int, peer: int, options: str, *, net: str = "10.0.0", seconds: float = 3.0) -> Any:
        """Run iperf3 between guest `n` and a server in guest `peer`, and return its report."""
        server = self.start(peer, "iperf3 -s -1 -J")
        self.run(peer, "for i in $(seq 50); do ss -ltn | grep -q :5201 && exit 0; sleep 0.1; done; exit 1")
        said = self.attempt(n, f"iperf3 -J -t {seconds:g} -c {address(peer, net)} {options}", timeout_s=seconds + 40)
        report = json.loads(said.output)
        assert "error" not in report, report["error"]
        self.finish(peer, server)
        return report

    def mac(self, n: int, device: str = "eth0") -> str:
        """Return the address of an interface of guest `n`."""
        return self.run(n, f"cat /sys/class/net/{device}/address").strip()

    def statistics(self, n: int, device: str = "eth0") -> dict[str, int]:
        """Return what `ethtool -S` counts in guest `n`."""
        lines = (line.partition(":") for line in self.run(n, f"ethtool -S {device}").splitlines())
        return {name.strip(): int(value) for name, _, value in lines if value.strip().isdigit()}

    def counters(self, n: int, device: str = "eth0") -> dict[str, int]:
        """Return what Linux's network stack counts at an interface of guest `n`."""
        values = self.run(n, f"cd /sys/class/net/{device}/statistics && grep -H . *").split()
        return {name: int(value) for name, _, value in (word.partition(":") for word in values)}

    # The wire.

    def inject(self, *frames: bytes) -> None:
        """Let frames (without frame check sequence) come in from the wire."""
        store = np.frombuffer(b"".join(frames), np.uint8).copy()
        lengths = np.array([len(frame) for frame in frames], np.int64)
        offsets = np.cumsum(lengths) - lengths
        done = 0
        while done < len(frames):
            block, now = self.nic.port.block.ctypes.data, self.host.now()
            taken, events = wire_in(block, now, address_of(store), offsets, lengths, done, len(frames) - done)
            self.nic.handle(events)
            done += int(taken)
            self.pump.turn()
            self.pump.rest(2 * MS_PS)

    @contextmanager
    def capture(self) -> Iterator[list[tuple[int | None, bool, bytes]]]:
        """Record frames while the block runs: (pool or None for the wire, sent by it, bytes), for a few frames only."""
        frames: list[tuple[int | None, bool, bytes]] = []
        self.nic.start_capture()
        try:
            yield frames
        finally:
            frames += [(who, out, payload.tobytes()) for who, out, _, payload in self.nic.take_capture()]
            self.nic.stop_capture()

    @contextmanager
    def listen(self, n: int, what: str, *, promiscuous: bool = False, device: str = "eth0") -> Iterator[list[str]]:
        """Let tcpdump in guest `n` watch while the block runs; a line for each frame that it saw comes at the end."""
        seen: list[str] = []
        options = f"-i {device} -n -U --immediate-mode -w /tmp/seen" + ("" if promiscuous else " -p")
        job = self.start(n, f"tcpdump {options} '{what}' 2>/tmp/heard & echo $! >/tmp/tcpdump.pid; wait")
        self.run(n, "for i in $(seq 100); do grep -q listening /tmp/heard && exit 0; sleep 0.05; done; exit 1")
        try:
            yield seen
        finally:
            self.pause(300)  # and until it has had a processor, and has nothing more to write
            size = "stat -c %s /tmp/seen"
            self.run(
                n, f's=; while [ "$s" != $({size}) ]; do s=$({size}); sleep .15; done; kill $(cat /tmp/tcpdump.pid)'
            )
            self.finish(n, job)
            said = self.run(n, "tcpdump -n -e -r /tmp/seen 2>/dev/null").splitlines()
            seen += [line for line in said if not line.startswith("\t")]

    # Verdicts.

    def check(self) -> None:
        """Assert that nothing went wrong unseen: no fault in the IOMMU, no complaint in a guest's log."""
        assert not self.host.iommu.faults()
        for n, vm in enumerate(self.vms):
            if vm.guest.running:
                said = CLOSED_WHILE_RESETTING.sub("", self.run(n, "dmesg -c"))  # each is one test's
                complaints = [line for line in said.splitlines() if _COMPLAINT.search(line)]
                if _STALLED.search(said):
                    complaints = [line for line in complaints if "Call Trace" not in line]
                assert not complaints, said[-8000:]

"""Guests of a lab that are real virtual machines: Linux under QEMU, with its own drivers on what models give it.

    start      QEMU stands, processors stopped; the I/O model of the guest plugs its interface in
    boot       all run, until the agent of each answers
    set_up     interfaces are found by their addresses, and get MTU, link, an IPv4 address, and their neighbours'
    wait       for commands in the guests, while everything goes on
    close      the machines end: as a power cut, from a guest's point of view

Whatever is waited for, NICs and functions are served, and a machine that has ended is noticed and said so.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace

from virtfn.api.boot import machine_parts, notes_on
from virtfn.api.image import Platform, require_hosts
from virtfn.api.lab import Guest as LabGuest
from virtfn.api.machine import LabPf, Machine
from virtfn.hw.types import Mac, Ps, format_mac
from virtfn.iomodels.hoststack import HostStack
from virtfn.iomodels.model import Plug
from virtfn.machine.clock import S_PS
from virtfn.machine.pieces import InPieces
from virtfn.machine.ports import Actor, VirtfnError
from virtfn.vmm.pump import Pump
from virtfn.vmm.qemu import Job, Outcome, QemuGuest
from virtfn.vmm.qemu.vm import QemuVm
from virtfn.vmm.world import World

__all__ = ["MTU", "SET_UP_S", "LinuxGuest", "LinuxGuests", "clean", "meet", "words"]

BOOT_S = 300.0
SET_UP_S = 60.0
PEER_S = 60.0
MTU = range(576, 9217)  # IPv4 asks for the least; igb and igbvf take no more
_FCS_AND_HEADER = 18
_SAID = 300  # characters of what a guest has said, in an error
_SET_UP = """
mac={mac}
find_device() {{
    for d in /sys/class/net/*; do [ "$(cat $d/address)" = $mac ] && dev=${{d##*/}}; done
    [ -n "$dev" ]
}}
has_link() {{ [ "$(cat /sys/class/net/$dev/carrier 2>/dev/null)" = 1 ]; }}
soon() {{ for i in $(seq {tries}); do "$1" && return; sleep 0.1; done; echo "$2"; dmesg | tail -n 2; exit 1; }}
soon find_device "no interface has the address $mac"
ip link set $dev mtu {mtu} && ip link set $dev up && ip address add {ip}/24 dev $dev || exit
soon has_link "$dev has no link"
echo $dev
"""


@dataclass(slots=True)
class LinuxGuest:
    """A Linux guest of the lab, and its interface to the PF.

    device: that interface, as it calls it. boot_s: from its first instruction until it took commands; None: it takes
    none. notes: what is not there, in words. attached: whether it has its interface now.
    """

    lab: LabGuest
    vm: QemuVm
    pf: LabPf
    plug: Plug
    ip: str
    boot_s: float | None = None
    device: str = ""
    notes: list[str] = field(default_factory=list)
    attached: bool = True

    @property
    def mac(self) -> Mac:
        """Address of its interface."""
        return self.plug.mac

    def start(self, command: str) -> Job:
        """Start a shell command in the guest. Raises VirtfnError as `Agent.start` does."""
        return self.vm.guest.agent.start(command)


class LinuxGuests(Actor):
    """All Linux guests of a lab. Those that are hosts, and make VFs, are set up and worked with in `hosts.py`.

    An actor of `world`, which goes on whatever is waited for. tell: takes what goes on, and since when. on_end: is told
    of a machine that has ended, and how, once it is taken out; without it, that is an error.
    """

    on_end: Callable[[LinuxGuest, str], None] | None = None

    def __init__(self, machine: Machine, platform: Platform, world: World, tell: Callable[[str, int], None]) -> None:
        self.guests: list[LinuxGuest] = []
        self._machine = machine
        self._platform = platform
        self._world = world
        self._tell = tell
        self._clock = machine.host.clock
        self._vms: list[QemuVm] = []
        wires = [pf.wire for pf in machine.pfs if pf.wire is not None and pf.live]
        self._stacks: list[HostStack] = []
        self._pump = Pump(machine.host, [pf.nic for pf in machine.pfs], self._vms, wires, self._stacks)
        world.rest_by(self._pump)
        world.add(self)

    @property
    def hosts(self) -> list[LinuxGuest]:
        """The guests that make VFs."""
        return [guest for guest in self.guests if self._makes_vfs(guest)]

    @property
    def plain(self) -> list[LinuxGuest]:
        """The other guests: each has an interface, or a whole card that stays whole."""
        return [guest for guest in self.guests if not self._makes_vfs(guest)]

    def _makes_vfs(self, guest: LinuxGuest) -> bool:
        if guest.lab.nic.io != "host" or not guest.lab.has_agent:
            return False
        return self._machine.lab.pf(guest.pf.name).total_vfs > 0

    def turn(self, now: Ps) -> int:
        """See whether all machines are up. Raises VirtfnError if one has ended."""
        for vm in list(self._vms):
            if not vm.guest.running:
                how = _how_it_ended(vm.guest)
                guest = next((guest for guest in self.guests if guest.vm is vm), None)
                if self.on_end is None or guest is None:
                    raise VirtfnError(how)
                self._take_out(guest)
                self.on_end(guest, how)
        return 0

    def _take_out(self, guest: LinuxGuest) -> None:
        """Take the interface of a machine that has ended back, and forget it."""
        self.guests.remove(guest)
        self._vms.remove(guest.vm)
        guest.vm.close()
        if guest.attached:
            guest.attached = False
            self._machine.model(guest.pf, guest.lab.nic.io).unplug([guest.plug])

    # Starting.

    def start(self) -> None:
        """Start all machines and plug their interfaces in; no guest runs yet.

        Raises VirtfnError if QEMU does not start, or somebody refuses an interface.
        """
        self._refuse_hosts()
        for lab_guest in self._machine.lab.guests:
            if lab_guest.vmm == "qemu":
                self._tell(f"starting {lab_guest.name}", self._clock.now())
                self._start(lab_guest)

    def _refuse_hosts(self) -> None:
        """Raise VirtfnError (EOPNOTSUPP) if a guest is to be a host, and this QEMU cannot do what that takes."""
        lab = self._machine.lab
        for i, guest in enumerate(lab.guests):
            if guest.nic.io == "host":
                self._tell("asking QEMU for hosts", self._clock.now())
                try:
                    require_hosts(self._platform)
                except VirtfnError as error:
                    error.args = (f"{lab.where(('guests', i, 'nic', 'io'))}: {error}",)
                    raise
                return

    def _start(self, lab_guest: LabGuest) -> None:
        machine, platform = self._machine, self._platform
        parts = machine_parts(lab_guest, platform)
        parts = replace(parts, extra=("-S", *parts.extra))
        vm = QemuVm(machine.host, QemuGuest(parts, platform.qemu, platform.acceleration), self._pump)
        self._vms.append(vm)
        vm.start()
        pf = next(p for p in machine.pfs if p.name == lab_guest.nic.pf)
        number = machine.pfs.index(pf)
        ip = f"10.82.{number}.{1 + sum(guest.pf is pf for guest in self.guests)}"
        model = machine.model(pf, lab_guest.nic.io)
        self._stacks[:] = [stack for stack in (each.stack for each in machine.pfs) if stack is not None]
        plug = model.plug(vm, machine.wish(pf, lab_guest))
        self.guests.append(LinuxGuest(lab_guest, vm, pf, plug, ip, notes=notes_on(lab_guest, platform)))

    def boot(self, booted: Callable[[LinuxGuest], None] = lambda guest: None) -> None:
        """Let all run until each that has an agent takes commands; tell `booted` of each.

        Raises VirtfnError if one ends, or does not answer.
        """
        for vm in self._vms:
            vm.run()
        began = self._clock.now()
        waiting = self._with_agents()
        while waiting:
            self._tell(f"booting {', '.join(guest.lab.name for guest in waiting)}", began)
            self._world.tick()
            since = (self._clock.now() - began) / S_PS
            for guest in [guest for guest in waiting if guest.vm.guest.agent.ready]:
                guest.boot_s = since
                waiting.remove(guest)
                booted(guest)
            if waiting and since > BOOT_S:
                name, said = waiting[0].lab.name, waiting[0].vm.guest.console.text(2)
                silent = "; ".join([f"guest {name} does not answer after {BOOT_S:g} s", *waiting[0].notes])
                raise VirtfnError(f"{silent}; it said last: {clean(said)}", errno_name="ETIMEDOUT")

    def _with_agents(self) -> list[LinuxGuest]:
        return [guest for guest in self.guests if guest.lab.has_agent]

    def set_up(self, frame_bytes: int) -> None:
        """Give the interface of each that has an agent its MTU, for such frames, and its address; wait for its link.

        Raises VirtfnError with the guest's own words if it cannot, or if nobody comes to the other end of its wire.
        """
        self._await_peers()
        mtu = min(max(frame_bytes - _FCS_AND_HEADER, MTU.start), MTU.stop - 1)
        guests = [guest for guest in self.plain if guest.lab.has_agent]
        jobs = [guest.start(_set_up(guest, mtu)) for guest in guests]
        outcomes = self.wait(jobs, "setting up interfaces", SET_UP_S)
        for guest, outcome in zip(guests, outcomes, strict=True):
            _note_device(guest, outcome)
        self._introduce()

    def set_one_up(self, guest: LinuxGuest, frame_bytes: int) -> InPieces[None]:
        """Do the same for a guest whose interface has come since; each piece is a look whether it is done.

        Raises VirtfnError with the guest's own words if it cannot, and when it ends or takes too long (ETIMEDOUT). One
        without an agent is left to itself.
        """
        if guest not in self._with_agents():
            return
        job = guest.start(_set_up(guest, min(max(frame_bytes - _FCS_AND_HEADER, MTU.start), MTU.stop - 1)))
        end = self._clock.now() + round(SET_UP_S * S_PS)
        while not job.done:
            if self._clock.now() > end:
                words = f"guest {guest.lab.name} does not set its interface up within {SET_UP_S:g} s"
                raise VirtfnError(words, errno_name="ETIMEDOUT")
            yield
        if job.outcome is None:
            raise VirtfnError(f"guest {guest.lab.name} has restarted or ended meanwhile", errno_name="ECONNRESET")
        _note_device(guest, job.outcome)

    def _await_peers(self) -> None:
        """Wait until somebody is at the other end of each guest's wire: before, the guest has no link."""
        began = self._clock.now()
        for pf in [guest.pf for guest in self.guests if guest.pf.live]:
            while pf.wire is not None and not pf.wire.up:
                where = f"the uplink of {pf.name}, {self._machine.lab.pf(pf.name).uplink}"
                self._tell(f"waiting for {where}", began)
                self._world.tick()
                if self._clock.now() - began > PEER_S * S_PS:
                    raise VirtfnError(
                        f"{where}: nobody was there for {PEER_S:g} s; start who connects, or bring the interface up: "
                        "docs/uplinks.md",
                        errno_name="ETIMEDOUT",
                    )

    def _introduce(self) -> None:
        """Tell guests on a wire the addresses of their neighbours in the lab, for good.

        Whoever is outside may answer for any address, before the neighbour does: passt does. Raises VirtfnError with
        the guest's own words if it cannot.
        """
        jobs = {}
        plain = self.plain
        for g, guest in enumerate(plain):
            others = [other for other in plain if other.pf is guest.pf and other is not guest]
            if others and guest.pf.live and guest.device:
                jobs[g] = guest.start(" && ".join(meet(guest.device, other) for other in others))
        for g, outcome in zip(jobs, self.wait(list(jobs.values()), "setting up interfaces", SET_UP_S), strict=True):
            if outcome.status:
                raise VirtfnError(f"guest {plain[g].lab.name}: ip neigh: {words(outcome)}")

    # Running commands.

    def wait(self, jobs: Sequence[Job], phase: str, timeout_s: float) -> list[Outcome]:
        """Wait for commands in guests to end; return what came of them, in order.

        Raises VirtfnError when a machine ends, a guest restarts, or `timeout_s` is over.
        """
        began = self._clock.now()
        while not all(job.done for job in jobs):
            self._tell(phase, began)
            self._world.tick()
            if self._clock.now() - began > timeout_s * S_PS:
                command = next(job.command for job in jobs if not job.done).split()[0]
                raise VirtfnError(f"{phase}: {command} does not end within {timeout_s:g} s", errno_name="ETIMEDOUT")
        if any(job.outcome is None for job in jobs):
            raise VirtfnError(f"{phase}: a guest's agent has started anew, and forgot what it did")
        return [job.outcome for job in jobs if job.outcome is not None]

    # Stopping.

    def stop(self) -> None:
        """End the machines, and take their interfaces back."""
        guests = list(self.guests)
        self.close()
        for pf in self._machine.pfs:
            for name, model in pf.models.items():
                model.unplug([guest.plug for guest in guests if guest.pf is pf and guest.lab.nic.io == name])

    def close(self) -> None:
        """End the machines, whatever state they are in."""
        self._world.remove(self)
        with ExitStack() as stack:
            for vm in self._vms:
                stack.callback(vm.close)
            for vm in self._vms:
                # A processor that waits for an answer about a register holds QEMU up; at rest it waits for nothing.
                with suppress(VirtfnError):
                    vm.guest.pause(tick=self._pump)
        self._world.remove(self._pump)
        self._vms.clear()
        self.guests.clear()


def _set_up(guest: LinuxGuest, mtu: int) -> str:
    return _SET_UP.format(mac=format_mac(guest.mac), mtu=mtu, ip=guest.ip, tries=200)


def _note_device(guest: LinuxGuest, outcome: Outcome) -> None:
    """Note what a guest calls its interface. Raises VirtfnError if it has not found it."""
    lines = outcome.output.split()
    if outcome.status or not lines or not re.fullmatch(r"[\w.-]{1,15}", lines[-1], re.ASCII):
        raise VirtfnError("; ".join([f"guest {guest.lab.name}: {words(outcome)}", *guest.notes]))
    guest.device = lines[-1]


def meet(device: str, other: LinuxGuest) -> str:
    """Return the command that tells an interface of a neighbour: its IPv4 and its link-local IPv6 address."""
    mac = int(other.mac).to_bytes(6, "little")
    local = ipaddress.IPv6Address(b"\xfe\x80" + bytes(6) + bytes([mac[0] ^ 2, *mac[1:3], 0xFF, 0xFE, *mac[3:]]))
    towards = f"lladdr {format_mac(other.mac)} dev {device} nud permanent"
    return " && ".join(f"ip neigh replace {address} {towards}" for address in (other.ip, local))


def words(outcome: Outcome) -> str:
    """Shorten what a guest's command said to a line: the last that it said, or how it ended."""
    said = [line for line in outcome.output.splitlines() if line.strip()]
    return clean("\n".join(said[-3:])) or f"ended with status {outcome.status}"


def clean(said: str) -> str:
    """Make a line of what a guest has said, for errors: the end of it, with what no terminal should get escaped."""
    whole = "; ".join(part for line in said.splitlines() if (part := " ".join(line.split())))
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in whole[-_SAID:])
    return line if max(len(line), len(whole)) <= _SAID else f"...{line[-_SAID:]}"


def _how_it_ended(guest: QemuGuest) -> str:
    """Say how a machine ended."""
    name = guest.machine.name
    panic = re.search(r"Kernel panic.*", guest.console.text())
    if panic is not None:
        return f"guest {name}: its kernel has given up: {clean(panic[0][:_SAID])}"
    if not guest.errors and "SHUTDOWN" in guest.events:
        return f"guest {name} has switched itself off"
    try:
        guest.qmp("query-status", timeout_s=1.0)
    except VirtfnError as error:
        return str(error)
    return f"guest {name}: QEMU has ended"

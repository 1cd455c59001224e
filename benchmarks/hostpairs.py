"""Two Linuxes that are hosts, each with an 82576 whole, joined by a wire: with this card, and with QEMU's own igb.

Both boot the same kernel and image, on the same machine of QEMU's: the card behind a root port, one processor.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from virtfn.api.image import Platform
from virtfn.api.lab import parse_lab
from virtfn.api.linux import LinuxGuests
from virtfn.api.linuxwork import iperf_mbps
from virtfn.api.machine import Machine
from virtfn.kernels import warm
from virtfn.machine.clock import WallClock
from virtfn.machine.ports import VirtfnError
from virtfn.vmm.qemu import Machine as QemuMachine
from virtfn.vmm.qemu import Outcome, Qemu, QemuGuest, Tick, choose_acceleration, rest
from virtfn.vmm.qemu.folder import cache_folder
from virtfn.vmm.qemu.image import build_image
from virtfn.vmm.world import World

MEMORY_MIB = 384
MODULES = ("act_skbmod", "act_vlan", "cls_matchall", "sch_ingress")
"""What forges frames in a guest: Linux's traffic control."""
LAB = f"""
name: hosts
pfs: [{{name: pf0, uplink: "cable:pf1"}}, {{name: pf1}}]
guests:
  - {{name: a, vmm: qemu, memory-mib: {MEMORY_MIB}, nic: {{pf: pf0, io: host}}}}
  - {{name: b, vmm: qemu, memory-mib: {MEMORY_MIB}, nic: {{pf: pf1, io: host}}}}
workload: {{kind: none}}
"""
ALONE = f"""
name: hosts
pfs: [{{name: pf0}}]
guests: [{{name: a, vmm: qemu, memory-mib: {MEMORY_MIB}, nic: {{pf: pf0, io: host}}}}]
workload: {{kind: none}}
"""
# What the scripts of clauses are made of: VF n is v0 in network namespace vn, and knows its neighbours for good.
FUNCTIONS = r"""
card=/sys/bus/pci/devices/0000:01:00.0
pf=$(ls $card/net)
soon() { for i in $(seq 600); do eval "$1" && return; sleep .05; done; echo "not within 30 s: $1"; exit 9; }
none() { for n in $(ip netns list | cut -d ' ' -f 1); do ip netns del $n; done; echo 0 > $card/sriov_numvfs; }
vf() { basename $(readlink $card/virtfn$1); }
device() { ls /sys/bus/pci/devices/$(vf $1)/net 2>/dev/null; }
made() { local n; for n in $(seq 0 $(($1 - 1))); do [ -n "$(device $n)" ] || return; done; }
make() { echo $1 > $card/sriov_numvfs && soon "made $1"; }
give() { # VF ADDRESS
    local dev; soon "[ -n \"\$(device $1)\" ]"; dev=$(device $1); ip netns add v$1; ip link set $dev netns v$1 name v0
    in_vf $1 sysctl -q net.ipv6.conf.all.disable_ipv6=1
    ip -n v$1 link set v0 up; ip -n v$1 addr add $2/24 dev v0
}
in_vf() { local n=$1; shift; ip netns exec v$n "$@"; }
linked() { soon "[ \"\$(ip netns exec v$1 cat /sys/class/net/v0/carrier 2>/dev/null)\" = 1 ]"; }
address() { in_vf $1 cat /sys/class/net/v0/address; }
meet() { ip -n v$1 neigh replace $2 lladdr $3 dev v0 nud permanent; } # VF IP ADDRESS
arrange() { # N FIRST: put the first N VFs into their namespaces, as 10.0.0.FIRST and up, all neighbours
    local n m last=$(($1 - 1)); for n in $(seq 0 $last); do give $n 10.0.0.$(($2 + n)); done
    for n in $(seq 0 $last); do linked $n; done
    for n in $(seq 0 $last); do for m in $(seq 0 $last); do
        [ $n = $m ] || meet $n 10.0.0.$(($2 + m)) $(address $m)
    done; done
}
vfs() { none; make $1; arrange $1 2; } # N: so many, new
say() { ip link set $pf vf "$@" || exit 8; } # VF CLAUSE
received() { in_vf $1 cat /sys/class/net/v0/statistics/rx_packets; }
heard() { # FROM TO [IP]: send 20 pings; print how many frames the interface of the other has received
    local before=$(received $2)
    in_vf $1 ping -q -c 20 -i .02 -W 1 ${3:-10.0.0.$((2 + $2))} >/dev/null
    sleep .2; echo heard $(($(received $2) - before))
}
forge() { # VF ACTION...: change what it sends
    local n=$1; shift; tc -n v$n qdisc replace dev v0 clsact
    tc -n v$n filter replace dev v0 egress prio 1 handle 1 matchall action "$@"
}
"""

REFUSED = 8  # status of a script whose clause was refused
PORT = 5201
Run = Callable[[int, str, float], Outcome]
"""Runs a shell command in host 0 or 1, for so many seconds at most."""


class RefusedError(VirtfnError):
    """A clause was refused, in ip's own words."""


@dataclass(slots=True)
class Hosts:
    """The two hosts. tick: serves them. drops: of the first one's card, by reason, where the card says any."""

    run: Run
    guests: list[QemuGuest]
    tick: Tick = rest
    drops: Callable[[], dict[str, int]] = dict

    def ask(self, script: str, n: int = 0, seconds: float = 600.0) -> str:
        """Run a script over `FUNCTIONS` in host `n`; return what it printed.

        Raises RefusedError if a clause was refused, VirtfnError if it fails otherwise.
        """
        done = self.run(n, f". /tmp/functions; {script}", seconds)
        if done.status == REFUSED:
            raise RefusedError(done.output.strip().rpartition("\n")[2])
        if done.status:
            raise VirtfnError(f"{script}: status {done.status}: {done.output[-500:]}")
        return done.output

    def heard(self, script: str) -> int:
        """Run a script that ends with `heard`; return the frames."""
        found = re.search(r"^heard (-?\d+)$", self.ask(script), re.MULTILINE)
        if found is None:
            raise VirtfnError(f"{script}: it does not say what was heard")
        return int(found[1])

    def timed(self, script: str, seconds: float = 600.0) -> float:
        """Return the seconds that a script takes, by this machine's clock."""
        began = time.monotonic()
        self.ask(script, seconds=seconds)
        return time.monotonic() - began

    def pings_ms(self, ip: str, count: int) -> list[float]:
        """Ping from VF 0 of the first host; return the round trips. Raises VirtfnError if one is lost."""
        said = self.ask(f"in_vf 0 ping -q -c 5 -i .1 {ip}; in_vf 0 ping -c {count} -i .01 {ip}")
        times = [float(ms) for ms in re.findall(r"time=([\d.]+) ms", said)]
        if len(times) != count:
            raise VirtfnError(f"{count - len(times)} of {count} pings were lost: {said[-300:]}")
        return times

    def tcp_mbps(self, ip: str, seconds: int, *, to: tuple[int, int], options: str = "") -> float:
        """Send TCP from VF 0 of the first host; return Mb/s of payload, as the receiver counted. to: host and VF."""
        host, vf = to
        listening = f"in_vf {vf} ss -ltn | grep -q :{PORT}"
        self.ask(f"soon '! {listening}'; in_vf {vf} iperf3 -s -1 -D --idle-timeout 60; soon '{listening}'", host)
        return iperf_mbps(self.ask(f"in_vf 0 iperf3 -J -t {seconds} -c {ip} {options}", seconds=seconds + 120.0))

    def stop(self) -> None:
        """Stop the processors, so that others have the machine."""
        for guest in self.guests:
            guest.pause(tick=self.tick)

    def go_on(self) -> None:
        """Let them run."""
        for guest in self.guests:
            guest.resume(tick=self.tick)

    def prepare(self) -> None:
        """Bring the PFs up."""
        for n in range(len(self.guests)):
            self.run(n, f"cat >/tmp/functions <<'END'\n{FUNCTIONS}\nEND", 60)
            self.ask("ip link set $pf up; soon '[ $(cat /sys/class/net/$pf/carrier) = 1 ]'", n)


def find_hosts_platform(qemu: Qemu) -> Platform:
    """Find the image that both boot: as of `virtfn image build`, with the modules that forge frames."""
    image = build_image(cache=cache_folder(), extra_modules=MODULES)
    return Platform(qemu, image, choose_acceleration(qemu, image.kernel))


@contextmanager
def on_this_card(platform: Platform, *, alone: bool) -> Iterator[Hosts]:
    """Boot two hosts with a card of virtfn's each, or one."""
    warm.load()
    with Machine(parse_lab(ALONE if alone else LAB), WallClock()) as machine:
        world = World(machine.host.clock)
        guests = LinuxGuests(machine, platform, world, lambda phase, since: None)
        try:
            guests.start()
            guests.boot()
            nic = guests.guests[0].pf.nic

            def run(n: int, command: str, seconds: float) -> Outcome:
                return guests.wait([guests.guests[n].start(command)], command, seconds)[0]

            hosts = Hosts(run, [guest.vm.guest for guest in guests.guests], world.tick, nic.all_drops)
            hosts.prepare()
            yield hosts
        finally:
            guests.close()


@contextmanager
def on_qemus_igb(platform: Platform, *, alone: bool) -> Iterator[Hosts]:
    """Boot two hosts with QEMU's own card each, on its stream network, or one, at a hub."""
    guests: list[QemuGuest] = []
    assert platform.image is not None
    image = platform.image

    def run(n: int, command: str, seconds: float) -> Outcome:
        return guests[n].agent.run(command, timeout_s=seconds)

    with tempfile.TemporaryDirectory() as folder:
        try:
            for n, name in enumerate("a" if alone else "ab"):
                ends = f"stream,server={'off' if n else 'on'},addr.type=unix,addr.path={Path(folder) / 's'}"
                network = f"{'hubport,hubid=0' if alone else ends},id=n0"
                card = f"igb,netdev=n0,mac=52:54:00:00:00:0{n + 1},bus=rp0"
                parts = QemuMachine(
                    name, image.kernel, image.initrd, append=f"virtfn.name={name} quiet", memory_mib=MEMORY_MIB,
                    slots=1, native_hotplug=True, extra=("-netdev", network, "-device", card),
                )  # fmt: skip
                guests.append(QemuGuest(parts, platform.qemu, platform.acceleration))
                guests[n].start()
            for guest in guests:
                guest.agent.wait_ready(timeout_s=300.0)
            hosts = Hosts(run, guests)
            hosts.prepare()
            yield hosts
        finally:
            for guest in guests:
                guest.close()

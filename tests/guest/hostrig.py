"""A Linux that is a host, in the rig: what its administrator does, as tests have it done."""

from __future__ import annotations

import json
import re
import time
from typing import Any

from guest.rig import CLOSED_WHILE_RESETTING, LinuxRig
from virtfn.machine.ports import VirtfnError

COMPLAINT = re.compile(r"BUG:|WARNING:|Oops|Call Trace|NETDEV WATCHDOG|DMAR:.*fault")
CARD = "/sys/bus/pci/devices/0000:01:00.0"
FUNCTIONS = """
give() { # NAMESPACE VF ADDRESS: put the interface of a VF there
    for i in $(seq 200); do
        dev=$(ls /sys/bus/pci/devices/0000:01:$2/net 2>/dev/null); [ -n "$dev" ] && break; sleep .1
    done
    ip netns del $1 2>/dev/null; ip netns add $1; ip link set $dev netns $1 name v0
    ip -n $1 addr add $3/24 dev v0; ip -n $1 link set dev v0 up
}
linked() {
    for i in $(seq 400); do
        [ "$(ip netns exec $1 cat /sys/class/net/v0/carrier)" = 1 ] && return; sleep .1
    done
    false
}
"""


class Host:
    """The host in the rig, and what its administrator does. pf: what it calls the PF's interface."""

    def __init__(self, rig: LinuxRig, pf: str = "eth0") -> None:
        self.rig, self.pf = rig, pf

    def run(self, command: str, timeout_s: float = 120.0) -> str:
        return self.rig.run(0, FUNCTIONS + command, timeout_s=timeout_s)

    def linux(self) -> tuple[int, int]:
        """Return the version of its kernel."""
        major, minor, *_ = self.run("uname -r").split(".")
        return int(major), int(minor)

    def number(self, count: int) -> None:
        self.run(f"echo {count} > {CARD}/sriov_numvfs", 200)

    def two(self, first: str = "10.0", second: str = "10.2") -> None:
        """Put two VFs into namespaces a and b, with links."""
        self.run(f"give a {first} 10.0.0.2; give b {second} 10.0.0.3; linked a && linked b", 200)

    def all_seven(self) -> list[str]:
        """Make all VFs anew, each in a namespace with an address of its own; return whose pings are not answered."""
        self.run(
            f"for n in $(ip netns list | cut -d' ' -f1); do ip netns del $n; done; echo 0 > {CARD}/sriov_numvfs", 200
        )
        self.number(7)
        every = range(7)
        given = "; ".join(f"give v{n} 1{n // 4}.{n % 4 * 2} 10.0.0.{2 + n}" for n in every)
        self.run(f"{given}; for n in {' '.join(map(str, every))}; do linked v$n || exit; done", 300)
        found = {self.run(f"ip netns exec v{n} cat /sys/class/net/v0/address").strip() for n in every}
        assert len(found) == len(every)
        pairs = " ".join(f"{n},{m}" for n in every for m in every if n < m)
        ping = "ip netns exec v$n ping -q -c 3 -i .1 -W 2 10.0.0.$((2 + m)) >/dev/null || echo $n,$m"
        said = self.run(f"for p in {pairs}; do n=${{p%,*}}; m=${{p#*,}}; {ping}; done", 300)
        self.run("; ".join(f"ip netns del v{n}" for n in every))
        return said.split()

    def reboot(self) -> None:
        """Reboot without a word to any driver; return when it takes commands again."""
        boot_id = "cat /proc/sys/kernel/random/boot_id"
        before, end = self.run(boot_id), time.monotonic() + 300
        self.rig.start(0, "reboot -f")
        while True:
            assert time.monotonic() < end, "it does not come back"
            try:
                said = self.rig.attempt(0, boot_id, timeout_s=5)
            except VirtfnError:
                continue
            if said.status == 0 and said.output != before:
                return

    def answered(self, target: str, count: int = 5) -> int:
        said = self.rig.attempt(0, f"ip netns exec a ping -q -c {count} -i 0.2 -W 2 {target}").output
        found = re.search(r"(\d+) received", said)
        assert found is not None, said
        return int(found[1])

    def reaches(self, target: str = "10.0.0.3") -> bool:
        return self.answered(target) == 5 or self.answered(target) == 5  # after a reset the first may find no address

    def iperf(self) -> float:
        """Send TCP from a to b for two seconds; return Mb/s that were sent."""
        self.rig.start(0, "ip netns exec b timeout 30 iperf3 -s -1 >/dev/null")
        said = self.run("sleep 1; ip netns exec a timeout 20 iperf3 -J -t 2 -c 10.0.0.3", 60)
        return float(json.loads(said)["end"]["sum_received"]["bits_per_second"]) / 1e6

    def vf(self, n: int) -> dict[str, Any]:
        return dict(self.rig.json(0, f"ip -j link show {self.pf}")[0]["vfinfo_list"][n])

    def vfs_seen(self) -> list[str]:
        return re.findall(r"^01:(\S+) .*Virtual Function", self.rig.run(0, "lspci"), re.MULTILINE)

    def open_bars(self) -> int:
        """Count BARs of VFs that QEMU lets answer. (`info mtree -f` would leave QEMU with functions it never frees.)"""
        said = self.rig.vms[0].guest.qmp("human-monitor-command", {"command-line": "info mtree"}, tick=self.rig.pump)
        return len(set(re.findall(r"/(02[0-9a-f]{2}) BAR ([03])\b", str(said))))

    def complaints(self) -> list[str]:
        """Return what the guest's kernel, or the card's IOMMU, has complained of since the last time."""
        # While VFs are being enabled, queue 0 is VF 0's already, and igb waits for it: long, on a busy machine.
        told = self.rig.run(0, "dmesg -c") if self.rig.vms[0].guest.running else ""
        said = CLOSED_WHILE_RESETTING.sub("", told).splitlines()
        # A machine that had no time for the guest is no complaint: "rcu: INFO: ... stall" comes with a trace.
        stalled = any("rcu:" in line for line in said)
        found = [n for n, line in enumerate(said) if COMPLAINT.search(line) and not (stalled and "Call Trace" in line)]
        of_kernel = said[max(0, found[0] - 5) : found[-1] + 30] if found else []
        return [*of_kernel, *map(str, self.rig.host.iommu.faults())]

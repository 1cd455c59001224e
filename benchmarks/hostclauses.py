"""What a host's administrator says to a VF by `ip link set PF vf N CLAUSE`, and whether frames obey.

Each check has new VFs, says a clause, and sends 20 frames where the clause lets none through, and 20 where it does.
What counts is how many the interface of the receiver was given. Nothing is read back. Forged frames are changed by
Linux's traffic control as they leave the VF, so that its driver asks the PF for nothing.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from hostpairs import Hosts, RefusedError

SENT = 20
RATE_MBPS = 10
TCP_S = 3
GIVEN, OTHER = "02:00:00:00:00:12", "02:00:00:00:00:77"
_TELLS = re.compile(r"drop|discard|spoof|miss|error|fail|no_buffer|lost|out_of_sync|^card", re.IGNORECASE)
_COUNTERS = """
echo == pf; ethtool -S $pf
for n in 0 1 2; do echo == vf$n; in_vf $n ethtool -S v0; done
echo == log; echo "spoof_events: $(dmesg | grep -c 'Spoof event')"
"""


@dataclass(slots=True)
class Finding:
    """What a check came to. seen: what was measured, in words; counters: that moved while frames were held back."""

    accepted: bool
    enforced: bool | None = None
    seen: str = ""
    counters: dict[str, int] = field(default_factory=dict)

    @property
    def telling(self) -> dict[str, int]:
        """The counters that say that something was held back."""
        return {name: n for name, n in self.counters.items() if _TELLS.search(name)}


@dataclass(frozen=True, slots=True)
class Check:
    """A clause, and what `run` does to see whether it is enforced. enforced: what a card does that enforces it."""

    clause: str
    enforced: str
    run: Callable[[Hosts], Finding]


CHECKS: list[Check] = []


def check(clause: str, enforced: str) -> Callable[[Callable[[Hosts], Finding]], Callable[[Hosts], Finding]]:
    """Add a check to the list."""

    def add(run: Callable[[Hosts], Finding]) -> Callable[[Hosts], Finding]:
        CHECKS.append(Check(clause, enforced, run))
        return run

    return add


def counters(hosts: Hosts) -> Counter[str]:
    """Read what the host counts, of PF, VFs and kernel log, and what the card says that it dropped."""
    found: Counter[str] = Counter({f"card {reason}": n for reason, n in hosts.drops().items()})
    where = ""
    for line in hosts.ask(_COUNTERS).splitlines():
        name, _, value = (part.strip() for part in line.partition(":"))
        if name.startswith("== "):
            where = name.removeprefix("== ")
        elif value.isdigit():
            found[f"{where} {name}"] = int(value)
    return found


def difference(before: Counter[str], after: Counter[str]) -> dict[str, int]:
    """Return the counters that moved, and by how much."""
    return {name: after[name] - before[name] for name in after if after[name] != before[name]}


def judge(hosts: Hosts, held: str, let: str, *, settle: str = "") -> Finding:
    """Run two scripts: what they send is to be held back, and then is not to be.

    settle: a script after the first that waits until what counts has counted.
    """
    before = counters(hosts)
    stopped = hosts.heard(held)
    if settle:
        hosts.ask(settle)
    moved = difference(before, counters(hosts))
    passed = hosts.heard(let)
    seen = f"{stopped} of {SENT}; {passed} of {SENT} where it allows them"
    return Finding(True, stopped == 0 and passed >= SENT, seen, moved)


@check("mac", "frames for the address come; the VF gets none for another that it takes itself")
def mac(hosts: Hosts) -> Finding:
    """Give VF 2 an address, and let it take another."""
    hosts.ask(_with_address())
    held = f"in_vf 2 ip link set v0 address {OTHER}; meet 1 10.0.0.4 {OTHER}; heard 1 2"
    return judge(hosts, held, f"meet 1 10.0.0.4 {GIVEN}; heard 1 2")


def _with_address() -> str:
    """Return the script that gives VF 2 an address; its driver takes it when it is bound."""
    return f"""
vfs 3; say 2 mac {GIVEN}; v=$(vf 2); cd /sys/bus/pci/drivers/igbvf; echo $v > unbind; echo $v > bind
ip netns del v2; give 2 10.0.0.4; linked 2; meet 2 10.0.0.2 $(address 0); meet 2 10.0.0.3 $(address 1)
"""


@check("vlan 7", "VF 0 in it, VF 1 not: nothing arrives; both in it: all")
def vlan(hosts: Hosts) -> Finding:
    """Put one VF into a VLAN, then the other."""
    hosts.ask("vfs 3; say 0 vlan 7")
    return judge(hosts, "heard 0 1", "say 1 vlan 7; heard 0 1")


@check("vlan 7, tag 9", "what VF 0 tags 9 itself reaches nobody in VLAN 9; without port VLAN it does")
def own_tag(hosts: Hosts) -> Finding:
    """Let a VF in a VLAN tag its frames with another."""
    hosts.ask("vfs 3; ip -n v1 link add link v0 name v9 type vlan id 9; ip -n v1 link set v9 up; linked 1")
    hosts.ask("say 0 spoofchk off; say 0 vlan 7; forge 0 vlan push id 9")
    return judge(hosts, "heard 0 1", "say 0 vlan 0; heard 0 1")


@check("vlan 7 qos 5", "the PF, in VLAN 7, sees priority 5 in the tag; without qos 0")
def qos(hosts: Hosts) -> Finding:
    """Look at the tag of a VF's frames."""
    hosts.ask("vfs 3; ip link add link $pf name q7 type vlan id 7; ip link set q7 up")
    script = """
say 0 vlan 7 qos {qos}; meet 0 10.0.0.1 $(cat /sys/class/net/$pf/address)
timeout 30 tcpdump -i $pf -e -n -c 20 -p vlan 7 >/tmp/seen 2>/tmp/said &
soon 'grep -q listening /tmp/said'; heard 0 1 10.0.0.1; sleep 1; kill $! 2>/dev/null; wait
grep -c 'vlan 7, p {qos},' /tmp/seen; grep -c 'vlan 7,' /tmp/seen; true
"""
    try:
        said = [hosts.ask(script.format(qos=value)).split()[-2:] for value in (5, 0)]
    finally:
        hosts.ask("ip link del q7")
    (tagged, looked_at), (plain, of) = ((int(right), int(every)) for right, every in said)
    enough = SENT // 2  # a busy guest misses the first, or the last
    enforced = tagged == looked_at >= enough and plain == of >= enough
    return Finding(True, enforced, f"{tagged} of {looked_at} tags have 5; {plain} of {of} have 0 when it is 0")


@check(f"max_tx_rate {RATE_MBPS}", f"TCP of VF 0 arrives at {RATE_MBPS} Mb/s less headers, and faster without")
def max_tx_rate(hosts: Hosts) -> Finding:
    """Measure TCP with a rate and without."""
    hosts.ask("vfs 3")
    free = hosts.tcp_mbps("10.0.0.3", TCP_S, to=(0, 1))
    before = counters(hosts)
    hosts.ask(f"say 0 max_tx_rate {RATE_MBPS}")
    kept = hosts.tcp_mbps("10.0.0.3", TCP_S, to=(0, 1))
    moved = difference(before, counters(hosts))
    enforced = None if free < 1.4 * RATE_MBPS else kept < 1.02 * RATE_MBPS  # None: this machine is too slow to tell
    return Finding(True, enforced, f"{kept:.1f} Mb/s; {free:.0f} without", moved)


def _spoofed(hosts: Hosts, forge: str) -> Finding:
    """Let VF 0 forge frames with the check on, then off; the host's driver looks at the card every two seconds."""
    hosts.ask(f"say 0 spoofchk on; forge 0 {forge}")
    return judge(hosts, "heard 0 1", "say 0 spoofchk off; heard 0 1", settle="sleep 5")


@check("spoofchk, address", "of VF 0's frames with a foreign source address none arrives; off: all")
def spoofed_address(hosts: Hosts) -> Finding:
    """Forge the source address."""
    hosts.ask("vfs 3")
    return _spoofed(hosts, f"skbmod set smac {OTHER}")


@check("spoofchk, VLAN", "of VF 0's frames with the tag of a VLAN that is not its own none arrives; off: all")
def spoofed_vlan(hosts: Hosts) -> Finding:
    """Forge the VLAN."""
    hosts.ask("vfs 3; ip -n v1 link add link v0 name v9 type vlan id 9; ip -n v1 link set v9 up; linked 1")
    return _spoofed(hosts, "vlan push id 9")


@check("trust", "off: a VF with an address of the host's gets no frames for another that it takes; on: all")
def trust(hosts: Hosts) -> Finding:
    """Let a VF take an address that is not the host's choice."""
    hosts.ask(_with_address())
    take = f"in_vf 2 ip link set v0 address {OTHER}; meet 1 10.0.0.4 {OTHER}; heard 1 2"
    return judge(hosts, take, f"say 2 trust on; {take}")


@check("state disable", "nothing of VF 0 arrives; auto: all")
def state(hosts: Hosts) -> Finding:
    """Shut a VF off."""
    hosts.ask("vfs 3")
    return judge(hosts, "say 0 state disable; heard 0 1", "say 0 state auto; heard 0 1")


def unmeasured(clause: str) -> Check:
    """Make the check of a clause that is only asked for."""

    def run(hosts: Hosts) -> Finding:
        hosts.ask(f"[ -d $card/virtfn0 ] || vfs 3; say 0 {clause}")
        return Finding(True, None, "not measured")

    return Check(clause, "", run)


CHECKS += [unmeasured(clause) for clause in ("min_tx_rate 5", "vlan 7 proto 802.1ad")]


def run_all(hosts: Hosts, tell: Callable[[str], None]) -> dict[str, Finding]:
    """Run all checks, in turn. tell: is told which is next."""
    found = {}
    for each in CHECKS:
        tell(each.clause)
        try:
            found[each.clause] = each.run(hosts)
        except RefusedError as error:
            found[each.clause] = Finding(False, None, str(error))
    return found


def traffic_counters(hosts: Hosts) -> dict[str, int]:
    """Return which counters move by 20 frames from VF 0 to VF 1 that nothing holds back."""
    hosts.ask("vfs 3")
    before = counters(hosts)
    hosts.heard("heard 0 1")
    return difference(before, counters(hosts))

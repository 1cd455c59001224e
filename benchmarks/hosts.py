"""A Linux that is a host, on this card and on QEMU's own igb: which clauses of `ip link set PF vf N` are enforced.

    python benchmarks/hosts.py [ROUNDS] [--seconds S] [--only clauses|figures] [--card this|qemu] [--json FILE]

Two hosts of each, or one for the clauses alone, with the same kernel and image: stock igb makes VFs, stock igbvf drives
them. Then, once,

    clauses    each that `ip` has is said, and measured by frames between VFs, never read back: hostclauses.py

and in rounds that alternate between the two cards, while the hosts of the other stand still,

    make 7     seconds from `echo 7 > sriov_numvfs` until all seven have interfaces, by this machine's clock
    ping, TCP  from VF to VF of a host, both ends on its one processor, and to a VF of the second host by the wire

Medians, and the spread. Ends with 1 if this card does not enforce a clause that is accepted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from statistics import median, quantiles

from hostclauses import CHECKS, SENT, Finding, run_all, traffic_counters
from hostpairs import Hosts, find_hosts_platform, on_qemus_igb, on_this_card

from virtfn.machine.ports import VirtfnError
from virtfn.vmm.qemu import find_qemu

THIS = "this card"
FIGURES = {
    "make_7_s": ("7 VFs made", "s"),
    "ping_ms": ("ping, VF to VF", "ms"),
    "ping_p99_ms": ("its 99th percentile", "ms"),
    "tcp_mbps": ("TCP, VF to VF", "Mb/s"),
    "far_ping_ms": ("ping, to the second host", "ms"),
    "far_ping_p99_ms": ("its 99th percentile", "ms"),
    "far_tcp_mbps": ("TCP, to the second host", "Mb/s"),
}
PINGS = 200
FAR = 12  # last byte of the address of the second host's VF

Round = dict[str, float]


def measure(hosts: Hosts, seconds: int) -> Round:
    """Measure one round."""
    hosts.ask("none")
    found = {"make_7_s": hosts.timed("make 7")}
    hosts.ask("arrange 2 2")
    for prefix, ip, to in (("", "10.0.0.3", (0, 1)), ("far_", f"10.0.0.{FAR}", (1, 0))):
        times = hosts.pings_ms(ip, PINGS)
        found[f"{prefix}ping_ms"] = median(times)
        found[f"{prefix}ping_p99_ms"] = quantiles(times, n=100)[98]
        rates = [hosts.tcp_mbps(ip, seconds, to=to, options=way) for way in ("", "-R")]
        found[f"{prefix}tcp_mbps"] = sum(rates) / len(rates)
    return found


def tell(words: str) -> None:
    """Say on standard error what goes on."""
    print(words, file=sys.stderr, flush=True)


def clause_table(found: Mapping[str, Mapping[str, Finding]], traffic: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Lay out what became of each clause, of each card, and what counts frames that nothing holds back."""
    if not found:
        return []
    rows = [f"| `ip link set PF vf N ...` | enforced means | {' | '.join(found)} |", "| --- " * (2 + len(found)) + "|"]
    for each in CHECKS:
        words = [describe(findings[each.clause]) for findings in found.values()]
        rows.append(f"| `{each.clause}` | {each.enforced or '-'} | {' | '.join(words)} |")
    for name, moved in traffic.items():
        rows += ["", f"{SENT} pings from VF 0 to VF 1, {name}: {', '.join(f'{key} {n}' for key, n in moved.items())}"]
    return [*rows, ""]


def describe(finding: Finding) -> str:
    """Say what became of a clause."""
    if not finding.accepted:
        return f"refused: {finding.seen}"
    word = {True: "**enforced**", False: "accepted, **not enforced**", None: "accepted"}[finding.enforced]
    told = ", ".join(f"{name} {n}" for name, n in finding.telling.items())
    return f"{word}: {finding.seen}" + (f"; counted: {told}" if told else "")


def figure_table(found: Mapping[str, Sequence[Round]]) -> list[str]:
    """Lay out medians and spreads."""
    if not any(found.values()):
        return []
    rows = [f"| | {' | '.join(found)} |", "| --- " * (1 + len(found)) + "|"]
    for key, (words, unit) in FIGURES.items():
        cells = []
        for rounds in found.values():
            values = [each[key] for each in rounds]
            digits = 2 if unit == "ms" else 1 if unit == "s" else 0
            cells.append(f"{median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})")
        rows.append(f"| {words}, {unit} | {' | '.join(cells)} |")
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("rounds", nargs="?", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--only", choices=("clauses", "figures"))
    parser.add_argument("--card", choices=("this", "qemu"))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    try:
        qemu = find_qemu()
        platform = find_hosts_platform(qemu)
    except VirtfnError as error:
        sys.exit(str(error))
    cards = {THIS: on_this_card, f"igb of QEMU {'.'.join(map(str, qemu.version))}": on_qemus_igb}
    if given.card:
        cards = {name: start for name, start in cards.items() if (name == THIS) is (given.card == "this")}
    clauses: dict[str, dict[str, Finding]] = {}
    traffic: dict[str, dict[str, int]] = {}
    rounds: dict[str, list[Round]] = {name: [] for name in cards}
    load = [os.getloadavg()[0]]
    with ExitStack() as stack:
        booted: dict[str, Hosts] = {}
        for name, start in cards.items():
            tell(f"booting {name}")
            booted[name] = hosts = stack.enter_context(start(platform, alone=given.only == "clauses"))
            if given.only != "figures":
                clauses[name] = run_all(hosts, lambda clause, name=name: tell(f"{name}: {clause}"))  # type: ignore[misc]
                traffic[name] = traffic_counters(hosts)
            if given.only != "clauses":
                hosts.ask(f"none; make 1; arrange 1 {FAR}", 1)
            hosts.stop()
        for n in range(given.rounds if given.only != "clauses" else 0):
            for name, hosts in booted.items():
                tell(f"round {n + 1} of {given.rounds}: {name}")
                hosts.go_on()
                rounds[name].append(measure(hosts, given.seconds))
                hosts.stop()
    load.append(os.getloadavg()[0])
    guest = f"Linux {platform.image.version if platform.image else '?'} by {platform.acceleration.kind}"
    print(f"QEMU {'.'.join(map(str, qemu.version))}, {guest}, load {load[0]:.1f} to {load[1]:.1f}\n")
    print("\n".join([*clause_table(clauses, traffic), *figure_table(rounds)]))
    if given.json:
        findings = {name: {key: asdict(each) for key, each in found.items()} for name, found in clauses.items()}
        document = {"guest": guest, "load": load, "clauses": findings, "counters": traffic, "rounds": rounds}
        given.json.write_text(json.dumps(document, indent=2), encoding="utf-8")
    ours = clauses.get(THIS, {}).values()
    return int(any(each.accepted and each.enforced is False for each in ours))


if __name__ == "__main__":
    sys.exit(main())

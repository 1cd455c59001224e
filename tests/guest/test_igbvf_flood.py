"""Two guests flood each other for a minute: every frame arrives, or a counter tells what became of it."""

from __future__ import annotations

import json

import pytest

from guest.rig import LinuxRig, address

pytestmark = [pytest.mark.guest, pytest.mark.long]

SECONDS = 60
PORTS = {0: 5301, 1: 5302}
UNREAD = 100  # datagrams that fit into the buffer of a socket, which may be closed before they are read


def udp(rig: LinuxRig, n: int) -> dict[str, int]:
    names, values = rig.run(n, "grep ^Udp: /proc/net/snmp").splitlines()
    return {name: int(value) for name, value in zip(names.split()[1:], values.split()[1:], strict=True)}


def qdisc_drops(rig: LinuxRig, n: int) -> int:
    return sum(int(queue["drops"]) for queue in rig.json(n, "tc -j -s qdisc show dev eth0"))


def at_the_nic(rig: LinuxRig, n: int) -> dict[str, int]:
    row = rig.nic.port.nic["pools"][n]
    return {"sent": int(row["gptc"]), "received": int(row["gprc"]), "lost": rig.nic.drops(n).get("no-descriptor", 0)}


def numbers(rig: LinuxRig, n: int) -> dict[str, int]:
    counted = rig.counters(n)
    return {
        **udp(rig, n),
        **{f"nic {name}": value for name, value in at_the_nic(rig, n).items()},
        "frames out": counted["tx_packets"],
        "frames in": counted["rx_packets"],
        "rx dropped": counted["rx_dropped"],
        "qdisc": qdisc_drops(rig, n),
        "backlog": sum(int(line.split()[1], 16) for line in rig.run(n, "cat /proc/net/softnet_stat").splitlines()),
    }


def test_a_flood_both_ways_loses_nothing_but_what_is_counted(rig: LinuxRig):
    for n in (0, 1):
        rig.ping(n, address(1 - n), "-c 2 -i 0.1")
        rig.run(n, f"ip neigh replace {address(1 - n)} lladdr {rig.mac(1 - n)} dev eth0 nud permanent")
        rig.run(n, "echo 1 >/proc/sys/net/ipv6/conf/eth0/disable_ipv6")  # nobody else sends anything
    try:
        rig.pause(500)
        before = [numbers(rig, n) for n in (0, 1)]
        servers = [rig.start(n, f"iperf3 -s -1 -p {PORTS[n]}") for n in (0, 1)]
        rig.pause(1000)
        sent = f"-u -b 1G -l 1400 -t {SECONDS} -J"
        reports = rig.together(
            *((n, f"iperf3 -c {address(1 - n)} -p {PORTS[1 - n]} {sent}") for n in (0, 1)), timeout_s=SECONDS + 60
        )
        for n, server in enumerate(servers):
            rig.finish(n, server)
        rig.pause(3000)  # what is in rings and queues arrives
        after = [numbers(rig, n) for n in (0, 1)]
    finally:
        for n in (0, 1):
            rig.run(n, "echo 0 >/proc/sys/net/ipv6/conf/eth0/disable_ipv6")
            rig.run(n, f"ip neigh del {address(1 - n)} dev eth0")
    assert all("error" not in json.loads(report.output) for report in reports)
    grown = [{name: then[name] - now[name] for name in now} for now, then in zip(before, after, strict=True)]
    for a, b in ((grown[0], grown[1]), (grown[1], grown[0])):
        assert a["OutDatagrams"] > 10_000, grown
        # Frames: what the driver gave the NIC, what the NIC took, what it delivered, what the peer's driver got.
        assert a["frames out"] == a["nic sent"], grown
        assert a["nic sent"] == b["nic received"] + b["nic lost"], grown
        assert b["frames in"] == b["nic received"], grown
        # Datagrams: sent by programs, and received or lost by count on the way up.
        lost = a["qdisc"] + b["nic lost"] + b["backlog"] + b["rx dropped"]
        assert a["OutDatagrams"] - b["InDatagrams"] - b["InErrors"] - b["NoPorts"] <= lost + UNREAD, grown
    print(grown)

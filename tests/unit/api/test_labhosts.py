"""Guests that are hosts, and cables: what a lab may say of them, and what is refused with which words."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace
from typing import Any, cast

import pytest

from unit.api.test_lab import refusal
from virtfn.api.hosts import HostWork
from virtfn.api.lab import parse_lab, refuse_unsupported
from virtfn.api.report import verdict
from virtfn.api.session.policy import set_policies
from virtfn.hw.types import Mac
from virtfn.machine.meter import Meter
from virtfn.machine.ports import VirtfnError
from virtfn.vmm.qemu import Job, Outcome
from virtfn.vmm.qemu.agent import Agent
from virtfn.vmm.qemu.wait import Watch

HOSTS = """\
name: hosts
pfs:
  - {name: p, uplink: none, sr-iov: {total-vfs: 2, vfs: [{vlan-id: 7, qos: 3, max-tx-rate: 40}, {trust: true}]}}
  - {name: q, uplink: "cable:r", sr-iov: {total-vfs: 1}}
  - {name: r, uplink: none, sr-iov: {total-vfs: 1}}
  - {name: s, sr-iov: {total-vfs: 2}}
guests:
  - {name: a, vmm: qemu, nic: {pf: p, io: host}}
  - {name: b, vmm: qemu, nic: {pf: q, io: host}}
  - {name: c, vmm: qemu, nic: {pf: r, io: host}}
  - {name: d, vmm: qemu, nic: {pf: s, vf: 0}}
  - {name: e, vmm: qemu, nic: {pf: s, vf: 1}}
workload: {kind: pairs, frames: 100}
"""


def test_hosts_and_cables_are_a_lab() -> None:
    lab = parse_lab(HOSTS)
    refuse_unsupported(lab)
    assert [lab.host_of(name) for name in "pqrs"] == ["a", "b", "c", ""]
    assert [lab.cable_of(name) for name in "pqrs"] == ["", "r", "q", ""]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("{name: a, vmm: qemu", "{name: a", "guests[0].vmm: io host needs a Linux that makes VFs; use vmm: qemu"),
        ("{pf: p, io: host}", "{pf: p, io: host, vf: 0}", "guests[0].nic.vf: io host gives the PF, whole"),
        ("{pf: s, vf: 0}", "{pf: p, vf: 0}", "guests[3].nic.pf: p belongs to guest a, its host, which gives VFs out"),
        ("{pf: s, vf: 0}", "{pf: p, io: split}", "guests[3].nic.pf: p belongs to guest a, its host"),
        (
            "total-vfs: 2, vfs",
            "total-vfs: 8, vfs",
            "total-vfs: Linux's own driver makes 7 VFs of a 82576 at most; use 7",
        ),
        (
            "total-vfs: 2, vfs",
            "total-vfs: 3, vfs",
            "total-vfs: pairs on one card needs an even number of VFs, here are 3",
        ),
        ('"cable:r"', "none", "pfs[1].sr-iov.total-vfs: pairs on one card needs an even number of VFs, here are 1"),
        (
            "kind: pairs",
            "kind: fan-in",
            "workload.kind: the VFs of guest a, a host, talk in twos; use pairs, ping or none",
        ),
        ('"cable:r"', '"cable:x"', "pfs[1].uplink: no other PF is named x; there are p, r, s"),
        ('"cable:r"', '"cable:q"', "pfs[1].uplink: no other PF is named q"),
        ('"cable:r"', '"cable:"', "pfs[1].uplink: must be none, pcap:FILE, tap:NAME, stream:SOCKET or cable:PF"),
        (
            "r, uplink: none",
            "r, uplink: tap:x",
            "pfs[1].uplink: r has another uplink, tap:x; a cable has the wires of two",
        ),
        ("r, uplink: none", 'r, uplink: "cable:p"', "pfs[1].uplink: r has another uplink"),
        ("p, uplink: none", 'p, uplink: "cable:r"', "pfs[1].uplink: r has a cable already"),
        ("{name: s,", '{name: s, uplink: "cable:p",', None),
        (
            "{name: d, vmm: qemu, nic: {pf: s",
            "{name: d, nic: {pf: q",
            "pfs[1].uplink: guest d is embedded; a cable joins",
        ),
        ("trust: true", "link-state: enable", None),
        ("{pf: p, io: host}", "{pf: p, io: host}, expect: {a vf1: none}", None),
        ("{pf: q, io: host}", "{pf: q, io: host}, expect: {c vf0: none}", None),
        (
            "{pf: q, io: host}",
            "{pf: q, io: host}, expect: {c vf1: none}",
            "'c vf1' does not send to b; who does: c vf0",
        ),
        ("{pf: p, io: host}", "{pf: p, io: host}, expect: {b: none}", "'b' does not send to a; who does: a vf0, a vf1"),
    ],
)
def test_what_does_not_fit_is_refused(old: str, new: str, words: str | None) -> None:
    assert old in HOSTS
    text = HOSTS.replace(old, new, 1)
    if words is None:
        parse_lab(text)
    else:
        assert words in refusal(text)


# What hosts are told, and what is made of what they say.

SUMMARY = "100 packets transmitted, {} received, 0% packet loss\nrtt min/avg/max/mdev = 1.1/2.5/4.0/0.3 ms\n"
LINK = {"stats64": {way: {"packets": 50, "bytes": 4000, "errors": 0} for way in ("tx", "rx")}}


class Hosts:
    """Hosts that answer from a list. told: the commands, by host."""

    def __init__(self, text: str = HOSTS, answered: int = 100) -> None:
        self.lab = parse_lab(text)
        self.told: dict[str, list[str]] = {}
        self.answered = answered
        self.dropped: dict[str, int] = {}
        self.devices = "VF {n} {device}\n"
        pfs = [SimpleNamespace(name=pf.name, nic=self._card(pf.total_vfs)) for pf in self.lab.pfs]
        machine = SimpleNamespace(
            lab=self.lab, pfs=pfs, offered_mac=lambda pf, n: Mac(0x02 | pfs.index(pf) << 32 | n << 40)
        )
        self.hosts = [self._host(guest, pfs) for guest in self.lab.guests if guest.nic.io == "host"]
        linux = SimpleNamespace(hosts=self.hosts, wait=lambda jobs, phase, timeout_s: [job.outcome for job in jobs])
        self.work = HostWork(cast(Any, machine), cast(Any, linux))

    def _card(self, vfs: int) -> Any:
        return SimpleNamespace(drops=lambda n: dict(self.dropped) if n == 0 else {}, vfs=vfs)

    def _host(self, guest: Any, pfs: list[Any]) -> Any:
        name, pf = guest.name, next(pf for pf in pfs if pf.name == guest.nic.pf)
        plug = SimpleNamespace(address="0000:01:00.0", drops=dict, messages=lambda: 7)
        vm = SimpleNamespace(messages=3, meter=Meter())
        return SimpleNamespace(
            lab=guest, pf=pf, vm=vm, plug=plug, mac=Mac(2), boot_s=1.0, start=lambda command: self._do(name, command)
        )

    def _do(self, name: str, command: str) -> Job:
        self.told.setdefault(name, []).append(command)
        vfs = self.lab.pf(next(g for g in self.lab.guests if g.name == name).nic.pf).total_vfs
        said = ""
        if given := re.search(r"echo \"VF (\d) \$dev", command):
            said = self.devices.format(n=given[1], device=f"eth{int(given[1]) + 1}")
        elif "ping" in command:
            said = SUMMARY.format(self.answered)
        elif "-s -j link" in command:
            said = f"{json.dumps([LINK])}\n" * vfs
        elif "iperf3 -J" in command:
            said = '{"end": {"sum_received": {"bits_per_second": 4e7}}}'
        return Job(command, Outcome(0, said))


def test_a_host_makes_its_vfs_by_sysfs_and_ip_in_the_words_of_the_lab() -> None:
    hosts = Hosts()
    hosts.work.set_up()
    *scripts, links = hosts.told["a"]
    script = "".join(scripts)
    assert "echo 2 > $card/sriov_numvfs" in script
    for line in (
        "ip link set $pf vf 0 mac 02:00:00:00:00:00",
        "ip link set $pf vf 0 vlan 7 qos 3",
        "ip link set $pf vf 0 max_tx_rate 40",
        "ip link set $pf vf 1 spoofchk on",
        "ip link set $pf vf 1 trust on",
        "ip netns add vf1",
        "ip -n vf0 link set $dev mtu 1500 up",
    ):
        assert line in script
    assert script.index("vf 1 trust on") < script.index("drivers_probe ||"), "a VF's driver finds its policy"
    assert "ip netns exec vf1 cat /sys/class/net/eth2/carrier" in links


def test_an_agent_takes_each_script_for_as_many_vfs_as_there_can_be() -> None:
    policies = ", ".join(f"{{id: {n}, vlan-id: 1{n}0, qos: 3, max-tx-rate: 1000, trust: true}}" for n in range(7))
    pf = f"name: p, uplink: none, sr-iov: {{total-vfs: 7, vfs: [{policies}]}}"
    guest = "{name: a, vmm: qemu, nic: {pf: p, io: host}}"
    hosts = Hosts(f"name: seven\npfs: [{{{pf}}}]\nguests: [{guest}]\nworkload: {{kind: none}}\n")
    hosts.work.set_up()
    sent: list[bytes] = []
    agent = Agent(sent.append, Watch())
    for script in hosts.told["a"]:
        agent.start(script)  # E2BIG, if it is too long
    assert len(sent) == 9
    assert max(map(len, sent)) < 4000


def test_a_host_that_names_no_interface_is_said() -> None:
    hosts = Hosts()
    hosts.devices = "nothing\n"
    with pytest.raises(VirtfnError, match="guest a: VF 0 has no interface: nothing"):
        hosts.work.set_up()


def test_vfs_of_one_card_talk_in_twos_and_over_a_cable_with_those_of_the_other() -> None:
    hosts = Hosts()
    hosts.work.set_up()
    hosts.work.run()
    flows = [(flow["sender"], flow["receiver"], flow["heard"]) for flow in hosts.work.flows]
    there = [("a vf0", "a vf1", 100), ("b vf0", "c vf0", 100)]
    assert flows == there + [(b, a, n) for a, b, n in there]
    first = hosts.work.flows[0]
    assert (first["ping_ms"], first["iperf_mbps"]) == (2.5, 40.0)
    assert first["policy"] == "mac 02:00:00:00:00:00, vlan 7 qos 3, max_tx_rate 40, spoofchk on, trust off"
    reports = list(hosts.work.reports())
    assert [(report["vfs"], report["ping_ms"], report["iperf_mbps"]) for report in reports] == [
        (2, 2.5, 40.0),
        (1, 2.5, 40.0),
        (1, 2.5, 40.0),
    ]
    assert [(report["tx_frames"], report["lost"]) for report in reports] == [(100, 0), (50, 0), (50, 0)]


def test_pings_that_nothing_explains_are_lost_and_vlans_are_named() -> None:
    hosts = Hosts(answered=90)
    hosts.work.set_up()
    hosts.work.run()
    report = next(hosts.work.reports())
    assert report["lost"] == 20
    flow = hosts.work.flows[0]
    assert "VLAN 7" in flow["note"]
    document: Any = {"guests": [report], "flows": hosts.work.flows, "totals": {"frames": 1}, "pfs": []}
    assert not verdict(document).passed


def test_what_vfs_are_to_hear_is_the_hosts_own_word() -> None:
    hosts = Hosts(HOSTS.replace("{pf: p, io: host}", "{pf: p, io: host}, expect: {a vf1: none}"), answered=0)
    hosts.dropped = {"vlan-membership": 3}
    hosts.work.set_up()
    hosts.work.run()
    expected = {flow["sender"]: flow["expected"] for flow in hosts.work.flows if flow["sender"].startswith("a ")}
    assert expected == {"a vf0": "all-but-overruns", "a vf1": "none"}


def test_policies_of_a_card_that_is_a_guests_are_not_set_from_outside() -> None:
    with pytest.raises(VirtfnError, match="a guest's, whole") as caught:
        set_policies(cast(Any, SimpleNamespace(name="p", driven=False)), {})
    assert caught.value.errno_name == "EBUSY"

"""A lab with a host as a service, booted by UEFI, behind an IOMMU that passes through: what others can see of its card.

One boot for all. The card is driven by the guest's kernel: virtfn looks, and refuses to change what is the guest's.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from guest.commands import COMMAND, machines, up, virtfn
from virtfn.api.control import ask

pytestmark = pytest.mark.guest

LAB = """
name: live
pfs:
  - name: pf0
    sr-iov:
      total-vfs: 2
      vfs: [{{id: 0, vlan-id: 7, qos: 3, max-tx-rate: 100}}, {{id: 1, vlan-id: 7, mac-address: "02:00:00:00:00:77"}}]
guests: [{{name: h, vmm: qemu, firmware: {firmware}, iommu: pt, nic: {{pf: pf0, io: host}}}}]
workload: {{kind: none}}
"""
PING = "ip netns exec vf0 ping -q -c {count} -i 0.1 -W 2 10.83.0.2"


def inside(command: str) -> str:
    return virtfn("exec", "h", "--", command)


def document(*arguments: str) -> Any:
    return json.loads(virtfn(*arguments, "--json", "-"))


def vfs() -> list[dict[str, Any]]:
    (link,) = document("link", "show", "pf0")
    return list(link.get("vfinfo_list", []))


def until(done: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, what
        time.sleep(0.2)


def events(name: str) -> list[dict[str, Any]]:
    found = ask("events.read", {}, "live")
    return [event["data"] for event in found["events"] if event["event"] == name]  # type: ignore[index]


@pytest.fixture(scope="module", autouse=True)
def lab(image: object, ovmf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Bring the lab up; yield the process that has it."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("run")))
        with up("live", "-", stdin=LAB.format(firmware=ovmf)) as process:
            yield process


def test_it_is_what_the_lab_says() -> None:
    assert "efi" in inside("ls /sys/firmware")
    card = "/sys/bus/pci/devices/0000:01"
    groups = inside(f"for f in 00.0 10.0 10.2; do readlink {card}:$f/iommu_group; done").split()
    assert len(set(groups)) == 3
    assert inside("cat /sys/kernel/iommu_groups/*/type").split().count("identity") >= 3
    assert "5 received" in inside(PING.format(count=5))
    assert "fault" not in inside("dmesg | grep DMAR.*fault; true")
    (link,) = document("link", "show")
    assert (link["operstate"], link["parentdev"]) == ("UP", "0000:01:00.0")
    assert link["address"] == inside("cat /sys/bus/pci/devices/0000:01:00.0/net/*/address").strip()
    first, second = vfs()
    assert (first["vlan_list"], first["rate"]["max_tx"], first["spoofchk"]) == ([{"vlan": 7, "qos": 3}], 100, True)
    assert (second["vlan_list"], second["address"]) == ([{"vlan": 7}], "02:00:00:00:00:77")
    assert "trust" not in second
    assert "link_state" not in second
    line = "vf 1     link/ether 02:00:00:00:00:77 brd ff:ff:ff:ff:ff:ff, vlan 7, spoof checking on, query_rss off\n"
    assert line in virtfn("link", "show")


def test_what_its_driver_sets_is_shown_and_not_set_from_outside() -> None:
    pf = inside("basename /sys/bus/pci/devices/0000:01:00.0/net/*").strip()
    inside(f"ip link set {pf} vf 0 vlan 9; ip link set {pf} vf 0 max_tx_rate 333; ip link set {pf} vf 1 spoofchk off")
    first, second = vfs()
    assert (first["vlan_list"], first["tx_rate"], second["spoofchk"]) == ([{"vlan": 9}], 333, False)
    for words in (("link", "set", "pf0", "vf", "0", "vlan", "7"), ("quarantine", "pf0/vf0")):
        assert "EBUSY" in virtfn(*words, status=1)
    assert vfs()[0]["vlan_list"] == [{"vlan": 9}]
    before = _drops()
    assert " 0 received" in inside(f"{PING.format(count=2)}; true")
    assert _drops() > before, "into another VLAN"
    inside(f"ip link set {pf} vf 0 vlan 7; ip link set {pf} vf 1 spoofchk on")


def _drops() -> int:
    (pf,) = ask("session.snapshot", {}, "live")["pfs"]  # type: ignore[call-overload, index]
    return sum(sum(vf["dropped"].values()) for vf in pf["vfs"]) + sum(pf["switch"]["dropped"].values())


def test_frames_messages_mappings_and_counters_are_seen(tmp_path: Path) -> None:
    file = tmp_path / "vf.pcapng"
    capture = subprocess.Popen([*COMMAND, "capture", "-i", "pf0/vf0", "-w", str(file), "-c", "8"], stderr=-1, text=True)
    try:
        assert capture.stderr is not None
        assert capture.stderr.readline().startswith("capturing tx, rx, drop of pf0/vf0")
        inside(PING.format(count=5))
        assert capture.wait(timeout=60) == 0
    finally:
        capture.kill()
        capture.communicate()
    assert b"VF 0000:02:10.0, guest h" in file.read_bytes()
    frame = f"020000000077{vfs()[0]['address'].replace(':', '')}0800{bytes(46).hex()}"
    explained = document("explain", "pf0/vf0", frame)
    assert (explained["outcome"], [to["interface"] for to in explained["to"]]) == ("forwarded", ["pf0/vf1"])
    told = ask("mailbox.read", {}, "live")["messages"]  # type: ignore[call-overload, index]
    assert any(message["text"].startswith("RESET") for message in told)
    domains = document("iommu", "show")["domains"]
    by_rid = {rid: domain["mappings"] for domain in domains for rid in domain["rids"]}
    assert all(by_rid[rid] for rid in ("0000:01:00.0", "0000:02:10.0", "0000:02:10.2"))
    (pf,) = ask("session.snapshot", {}, "live")["pfs"]  # type: ignore[call-overload, index]
    assert [vf["guest"] for vf in pf["vfs"]] == ["h", "h"]
    assert all(vf["tx_frames"] and vf["rx_frames"] and vf["mailbox_messages"] for vf in pf["vfs"])
    assert [vf["guest"] for vf in document("get", "vfs")] == ["h", "h"]
    assert document("status")["labs"][0]["status"]["vfs"] == 2


def test_vfs_that_come_and_go_are_events() -> None:
    numvfs = "/sys/bus/pci/devices/0000:01:00.0/sriov_numvfs"
    inside(f"ip netns del vf0; ip netns del vf1; echo 0 > {numvfs}")
    assert vfs() == []
    inside(f"echo 3 > {numvfs}")
    assert len(vfs()) == 3
    changes = [(event["before"], event["vfs"]) for event in events("VFS_CHANGED")]
    assert changes[-3:] == [(0, 2), (2, 0), (0, 3)]


def test_a_killed_lab_takes_its_host_along(lab: int) -> None:
    (guest,) = machines(lab)
    os.kill(lab, signal.SIGKILL)
    until(lambda: not Path(f"/proc/{guest}").exists(), "the virtual machine outlives its lab")
    assert "live was lost: up from" in virtfn("status")
    assert virtfn("down", "live") == "live is down\n"

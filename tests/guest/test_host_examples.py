"""The examples of hosts, as people run them: traced, as a service, and with a host that is killed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from guest.commands import kill, machines, up, virtfn
from virtfn.api.control import ask

pytestmark = [pytest.mark.guest, pytest.mark.long]

EXAMPLES = Path(__file__).parents[2] / "examples"
CARD = "/sys/bus/pci/devices/0000:01:00.0"


@pytest.mark.usefixtures("qemu", "image")
def test_a_traced_host_shows_what_its_drivers_do(tmp_path: Path) -> None:
    """Registers of the PF and of VFs by name, messages of the mailbox, interrupts, resets; and no fault."""
    trace, report = tmp_path / "trace", tmp_path / "report.json"
    said = virtfn("run", str(EXAMPLES / "host.yaml"), "--trace", str(trace), "--json", str(report))
    assert "\npassed " in said
    text = trace.read_text()
    pf, vf = "0000:01:00.0", r"0000:02:10\.[0246]"
    for words in (
        rf"{pf} write      CTRL_EXT = ",
        rf"{pf} write      VMVIR\[0\] = 0x40000007 \(PORT_VLAN=7, VLANA=ALWAYS\)",
        rf"{pf} write      RTTBCNRC = 0x80064000 \(RF_INT=0x19, RS_ENA=1\)",
        rf"{pf} write      P2VMAILBOX\[0\] = ",
        rf"{vf} write      V2PMAILBOX = ",
        rf"{vf} mailbox    VF to PF: RESET",
        rf"{vf} mailbox    PF to VF: RESET \(ACK, mac=02:00:00:00:00:10\)",
        rf"{vf} mailbox    VF to PF: SET_MULTICAST",
        rf"{vf} interrupt  vector \d",
        rf"{vf} reset      function level reset",
    ):
        assert re.search(words, text), words
    assert " fault " not in text
    assert json.loads(report.read_text())["iommu"]["faults"] == 0


@pytest.mark.usefixtures("qemu", "image")
def test_a_host_that_is_killed_leaves_the_other_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with up("two-hosts", str(EXAMPLES / "two-hosts.yaml")) as process:
        _kill_one(process)


def _kill_one(process: int) -> None:
    a, _ = sorted(machines(process), key=lambda pid: b"virtfn.name=b" in Path(f"/proc/{pid}/cmdline").read_bytes())
    far = "ip netns exec vf0 ping -q -c 5 -i 0.1 -W 2 10.83.0.17"
    assert " 5 received" in virtfn("exec", "a", "--", far)
    assert kill(a)["state"] == "ready"
    snapshot = ask("session.snapshot", {}, "two-hosts")
    (first, second) = snapshot["pfs"]  # type: ignore[call-overload, index]
    assert (first["vfs"], [vf["guest"] for vf in second["vfs"]]) == ([], ["b", "b"])
    assert snapshot["iommu"]["faults"] == 0  # type: ignore[call-overload, index]
    # The other's card works on, and takes what its driver sets: its VFs were in different VLANs.
    near = "ip netns exec vf0 ping -q -c 5 -i 0.1 -W 2 10.83.0.18"
    assert " 0 received" in virtfn("exec", "b", "--", f"{near}; true")
    virtfn("exec", "b", "--", f"ip link set $(ls {CARD}/net) vf 0 vlan 0")
    assert " 5 received" in virtfn("exec", "b", "--", near)
    number = f"ip netns del vf0; ip netns del vf1; for n in 0 7 0; do echo $n > {CARD}/sriov_numvfs || exit; done"
    virtfn("exec", "b", "--", number)
    assert not virtfn("exec", "b", "--", "dmesg | grep -E 'BUG:|Oops|NETDEV WATCHDOG'; true").strip()
    assert virtfn("down", "two-hosts") == "two-hosts is down\n"

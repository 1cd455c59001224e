"""A lab of Linux guests as a service: VFs come and go, the lab becomes another, and a kill leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from guest.commands import COMMAND, kill, machines, up, virtfn

pytestmark = pytest.mark.guest

LAB = """
name: served
pfs: [{name: pf0, sr-iov: {total-vfs: 4}}]
guests:
  - {name: a, vmm: qemu, memory-mib: 256, nic: {pf: pf0, vf: 0}}
  - {name: b, vmm: qemu, memory-mib: 256, nic: {pf: pf0, vf: 1}}
workload: {kind: ping}
"""


def pings() -> bool:
    """Whether b reaches a; it is b who speaks: its neighbours learn its new address so."""
    command = [*COMMAND, "exec", "b", "--", "ping", "-c", "3", "-W", "5", "10.82.0.1"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.usefixtures("qemu", "image")
def test_a_service_of_linux_guests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with up("served", "-", stdin=LAB) as process:
        assert pings()
        _come_and_go()
        _become_another()
        _lose_a_guest_then_all(process)


def _lose_a_guest_then_all(process: int) -> None:
    ours = machines(process)
    assert len(ours) == 2
    status = kill(ours.pop())
    assert (status["state"], status["status"]["attached"]) == ("ready", 1)
    os.kill(process, signal.SIGKILL)
    end = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in ours):
        assert time.monotonic() < end, "virtual machines outlive their lab"
        time.sleep(0.1)
    assert "served was lost: up from" in virtfn("status")
    assert virtfn("down", "served") == "served is down\n"
    assert virtfn("status") == "no lab is up; virtfn up LAB.yaml\n"


def _come_and_go() -> None:
    virtfn("detach", "b")
    assert not pings()
    assert virtfn("exec", "b", "--", "ls /sys/class/net").split() == ["lo"]
    virtfn("attach", "b", "pf0/vf3")
    assert "eth" in virtfn("exec", "b", "--", "ls /sys/class/net")
    assert pings()
    vfs = json.loads(virtfn("get", "vfs", "--json", "-"))
    assert [vf["guest"] for vf in vfs] == ["a", None, None, "b"]


def _become_another() -> None:
    now = virtfn("get")
    assert "is like that already" in virtfn("apply", "-f", "-", stdin=now)
    wanted = re.sub(r"total-vfs: 4", "total-vfs: 6, vfs: [{id: 3, vlan-id: 7}]", now)
    said = virtfn("apply", "-f", "-", "--diff", stdin=wanted)
    assert "-pfs.pf0.sr-iov.total-vfs: 4\n+pfs.pf0.sr-iov.total-vfs: 6\n" in said
    assert not pings()  # b is in a VLAN of its own
    virtfn("apply", "-f", "-", stdin=now.replace("total-vfs: 4", "total-vfs: 6"))
    assert pings()

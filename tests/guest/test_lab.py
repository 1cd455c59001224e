"""Labs with Linux guests, as people run them: the command line from outside, QEMU, image and drivers for real."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from virtfn.api.image import current_image, make_image
from virtfn.api.lab import load_lab
from virtfn.api.report import verdict
from virtfn.api.run import run_lab
from virtfn.machine.captures import read_capture
from virtfn.machine.ports import VirtfnError
from virtfn.vmm.qemu import Qemu

pytestmark = pytest.mark.slow

VIRTFN = [sys.executable, "-c", "from virtfn.cli.main import main; main()"]
EXAMPLE = Path(__file__).parents[2] / "examples" / "linux-vms.yaml"
MIXED = """\
name: mixed
pfs:
  - {name: pf0, sr-iov: {total-vfs: 4}}
guests:
  - {name: a, vmm: qemu, nic: {pf: pf0, io: sriov, vf: 0}}
  - {name: b, vmm: qemu, nic: {pf: pf0, io: sriov, vf: 1, map-rings: false}}
  - {name: c, nic: {pf: pf0, vf: 2}}
  - {name: d, nic: {pf: pf0, vf: 3}}
workload: {kind: pairs, frame-bytes: 4018, frames: 50}
"""


@pytest.fixture(autouse=True)
def image(qemu: Qemu) -> None:
    try:
        current_image()
    except VirtfnError:
        try:
            make_image()
        except VirtfnError as error:
            pytest.skip(f"not run: {error}")


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A place for sockets, with nothing left in it at the end."""
    folder = Path(f"/tmp/virtfn-lab-{os.getpid()}")  # short enough for sockets, unlike tmp_path
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    yield folder
    left = list((folder / "virtfn").iterdir())
    for file in left:
        subprocess.run(["rm", "-rf", str(file)], check=True)
    (folder / "virtfn").rmdir()
    folder.rmdir()
    assert left == []


def test_the_example_runs() -> None:
    report = run_lab(load_lab(EXAMPLE))
    judged = verdict(report)
    assert judged.passed, judged.words
    assert all(guest["iperf_mbps"] > 1 for guest in report["guests"])


def test_linux_guests_beside_embedded_ones(tmp_path: Path, runtime: Path) -> None:
    (tmp_path / "lab.yaml").write_text(MIXED)
    files = {name: str(tmp_path / name) for name in ("report.json", "seen.pcapng", "trace")}
    options = ["--json", files["report.json"], "--capture", files["seen.pcapng"], "--trace", files["trace"]]
    done = subprocess.run(
        [*VIRTFN, "run", str(tmp_path / "lab.yaml"), *options], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(Path(files["report.json"]).read_text())
    a, b, c, d = report["guests"]
    assert [guest["vmm"] for guest in (a, b, c, d)] == ["qemu", "qemu", "embedded", "embedded"]
    assert all(guest["lost"] == guest["corrupt"] == guest["reordered"] == 0 for guest in (a, b, c, d))
    assert c["tx_frames"] == d["tx_frames"] == 50
    for guest in (a, b):
        assert guest["boot_s"] > 0
        assert guest["ping_ms"] > 0
        assert guest["iperf_mbps"] > 1
        assert guest["interrupts"] > 0
        assert guest["tx_bytes"] > 100 * 4000
    assert b["exits_per_frame"] > a["exits_per_frame"]  # no register of b's is mapped
    assert report["iommu"]["faults"] == 0
    assert report["pfs"][0]["vfs"] == 4
    assert "exits a frame" in done.stdout
    assert "booting a, b" in done.stderr
    seen = read_capture(Path(files["seen.pcapng"]))
    frames = [seen.frame(k) for k in range(len(seen))]
    echoes = [frame for frame in frames if frame[12:14].tobytes() == b"\x08\0" and frame[23] == 1]
    assert max(len(frame) for frame in echoes) == 4014
    assert len(echoes) >= 4 * 50
    assert "VTCTRL" in Path(files["trace"]).read_text() or "VTEIMS" in Path(files["trace"]).read_text()


@pytest.mark.long
def test_a_kept_lab_has_shells_and_ends_with_a_guest_that_panics(tmp_path: Path, runtime: Path) -> None:
    with subprocess.Popen(
        [*VIRTFN, "run", str(EXAMPLE), "--keep"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        try:
            assert run.stderr is not None
            assert any(line.startswith("kept up") for line in run.stderr)
            listed = subprocess.run([*VIRTFN, "shell", "--json", "-"], capture_output=True, text=True, check=True)
            assert [entry["guest"] for entry in json.loads(listed.stdout)] == ["a", "b"]
            ran = subprocess.run([*VIRTFN, "exec", "b", "--", "sh", "-c", "uname -s; exit 3"], stdout=-1, text=True)
            assert (ran.returncode, ran.stdout) == (3, "Linux\n")
            typed = subprocess.run([*VIRTFN, "shell", "b"], input="echo b-$((1+1))\n", stdout=-1, text=True, check=True)
            assert "b-2" in typed.stdout
            with subprocess.Popen(
                [*VIRTFN, "shell", "a"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            ) as shell:
                assert shell.stdin is not None
                assert shell.stdout is not None
                shell.stdin.write("\nping -c 2 10.82.0.2; echo virtfn-$((20+3))\n")
                shell.stdin.flush()
                said = _until(shell.stdout.fileno(), "virtfn-23")
                assert ", 0% packet loss" in said
                shell.stdin.write("echo 1 >/proc/sys/kernel/sysrq; echo c >/proc/sysrq-trigger\n")
                shell.stdin.flush()
                out, err = run.communicate(timeout=60)
        finally:
            run.kill()
    assert run.returncode == 1
    assert out.startswith("lab linux-vms")
    assert "ready: linux-vms is kept up" in out.splitlines()
    assert "guest a: its kernel has given up: Kernel panic" in err


def test_ctrl_c_while_guests_boot_leaves_nothing(runtime: Path) -> None:
    with subprocess.Popen([*VIRTFN, "run", str(EXAMPLE)], stderr=subprocess.PIPE, text=True) as run:
        assert run.stderr is not None
        assert any(line.startswith("booting") for line in run.stderr)
        children = Path(f"/proc/{run.pid}/task").glob("*/children")
        machines = [int(pid) for file in children for pid in file.read_text().split()]
        run.send_signal(signal.SIGINT)
        assert run.stderr.read().splitlines()[-1] == "virtfn: interrupted"
    assert run.returncode == 130
    assert len(machines) == 2
    assert not [pid for pid in machines if Path(f"/proc/{pid}").exists()]


def _until(descriptor: int, word: str) -> str:
    """Read until a word comes, for two minutes at most."""
    said = ""
    ended = threading.Timer(120, lambda: os.close(descriptor))
    ended.start()
    try:
        while word not in said:
            said += os.read(descriptor, 4096).decode(errors="replace")
    finally:
        ended.cancel()
    return said

import json
import os
from pathlib import Path

import pytest

from virtfn.vmm.qemu import Acceleration, Qemu, cache_folder, choose_acceleration, kvm_obstacle
from virtfn.vmm.qemu import acceleration as module


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Make a machine with VT-x and a /dev/kvm that opens but is no KVM."""
    root = tmp_path / "root"
    (root / "dev").mkdir(parents=True)
    (root / "proc").mkdir()
    (root / "dev/kvm").touch()
    (root / "proc/cpuinfo").write_text("flags\t\t: fpu vmx sse2\n")
    return root


def qemu(tmp_path: Path, script: str) -> Qemu:
    file = tmp_path / "qemu"
    file.write_text(f"#!/bin/sh\necho boot >>{tmp_path}/boots\n{script}\n")
    file.chmod(0o755)
    return Qemu(file, (str(file),), (11, 1, 0))


def test_what_stands_in_the_way(root: Path) -> None:
    assert kvm_obstacle(root).startswith("KVM makes no virtual machine: ")
    (root / "proc/cpuinfo").write_text("flags\t\t: fpu sse2\n")
    assert kvm_obstacle(root) == "this processor shows neither VT-x nor AMD-V"
    (root / "dev/kvm").unlink()
    assert kvm_obstacle(root) == "no /dev/kvm"


@pytest.mark.parametrize(
    ("script", "kind", "reason"),
    [
        ("echo '[ 0.9] Kernel panic - not syncing: VFS: Unable to mount root fs'", "kvm", "runs under KVM"),
        ("echo 'failed to initialize kvm' >&2; exit 1", "tcg", "failed to initialize kvm"),
        ("exit 3", "tcg", "status 3"),
        ("exec sleep 60", "tcg", "hangs under KVM"),
    ],
)
def test_a_kernel_is_booted_once(
    tmp_path: Path, kernel: Path, root: Path, monkeypatch: pytest.MonkeyPatch, script: str, kind: str, reason: str
) -> None:
    monkeypatch.setattr(module, "kvm_obstacle", lambda root: "")
    monkeypatch.setattr(module, "BOOT_S", 0.3 if "sleep" in script else 20)
    it = qemu(tmp_path, script)
    first = choose_acceleration(it, kernel, root=root)
    assert first.kind == kind
    assert reason in first.reason
    assert choose_acceleration(it, kernel, root=root) == first
    assert (tmp_path / "boots").read_text() == "boot\n"
    kernel.write_bytes(b"another")
    os.utime(kernel, ns=(1, 1))
    choose_acceleration(it, kernel, root=root)
    assert (tmp_path / "boots").read_text() == "boot\nboot\n"


def test_a_spoilt_answer_is_found_out_again(
    tmp_path: Path, kernel: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "kvm_obstacle", lambda root: "")
    it = qemu(tmp_path, "exit 3")
    first = choose_acceleration(it, kernel, root=root)
    (kept,) = (cache_folder() / "kvm").iterdir()
    assert json.loads(kept.read_text())["kind"] == "tcg"
    kept.write_text("[]")
    assert choose_acceleration(it, kernel, root=root) == first


def test_an_answer_that_others_could_have_given_does_not_count(
    tmp_path: Path, kernel: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "kvm_obstacle", lambda root: "")
    it = qemu(tmp_path, "exit 3")
    first = choose_acceleration(it, kernel, root=root)
    (kept,) = (cache_folder() / "kvm").iterdir()
    kept.write_text('{"kind": "kvm", "reason": "so says a stranger"}')
    kept.parent.parent.chmod(0o777)
    assert choose_acceleration(it, kernel, root=root) == first


def test_an_obstacle_costs_no_boot(tmp_path: Path, kernel: Path, root: Path) -> None:
    (root / "dev/kvm").unlink()
    assert choose_acceleration(qemu(tmp_path, ""), kernel, root=root) == Acceleration("tcg", "no /dev/kvm")
    assert not (tmp_path / "boots").exists()

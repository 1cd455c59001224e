"""The doctor's findings on machines made of a few files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from virtfn.api.doctor import Machine, examine


@pytest.fixture(autouse=True)
def nothing_of_qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Look for QEMU and image in empty places."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("VIRTFN_QEMU", raising=False)


def install_qemu(root: Path, says: str, devices: str = "vfio-user-pci options:") -> None:
    """Put a program into the PATH that answers as a QEMU does."""
    path = root / "bin" / "qemu-system-x86_64"
    path.parent.mkdir()
    path.write_text(f"#!/bin/sh\ncase $* in *-device*) echo '{devices}' ;; *-L*) ;; *) echo '{says}' ;; esac\n")
    path.chmod(0o755)


def install_image(root: Path) -> None:
    folder = root / "cache/virtfn/qemu/images/0123"
    folder.mkdir(parents=True)
    for name in ("vmlinuz", "initrd.gz"):
        (folder / name).touch()
    (folder / "image.json").write_text('{"version": "6.1.0-9-amd64", "packages": []}')
    (folder.parent / "current").symlink_to("0123")


def findings(machine: Machine) -> tuple[dict[str, bool], dict[str, dict[str, object]]]:
    document = examine(machine)
    can, checks = document["can"], document["checks"]
    assert isinstance(can, dict)
    assert isinstance(checks, list)
    for check in checks:
        assert check["ok"] or check["remedy"], check
    return can, {check["name"]: check for check in checks}


def test_a_bare_machine(tmp_path: Path) -> None:
    can, checks = findings(Machine(tmp_path, which=lambda name: None, kernels_cached=lambda: False))
    assert can == {"run": True, "qemu": False, "host": False, "hardware": False, "judges": False}
    assert checks["tshark"]["remedy"] == "Debian package tshark"
    assert checks["lspci"]["remedy"] == "Debian package pciutils"
    assert str(checks["kernel cache"]["found"]).startswith("cold")
    assert checks["KVM"]["found"] == "no /dev/kvm"


@pytest.mark.parametrize(
    ("says", "ok"),
    [
        ("QEMU emulator version 10.1.0 (Debian 1:10.1.0)", True),
        ("QEMU emulator version 11.0", True),
        ("QEMU emulator version 10.0.3", False),
        ("QEMU emulator version 7.2.19 (Debian)", False),
        ("hello", False),
        ("", False),
    ],
)
def test_qemu_versions(tmp_path: Path, says: str, ok: bool) -> None:
    install_qemu(tmp_path, says)
    install_image(tmp_path)
    can, checks = findings(Machine(tmp_path, which=lambda name: None, kernels_cached=lambda: True))
    assert can["qemu"] is ok
    assert checks["QEMU"]["ok"] is ok
    assert ok or "virtfn image qemu" in str(checks["QEMU"]["remedy"])
    assert str(checks["guest image"]["found"]).startswith("Linux 6.1.0-9-amd64")


@pytest.mark.parametrize("missing", ["", "DMA of a device does not reach the configuration space of another"])
def test_a_qemu_is_asked_whether_it_bears_hosts(tmp_path: Path, missing: str) -> None:
    install_qemu(tmp_path, "QEMU emulator version 11.0")
    machine = Machine(tmp_path, which=lambda name: None, kernels_cached=lambda: True, probe=lambda qemu: missing)
    can, checks = findings(machine)
    assert can["host"] is (not missing)
    assert str(checks["VFs made by guests"]["found"]) == (missing or "this QEMU does what it takes")


def test_a_qemu_that_ends_at_once_bears_no_hosts(tmp_path: Path) -> None:
    install_qemu(tmp_path, "QEMU emulator version 11.0")
    can, checks = findings(Machine(tmp_path, which=lambda name: None, kernels_cached=lambda: True))
    assert not can["host"]
    assert "QEMU ended at start" in str(checks["VFs made by guests"]["found"])
    assert "\n" not in str(checks["VFs made by guests"]["found"])


def test_a_qemu_without_the_device(tmp_path: Path) -> None:
    install_qemu(tmp_path, "QEMU emulator version 11.0", devices="no such device")
    _, checks = findings(Machine(tmp_path, which=lambda name: None, kernels_cached=lambda: True))
    assert "built without vfio-user-pci" in str(checks["QEMU"]["found"])


def test_an_image_that_is_not_made(tmp_path: Path) -> None:
    install_qemu(tmp_path, "QEMU emulator version 11.0")
    can, checks = findings(Machine(tmp_path, which=lambda name: None, kernels_cached=lambda: True))
    assert not can["qemu"]
    assert checks["guest image"]["remedy"] == "virtfn image build"


@pytest.mark.parametrize("facts", ["", "{}", "[]", '{"version": "6.1", "packages": 5}'])
def test_a_broken_image_counts_as_none(tmp_path: Path, facts: str) -> None:
    install_image(tmp_path)
    (tmp_path / "cache/virtfn/qemu/images/0123/image.json").write_text(facts)
    _, checks = findings(Machine(tmp_path, which=lambda name: None, kernels_cached=lambda: True))
    assert not checks["guest image"]["ok"]


def test_a_machine_with_hardware(tmp_path: Path) -> None:
    devices = tmp_path / "sys/bus/pci/devices"
    for name, kind, total in (
        ("0000:01:00.0", "0x020000", "8"),
        ("0000:02:00.0", "0x020000", "0"),
        ("0000:03:00.0", "0x010802", "4"),
    ):
        (devices / name).mkdir(parents=True)
        (devices / name / "class").write_text(kind + "\n")
        (devices / name / "sriov_totalvfs").write_text(total + "\n")
    (tmp_path / "sys/kernel/iommu_groups/0").mkdir(parents=True)
    can, checks = findings(Machine(tmp_path, which=lambda name: None, kernels_cached=lambda: True))
    assert can["hardware"]
    assert checks["SR-IOV NIC"]["found"] == "0000:01:00.0 (8 VFs)"


def test_a_broken_numba_is_a_finding(tmp_path: Path) -> None:
    def broken() -> bool:
        raise ImportError("no\nllvmlite")

    can, checks = findings(Machine(tmp_path, which=lambda name: None, kernels_cached=broken))
    assert not can["run"]
    assert checks["kernels"]["found"] == "Numba fails: no llvmlite"


@pytest.mark.skipif(os.geteuid() == 0, reason="not run: root may open everything")
def test_a_kvm_that_may_not_be_opened(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/kvm").touch(mode=0o000)
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("flags : fpu vmx\n")
    _, checks = findings(Machine(tmp_path, which=lambda name: None, kernels_cached=lambda: True))
    assert str(checks["KVM"]["remedy"]).startswith("add this user to group kvm")


def test_a_processor_without_virtualization(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/kvm").touch()
    _, checks = findings(Machine(tmp_path, which=lambda name: None, kernels_cached=lambda: True))
    assert "neither VT-x nor AMD-V" in str(checks["KVM"]["found"])

"""The doctor's findings on machines made of a few files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from virtfn.api.doctor import Machine, examine, render_doctor


def program(path: Path, says: str) -> str:
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)
    return str(path)


def findings(machine: Machine) -> tuple[dict[str, bool], dict[str, dict[str, object]]]:
    document = examine(machine)
    render_doctor(document)
    can, checks = document["can"], document["checks"]
    assert isinstance(can, dict)
    assert isinstance(checks, list)
    for check in checks:
        assert check["ok"] or check["remedy"], check
    return can, {check["name"]: check for check in checks}


def test_a_bare_machine(tmp_path: Path) -> None:
    can, checks = findings(Machine(tmp_path, which=lambda name: None, kernels_cached=lambda: False))
    assert can == {"run": True, "qemu": False, "hardware": False, "judges": False}
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
    path = program(tmp_path / "qemu", says)
    can, checks = findings(Machine(tmp_path, which=lambda name: path, kernels_cached=lambda: True))
    assert can["qemu"] is ok
    assert checks["QEMU"]["ok"] is ok


def test_a_program_that_does_not_run(tmp_path: Path) -> None:
    machine = Machine(tmp_path, which=lambda name: str(tmp_path / "absent"), kernels_cached=lambda: True)
    assert not findings(machine)[0]["qemu"]


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
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/kvm").touch()
    can, checks = findings(Machine(tmp_path, which=lambda name: None, kernels_cached=lambda: True))
    assert can["hardware"]
    assert checks["SR-IOV NIC"]["found"] == "0000:01:00.0 (8 VFs)"
    assert checks["KVM"]["ok"]


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
    _, checks = findings(Machine(tmp_path, which=lambda name: None, kernels_cached=lambda: True))
    assert checks["KVM"]["remedy"] == "add this user to group kvm"

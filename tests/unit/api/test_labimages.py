"""What guests under QEMU boot: which keys go together, and that what is no kernel, initramfs or disk is said so."""

from __future__ import annotations

import gzip
import json
import struct
from pathlib import Path

import pytest

from virtfn.api.boot import machine_parts, notes_on
from virtfn.api.image import Platform
from virtfn.api.lab import Lab, LabError, load_lab, parse_lab, refuse_unsupported, schema
from virtfn.machine.ports import VirtfnError
from virtfn.vmm.qemu import Acceleration, Qemu
from virtfn.vmm.qemu.image import Image

LAB = """\
name: images
pfs: [{{name: pf0, sr-iov: {{total-vfs: 2}}}}]
guests:
  - {{name: a, vmm: qemu, nic: {{pf: pf0, vf: 0}}}}
  - name: b
    vmm: {vmm}
    nic: {{pf: pf0, vf: 1}}
{keys}
workload: {{kind: {kind}}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a kernel, an initramfs, disks, and what is none of these."""
    kernel = bytearray(0x4000)
    kernel[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", kernel, 0x20E, 0x3000)
    kernel[0x3200:0x3220] = b"6.12.9-amd64 (debian) #1 SMP\0\0\0\0"
    contents = {
        "vmlinuz": bytes(kernel),
        "initrd.gz": gzip.compress(b"070701"),
        "initrd.cpio": b"070701" + bytes(100),
        "disk.qcow2": b"QFI\xfb" + bytes(508),
        "disk.raw": bytes(1024),
        "odd.raw": bytes(1000),
        "disk.vmdk": b"KDMV" + bytes(508),
        "disk.qcow2.xz": b"\xfd7zXZ\0" + bytes(506),
        "empty": b"",
        "words": b"hello",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder").mkdir()
    return tmp_path


def text(keys: str, kind: str = "none", vmm: str = "qemu") -> str:
    return LAB.format(keys="\n".join(f"    {line}" for line in keys.splitlines()), kind=kind, vmm=vmm)


def lab_of(folder: Path, keys: str, kind: str = "none", vmm: str = "qemu") -> Lab:
    return parse_lab(text(keys, kind, vmm), "lab.yaml", folder)


IMAGE = Image(Path("/i/vmlinuz"), Path("/i/initrd.gz"), "6.1.0-57-amd64", ())
QEMU = Qemu(Path("/q"), ("/q",), (11, 1, 0))
PLATFORM = Platform(QEMU, IMAGE, Acceleration("tcg", ""))


def test_what_a_guest_boots(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "i").mkdir()
    for name in ("vmlinuz", "initrd.gz"):
        (folder / "i" / name).write_bytes((folder / name).read_bytes())
    ours = Image(folder / "i/vmlinuz", folder / "i/initrd.gz", "6.1.0-57-amd64", ())
    platform = Platform(QEMU, ours, Acceleration("tcg", ""))

    def boots(keys: str) -> tuple[Path | None, Path | None, str]:
        parts = machine_parts(lab_of(folder, keys).guests[1], platform)
        assert parts.iommu is ("iommu:" in keys)
        return parts.kernel, parts.initrd, parts.append

    own = "virtfn.name=b quiet"
    assert boots("") == (ours.kernel, ours.initrd, own)
    assert boots("append: debug") == (ours.kernel, ours.initrd, f"{own} debug")
    translated = f"{own} intel_iommu=on iommu=nopt"
    assert boots("iommu: translated\nappend: iommu=pt") == (ours.kernel, ours.initrd, f"{translated} iommu=pt")
    assert boots("iommu: pt") == (ours.kernel, ours.initrd, f"{own} intel_iommu=on iommu=pt")
    assert boots("kernel: vmlinuz") == (folder / "vmlinuz", ours.initrd, own)
    assert boots("kernel: vmlinuz\ninitrd: initrd.cpio") == (folder / "vmlinuz", folder / "initrd.cpio", "")
    assert boots("initrd: initrd.gz\nappend: x=1") == (ours.kernel, folder / "initrd.gz", "x=1")
    assert boots("disk: disk.qcow2") == (None, None, "")
    assert boots("disk: disk.qcow2\nkernel: vmlinuz\nappend: root=/dev/vda") == (
        folder / "vmlinuz", None, "root=/dev/vda",
    )  # fmt: skip
    assert boots("disk: {file: disk.raw, boot: false}") == (ours.kernel, ours.initrd, own)


def test_keys_become_parts_of_the_machine(folder: Path) -> None:
    keys = "disk: {file: disk.qcow2, snapshot: false, format: qcow2}\ncpus: 4\nmemory-mib: 64\n"
    keys += f"qemu-args: [-device, usb-tablet]\nfirmware: {folder}/words"
    parts = machine_parts(lab_of(folder, keys).guests[1], PLATFORM)
    assert (parts.cpus, parts.memory_mib, parts.extra) == (4, 64, ("-device", "usb-tablet"))
    assert parts.firmware == folder / "words"
    assert parts.disk is not None
    assert (parts.disk.format, parts.disk.snapshot, parts.disk.boot) == ("qcow2", False, True)
    assert parts.reboot  # it is the guest's own business
    raw = machine_parts(lab_of(folder, "disk: disk.raw").guests[1], PLATFORM).disk
    assert raw is not None
    assert (raw.format, raw.snapshot) == ("raw", True)


def test_who_takes_commands(folder: Path) -> None:
    for keys, agent in (
        ("", True),
        ("kernel: vmlinuz", True),
        ("initrd: initrd.gz", False),
        ("initrd: initrd.gz\nagent: true", True),
        ("disk: disk.raw", False),
        ("disk: {file: disk.raw, boot: false}", True),
        ("kernel: vmlinuz\ndisk: disk.raw", False),
        ("agent: false", False),
    ):
        assert lab_of(folder, keys).guests[1].has_agent is agent, keys


def test_what_is_missing_is_said(folder: Path) -> None:
    [note] = notes_on(lab_of(folder, "kernel: vmlinuz").guests[1], PLATFORM)
    assert "its kernel is 6.12.9-amd64, and virtfn's initramfs has the modules of 6.1.0-57-amd64 alone" in note
    assert "image build --kernel" in note
    [note] = notes_on(lab_of(folder, "disk: disk.raw").guests[1], PLATFORM)
    assert "without virtfn's agent" in note
    assert notes_on(lab_of(folder, "").guests[1], PLATFORM) == []


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ("kernel: nothing", "guests[1].kernel: '{0}/nothing' is not there"),
        ("kernel: words", "guests[1].kernel: '{0}/words' is no Linux kernel; give a bzImage"),
        ("kernel: disk.qcow2", "guests[1].kernel: '{0}/disk.qcow2' is qcow2; give a bzImage"),
        ("kernel: folder", "is no regular file"),
        ("kernel: empty", "is empty"),
        ("kernel: ''", "guests[1].kernel: is not a file name; names are relative to the lab file"),
        ("kernel: 7", "guests[1].kernel: must be the name of a file, not 7"),
        ("initrd: words", "guests[1].initrd: '{0}/words' is no initramfs; give a cpio archive"),
        ("initrd: vmlinuz", "is a Linux kernel; give a cpio archive"),
        ("disk: nothing", "guests[1].disk.file: '{0}/nothing' is not there"),
        ("disk: odd.raw", "has 1000 bytes, which is no whole number of sectors"),
        ("disk: disk.vmdk", "is a VMDK disk; give a disk, qcow2 or raw: qemu-img convert"),
        ("disk: disk.qcow2.xz", "is compressed by xz; give a disk"),
        ("disk: {{file: disk.qcow2, format: raw}}", "is qcow2, not raw; leave format out"),
        ("disk: {{file: disk.raw, format: qcow2}}", "is raw, not qcow2"),
        ("disk: {{file: disk.raw, format: vdi}}", "guests[1].disk.format: must be one of 'qcow2' or 'raw'"),
        ("disk: {{file: disk.raw, snapshot: false}}", "guests[1].disk.format: is needed with snapshot: false"),
        (
            "disk: {{file: disk.raw, size: 4}}",
            "guests[1].disk.size: is not a key here; keys are file, format, snapshot, boot",
        ),
        ("disk: {{}}", "guests[1].disk.file: is required"),
        ("disk: [disk.raw]", "guests[1].disk: must be"),
        ("disk: disk.raw\nappend: quiet", "guests[1].append: is for a kernel, and the disk boots its own"),
        ("disk: disk.raw\ninitrd: initrd.gz", "guests[1].initrd: is for a kernel"),
        ("disk: disk.raw\niommu: pt", "guests[1].iommu: is for a kernel"),
        ("iommu: off", "guests[1].iommu: must be one of 'none', 'translated' or 'pt', not 'off'"),
        ("firmware: coreboot", "guests[1].firmware: '{0}/coreboot' is no file; use seabios, ovmf"),
        ('append: "a\\nb"', "guests[1].append: is not one printable line"),
        ("cpus: 0", "guests[1].cpus: must be at least 1"),
        ("memory-mib: 128", "guests[1].memory-mib: Linux needs 256 or more"),
        ("memory-mib: 32\ndisk: disk.raw", "guests[1].memory-mib: Linux needs 64 or more"),
        ("agent: maybe", "guests[1].agent: must be true or false"),
        ("qemu-args: [-m, 4G]", "guests[1].qemu-args[0]: -m would break the lab: use memory-mib"),
        ("qemu-args: [-enable-kvm, --smp, '4']", "guests[1].qemu-args[1]: -smp would break the lab: use cpus"),
        ("qemu-args: [-device, 'igb,id=rp0']", "guests[1].qemu-args[1]: id=rp0 is the name of a part of virtfn's"),
        ("qemu-args: [-device, 'igb,bus=rp0']", "guests[1].qemu-args[1]: bus=rp0 is for the guest's function"),
        ("qemu-args: [-S]", "guests[1].qemu-args[0]: -S would break the lab"),
        ("qemu-args: -S", "guests[1].qemu-args: must be a list"),
        ("qemu-args: ['']", "guests[1].qemu-args[0]: must not be empty"),
        ('qemu-args: ["-x\\ny"]', "guests[1].qemu-args[0]: is no argument"),
    ],
)
def test_what_is_wrong_is_said_with_file_line_and_key(folder: Path, keys: str, said: str) -> None:
    with pytest.raises(LabError) as caught:
        lab_of(folder, keys.replace("{{", "{").replace("}}", "}"))
    message = str(caught.value)
    assert message.startswith("lab.yaml:")
    assert said.format(folder) in message
    assert "\n" not in message


def test_embedded_guests_boot_nothing(folder: Path) -> None:
    for keys in (
        "cpus: 2",
        "kernel: vmlinuz",
        "disk: disk.raw",
        "qemu-args: []",
        "agent: true",
        "firmware: ovmf",
        "iommu: pt",
    ):
        with pytest.raises(LabError, match=r"guests\[1\]\..*: is for guests with vmm: qemu"):
            lab_of(folder, keys, "ping", "embedded")


def test_work_needs_the_agent(folder: Path) -> None:
    with pytest.raises(LabError, match=r"workload\.kind: ping is done by virtfn's agent, which guest b does not have"):
        lab_of(folder, "disk: disk.raw", "ping")
    refuse_unsupported(lab_of(folder, "disk: disk.raw\nagent: true", "ping"))
    refuse_unsupported(lab_of(folder, "disk: disk.raw"))
    with pytest.raises(LabError, match=r"guests\[1\].vmm: an embedded guest does nothing else than the workload"):
        lab_of(folder, "", "none", "embedded")


def test_a_disk_is_written_by_one_guest(folder: Path) -> None:
    disk = "disk: {file: disk.raw, format: raw, snapshot: false}"
    shared = text(disk).replace("{name: a, vmm: qemu,", f"{{name: a, vmm: qemu, {disk},")
    with pytest.raises(LabError, match="is written by guest a; give each its own, or snapshot: true"):
        parse_lab(shared, "lab.yaml", folder)
    parse_lab(shared.replace(", snapshot: false", ""), "lab.yaml", folder)


def test_files_are_relative_to_the_lab_file(folder: Path) -> None:
    (folder / "lab.yaml").write_text(text("kernel: vmlinuz"))
    assert load_lab(folder / "lab.yaml").guests[1].kernel == folder / "vmlinuz"


def test_a_disk_that_is_gone_when_the_guest_starts(folder: Path) -> None:
    guest = lab_of(folder, "disk: disk.raw").guests[1]
    (folder / "disk.raw").unlink()
    with pytest.raises(VirtfnError, match=r"guest b: .*disk.raw: No such file"):
        machine_parts(guest, PLATFORM)


def test_the_schema_takes_a_disk_in_both_forms() -> None:
    disk = schema()["$defs"]["Guest"]["properties"]["disk"]  # type: ignore[index]
    assert [form.get("type", form.get("$ref")) for form in disk["anyOf"]] == ["string", "#/$defs/Disk", "null"]
    assert json.dumps(disk)

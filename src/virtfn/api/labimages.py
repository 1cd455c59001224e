"""What can be wrong with what guests under QEMU boot: files that are something else, keys that do not fit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from virtfn.api.labfile import KeyPath
from virtfn.api.labmodel import LINUX_MIB, Guest, Lab

__all__ = ["image_faults"]

LEAST_MIB = 64
_LONGEST_PATH = 96
_FOR_QEMU = ("cpus", "kernel", "initrd", "append", "disk", "firmware", "iommu", "agent", "qemu_args")


def image_faults(lab: Lab) -> Iterator[tuple[KeyPath, str]]:
    """List what is wrong with what guests boot: which key, what, and how to mend it."""
    if any(guest.vmm == "qemu" for guest in lab.guests):
        from virtfn.vmm.qemu.options import refused_argument  # QEMU's modules: most labs do without
    writers: dict[str, str] = {}
    for i, guest in enumerate(lab.guests):
        key: KeyPath = ("guests", i)
        if guest.vmm != "qemu":
            for name in _FOR_QEMU:
                if name in guest.model_fields_set:
                    yield (*key, name.replace("_", "-")), "is for guests with vmm: qemu; leave it out, or use that"
            continue
        least = LINUX_MIB if guest.own_initrd else LEAST_MIB
        if guest.memory_mib < least:
            yield (*key, "memory-mib"), f"Linux needs {least} or more, not {guest.memory_mib}; raise it"
        yield from _file_faults(key, guest)
        yield from _disk_faults((*key, "disk"), guest, writers)
        if (refused := refused_argument(guest.qemu_args)) is not None:
            place, words = refused
            yield (*key, "qemu-args", place), words
    yield from _agent_faults(lab)


def _file_faults(key: KeyPath, guest: Guest) -> Iterator[tuple[KeyPath, str]]:
    from virtfn.vmm.qemu.bootfiles import initrd_fault, kernel_fault

    if guest.kernel is not None and (words := kernel_fault(guest.kernel)):
        yield (*key, "kernel"), f"{_named(guest.kernel)} {words}"
    if guest.initrd is not None and (words := initrd_fault(guest.initrd)):
        yield (*key, "initrd"), f"{_named(guest.initrd)} {words}"
    if isinstance(guest.firmware, Path) and not guest.firmware.is_file():
        yield (*key, "firmware"), f"{_named(guest.firmware)} is no file; use seabios, ovmf, or a file of a firmware"
    if guest.append and not guest.append.isprintable():
        yield (*key, "append"), "is not one printable line; kernels have no other"
    if guest.boots_disk:
        for name in ("initrd", "append", "iommu"):
            if name in guest.model_fields_set:
                yield (*key, name), "is for a kernel, and the disk boots its own; add kernel, or disk: {boot: false}"
    if guest.iommu != "none" and guest.nic.io == "split":
        yield (*key, "iommu"), "is for functions; a virtio device goes past it; leave it out, or use another io"


def _disk_faults(key: KeyPath, guest: Guest, writers: dict[str, str]) -> Iterator[tuple[KeyPath, str]]:
    """List what is wrong with a disk. writers: who writes to which file, of the guests so far."""
    disk = guest.disk
    if disk is None:
        return
    from virtfn.vmm.qemu.bootfiles import disk_fault

    if words := disk_fault(disk.file, disk.format):
        yield (*key, "file"), f"{_named(disk.file)} {words}"
        return
    if disk.snapshot:
        return
    if disk.format is None:
        yield (*key, "format"), "is needed with snapshot: false: else a guest chooses what its disk is taken for"
    if not os.access(disk.file, os.W_OK):
        yield (*key, "file"), f"{_named(disk.file)} cannot be written; check the permissions, or use snapshot: true"
    owner = writers.setdefault(os.path.realpath(disk.file), guest.name)
    if owner != guest.name:
        yield (*key, "file"), f"{_named(disk.file)} is written by guest {owner}; give each its own, or snapshot: true"


def _agent_faults(lab: Lab) -> Iterator[tuple[KeyPath, str]]:
    """List guests that are to work, and take no commands."""
    kind = lab.workload.kind
    if kind == "none":
        for i, guest in enumerate(lab.guests):
            if guest.vmm != "qemu":
                yield (
                    ("guests", i, "vmm"),
                    "an embedded guest does nothing else than the workload; give the lab another",
                )
        return
    for i, guest in enumerate(lab.guests):
        if guest.vmm == "qemu" and not guest.has_agent:
            yield (
                ("workload", "kind"),
                f"{kind} is done by virtfn's agent, which guest {guest.name} does not have: it boots an image of its "
                f"own; use kind: none, or give guests[{i}] agent: true if its image runs it",
            )


def _named(path: Path) -> str:
    """Show a path: its end, if it is long."""
    text = str(path)
    return ascii(text if len(text) <= _LONGEST_PATH else f"...{text[-_LONGEST_PATH:]}")

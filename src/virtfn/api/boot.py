"""What a guest under QEMU boots: from the keys of a lab to the parts of a virtual machine.

kernel  initrd  disk      boots
-       -       -         virtfn's kernel and initramfs
given   -       -         it, with virtfn's initramfs, which has the modules of virtfn's kernel alone
any     given   -         it
-       -       given     the disk, by the firmware
given   -       given     it, with its root on the disk
as without it   boot: no  the same, and one more disk
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from virtfn.api.labmodel import Guest
from virtfn.machine.ports import VirtfnError
from virtfn.vmm.qemu import Machine, find_ovmf
from virtfn.vmm.qemu.bootfiles import kernel_release, qcow2_at
from virtfn.vmm.qemu.machine import Disk

if TYPE_CHECKING:
    from virtfn.api.image import Platform

__all__ = ["machine_parts", "notes_on"]

_IOMMU_WORDS = {"none": "", "translated": "intel_iommu=on iommu=nopt", "pt": "intel_iommu=on iommu=pt"}


def machine_parts(guest: Guest, platform: Platform) -> Machine:
    """Return the virtual machine of a guest, with a slot for its interface.

    Raises VirtfnError if a file of it, or a firmware, is not there.
    """
    kernel, initrd, append = guest.kernel, guest.initrd, ""
    if not guest.boots_disk:
        if platform.image is not None:
            kernel = kernel or platform.image.kernel
            initrd = initrd or (platform.image.initrd if guest.own_initrd else None)
        own = f"virtfn.name={guest.name} quiet" if guest.own_initrd else ""
        append = " ".join(part for part in (own, _IOMMU_WORDS[guest.iommu], guest.append) if part)
    return Machine(
        guest.name,
        kernel,
        initrd,
        append=append,
        memory_mib=guest.memory_mib,
        cpus=guest.cpus,
        slots=1,
        extra=guest.qemu_args,
        reboot=not guest.own_initrd,
        disk=_disk(guest),
        firmware=_firmware(guest, platform),
        native_hotplug=guest.nic.io == "host",
        iommu=guest.iommu != "none",
    )


def _disk(guest: Guest) -> Disk | None:
    disk = guest.disk
    if disk is None:
        return None
    try:
        form = disk.format or ("qcow2" if qcow2_at(disk.file) else "raw")
    except OSError as error:
        raise VirtfnError(f"guest {guest.name}: {disk.file}: {error.strerror}", errno_name="ENOENT") from None
    return Disk(disk.file, form, disk.snapshot, boot=disk.boot)


def _firmware(guest: Guest, platform: Platform) -> Path | None:
    if isinstance(guest.firmware, Path):
        return guest.firmware
    return find_ovmf(platform.qemu) if guest.firmware == "ovmf" else None


def notes_on(guest: Guest, platform: Platform) -> list[str]:
    """Say what of a guest will not be there: modules of its kernel, or the agent."""
    notes = []
    if guest.kernel is not None and guest.own_initrd and platform.image is not None:
        release = kernel_release(guest.kernel) or "of an unknown release"
        if release != platform.image.version:
            notes.append(
                f"guest {guest.name}: its kernel is {release}, and virtfn's initramfs has the modules of "
                f"{platform.image.version} alone: igbvf and all others are there only if they are built in; "
                "virtfn image build --kernel makes an initramfs for a kernel of Debian's"
            )
    if not guest.has_agent:
        notes.append(
            f"guest {guest.name}: it boots an image of its own, without virtfn's agent: boot_s is unknown, and frames "
            "are those of its function"
        )
    return notes

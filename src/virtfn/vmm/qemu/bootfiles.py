"""Files that a user gives a guest to boot: kernel, initramfs, disk. What each is, by its first bytes.

    kernel   bzImage "HdrS" at 0x202, its release behind the pointer at 0x20e; or an ELF file with an entry for Xen PVH
    initrd   cpio (newc), plain or compressed
    disk     qcow2, or raw: whatever is no other kind of file, in whole sectors

Only regular files are opened. Each `..._fault` returns what is wrong and how to mend it, in words, or nothing.

Spec: Linux, Documentation/arch/x86/boot.rst and Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import struct
from pathlib import Path

__all__ = ["SECTOR", "disk_fault", "initrd_fault", "kernel_fault", "kernel_release", "qcow2_at"]

SECTOR = 512
_HEAD = 0x8400
_HEADER, _VERSION_POINTER, _LONGEST_RELEASE = 0x202, 0x20E, 256
_CPIO = "a cpio archive"
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x02\x21\x4c\x18": "lz4",
    b"\x04\x22\x4d\x18": "lz4",
    b"BZh": "bzip2",
    b"\x5d\0\0": "lzma",
    b"\x89LZO": "lzo",
}
_KINDS = {
    (0, b"QFI\xfb"): "qcow2",
    (_HEADER, b"HdrS"): "a Linux kernel",
    (0, b"\x7fELF"): "an ELF program",
    (0, b"07070"): _CPIO,
    (0, b"KDMV"): "a VMDK disk",
    (0, b"vhdxfile"): "a VHDX disk",
    (0, b"conectix"): "a VHD disk",
    (0x40, b"\x7f\x10\xda\xbe"): "a VDI disk",
    (0, b"QED\0"): "a QED disk",
    (0, b"LUKS\xba\xbe"): "an encrypted disk",
    (0, b"!<arch>\n"): "a package or an archive",
    (0, b"PK\x03\x04"): "a ZIP archive",
}


def kernel_fault(path: Path) -> str:
    """Say what keeps a file from being a kernel that QEMU boots."""
    head = _head(path)
    if isinstance(head, str):
        return head
    kind = _kind(head)
    if kind in ("a Linux kernel", "an ELF program"):
        return ""
    return f"is {kind or 'no Linux kernel'}; give a bzImage, as Debian's /boot/vmlinuz-* is"


def initrd_fault(path: Path) -> str:
    """Say what keeps a file from being an initramfs."""
    head = _head(path)
    if isinstance(head, str):
        return head
    kind = _kind(head)
    if kind == _CPIO or kind.startswith("compressed"):
        return ""
    return f"is {kind or 'no initramfs'}; give a cpio archive, plain or compressed"


def disk_fault(path: Path, form: str | None) -> str:
    """Say what keeps a file from being a disk. form: qcow2 or raw, if the user says so."""
    head = _head(path)
    if isinstance(head, str):
        return head
    kind = _kind(head)
    if form is not None and (kind == "qcow2") is not (form == "qcow2"):
        return f"is {kind or 'raw'}, not {form}; leave format out, or give the right one"
    if kind == "qcow2":
        return ""
    if kind:
        return f"is {kind}; give a disk, qcow2 or raw: qemu-img convert makes one of others"
    size = path.stat().st_size
    return (
        f"has {size} bytes, which is no whole number of sectors; a raw disk has {SECTOR} each" if size % SECTOR else ""
    )


def qcow2_at(path: Path) -> bool:
    """Tell whether a disk is qcow2. Raises OSError."""
    with path.open("rb") as stream:
        return stream.read(4) == b"QFI\xfb"


def kernel_release(path: Path) -> str:
    """Read a bzImage's release, as `uname -r` shows it; empty if it says none."""
    head = _head(path)
    if isinstance(head, str) or _kind(head) != "a Linux kernel":
        return ""
    (pointer,) = struct.unpack_from("<H", head, _VERSION_POINTER)
    text = head[pointer + 0x200 : pointer + 0x200 + _LONGEST_RELEASE].partition(b"\0")[0]
    word = text.decode("ascii", "replace").partition(" ")[0]
    return word if pointer and word.isprintable() else ""


def _head(path: Path) -> bytes | str:
    """Read the first bytes; or say in words why they cannot be had."""
    try:
        if not path.exists():
            return "is not there; names are relative to the lab file"
        if not path.is_file():
            return "is no regular file"
        with path.open("rb") as stream:
            return stream.read(_HEAD) or "is empty"
    except (OSError, ValueError) as error:
        return f"cannot be read ({getattr(error, 'strerror', None) or error}); check the name and the permissions"


def _kind(head: bytes) -> str:
    """Name what a file is, as far as its first bytes tell; empty if they tell nothing."""
    for (at, magic), kind in _KINDS.items():
        if head[at : at + len(magic)] == magic:
            return kind
    packed = next((name for magic, name in _COMPRESSED.items() if head.startswith(magic)), "")
    return f"compressed by {packed}" if packed else ""

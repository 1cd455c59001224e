"""The archive that a kernel unpacks into its first file system: cpio in the "newc" form, gzip around it.

A member is 110 characters (a magic number and 13 fields in hexadecimal), its name and its content, both padded to 4
bytes.
Spec: Linux, "initramfs buffer format". Everything belongs to root and has no time, so equal input gives equal bytes.
"""

from __future__ import annotations

import gzip
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Member", "archive"]


@dataclass(frozen=True, slots=True)
class Member:
    """What a path of the archive holds. mode: type and permissions; device: of a device node, major and minor.

    content: of a file its bytes, of a symbolic link its target.
    """

    mode: int
    content: bytes = b""
    device: tuple[int, int] = (0, 0)

    @classmethod
    def file(cls, content: bytes, permissions: int = 0o644) -> Member:
        """Make a regular file."""
        return cls(stat.S_IFREG | permissions, content)

    @classmethod
    def link(cls, target: str) -> Member:
        """Make a symbolic link."""
        return cls(stat.S_IFLNK | 0o777, target.encode())

    @classmethod
    def folder(cls, permissions: int = 0o755) -> Member:
        """Make a directory."""
        return cls(stat.S_IFDIR | permissions)

    @classmethod
    def characters(cls, major: int, minor: int) -> Member:
        """Make a character device node; only the kernel that unpacks it needs the privilege."""
        return cls(stat.S_IFCHR | 0o600, device=(major, minor))


def archive(members: Mapping[str, Member]) -> bytes:
    """Pack members by path (relative to the root) into a compressed archive; folders on the way are added."""
    whole = dict(members)
    for path in members:
        while path := os.path.dirname(path):
            whole.setdefault(path, Member.folder())
    packed = bytearray()
    # Sorted by parts, a folder comes before what is in it: the kernel makes no folders of its own.
    for number, path in enumerate(sorted(whole, key=lambda path: path.split("/")), 1):
        packed += _member(number, path, whole[path])
    packed += _member(0, "TRAILER!!!", Member(0))
    return gzip.compress(bytes(packed), compresslevel=6, mtime=0)


def _member(number: int, path: str, member: Member) -> bytes:
    name = path.encode() + b"\0"
    fields = (
        number, member.mode, 0, 0, 1, 0, len(member.content), 0, 0, *member.device, len(name), 0,
    )  # fmt: skip
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name
    return head + bytes(-len(head) % 4) + member.content + bytes(-len(member.content) % 4)

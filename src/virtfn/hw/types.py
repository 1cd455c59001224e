"""Kinds of numbers that must not be mixed: addresses of four worlds, routing IDs, times, MAC addresses."""

from __future__ import annotations

from typing import NewType

__all__ = [
    "Gpa",
    "Hpa",
    "Hva",
    "Iova",
    "Mac",
    "Ps",
    "Rid",
    "format_mac",
    "format_rid",
    "make_rid",
    "parse_mac",
    "parse_rid",
]

Gpa = NewType("Gpa", int)
"""Guest physical address."""
Iova = NewType("Iova", int)
"""Address in a device's DMA, before translation."""
Hpa = NewType("Hpa", int)
"""Host physical address: in this software machine, an address in this process."""
Hva = NewType("Hva", int)
"""Host virtual address: where this process sees a guest's memory as one piece."""
Rid = NewType("Rid", int)
"""Routing ID: bus 15:8, function 7:0 (device 7:3 and function 2:0 without ARI)."""
Ps = NewType("Ps", int)
"""Time in picoseconds."""
Mac = NewType("Mac", int)
"""MAC address as a 48-bit integer, first byte on the wire lowest, as RAL and RAH hold it."""


def make_rid(bus: int, device: int, function: int) -> Rid:
    """Compose a routing ID.

    Raises ValueError outside 0..255, 0..31, 0..7.
    """
    if not (0 <= bus < 256 and 0 <= device < 32 and 0 <= function < 8):
        raise ValueError(f"no such address: bus {bus}, device {device}, function {function}")
    return Rid(bus << 8 | device << 3 | function)


def format_rid(rid: Rid) -> str:
    """Write a routing ID as `0000:01:10.0`."""
    return f"0000:{rid >> 8:02x}:{rid >> 3 & 31:02x}.{rid & 7}"


def parse_rid(text: str) -> Rid:
    """Read `0000:01:10.0` or `01:10.0`.

    Raises ValueError if it is not an address of segment 0.
    """
    head, _, function = text.rpartition(".")
    parts = head.split(":")
    try:
        if len(parts) == 3 and int(parts[0], 16) != 0:
            raise ValueError
        if len(parts) not in (2, 3):
            raise ValueError
        return make_rid(int(parts[-2], 16), int(parts[-1], 16), int(function, 16))
    except ValueError:
        raise ValueError(f"{text!r} is not a PCI address like 0000:01:10.0") from None


def parse_mac(text: str) -> Mac:
    """Read `02:00:00:00:00:10`.

    Raises ValueError if it is not six bytes in hexadecimal.
    """
    parts = text.split(":")
    if len(parts) != 6 or not all(len(p) == 2 for p in parts):
        raise ValueError(f"{text!r} is not a MAC address like 02:00:00:00:00:10")
    try:
        return Mac(int.from_bytes(bytes(int(p, 16) for p in parts), "little"))
    except ValueError:
        raise ValueError(f"{text!r} is not a MAC address like 02:00:00:00:00:10") from None


def format_mac(mac: Mac) -> str:
    """Write a MAC address as `02:00:00:00:00:10`."""
    return mac.to_bytes(6, "little").hex(":")

"""What the identifiers of this machine's functions are called. Spec: PCI Code and ID Assignment Specification."""

from __future__ import annotations

__all__ = ["CLASS_NAMES", "DEVICE_NAMES", "NO_DEVICE", "VENDOR_NAMES"]

NO_DEVICE = 0xFFFF
"""Vendor ID that nobody has: what a read of an absent function returns, and what a VF itself answers."""

VENDOR_NAMES = {0x8086: "Intel Corporation"}

DEVICE_NAMES = {
    (0x8086, 0x10C9): "82576 Gigabit Network Connection",
    (0x8086, 0x10CA): "82576 Virtual Function",
    (0x8086, 0x3406): "5520 I/O Hub to ESI Port",
    (0x8086, 0x3420): "5520/5500/X58 I/O Hub PCI Express Root Port",
}

CLASS_NAMES = {0x0200: "Ethernet controller", 0x0600: "Host bridge", 0x0604: "PCI bridge"}
"""Names by base class and subclass."""

"""What a function's owner reads out of its configuration space: capabilities, and the sizes of its BARs.

Spec: PCI Express Base Specification, 7.5.1.1.11 (capabilities pointer), 7.5.1.2.1 (base address registers).
"""

from __future__ import annotations

from virtfn.hw.bits import RegMap
from virtfn.hw.pci import HEADER_SIZE, Address, Type0, capability_id
from virtfn.machine.ports import ConfigSpace, VirtfnError

__all__ = ["find_capability", "size_bars"]

_MOST = 48  # capabilities that fit below 100h


def find_capability(config: ConfigSpace, regs: type[RegMap]) -> int:
    """Find the capability, below 100h, that `regs` describes; return its offset.

    Raises VirtfnError, errno ENODEV, if the function has none.
    """
    wanted, _ = capability_id(regs)
    at, seen = config.read(Type0.CAP_POINTER.offset, 1) & ~3, 0
    while at >= HEADER_SIZE and seen < _MOST:
        if config.read(at, 1) == wanted:
            return at
        at, seen = config.read(at + 1, 1) & ~3, seen + 1
    raise VirtfnError(f"the function has no capability {wanted:#04x}", errno_name="ENODEV")


def size_bars(config: ConfigSpace) -> dict[int, tuple[int, bool]]:
    """Size the BARs by writing ones; every BAR is left as it was. Returns (bytes, 64-bit) by number."""
    found: dict[int, tuple[int, bool]] = {}
    index = 0
    while index < Type0.BAR.count:
        at = Type0.BAR.at(index)
        before = config.read(at, 4)
        config.write(at, 4, 0xFFFFFFFF)
        mask = config.read(at, 4)
        config.write(at, 4, before)
        wide = not mask & 1 and Address(mask).MEM_TYPE == 2
        size = mask & (0xFFFFFFFC if mask & 1 else 0xFFFFFFF0)
        if size:
            found[index] = size & -size, wide
        index += 2 if wide else 1
    return found

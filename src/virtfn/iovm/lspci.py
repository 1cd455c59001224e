"""Show what PCIM found in the manner of lspci: a hex dump that pciutils reads, a tree, a list, and JSON.

VFs are shown as Linux shows them: with the identity that their PF's capability gives them, and BARs at the addresses of
their slices of the VF BARs. Reads configuration space, and changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict, TypeVar

from virtfn.hw.pci import (
    CLASS_NAMES,
    CONFIG_SIZE,
    DEVICE_NAMES,
    HEADER_SIZE,
    ROM_BAR,
    VENDOR_NAMES,
    Address,
    Command,
    SrIov,
    Type0,
    Type1,
)
from virtfn.hw.types import Rid, format_rid
from virtfn.iovm.pcim import Found, FoundVf, Pcim
from virtfn.iovm.place import Range
from virtfn.iovm.vconfig import VirtualConfig
from virtfn.iovm.walk import ConfigBus, Registers, SrIovView, offsets

__all__ = ["CapabilityEntry", "Entry", "Region", "decode", "dump", "listing", "tree"]

_Item = TypeVar("_Item")
CAPABILITY_NAMES = {
    (0x01, False): "PM",
    (0x03, False): "VPD",
    (0x05, False): "MSI",
    (0x10, False): "PCIe",
    (0x11, False): "MSI-X",
    (0x01, True): "AER",
    (0x03, True): "DSN",
    (0x0D, True): "ACS",
    (0x0E, True): "ARI",
    (0x10, True): "SR-IOV",
}


class Region(TypedDict):
    """A BAR; `kind` is io, memory or rom."""

    bar: int
    kind: str
    address: int
    size: int
    wide: bool
    prefetchable: bool


class CapabilityEntry(TypedDict):
    """A capability and where it lies."""

    offset: int
    id: int
    name: str


class Bridge(TypedDict):
    """Bus numbers of a bridge."""

    primary: int
    secondary: int
    subordinate: int


class SrIovEntry(TypedDict):
    """A PF's SR-IOV capability in numbers."""

    total_vfs: int
    num_vfs: int
    enabled: bool
    first_vf_offset: int
    stride: int
    vf_device: str


class Entry(TypedDict):
    """One function, for JSON."""

    address: str
    vendor: str
    device: str
    name: str
    class_code: str
    revision: int
    command: list[str]
    regions: list[Region]
    capabilities: list[CapabilityEntry]
    bridge: Bridge | None
    sriov: SrIovEntry | None
    physfn: str | None
    vf: int | None


def dump(pcim: Pcim) -> str:
    """Write the 4 KiB of every function in hexadecimal, as `lspci -xxxx` does and `lspci -F` reads."""
    blocks = []
    for found in _everything(pcim):
        content = _bytes(pcim.bus, found)
        rows = [f"{at:02x}: {content[at : at + 16].hex(' ')}" for at in range(0, CONFIG_SIZE, 16)]
        blocks.append("\n".join([_line(found), *rows]))
    return "\n\n".join(blocks) + "\n"


def listing(pcim: Pcim) -> str:
    """Write one line for each function, with what lies behind its BARs and which capabilities it has."""
    lines = []
    for found, entry in zip(_everything(pcim), decode(pcim), strict=True):
        lines.append(_line(found))
        if entry["bridge"] is not None:
            bridge = entry["bridge"]
            lines.append(
                f"\tBus: primary={bridge['primary']:02x}, secondary={bridge['secondary']:02x}, "
                f"subordinate={bridge['subordinate']:02x}"
            )
        for region in entry["regions"]:
            width = "64-bit" if region["wide"] else "32-bit"
            what = "Expansion ROM" if region["kind"] == "rom" else f"Region {region['bar']}: {region['kind']}"
            kind = f" ({width}, {'' if region['prefetchable'] else 'non-'}prefetchable)"
            where = f"at {region['address']:08x}{kind if region['kind'] == 'memory' else ''}"
            lines.append(f"\t{what} {where} [size={_size(region['size'])}]")
        if entry["sriov"] is not None:
            sriov = entry["sriov"]
            lines.append(f"\tSR-IOV: {sriov['num_vfs']} of {sriov['total_vfs']} VFs, device {sriov['vf_device']}")
        if entry["physfn"] is not None:
            lines.append(f"\tVF {entry['vf']} of {entry['physfn']}")
        names = [f"[{c['offset']:02x}] {c['name']}" for c in entry["capabilities"]]
        if names:
            lines.append("\tCapabilities: " + ", ".join(names))
    return "\n".join(lines) + "\n"


def tree(pcim: Pcim) -> str:
    """Draw buses and functions as a tree: ports under the root, cards under ports, VFs under their PFs."""
    lines = ["[0000:00]"]
    top = [found for found in pcim.functions.values() if found.rid >> 8 == 0]
    for found, last in _with_last(sorted(top, key=lambda f: f.rid)):
        numbers = ""
        cards: list[Found] = []
        if found.is_bridge:
            header = Registers(pcim.bus, found.rid)
            first, highest = header.get(Type1.SECONDARY), header.get(Type1.SUBORDINATE)
            numbers = f" -[{first:02x}]" if first == highest else f" -[{first:02x}-{highest:02x}]"
            cards = sorted((f for f in pcim.functions.values() if f.rid >> 8 == first), key=lambda f: f.rid)
        lines.append(f"{_branch(last)}{_short(found.rid)} {_name(found)}{numbers}")
        for card, last_card in _with_last(cards):
            lines.append(f"{_stem(last)}{_branch(last_card)}{_short(card.rid)} {_name(card)}")
            for vf, last_vf in _with_last(card.vfs):
                lines.append(f"{_stem(last)}{_stem(last_card)}{_branch(last_vf)}{_short(vf.rid)} {_name(vf)}")
    return "\n".join(lines) + "\n"


def decode(pcim: Pcim) -> list[Entry]:
    """Put every function into plain values, ready for JSON, in the order of routing IDs."""
    return [_entry(pcim.bus, found) for found in _everything(pcim)]


def _everything(pcim: Pcim) -> list[Found | FoundVf]:
    functions: list[Found | FoundVf] = list(pcim.functions.values())
    functions += [vf for found in pcim.functions.values() for vf in found.vfs]
    return sorted(functions, key=lambda f: f.rid)


def _bytes(bus: ConfigBus, found: Found | FoundVf) -> bytes:
    content = b"".join(bus.config_read(found.rid, at, 4).to_bytes(4, "little") for at in range(0, CONFIG_SIZE, 4))
    if isinstance(found, Found):
        return content
    # The kernel's view of a VF: its BARs hold host addresses, and memory answers if the PF's capability lets it.
    virtual = VirtualConfig(bus, found)
    for bar in found.bars:
        virtual.place(bar.bar, bar.address)
    header = bytearray(b"".join(virtual.read(at, 4).to_bytes(4, "little") for at in range(0, HEADER_SIZE, 4)))
    header[Type0.COMMAND.offset] |= Command.of(MEM=SrIovView(bus, found.physfn).control.MSE).value
    return bytes(header) + content[HEADER_SIZE:]


def _entry(bus: ConfigBus, found: Found | FoundVf) -> Entry:
    header = Registers(bus, found.rid)
    command = Command(header.get(Type0.COMMAND))
    bridge: Bridge | None = None
    sriov: SrIovEntry | None = None
    if isinstance(found, Found) and found.is_bridge:
        bridge = {
            "primary": header.get(Type1.PRIMARY),
            "secondary": header.get(Type1.SECONDARY),
            "subordinate": header.get(Type1.SUBORDINATE),
        }
    if isinstance(found, Found) and found.is_pf:
        view = SrIovView(bus, found.rid)
        sriov = {
            "total_vfs": found.total_vfs,
            "num_vfs": view.regs.get(SrIov.NUM_VFS),
            "enabled": bool(view.control.VFE),
            "first_vf_offset": view.regs.get(SrIov.FIRST_VF_OFFSET),
            "stride": view.regs.get(SrIov.VF_STRIDE),
            "vf_device": f"{view.regs.get(SrIov.VF_DEVICE_ID):04x}",
        }
    return {
        "address": format_rid(found.rid),
        "vendor": f"{found.vendor_id:04x}",
        "device": f"{found.device_id:04x}",
        "name": _name(found),
        "class_code": f"{found.class_code:06x}",
        "revision": found.revision,
        "command": [f.name for f in Command.FIELDS if f.get(command.value)],
        "regions": [_region(bar, _address(header, found, bar)) for bar in found.bars],
        "capabilities": [
            {"offset": at, "id": number, "name": CAPABILITY_NAMES.get((number, extended), f"{number:#x}")}
            for number, at, extended in offsets(bus, found.rid)
        ],
        "bridge": bridge,
        "sriov": sriov,
        "physfn": format_rid(found.physfn) if isinstance(found, FoundVf) else None,
        "vf": found.index if isinstance(found, FoundVf) else None,
    }


def _region(bar: Range, address: int) -> Region:
    kind = "rom" if bar.bar == ROM_BAR else "io" if bar.io else "memory"
    return {
        "bar": bar.bar,
        "kind": kind,
        "address": address,
        "size": bar.size,
        "wide": bar.wide,
        "prefetchable": bar.prefetchable,
    }


def _address(header: Registers, found: Found | FoundVf, bar: Range) -> int:
    """Where a BAR is now: what its registers say, or for a VF, which has none, where its slice is."""
    if isinstance(found, FoundVf):
        return bar.address
    if bar.bar == ROM_BAR:
        return header.get(Type1.ROM if found.is_bridge else Type0.ROM) & ~0x7FF
    low = header.get(Type0.BAR, bar.bar)
    address = low & (~3 if Address(low).IO else ~15)
    return address | header.get(Type0.BAR, bar.bar + 1) << 32 if bar.wide else address


def _name(found: Found | FoundVf) -> str:
    vendor = VENDOR_NAMES.get(found.vendor_id, f"Vendor {found.vendor_id:04x}")
    device = DEVICE_NAMES.get((found.vendor_id, found.device_id), f"Device {found.device_id:04x}")
    return f"{vendor} {device}"


def _line(found: Found | FoundVf) -> str:
    kind = CLASS_NAMES.get(found.class_code >> 8, f"Class {found.class_code >> 8:04x}")
    return f"{format_rid(found.rid)} {kind}: {_name(found)} (rev {found.revision:02x})"


def _short(rid: Rid) -> str:
    return format_rid(rid)[5:]


def _size(size: int) -> str:
    for shift, unit in ((30, "G"), (20, "M"), (10, "K")):
        if size >= 1 << shift:
            return f"{size >> shift}{unit}"
    return str(size)


def _branch(last: bool) -> str:
    return " \\- " if last else " +- "


def _stem(last: bool) -> str:
    return "    " if last else " |  "


def _with_last(items: Sequence[_Item]) -> list[tuple[_Item, bool]]:
    return [(item, i == len(items) - 1) for i, item in enumerate(items)]

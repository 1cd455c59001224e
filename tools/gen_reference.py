"""Write docs/reference/registers.md, drops.md, lab.md and run-json.md from the code, or --check them.

The code is the only source. Registers: what is declared in `src/virtfn/hw` is what the device model, the drivers and
the tracer use. Drop reasons: those that the kernels count, and the report's own, explained in `api/dropreasons.py`.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections import Counter
from pathlib import Path
from typing import NamedTuple, cast

from virtfn.api import report
from virtfn.api.dropreasons import DROP_REASONS
from virtfn.api.lab import schema
from virtfn.api.reportkeys import MEANINGS
from virtfn.hw import pci
from virtfn.hw.bits import Decl, Field, Register, RegMap, Status
from virtfn.hw.i82576 import PhyRegs, Regs, VfRegs
from virtfn.hw.vtd import regs as vtd
from virtfn.kernels.i82576.state import DROP_NAMES

FOLDER = Path(__file__).parents[1] / "docs" / "reference"
COLUMNS = 120


class Map(NamedTuple):
    """A register map to write down; `scale` is bytes a unit of the offsets shown, which the PHY counts in registers."""

    title: str
    regmap: type[RegMap]
    source: str
    scale: int = 1


MAPS = [
    Map("82576: physical function, BAR0", Regs, "82576 datasheet"),
    Map("82576: virtual function, BAR0", VfRegs, "82576 datasheet"),
    Map("82576: PHY, by MDIC", PhyRegs, "IEEE 802.3 clause 22; 82576 datasheet", scale=2),
    Map("VT-d: remapping unit", vtd.Regs, "VT-d specification"),
    Map("PCI: type 0 header", pci.Type0, "PCI Express Base Specification"),
    Map("PCI: type 1 header", pci.Type1, "PCI Express Base Specification"),
    Map("PCI: power management", pci.Pm, "PCI Express Base Specification"),
    Map("PCI: MSI", pci.Msi, "PCI Express Base Specification"),
    Map("PCI: MSI-X", pci.MsiX, "PCI Express Base Specification"),
    Map("PCI: MSI-X table entry, in the BAR", pci.MsiXEntry, "PCI Express Base Specification"),
    Map("PCI: vital product data", pci.Vpd, "PCI Express Base Specification"),
    Map("PCI: PCI Express", pci.Pcie, "PCI Express Base Specification"),
    Map("PCI: advanced error reporting", pci.Aer, "PCI Express Base Specification"),
    Map("PCI: device serial number", pci.Dsn, "PCI Express Base Specification"),
    Map("PCI: access control services", pci.Acs, "PCI Express Base Specification"),
    Map("PCI: alternative routing ID", pci.Ari, "PCI Express Base Specification"),
    Map("PCI: SR-IOV", pci.SrIov, "PCI Express Base Specification, chapter SR-IOV"),
]

HEAD = """<!-- Written by tools/gen_reference.py: do not edit; `make docs` writes it anew. -->
# Registers

Everything that software can reach, as `virtfn` declares it. The device model, the drivers and the tracer read the same
declarations. Offsets, resets and strides are hexadecimal, counts and bits decimal.

| Status | Means |
| --- | --- |
| modelled | it does what the specification says, as far as software can see |
| stored | it keeps what is written, and has nothing more to do here |
| absent | the function behind it does not exist here; its name is known, so that traces show who asks for it |

A bit of a modelled register that is marked stored keeps what is written, or reads as at reset, and does nothing.

Software changes bits as the *Access* of the register says, or as the one at the bit says. A mask after the access
gives the bits that a write can change, where these are not all.

## Coverage

An array counts once. Configuration space has no status of its own: its rules are in the *Access* column.

| Map | Registers | Modelled | Stored | Absent |
| --- | ---: | ---: | ---: | ---: |
"""


DROPS_HEAD = """<!-- Written by tools/gen_reference.py: do not edit; `make docs` writes it anew. -->
# Drop reasons

A frame that the card does not deliver is counted once, under one reason, for one function or for the wire; a frame for
several receivers, once for each that cannot take it. `virtfn run` lists the reasons under *switch*, for the whole card,
and beside the guest whose function they were counted for; with `--json`, they are under `dropped`. What is counted for
the PF or for the wire is in the card's list only.

| reason | counted for | what happened |
| --- | --- | --- |
"""


def has_status(regmap: type[RegMap]) -> bool:
    """Tell whether a map says how far it is modelled; one that never does is all STORED by default."""
    return any(decl.status is not Status.STORED for decl in regmap.DECLS)


def bits(field: Field, shown: bool) -> str:
    """Write a field as `ENABLE` 25. shown: say so if it is stored only."""
    span = f"{field.msb}" if field.width == 1 else f"{field.msb}:{field.lsb}"
    access = f" {field.access.name}" if field.access is not None else ""
    values = f" ({', '.join(f'{v.value} {v.name}' for v in field.values)})" if field.values is not None else ""
    stored = " stored" if field.stored and shown else ""
    return f"`{field.name}` {span}{access}{values}{stored}"


def where(decl: Decl, scale: int) -> str:
    """Write the offset, the stride and other places of a register."""
    places = [(decl.offset, decl.stride, decl.count)]
    if decl.alias is not None:
        places.append(decl.alias)
    texts = []
    for offset, stride, count in places:
        text = f"{offset // scale:0{4 if scale == 1 else 2}x}"
        texts.append(f"{text} + {stride // scale:x} n, n < {count}" if count > 1 else text)
    return "; ".join(texts)


def meaning(decl: Decl) -> str:
    """Say what a register is, and list its fields."""
    about = decl.about
    if not about and decl.kind is not Register:
        about = (decl.kind.__doc__ or "").split("\n\n")[0].replace("\n", " ").strip()
    about = about[:1].upper() + about[1:]
    if about and not about.endswith("."):
        about += "."
    fields = ", ".join(bits(field, decl.status is Status.MODELLED) for field in reversed(decl.kind.FIELDS))
    return "<br>".join(part for part in (about, fields) if part).replace("|", "\\|")


def access(decl: Decl) -> str:
    """Write the access kind, and the writable bits where they are limited."""
    digits = decl.width // 4
    return decl.access.name if decl.writable is None else f"{decl.access.name} {decl.writable:0{digits}x}"


def table(entry: Map) -> str:
    """Write one map."""
    tracked = has_status(entry.regmap)
    lines = [f"## {entry.title}", "", f"Source: {entry.source}.", ""]
    lines.append("| Offset | Register | Access | Reset |" + (" Status |" if tracked else "") + " Meaning and bits |")
    lines.append("| --- | --- | --- | --- |" + (" --- |" if tracked else "") + " --- |")
    for decl in entry.regmap.DECLS:
        name = f"{decl.name}[{decl.count}]" if decl.is_array else decl.name
        cells = [where(decl, entry.scale), f"`{name}`", access(decl), f"{decl.reset:0{decl.width // 4}x}"]
        if tracked:
            cells.append(decl.status.value)
        cells.append(meaning(decl) + (f" ({decl.spec})" if decl.spec else ""))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def render(maps: list[Map] = MAPS) -> str:
    """Write the whole document of registers."""
    rows = []
    for entry in maps:
        total = len(entry.regmap.DECLS)
        if has_status(entry.regmap):
            count = Counter(decl.status for decl in entry.regmap.DECLS)
            parts = " | ".join(str(count[status]) for status in Status)
        else:
            parts = "- | - | -"
        rows.append(f"| {entry.title} | {total} | {parts} |\n")
    return HEAD + "".join(rows) + "\n" + "\n".join(table(entry) for entry in maps)


def render_drops() -> str:
    """Write the document of drop reasons: those of the kernels, in their order, then what reports add."""
    names = [*DROP_NAMES, *(name for name in DROP_REASONS if name not in DROP_NAMES)]
    reasons = [(name, DROP_REASONS[name]) for name in names]
    rows = "".join(f"| [{name}](#{name}) | {reason.counted} | {reason.what} |\n" for name, reason in reasons)
    parts = [
        f"\n## {name}\n\n{textwrap.fill(reason.why, COLUMNS)}\n\n"
        + textwrap.fill(f"**What to do.** {reason.remedy}", COLUMNS)
        + "\n"
        for name, reason in reasons
    ]
    return DROPS_HEAD + rows + "".join(parts)


LAB_HEAD = """<!-- Written by tools/gen_reference.py: do not edit; `make docs` writes it anew. -->
# Lab files

A lab file is YAML of these keys; `lab.schema.json` beside this page is the same for editors and validators. A key that
is wrong is refused with file, line and remedy. Anchors, aliases and merge keys work as in all YAML.
Names of files are relative to the lab file.
"""

LAB_SECTIONS = {
    "Lab": "The whole file",
    "Pf": "`pfs[]`: a physical function",
    "SrIov": "`pfs[].sr-iov`: its VFs",
    "VfPolicy": "`pfs[].sr-iov.vfs[]`: policy of one VF",
    "TrunkTag": "`pfs[].sr-iov.vfs[].trunk-tags[]`: VLANs of a trunk",
    "IdRange": "`pfs[].sr-iov.vfs[].trunk-tags[].id-range`: a range of them",
    "Mirror": "`pfs[].sr-iov.mirrors[]`: what a VF gets besides its own",
    "StormControl": "`pfs[].sr-iov.storm-control`: how much may go to many",
    "Watch": "`pfs[].watch`, `pfs[].sr-iov.vfs[].watch`: what VFs are watched for",
    "WatchLimit": "`watch.spoof` and so on: one limit",
    "Guest": "`guests[]`: a virtual machine",
    "Nic": "`guests[].nic`: how it reaches the network",
    "Disk": "`guests[].disk`: its disk; the name of a file alone is `file`",
    "Workload": "`workload`: what the guests do",
    "Iommu": "`iommu`: the remapping unit",
}

LAB_NOTES = {
    "WatchLimit": """What is counted, and what each action does, is told in [watching VFs](../explain/watching.md).
""",
    "Workload": """### What a lab expects

A run passes when every frame is accounted for, and as much arrives as the lab expects. What is compared is what one
guest sent to another: frames or, with kind ping and of Linux guests, pings that were answered. The verdict names who
did not hear whom, how much, and for which [drop reasons](drops.md): `b heard 0 of 2,000 frames of a: vlan-membership`.

| `expect` | of what is sent |
| --- | --- |
| `all` | everything arrives |
| `all-but-overruns` | everything but what its receiver dropped as `no-descriptor`; something arrives |
| `none` | nothing arrives: guests that are to be kept apart |
| `90%`, `0.9` | so much arrives, or more; `0` asks for nothing |

What a guest's own key says counts before the workload's; that of a guest that is a host is about what its VFs hear, and
the senders are VFs: `{"a vf2": none}`. The default is `all-but-overruns`, since many senders to one receiver, or a
flood, are there to find how much a receiver takes: what it cannot take is the result, and is counted. Every other
reason is a lab that does not do what it seems to. Of an attack, this is about the neighbours' frames: the attempts have
their own verdict. Pings go one at a time, and the first that is lost ends them.

### Who sends what of a capture

A source address of the capture is one guest's, and the guest sends all its frames, in their order. A guest whose own
address is in the capture (`mac-address` of its VF) has that one. Other addresses go to the guests in the order in
which they appear: first to guests that have none, then in turn. Frames that have no address there (zero, or a
group's) are dealt one by one.

With `rewrite`, a frame gets its sender's address and, unless it is for a group, that of the guest whose the destination
is; where that is nobody, or the sender itself, of the next guest. With `rewrite: false` frames are sent as they are:
give the VFs the addresses of the capture, or else `spoof-check` drops what no guest owns, and what is for nobody here
has no receiver.
""",
}


def render_lab() -> str:
    """Write the reference of lab files from their schema."""
    document = schema()
    sections: dict[str, dict[str, object]] = {"Lab": document, **cast("Sections", document["$defs"])}
    parts = [LAB_HEAD]
    for name, title in LAB_SECTIONS.items():
        section = sections[name]
        required = cast("list[str]", section.get("required", []))
        lines = [f"## {title}\n", "| key | value | default | meaning |", "| --- | --- | --- | --- |"]
        for key, entry in cast("Sections", section["properties"]).items():
            default = "required" if key in required else _default(entry)
            meaning = str(entry.get("description", "")).replace("|", "\\|")
            lines.append(f"| `{key}` | {_values(entry)} | {default} | {meaning} |")
        parts.append("\n".join(lines) + "\n")
        parts += [LAB_NOTES[name]] if name in LAB_NOTES else []
    return "\n".join(parts)


REPORT_HEAD = """<!-- Written by tools/gen_reference.py: do not edit; `make docs` writes it anew. -->
# The JSON of `virtfn run --json`

One object, a Report. Keys never change meaning; new ones may come. A key that is *at times* is left out where it means
nothing. Sizes are without frame check sequence, while the lab's `frame-bytes` holds it. Words like PCIM, IOVM, RID,
exit, flooded, no-match and echo are in the [glossary](../explain/glossary.md).

The file of `--trace` is text, a line for each event: microseconds (us) since the trace began, the function, what, and
the event; its first line names these columns. Frames of `--capture` have times in nanoseconds since 1970.
"""


def render_report() -> str:
    """Write the reference of the report's keys from their types, and their meanings."""
    parts = [REPORT_HEAD]
    for name, meanings in MEANINGS.items():
        kind = getattr(report, name)
        lines = [f"## {name}\n", "| key | unit | meaning |", "| --- | --- | --- |"]
        for key in kind.__annotations__:
            unit, meaning = meanings[key]
            times = "" if key in kind.__required_keys__ else ", at times"
            lines.append(f"| `{key}` | {unit}{times} | {meaning} |")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


Sections = dict[str, dict[str, object]]


def _default(entry: dict[str, object]) -> str:
    value = entry.get("default")
    return "" if value in (None, [], {}, "") or isinstance(value, dict) else f"`{json.dumps(value)}`".replace('"', "")


def _values(entry: dict[str, object]) -> str:
    """Say in a few words what a key may hold."""
    if "anyOf" in entry:
        kinds = [
            _values(kind) for kind in cast("list[dict[str, object]]", entry["anyOf"]) if kind.get("type") != "null"
        ]
        return " or ".join(dict.fromkeys(kinds))
    if "enum" in entry:
        return ", ".join(f"`{value}`" for value in cast("list[object]", entry["enum"]))
    if "const" in entry:
        return f"`{entry['const']}`"
    if "$ref" in entry:
        return "a mapping"
    limits = [f"{entry[k]}" if k in entry else "" for k in ("minimum", "maximum")]
    span = f", {limits[0]} to {limits[1]}" if all(limits) else ""
    words = {"string": "text", "array": "a list", "boolean": "`true`, `false`", "object": "a mapping"}
    return words.get(str(entry.get("type")), f"a number{span}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a document is not up to date")
    parser.add_argument("--output", type=Path, default=FOLDER, metavar="FOLDER", help="default: docs/reference")
    options = parser.parse_args(arguments)
    folder: Path = options.output
    wrong = 0
    for name, text in (
        ("registers.md", render()),
        ("drops.md", render_drops()),
        ("lab.md", render_lab()),
        ("run-json.md", render_report()),
    ):
        output = folder / name
        if not options.check:
            folder.mkdir(parents=True, exist_ok=True)
            output.write_text(text, encoding="utf-8")
        elif not output.exists() or output.read_text(encoding="utf-8") != text:
            state = "out of date" if output.exists() else "missing"
            print(f"{output} is {state}: run `make docs` and commit the result", file=sys.stderr)
            wrong = 1
    return wrong


if __name__ == "__main__":
    sys.exit(main())

"""Labs: read one, take the built-in one, or publish what a lab file may say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from pydantic import ValidationError

from virtfn.api.labfaults import find_faults, put_in_words, refuse_unsupported
from virtfn.api.labfile import MAX_BYTES, LabError, decode, parse_text, quote, read_text
from virtfn.api.labmodel import Disk, Dom0, Guest, Iommu, Lab, Nic, Pf, SrIov, VfPolicy, Workload
from virtfn.api.labwatch import Watch, WatchLimit

__all__ = [
    "Disk",
    "Dom0",
    "Guest",
    "Iommu",
    "Lab",
    "LabError",
    "Nic",
    "Pf",
    "SrIov",
    "VfPolicy",
    "Watch",
    "WatchLimit",
    "Workload",
    "builtin_lab",
    "load_lab",
    "make_lab",
    "parse_lab",
    "read_lab",
    "refuse_unsupported",
    "schema",
]

BUILTIN = """\
name: two-guests
pfs:
  - {name: pf0, model: 82576, link-mbps: 0, sr-iov: {total-vfs: 2}}
guests:
  - {name: a, memory-mib: 64, nic: {pf: pf0, io: sriov, vf: 0}}
  - {name: b, memory-mib: 64, nic: {pf: pf0, io: sriov, vf: 1}}
workload: {kind: pairs, frame-bytes: 1518, frames: 100000}
"""


def load_lab(path: Path) -> Lab:
    """Read a lab file.

    Raises LabError for the first thing wrong in it.
    """
    return parse_lab(read_text(path), str(path), path.parent)


def read_lab(stream: BinaryIO, name: str = "standard input", folder: Path | None = None) -> Lab:
    """Read a lab from a stream; names of files in it are relative to `folder`, or else to the working folder.

    Raises LabError for the first thing wrong in it.
    """
    return parse_lab(decode(stream.read(MAX_BYTES + 1), name), name, folder)


def parse_lab(text: str, file: str = "lab", folder: Path | None = None, *, works: bool = True) -> Lab:
    """Read the text of a lab file; names of files in it are relative to `folder`.

    works: whether its guests are to do its workload, or what somebody else has them do.
    Raises LabError for the first thing wrong in it.
    """
    tree = parse_text(text, file)
    tree.folder = folder
    if not isinstance(tree.value, dict):
        tree.fail((), f"holds {quote(tree.value)}; a lab is a mapping with name, pfs, guests and workload")
    lab: Lab
    try:
        # The models are frozen with tuples, strict wants tuples from Python, YAML has lists.
        lab = Lab.model_validate(
            _tuples(tree.value), context={"folder": folder or Path()}, by_name=False, by_alias=True
        )
    except ValidationError as error:
        faults = put_in_words(error)
    else:
        lab._tree = tree
        faults = list(find_faults(lab, works=works))
    if not faults:
        return lab
    first = min(faults, key=lambda f: tree.line(f.key))
    raise LabError(file, tree.line(first.key), first.key, first.message)


def make_lab(
    *,
    guests: Sequence[Guest],
    workload: Workload,
    pfs: Sequence[Pf] = (),
    name: str = "lab",
    iommu: Iommu | None = None,
    dom0: Dom0 | None = None,
) -> Lab:
    """Make a lab of objects. pfs: without any, one named pf0, with eight VFs.

    Raises LabError for the first thing wrong between them; an object that is wrong in itself cannot be made.
    """
    given = tuple(pfs) or (Pf(name="pf0", sr_iov=SrIov(total_vfs=8)),)
    try:
        lab = Lab(
            name=name, pfs=given, guests=tuple(guests), workload=workload, iommu=iommu or Iommu(), dom0=dom0 or Dom0()
        )
    except ValidationError as error:
        faults = put_in_words(error)
    else:
        faults = list(find_faults(lab))
        if not faults:
            return lab
    raise LabError(name, 1, faults[0].key, faults[0].message)


def builtin_lab() -> Lab:
    """Return the lab that runs when no file is given: two guests with a VF each, sending to each other."""
    return parse_lab(BUILTIN, "built-in lab")


def schema() -> dict[str, object]:
    """Return the JSON Schema of a lab file."""
    body = Lab.model_json_schema(by_alias=True)
    body["title"] = "virtfn lab"
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **body}


def _tuples(value: object) -> object:
    if isinstance(value, dict):
        return {k: _tuples(v) for k, v in value.items()}
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value

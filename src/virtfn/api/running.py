"""A lab as the text of a lab file: what runs, in the words in which it was asked for."""

from __future__ import annotations

import enum
import io
from dataclasses import fields
from pathlib import Path
from typing import Any, TextIO

from ruamel.yaml import YAML

from virtfn.api.lab import Lab, VfPolicy
from virtfn.api.labpolicy import trunk_tags
from virtfn.api.labsection import Section
from virtfn.drivers.policy import VfPolicy as DriverPolicy
from virtfn.hw.types import format_mac

__all__ = ["Documents", "lab_document", "policy_words", "write_document", "write_lab"]

_WORDS = {"mac": "mac_address", "vlan": "vlan_id", "trunk": "trunk_tags"}
"""What a driver's policy calls otherwise than a lab file does."""


def policy_words(n: int, policy: DriverPolicy) -> VfPolicy:
    """Return the policy of a VF, as its driver has it, in the words of a lab file."""
    words: dict[str, Any] = {"id": n}
    for name in (field.name for field in fields(policy)):
        key, value = _WORDS.get(name, name), getattr(policy, name)
        if key == "mac_address":
            value = format_mac(value) if value else None
        elif isinstance(value, enum.Enum):
            value = value.value
        elif isinstance(value, frozenset):
            value = trunk_tags(value)
        words[key] = value
    return VfPolicy.model_validate(words, by_name=True)


class Documents:
    """Makes documents of a lab again and again, as JSON can hold it, with the keys of a lab file.

    PFs and guests that are the same objects as the last time are not made anew. defaults: keys that have their
    defaults, too. File names are absolute: it means the same wherever it is read.
    """

    def __init__(self, *, defaults: bool = False) -> None:
        self._defaults = defaults
        self._made: dict[int, tuple[Section, dict[str, Any]]] = {}

    def make(self, lab: Lab) -> dict[str, Any]:
        """Make the document of a lab, in which parts may be those of the last one."""
        before, self._made = self._made, {}
        for part in (*lab.pfs, *lab.guests):
            known = before.get(id(part))
            self._made[id(part)] = known if known is not None and known[0] is part else (part, self._part(lab, part))
        document = self._dump(lab.model_copy(update={"pfs": (), "guests": ()}))
        document["pfs"] = [self._made[id(pf)][1] for pf in lab.pfs]
        document["guests"] = [self._made[id(guest)][1] for guest in lab.guests]
        return document

    def _part(self, lab: Lab, part: Section) -> dict[str, Any]:
        document = self._dump(part)
        kind, _, rest = str(document.get("uplink", "none")).partition(":")
        if kind in ("pcap", "stream") and not rest.startswith("listen:"):
            document["uplink"] = f"{kind}:{_absolute(lab, rest)}"
        elif kind == "stream":
            document["uplink"] = f"stream:listen:{_absolute(lab, rest.removeprefix('listen:'))}"
        return document

    def _dump(self, part: Section) -> dict[str, Any]:
        plain: dict[str, Any] = _plain(part.model_dump(by_alias=True, exclude_defaults=not self._defaults))
        return plain


def lab_document(lab: Lab, *, defaults: bool = False) -> dict[str, Any]:
    """Make the document of a lab, once."""
    return Documents(defaults=defaults).make(lab)


def _plain(value: Any) -> Any:
    """Make what JSON can hold; of files, their whole names."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value.absolute()) if isinstance(value, Path) else value


def _absolute(lab: Lab, name: str) -> str:
    return str((lab.folder / name).absolute())


def write_lab(lab: Lab) -> str:
    """Write a lab as the text of a lab file."""
    text = io.StringIO()
    write_document(lab_document(lab), text)
    return text.getvalue()


def write_document(document: object, to: TextIO) -> None:
    """Write a document of a lab, or a part of it, in YAML."""
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = None
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.width = 110
    yaml.dump(document, to)

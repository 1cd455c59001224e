"""A lab as the text of a lab file: what runs, in the words in which it was asked for."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from virtfn.api.lab import Lab

__all__ = ["lab_document", "write_lab"]


def lab_document(lab: Lab) -> dict[str, Any]:
    """Return a lab as JSON can hold it, with the keys of a lab file; those that have their defaults are left out.

    File names are absolute, so that it means the same wherever it is read.
    """
    document: dict[str, Any] = _plain(lab.model_dump(by_alias=True, exclude_defaults=True))
    for pf in document["pfs"]:
        kind, _, rest = str(pf.get("uplink", "none")).partition(":")
        if kind in ("pcap", "stream") and not rest.startswith("listen:"):
            pf["uplink"] = f"{kind}:{_absolute(lab, rest)}"
        elif kind == "stream":
            pf["uplink"] = f"stream:listen:{_absolute(lab, rest.removeprefix('listen:'))}"
    return document


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
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = None
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.width = 110
    yaml.dump(lab_document(lab), text)
    return text.getvalue()

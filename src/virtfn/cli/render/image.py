"""A guest image, and a QEMU."""

from __future__ import annotations

from rich.console import RenderableType
from rich.table import Table

from virtfn.api.image import ImageDocument, QemuDocument
from virtfn.vmm.qemu.image import TOOLS

__all__ = ["render_image", "render_qemu"]


def render_image(document: ImageDocument) -> RenderableType:
    """Lay an image out for a person."""
    programs = [name for name, _, _ in (package.split("_") for package in document["packages"]) if name in TOOLS]
    facts = _facts()
    facts.add_row("image", document["folder"])
    facts.add_row("kernel", f"Linux {document['version']}, of {document['suite']}")
    facts.add_row("programs", ", ".join(sorted(programs)))
    facts.add_row("size", f"{document['bytes'] / 1e6:.1f} MB, from {len(document['packages'])} packages")
    return facts


def render_qemu(document: QemuDocument) -> RenderableType:
    """Lay a QEMU out for a person."""
    facts = _facts()
    facts.add_row("QEMU", document["version"])
    facts.add_row("program", document["path"])
    facts.add_row("firmware", f"{len(document['firmware'])} files")
    return facts


def _facts() -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    return table

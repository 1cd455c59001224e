"""A guest image, and a QEMU."""

from __future__ import annotations

from rich.console import RenderableType

from virtfn.api.image import ImageDocument, QemuDocument
from virtfn.cli.render.table import facts
from virtfn.vmm.qemu.image import TOOLS

__all__ = ["render_image", "render_qemu"]


def render_image(document: ImageDocument) -> RenderableType:
    """Lay an image out for a person."""
    programs = [name for name, _, _ in (package.split("_") for package in document["packages"]) if name in TOOLS]
    table = facts()
    table.add_row("image", document["folder"])
    table.add_row("kernel", f"Linux {document['version']}, of {document['suite']}")
    table.add_row("programs", ", ".join(sorted(programs)))
    table.add_row("size", f"{document['bytes'] / 1e6:.1f} MB, from {len(document['packages'])} packages")
    return table


def render_qemu(document: QemuDocument) -> RenderableType:
    """Lay a QEMU out for a person."""
    table = facts()
    table.add_row("QEMU", document["version"])
    table.add_row("program", document["path"])
    table.add_row("firmware", f"{len(document['firmware'])} files")
    return table

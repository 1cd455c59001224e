"""What Linux guests need besides virtfn, to get and to find: a QEMU with vfio-user, and an image to boot.

virtfn image qemu     CACHE/debian                  found by vmm/qemu/find
virtfn image build    CACHE/images/KEY  <-- CACHE/images/current, the one that labs boot
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from typing import TypedDict

from rich.console import RenderableType
from rich.table import Table

from virtfn.machine.ports import VirtfnError
from virtfn.vmm.qemu import Acceleration, Qemu, Tick, cache_folder, choose_acceleration, find_qemu, install_qemu
from virtfn.vmm.qemu.debian import own_suite
from virtfn.vmm.qemu.image import TOOLS, Image, build_image

__all__ = [
    "ImageDocument",
    "Platform",
    "QemuDocument",
    "current_image",
    "find_platform",
    "get_qemu",
    "make_image",
    "render_image",
    "render_qemu",
]

_CURRENT = "current"


class ImageDocument(TypedDict):
    """The document of `virtfn image build --json`. bytes: of kernel and initramfs; packages: NAME_VERSION_ARCH."""

    folder: str
    suite: str
    kernel: str
    initrd: str
    version: str
    bytes: int
    packages: list[str]


class QemuDocument(TypedDict):
    """The document of `virtfn image qemu --json`."""

    path: str
    version: str
    firmware: list[str]


@dataclass(frozen=True, slots=True)
class Platform:
    """What Linux guests run on."""

    qemu: Qemu
    image: Image
    acceleration: Acceleration


def make_image(suite: str | None = None, *, refresh: bool = False) -> ImageDocument:
    """Make the guest image that labs boot, or find it made before.

    suite: of Debian; the machine's own if None. refresh: look for newer packages. Raises VirtfnError as `build_image`
    does.
    """
    suite = suite or own_suite()
    image = build_image(cache=cache_folder(), suite=suite, refresh=refresh)
    folder = image.kernel.parent
    link = folder.parent / _CURRENT
    fresh = folder.parent / f".{_CURRENT}-{os.getpid()}"
    try:
        with suppress(FileNotFoundError):
            fresh.unlink()
        fresh.symlink_to(folder.name)
        fresh.replace(link)
    except OSError as error:
        raise VirtfnError(f"{link}: {error.strerror}") from error
    return {
        "folder": str(folder),
        "suite": suite,
        "kernel": str(image.kernel),
        "initrd": str(image.initrd),
        "version": image.version,
        "bytes": image.kernel.stat().st_size + image.initrd.stat().st_size,
        "packages": list(image.packages),
    }


def current_image() -> Image:
    """Find the image that `make_image` made last.

    Raises VirtfnError (ENOENT) that says how to make one.
    """
    folder = cache_folder() / "images" / _CURRENT
    try:
        folder = folder.resolve(strict=True)
        facts = json.loads((folder / "image.json").read_text(encoding="utf-8"))
        image = Image(folder / "vmlinuz", folder / "initrd.gz", str(facts["version"]), tuple(facts["packages"]))
        whole = image.kernel.is_file() and image.initrd.is_file()
    except (OSError, ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise VirtfnError("there is no guest image; virtfn image build makes one", errno_name="ENOENT")
    return image


def get_qemu() -> QemuDocument:
    """Download Debian's QEMU into the cache, for this user alone.

    Raises VirtfnError as `install_qemu` does.
    """
    qemu = install_qemu()
    return {
        "path": str(qemu.path),
        "version": ".".join(map(str, qemu.version)),
        "firmware": sorted(qemu.firmware()),
    }


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


def find_platform(tick: Tick) -> Platform:
    """Find all that Linux guests need; `tick` is called meanwhile.

    Raises VirtfnError (ENOENT) that says what is missing, and how to get it.
    """
    qemu, image = find_qemu(), current_image()
    return Platform(qemu, image, choose_acceleration(qemu, image.kernel, tick=tick))

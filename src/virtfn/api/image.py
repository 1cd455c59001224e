"""What Linux guests need besides virtfn, to get and to find: a QEMU with vfio-user, and an image to boot.

virtfn image qemu     CACHE/debian                  found by vmm/qemu/find
virtfn image build    CACHE/images/KEY  <-- CACHE/images/current, the one that labs boot
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

from virtfn.api.labmodel import Guest
from virtfn.machine.ports import VirtfnError
from virtfn.vmm.qemu import (
    Acceleration,
    Qemu,
    Tick,
    cache_folder,
    choose_acceleration,
    find_qemu,
    install_qemu,
    kvm_obstacle,
)
from virtfn.vmm.qemu.bootfiles import kernel_release
from virtfn.vmm.qemu.debian import errno_name, own_suite
from virtfn.vmm.qemu.image import Image, build_image

__all__ = [
    "ImageDocument",
    "Platform",
    "QemuDocument",
    "current_image",
    "find_platform",
    "get_qemu",
    "make_image",
    "require_hosts",
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
    """What Linux guests run on. image: None where all of them boot images of their own."""

    qemu: Qemu
    image: Image | None
    acceleration: Acceleration


def require_hosts(platform: Platform) -> None:
    """Raise VirtfnError (EOPNOTSUPP) if the QEMU that is here cannot give a guest VFs to make; it is asked."""
    from virtfn.vmm.qemu.hostprobe import probe_host_cards

    if words := probe_host_cards(platform.qemu):
        raise VirtfnError(f"{platform.qemu} cannot give a guest VFs to make: {words}", errno_name="EOPNOTSUPP")


def make_image(
    suite: str | None = None, *, kernel: str | None = None, to: Path | None = None, refresh: bool = False
) -> ImageDocument:
    """Make the guest image that labs boot, or find it made before.

    suite: of Debian; the machine's own if None. kernel: of another package, as `build_image` takes it; such an image is
    not the one that labs boot unless they name its files. to: a folder, made if missing, for a copy of these. refresh:
    look for newer packages. Raises VirtfnError as `build_image` does.
    """
    suite = suite or own_suite()
    image = build_image(cache=cache_folder(), suite=suite, kernel=kernel, refresh=refresh)
    if kernel is None:
        _let_labs_boot(image.kernel.parent)
    if to is not None:
        image = _copied(image, to)
    return {
        "folder": str(image.kernel.parent),
        "suite": suite,
        "kernel": str(image.kernel),
        "initrd": str(image.initrd),
        "version": image.version,
        "bytes": image.kernel.stat().st_size + image.initrd.stat().st_size,
        "packages": list(image.packages),
    }


def _copied(image: Image, to: Path) -> Image:
    """Copy an image's files to a folder. Raises VirtfnError."""
    try:
        to.mkdir(parents=True, exist_ok=True)
        kernel, initrd = (Path(shutil.copy(file, to)) for file in (image.kernel, image.initrd))
    except OSError as error:
        raise VirtfnError(f"{to}: {error.strerror}", errno_name=errno_name(error)) from error
    return replace(image, kernel=kernel, initrd=initrd)


def _let_labs_boot(folder: Path) -> None:
    """Make an image the one that labs boot. Raises VirtfnError."""
    link = folder.parent / _CURRENT
    fresh = folder.parent / f".{_CURRENT}-{os.getpid()}"
    try:
        with suppress(FileNotFoundError):
            fresh.unlink()
        fresh.symlink_to(folder.name)
        fresh.replace(link)
    except OSError as error:
        raise VirtfnError(f"{link}: {error.strerror}") from error


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


def find_platform(tick: Tick, guests: Sequence[Guest]) -> Platform:
    """Find all that the Linux guests of a lab need; `tick` is called meanwhile.

    Raises VirtfnError (ENOENT) that says what is missing, and how to get it.
    """
    linux = [guest for guest in guests if guest.vmm == "qemu"]
    qemu = find_qemu()
    ours = any(guest.own_initrd or (guest.kernel is None and not guest.boots_disk) for guest in linux)
    image = current_image() if ours else None
    kernels = [guest.kernel for guest in linux if guest.kernel is not None and kernel_release(guest.kernel)]
    probe = image.kernel if image is not None else next(iter(kernels), None)
    if probe is not None:
        return Platform(qemu, image, choose_acceleration(qemu, probe, tick=tick))
    obstacle = kvm_obstacle()
    return Platform(qemu, image, Acceleration("tcg", obstacle) if obstacle else Acceleration("kvm", "/dev/kvm works"))

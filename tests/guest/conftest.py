"""What tests with real guests stand on; where QEMU or the image cannot be had, they are reported as not run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from guest.rig import LinuxRig
from virtfn.kernels import warm
from virtfn.machine.ports import VirtfnError
from virtfn.vmm.qemu import Qemu, cache_folder, find_ovmf, find_qemu, install_qemu
from virtfn.vmm.qemu.debian import fetch, unpack
from virtfn.vmm.qemu.image import Image, build_image


@pytest.fixture(scope="session")
def qemu() -> Qemu:
    """A QEMU with vfio-user: the machine's own, or Debian's, unpacked without root."""
    try:
        return find_qemu()
    except VirtfnError as missing:
        try:
            return install_qemu()
        except VirtfnError as error:
            pytest.skip(f"not run: {missing}; {error}")


@pytest.fixture(scope="session")
def image() -> Image:
    """A guest of Debian's kernel and programs, with compiled kernels of ours, so that no guest waits for them."""
    warm.load()
    try:
        return build_image(cache=cache_folder())
    except VirtfnError as error:
        pytest.skip(f"not run: {error}")


@pytest.fixture(scope="session")
def ovmf(qemu: Qemu, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Debian's UEFI firmware for virtual machines: the machine's own, or unpacked."""
    try:
        return find_ovmf(qemu)
    except VirtfnError:
        folder = tmp_path_factory.mktemp("ovmf")
    try:
        unpack(fetch(["ovmf"], depends=False, cache=cache_folder()), folder)
    except VirtfnError as error:
        pytest.skip(f"not run: {error}")
    return folder / "usr/share/ovmf/OVMF.fd"


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for what consoles say."""
    return tmp_path_factory.mktemp("consoles")


@pytest.fixture(scope="session")
def pair(qemu: Qemu, image: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LinuxRig]:
    """Two guests with a VF each, for all tests of igbvf; the port has a wire."""
    with LinuxRig(qemu, image, tmp_path_factory.mktemp("pair")) as rig:
        rig.nic.port.set_wire(True, 0)
        yield rig


@pytest.fixture
def rig(pair: LinuxRig) -> Iterator[LinuxRig]:
    """The pair, with both interfaces up; after the test, no fault and no complaint has come."""
    for n in (0, 1):
        pair.up(n)
    yield pair
    pair.check()

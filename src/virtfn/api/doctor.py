"""What this machine can do, and what is missing for the rest.

run        embedded labs: Python, the packages, memory
qemu       guests that are real virtual machines: QEMU with vfio-user, an image to boot; quick with KVM
host       guests that get a card with its VFs to make: a QEMU that does what that takes
hardware   real VFs: an IOMMU and an SR-IOV NIC in this machine
judges     programs that check virtfn from outside: tshark, tcpdump, lspci
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from virtfn import __version__
from virtfn.api.image import current_image
from virtfn.machine.ports import VirtfnError
from virtfn.vmm.qemu import Qemu, choose_acceleration, find_qemu, kvm_obstacle
from virtfn.vmm.qemu.image import Image

__all__ = ["Check", "Machine", "examine"]

_QEMU_REMEDY = (
    "virtfn image qemu (any Debian, no root), or on Debian 13: apt-get install -t trixie-backports qemu-system-x86"
)
MIN_MEMORY_MIB = 1024
_PACKAGES = ("numba", "numpy", "pydantic", "ruamel.yaml", "rich", "click", "python-pcapng", "qemu.qmp", "pyelftools")


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at. purpose: run, qemu, host, hardware, judges. remedy: how to get it; empty if it is there."""

    name: str
    purpose: str
    ok: bool
    found: str
    remedy: str = ""


def _kernels_cached() -> bool:
    from virtfn.kernels import warm  # it fails where llvmlite is broken

    return warm.cached(rest=False)


def _probe(qemu: Qemu) -> str:
    from virtfn.vmm.qemu.hostprobe import probe_host_cards

    return probe_host_cards(qemu)


@dataclass(frozen=True, slots=True)
class Machine:
    """Where to look: the root of the file system, how to find programs, and what asks a QEMU whether it bears hosts."""

    root: Path = Path("/")
    which: Callable[[str], str | None] = shutil.which
    kernels_cached: Callable[[], bool] = _kernels_cached
    probe: Callable[[Qemu], str] = _probe

    def find_qemu(self) -> tuple[Qemu | None, str]:
        """Find a QEMU that can do it, or say why there is none."""
        try:
            return find_qemu(), ""
        except VirtfnError as error:
            return None, str(error).partition("\n")[0].rstrip(".")

    def find_image(self) -> tuple[Image | None, str]:
        """Find the guest image, and say what it is, or that there is none."""
        try:
            image = current_image()
        except VirtfnError:
            return None, "not made yet"
        return image, f"Linux {image.version} ({image.kernel.parent})"


def examine(machine: Machine | None = None) -> dict[str, object]:
    """Look at this machine: the document of `virtfn doctor --json`."""
    machine = machine or Machine()
    checks = [*_software(machine), *_qemu(machine), *_hardware(machine), *_judges(machine)]
    purposes = dict.fromkeys(check.purpose for check in checks)
    # KVM makes real guests quick, a warm cache makes the first run quick; neither is needed.
    needed = [check for check in checks if check.name not in ("KVM", "kernel cache")]
    return {
        "virtfn": __version__,
        "can": {purpose: all(c.ok for c in needed if c.purpose == purpose) for purpose in purposes},
        "checks": [asdict(check) for check in checks],
    }


def _software(machine: Machine) -> Iterator[Check]:
    yield Check("Python", "run", True, f"{platform.python_version()} ({platform.python_implementation()})")
    for package in _PACKAGES:
        try:
            yield Check(package, "run", True, metadata.version(package))
        except metadata.PackageNotFoundError:
            yield Check(package, "run", False, "not installed", f"pip install {package}")
    yield Check("cores", "run", True, str(len(os.sched_getaffinity(0))))
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20
    enough = memory >= MIN_MEMORY_MIB
    yield Check("memory", "run", enough, f"{memory} MiB", "" if enough else f"labs want {MIN_MEMORY_MIB} MiB or more")
    yield _kernel_cache(machine)


def _kernel_cache(machine: Machine) -> Check:
    try:
        warm = machine.kernels_cached()
    except Exception as error:  # a broken Numba is a finding, not a failure of the doctor
        reason = " ".join(str(error).split())[:80]
        return Check("kernels", "run", False, f"Numba fails: {reason}", "pip install --force-reinstall numba")
    if warm:
        return Check("kernel cache", "run", True, "warm")
    return Check("kernel cache", "run", False, "cold: the first run compiles", "virtfn run fills it")


def _qemu(machine: Machine) -> Iterator[Check]:
    qemu, words = machine.find_qemu()
    if qemu is None:
        yield Check("QEMU", "qemu", False, words, _QEMU_REMEDY)
    else:
        yield Check("QEMU", "qemu", True, f"{qemu}, {len(qemu.firmware())} firmware files")
    image, words = machine.find_image()
    yield Check("guest image", "qemu", image is not None, words, "" if image else "virtfn image build")
    yield _kvm(machine, qemu, image)
    yield _hosts(machine, qemu)


def _hosts(machine: Machine, qemu: Qemu | None) -> Check:
    """Tell whether guests can be hosts (io: host): what that takes of QEMU is promised by nobody, so it is asked."""
    if qemu is None:
        return Check("VFs made by guests", "host", False, "no QEMU to ask", _QEMU_REMEDY)
    missing = machine.probe(qemu)
    found = missing or "this QEMU does what it takes"
    return Check("VFs made by guests", "host", not missing, found, _QEMU_REMEDY if missing else "")


def _kvm(machine: Machine, qemu: Qemu | None, image: Image | None) -> Check:
    """Tell whether KVM runs guests: by booting one where there is what that takes."""
    obstacle = kvm_obstacle(machine.root)
    words, slow = "a virtual machine can be made", "guests run without it, some ten times slower"
    if not obstacle and qemu is not None and image is not None:
        choice = choose_acceleration(qemu, image.kernel, root=machine.root)
        obstacle, words = ("", choice.reason) if choice.kind == "kvm" else (choice.reason, "")
    if not obstacle:
        return Check("KVM", "qemu", True, words)
    if "/dev/kvm:" in obstacle:
        return Check("KVM", "qemu", False, obstacle, f"add this user to group kvm; {slow}")
    if obstacle == "no /dev/kvm":
        return Check(
            "KVM", "qemu", False, obstacle, f"enable virtualization in firmware, load kvm_intel or kvm_amd; {slow}"
        )
    return Check("KVM", "qemu", False, obstacle, slow)


def _hardware(machine: Machine) -> Iterator[Check]:
    groups = len(_entries(machine.root / "sys/kernel/iommu_groups"))
    if groups:
        yield Check("IOMMU", "hardware", True, f"{groups} groups")
    else:
        yield Check(
            "IOMMU", "hardware", False, "no groups", "enable VT-d or AMD-Vi in firmware; intel_iommu=on on Intel"
        )
    nics = [
        f"{device.name} ({total} VFs)"
        for device in _entries(machine.root / "sys/bus/pci/devices")
        if _read(device / "class").startswith("0x02") and (total := _read(device / "sriov_totalvfs")) not in ("", "0")
    ]
    if nics:
        yield Check("SR-IOV NIC", "hardware", True, ", ".join(nics))
    else:
        yield Check("SR-IOV NIC", "hardware", False, "none", "only real VFs need one; embedded labs do not")


def _judges(machine: Machine) -> Iterator[Check]:
    for program, package in (("tshark", "tshark"), ("tcpdump", "tcpdump"), ("lspci", "pciutils")):
        path = machine.which(program)
        yield Check(
            program, "judges", path is not None, path or "not installed", "" if path else f"Debian package {package}"
        )


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""

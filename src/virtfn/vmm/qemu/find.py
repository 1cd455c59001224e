"""Finds a QEMU that can plug in functions over vfio-user, or says how to get one.

Looked at, in this order: $VIRTFN_QEMU (a program, or a folder where Debian's packages are unpacked), PATH, and the QEMU
that `install_qemu` unpacked into the cache. The binary is asked; a version number alone proves nothing.

An unpacked QEMU runs from its folder, as anyone: through the dynamic loader and with the libraries beside it, since the
machine's own are of another release.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from virtfn.machine.ports import VirtfnError
from virtfn.vmm.qemu import debian
from virtfn.vmm.qemu.folder import cache_folder

__all__ = ["PACKAGES", "SUITE", "Qemu", "find_ovmf", "find_qemu", "install_qemu", "unpacked_root"]

MIN_VERSION = (10, 1)
PROGRAM = "qemu-system-x86_64"
SUITE = "trixie-backports"
PACKAGES = ("qemu-system-x86", "seabios", "ovmf", "ipxe-qemu")
ANSWER_S = 30
OVMF = "OVMF.fd"
_OVMF_FOLDERS = (Path("/usr/share/ovmf"), Path("/usr/share/OVMF"), Path("/usr/share/qemu"))

_HOW = (
    "Get QEMU 10.1 or newer:\n"
    "  any Debian, no root needed:  virtfn image qemu\n"
    "  Debian 13, as root:          apt-get install -t trixie-backports qemu-system-x86\n"
    "                               (with trixie-backports among the suites in /etc/apt/sources.list.d)\n"
    "  Debian 12 has 7.2, and no newer one in its backports: virtfn image qemu\n"
    "  anything else:               VIRTFN_QEMU=/path/to/qemu-system-x86_64"
)


@dataclass(frozen=True, slots=True)
class Qemu:
    """A QEMU system emulator for x86-64.

    path: the binary; command: how to start it, environ: what its environment needs besides; data_folders: where it
    looks for firmware.
    """

    path: Path
    command: tuple[str, ...]
    version: tuple[int, int, int]
    environ: Mapping[str, str] = field(default_factory=dict)
    data_folders: tuple[Path, ...] = ()

    def __str__(self) -> str:
        return f"QEMU {'.'.join(map(str, self.version))} ({self.path})"

    def firmware(self) -> dict[str, Path]:
        """Return the firmware and option ROM files that this QEMU finds by name: bios-256k.bin, efi-virtio.rom, ..."""
        found: dict[str, Path] = {}
        for folder in self.data_folders:
            if folder.is_dir():
                for file in sorted(folder.iterdir()):
                    if file.suffix in (".bin", ".fd", ".rom"):
                        found.setdefault(file.name, file)
        return found


class _UnfitError(Exception):
    """Why a candidate cannot be used, in words."""


def unpacked_root() -> Path:
    """Return where `install_qemu` puts Debian's QEMU; it may not be there yet. Raises VirtfnError as the cache does."""
    return cache_folder() / "debian"


def find_qemu(environ: Mapping[str, str] | None = None) -> Qemu:
    """Find a QEMU that offers vfio-user-pci. environ: in place of this process's environment.

    Raises VirtfnError that names what was looked at and how to get one. A $VIRTFN_QEMU that does not fit is an error,
    whatever else is there.
    """
    environ = os.environ if environ is None else environ
    given = environ.get("VIRTFN_QEMU")
    looked: list[str] = []
    for candidate in [given] if given else [PROGRAM, None]:
        try:
            return _ask(candidate or str(unpacked_root()), environ)
        except (_UnfitError, VirtfnError) as unfit:
            looked.append(str(unfit))
    where = "VIRTFN_QEMU does not fit" if given else "no QEMU here has vfio-user"
    raise VirtfnError(f"{where}: {'; '.join(looked)}", errno_name="ENOENT", details=_HOW)


def find_ovmf(qemu: Qemu, folders: Sequence[Path] = _OVMF_FOLDERS) -> Path:
    """Find OVMF, UEFI firmware for virtual machines, in one file: beside a QEMU, or where Debian's package has it.

    Raises VirtfnError (ENOENT) that says how to get it.
    """
    for folder in (*qemu.data_folders, *folders):
        if (folder / OVMF).is_file():
            return folder / OVMF
    raise VirtfnError(
        f"there is no {OVMF}, as firmware: ovmf needs; apt-get install ovmf, or virtfn image qemu", errno_name="ENOENT"
    )


def _ask(candidate: str, environ: Mapping[str, str]) -> Qemu:
    """Ask a program, or an unpacked folder, what it can do. Raises _UnfitError."""
    if Path(candidate).is_dir():
        path, command, added = _unpacked(Path(candidate))
    else:
        name = shutil.which(candidate, path=environ.get("PATH"))
        if name is None:
            raise _UnfitError(f"{candidate} is not there" if "/" in candidate else f"no {candidate} in PATH")
        path = Path(name).absolute()  # it is started in another folder
        command, added = (str(path),), {}
    said = _output(path, [*command, "-version"], added)
    match = re.search(r"version (\d+)\.(\d+)(?:\.(\d+))?", said)
    if match is None:
        raise _UnfitError(f"{path} does not say its version")
    version = int(match[1]), int(match[2]), int(match[3] or 0)
    if version[:2] < MIN_VERSION:
        raise _UnfitError(f"{path} is version {'.'.join(map(str, version))}")
    # Asked about one device: a list of all would load every module, also those of another build.
    if "vfio-user-pci options" not in _output(path, [*command, "-device", "vfio-user-pci,help"], added):
        raise _UnfitError(f"{path} is version {'.'.join(map(str, version))}, but was built without vfio-user-pci")
    folders = _output(path, [*command, "-L", "help"], added).split("\n")
    return Qemu(path, command, version, added, tuple(Path(folder) for folder in folders if folder.startswith("/")))


def _unpacked(root: Path) -> tuple[Path, tuple[str, ...], dict[str, str]]:
    """Return binary, command and environment of a QEMU in a folder of unpacked packages. Raises _UnfitError."""
    root = root.resolve()
    binary = root / "usr/bin" / PROGRAM
    if not binary.exists():
        raise _UnfitError(f"no usr/bin/{PROGRAM} in {root}")
    loaders = sorted(root.glob("usr/lib/*/ld-linux-*.so.*"))
    if not loaders:
        raise _UnfitError(f"no dynamic loader (libc6) in {root}")
    libraries = loaders[0].parent
    data = [part for name in ("qemu", "seabios", "ovmf") for part in ("-L", str(root / "usr/share" / name))]
    command = (
        *(str(loaders[0]), "--inhibit-cache", "--library-path", str(libraries), "--argv0", PROGRAM, str(binary)),
        *data,
        *("-L", str(root / "usr/lib/ipxe/qemu")),
    )
    return binary, command, {"QEMU_MODULE_DIR": str(libraries / "qemu")}


def _output(path: Path, argv: Sequence[str], environ: Mapping[str, str]) -> str:
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=ANSWER_S, env={**os.environ, **environ}
        )
    except OSError as error:
        raise _UnfitError(f"{path} does not start: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise _UnfitError(f"{path} does not answer within {ANSWER_S} s") from error
    if done.returncode and not done.stdout:
        last = (done.stderr.decode("utf-8", "replace").strip().splitlines() or [f"status {done.returncode}"])[-1]
        if "vfio-user-pci" not in last:  # that one is an answer
            raise _UnfitError(f"{path} does not run: {last}")
    return done.stdout.decode("utf-8", "replace")


def install_qemu(
    *,
    fetch: Callable[..., list[Path]] = debian.fetch,
    unpack: Callable[[list[Path], Path], None] = debian.unpack,
) -> Qemu:
    """Download Debian's QEMU with all it needs, unpack it into the cache, and return it; needs no root.

    An earlier one is replaced once the new one has answered. Raises VirtfnError if the packages cannot be had or the
    QEMU in them does not run here.
    """
    root = unpacked_root()
    fresh = root.with_name(f"{root.name}.new-{os.getpid()}")
    debs = fetch(PACKAGES, suite=SUITE, depends=True, cache=cache_folder() / "packages")
    try:
        unpack(debs, fresh)
        _ask(str(fresh), os.environ)
        shutil.rmtree(root, ignore_errors=True)
        fresh.rename(root)
        return _ask(str(root), os.environ)
    except _UnfitError as unfit:
        raise VirtfnError(f"the QEMU of {SUITE} does not fit: {unfit}") from unfit
    except OSError as error:
        raise VirtfnError(f"{root}: {error.strerror}") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)

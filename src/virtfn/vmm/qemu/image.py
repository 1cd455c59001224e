"""The guest that QEMU boots: Debian's kernel and an initramfs of Debian's programs, made from packages without root.

    packages --fetch--> .deb files --unpack--> programs, the libraries they name, modules --archive--> initrd.gz

The image is kept under the hash of all that went into it, so a second call only looks it up.
"""

from __future__ import annotations

import fnmatch
import hashlib
import inspect
import json
import os
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path, PurePosixPath

from elftools.common.exceptions import ELFError
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.segments import InterpSegment

from virtfn.machine.ports import VirtfnError
from virtfn.vmm.qemu import cpio, debian, modules
from virtfn.vmm.qemu.cpio import Member

__all__ = ["MODULES", "TOOLS", "Image", "build_image"]

KERNEL_PACKAGE = "linux-image-amd64"

MODULES = (
    "8021q", "e1000e", "igb", "igbvf", "macvlan", "tun", "vfio_iommu_type1", "vfio_pci", "virtio_blk", "virtio_net",
    "virtio_pci",
)  # fmt: skip
"""Kernel modules that every image loads at boot."""

TOOLS: Mapping[str, tuple[str, ...]] = {
    "busybox": ("bin/busybox",),
    "ethtool": ("bin/*",),
    "iperf3": ("bin/*",),
    "iproute2": ("bin/bridge", "bin/devlink", "bin/ip", "bin/ss", "bin/tc"),
    "iputils-ping": ("bin/ping",),
    "kmod": ("bin/*",),
    "pci.ids": ("share/misc/*",),
    "pciutils": ("bin/*",),
    "tcpdump": ("bin/*",),
}
"""Debian packages that every image holds, and which of their files, below usr."""

# Not for running: left out of the packages that a caller names.
_UNWANTED = (
    "share/bash-completion/*",
    "share/doc/*",
    "share/info/*",
    "share/lintian/*",
    "share/locale/*",
    "share/man/*",
)

# One folder for programs, whatever the package calls it: then the order of PATH decides nothing.
_FOLDERS = {"bin": "usr/bin", "sbin": "usr/bin", "usr/sbin": "usr/bin", "lib": "usr/lib", "lib64": "usr/lib64"}

_FIXED = {
    "dev/console": Member.characters(5, 1),
    "dev/null": Member.characters(1, 3),
    "etc/group": Member.file(b"root:x:0:\ntcpdump:x:100:\n"),
    "etc/passwd": Member.file(b"root::0:0:root:/root:/usr/bin/sh\ntcpdump:x:100:100::/tmp:/usr/bin/false\n"),
    "etc/profile": Member.file(b"export PATH=/usr/bin HOME=/root TERM=linux PS1='\\h:\\w# '\ncd\n"),
    "proc": Member.folder(),
    "root": Member.folder(0o700),
    "run": Member.folder(),
    "sys": Member.folder(),
    "tmp": Member.folder(0o1777),
    "bin": Member.link("usr/bin"),
    "sbin": Member.link("usr/bin"),
    "usr/sbin": Member.link("bin"),
    "lib": Member.link("usr/lib"),
    "lib64": Member.link("usr/lib64"),
    "usr/bin/sh": Member.link("busybox"),
    "var/run": Member.link("../run"),
}


@dataclass(frozen=True, slots=True)
class Image:
    """A bootable guest. version: the kernel's release (`uname -r`); packages: what it was made of, NAME_VERSION_ARCH.

    Boot it with `console=ttyS0 virtfn.name=NAME` on the kernel's command line; 256 MiB of memory are enough.
    """

    kernel: Path
    initrd: Path
    version: str
    packages: tuple[str, ...]


def build_image(
    *,
    cache: Path,
    suite: str | None = None,
    kernel: str | None = None,
    extra_packages: Iterable[str] = (),
    extra_files: Mapping[str, Path] | None = None,
    extra_modules: Iterable[str] = (),
    refresh: bool = False,
) -> Image:
    """Make a guest image, or find it made before under `cache`.

    suite: of Debian; the machine's own if None. kernel: its package, and its suite if that is another, as apt writes
    it: linux-image-amd64/bookworm-backports. extra_packages: taken whole, without documentation. extra_files: path
    in the guest to a file of this machine, which keeps its permissions. extra_modules: of the kernel, loaded at boot.
    refresh: ask the mirror for newer packages. Raises VirtfnError: those of `debian.fetch`; ENOENT (no such file or
    module), EINVAL (a path that leaves the guest's root), EBADMSG (a package is not what it should be).
    """
    extra = sorted(set(extra_packages))
    wanted_modules = sorted({*MODULES, *extra_modules})
    added = {_guest_path(path): _added(file) for path, file in (extra_files or {}).items()}
    kernel_deb = _fetch_kernel(kernel or KERNEL_PACKAGE, suite, cache, refresh=refresh)
    debs = debian.fetch([*TOOLS, *extra], suite=suite, depends=True, cache=cache, refresh=refresh)
    for path, content in _own_files().items():
        added.setdefault(path, Member.file(content, 0o755))

    ingredients: list[object] = [kernel_deb.name, [deb.name for deb in debs], extra, wanted_modules]
    ingredients += [[path, member.mode, hashlib.sha256(member.content).hexdigest()] for path, member in added.items()]
    ingredients += [inspect.getsource(module) for module in (cpio, modules, inspect.getmodule(build_image)) if module]
    key = hashlib.sha256(json.dumps(ingredients).encode()).hexdigest()[:16]
    folder = cache.absolute() / "images" / key
    try:
        if not (folder / "image.json").exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".building-") as scratch:
                image = _build(Path(scratch), kernel_deb, debs, extra, wanted_modules, added)
                try:
                    os.rename(image, folder)
                except OSError:  # another process was quicker with the same
                    if not (folder / "image.json").exists():
                        raise
        facts = json.loads((folder / "image.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise VirtfnError(f"guest image: {error}", errno_name=debian.errno_name(error)) from error
    return Image(folder / "vmlinuz", folder / "initrd.gz", facts["version"], tuple(facts["packages"]))


def _build(
    scratch: Path, kernel: Path, debs: list[Path], extra: list[str], wanted: list[str], added: dict[str, Member]
) -> Path:
    """Make the image's folder in `scratch`."""
    root = scratch / "root"
    debian.unpack([kernel], scratch / "kernel")
    releases = [path.parent for path in (scratch / "kernel").glob("**/lib/modules/*/kernel")]
    if len(releases) != 1:
        raise VirtfnError(f"{kernel.name} holds no kernel modules", errno_name="EBADMSG")
    selected = modules.select(releases[0], wanted)
    version = releases[0].name
    home = f"usr/lib/modules/{version}"
    members = dict(_FIXED)
    members["etc/modules"] = Member.file("".join(f"{name}\n" for name in wanted if name in selected).encode())
    members |= {f"{home}/{module.path}": Member.file(module.content) for module in selected.values()}
    for name in ("modules.builtin", "modules.builtin.modinfo", "modules.order"):  # what depmod reads besides modules
        members[f"{home}/{name}"] = Member.file((releases[0] / name).read_bytes())

    by_name = {deb.name.partition("_")[0]: deb for deb in debs}
    for name in (*TOOLS, *extra):
        # One by one, to tell the files of a package that is asked for from those of what it depends on.
        debian.unpack([by_name[name]], scratch / "named" / name)
    debian.unpack(debs, root)
    index = _index(root)
    chosen = set()
    for name in (*TOOLS, *extra):
        patterns = TOOLS.get(name, ("*",)) if name not in extra else ("*",)
        chosen |= {path for path in _index(scratch / "named" / name) if _wanted(path, patterns)}
    members |= _with_libraries(chosen, index)
    members |= added

    image = scratch / "image"
    image.mkdir()
    shutil.copyfile(scratch / "kernel" / "boot" / f"vmlinuz-{version}", image / "vmlinuz")
    (image / "initrd.gz").write_bytes(cpio.archive(members))
    facts = {"version": version, "packages": [deb.stem for deb in (kernel, *debs)]}
    (image / "image.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    return image


def _index(root: Path) -> dict[str, Path]:
    """Map guest paths, in the image's layout, to the files and links of an unpacked tree."""
    found = {}
    for folder, _, files in os.walk(root):
        for name in files:
            path = Path(folder) / name
            found[_merged(path.relative_to(root).as_posix())] = path
        # a link to a folder is listed among the folders, and not entered
        for name in os.listdir(folder):
            path = Path(folder) / name
            if path.is_symlink():
                found[_merged(path.relative_to(root).as_posix())] = path
    return found


def _merged(path: str) -> str:
    for folder, merged in _FOLDERS.items():
        if path.startswith(folder + "/"):
            return merged + path.removeprefix(folder)
    return path


def _wanted(path: str, patterns: Iterable[str]) -> bool:
    below = path.removeprefix("usr/")
    return any(fnmatch.fnmatch(below, p) for p in patterns) and not any(fnmatch.fnmatch(below, p) for p in _UNWANTED)


def _with_libraries(chosen: Iterable[str], index: Mapping[str, Path]) -> dict[str, Member]:
    """Take the chosen files, what their links lead to, and the libraries and loader that their ELF headers name."""
    by_name: dict[str, str] = {}
    for path in sorted(index, key=len, reverse=True):
        if path.startswith("usr/lib"):
            by_name[PurePosixPath(path).name] = path  # the shortest path wins: plug-ins lie deeper than libraries
    members: dict[str, Member] = {}
    pending = sorted(chosen)
    while pending:
        path = pending.pop()
        if path in members or path not in index:
            continue
        source = index[path]
        if source.is_symlink():
            target = os.readlink(source)
            members[path] = Member.link(target)
            pending.append(_merged(os.path.normpath(os.path.join("/", os.path.dirname(path), target)).lstrip("/")))
        elif source.is_file():
            content = source.read_bytes()
            members[path] = Member.file(content, stat.S_IMODE(source.stat().st_mode))
            pending += [
                _merged(need.lstrip("/")) if "/" in need else by_name.get(need, need) for need in _needs(source)
            ]
    return members


def _needs(file: Path) -> list[str]:
    """List what the dynamic loader would look for: the path of the loader itself, and names of libraries."""
    with file.open("rb") as stream:
        if stream.read(4) != b"\x7fELF":
            return []
        try:
            elf = ELFFile(stream)
            loaders = [str(s.get_interp_name()) for s in elf.iter_segments() if isinstance(s, InterpSegment)]
            dynamic = [section for section in elf.iter_sections() if isinstance(section, DynamicSection)]
            tags = [tag for section in dynamic for tag in section.iter_tags("DT_NEEDED")]
            return loaders + [tag.needed for tag in tags]  # type: ignore[attr-defined]  # pyelftools sets it by kind
        except ELFError as error:
            raise VirtfnError(f"{file.name}: {error}", errno_name="EBADMSG") from error


def _own_files() -> dict[str, bytes]:
    """Read virtfn's own part of the guest: its first program, and the agent."""
    here = resources.files("virtfn.vmm.qemu")
    return {
        "init": here.joinpath("init.sh").read_bytes(),
        "usr/lib/virtfn/agent.sh": here.joinpath("agent.sh").read_bytes(),
    }


def _fetch_kernel(named: str, suite: str | None, cache: Path, *, refresh: bool) -> Path:
    """Fetch a kernel, by its own package or one that depends on it. Raises VirtfnError as `build_image` does."""
    package, _, other = named.partition("/")
    if not package.startswith("linux-image-"):
        raise VirtfnError(
            f"{named!r} is no package of a kernel, like linux-image-amd64 or linux-image-amd64/bookworm-backports",
            errno_name="EINVAL",
        )
    [deb] = debian.fetch([package], suite=other or suite, depends=False, cache=cache, refresh=refresh)
    if re.match(r"linux-image-\d", package):
        return deb
    [deb] = debian.fetch([_kernel_named_by(deb)], suite=other or suite, depends=False, cache=cache, refresh=refresh)
    return deb


def _kernel_named_by(meta: Path) -> str:
    """Return the package that the kernel's meta-package stands for today."""
    done = subprocess.run(["dpkg-deb", "-f", meta, "Depends"], capture_output=True, text=True, check=False)
    names = [word.split()[0] for word in done.stdout.split(",") if word.strip()]
    named = [name for name in names if re.match(r"linux-image-\d", name)]
    if len(named) != 1:
        raise VirtfnError(f"{meta.name} does not name one kernel: {done.stdout or done.stderr}", errno_name="EBADMSG")
    return named[0]


def _guest_path(path: str) -> str:
    clean = PurePosixPath("/", path)
    if ".." in clean.parts or clean == PurePosixPath("/"):
        raise VirtfnError(f"{path!r} is no path of a file in the guest", errno_name="EINVAL")
    return _merged(clean.as_posix().lstrip("/"))


def _added(file: Path) -> Member:
    try:
        return Member.file(file.read_bytes(), stat.S_IMODE(file.stat().st_mode))
    except OSError as error:
        raise VirtfnError(f"extra file {file}: {error.strerror}", errno_name=debian.errno_name(error)) from error

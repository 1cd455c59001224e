"""The guest image, from small packages made here; the real one, built and booted elsewhere, is slow and marked so."""

import gzip
import io
import json
import lzma
import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from unit.vmm.qemu.fakedebs import deb
from virtfn.machine.ports import VirtfnError
from virtfn.vmm.qemu import debian, image
from virtfn.vmm.qemu.cpio import Member, archive
from virtfn.vmm.qemu.image import MODULES, TOOLS, build_image
from virtfn.vmm.qemu.modules import select

RELEASE = "6.1.0-1-amd64"


def elf(modinfo: bytes) -> bytes:
    """Make the smallest 64-bit ELF file that has a .modinfo section: header, two sections' bytes, three headers."""
    names = b"\0.modinfo\0.shstrtab\0"
    at = 64 + len(modinfo) + len(names)

    def section(name: int, kind: int, offset: int, size: int) -> bytes:
        words = [(name, 4), (kind, 4), (0, 8), (0, 8), (offset, 8), (size, 8), (0, 4), (0, 4), (1, 8), (0, 8)]
        return b"".join(value.to_bytes(length, "little") for value, length in words)

    fields = [
        (1, 2),
        (62, 2),
        (1, 4),
        (0, 8),
        (0, 8),
        (at, 8),
        (0, 4),
        (64, 2),
        (0, 2),
        (0, 2),
        (64, 2),
        (3, 2),
        (2, 2),
    ]
    header = b"\x7fELF\x02\x01\x01" + bytes(9) + b"".join(v.to_bytes(length, "little") for v, length in fields)
    sections = section(0, 0, 0, 0) + section(1, 1, 64, len(modinfo)) + section(10, 3, 64 + len(modinfo), len(names))
    return header + modinfo + names + sections


def unpacked(initrd: bytes) -> dict[str, tuple[int, bytes]]:
    """Read a newc archive back: path to mode and content."""
    packed, at, members = gzip.decompress(initrd), 0, {}
    while True:
        assert packed[at : at + 6] == b"070701"
        fields = [int(packed[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        name = packed[at + 110 : at + 110 + fields[11] - 1].decode()
        start = (at + 110 + fields[11] + 3) & ~3
        if name == "TRAILER!!!":
            return members
        members[name] = fields[1], packed[start : start + fields[6]]
        at = (start + fields[6] + 3) & ~3


def kernel_files(needs: dict[str, str]) -> dict[str, bytes]:
    home = f"lib/modules/{RELEASE}"
    files = {f"{home}/{name}": b"" for name in ("modules.builtin", "modules.builtin.modinfo", "modules.order")}
    for name, depends in needs.items():
        files[f"{home}/kernel/drivers/{name}.ko"] = elf(f"license=GPL\0depends={depends}\0".encode())
    return files | {f"boot/vmlinuz-{RELEASE}": b"kernel"}


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Replace the mirror by small packages; returns what was asked for."""
    asked: list[list[str]] = []
    folder = tmp_path / "debs"
    folder.mkdir()
    contents: dict[str, dict[str, bytes]] = {name: {f"usr/bin/{name}": name.encode()} for name in TOOLS}
    contents["busybox"] = {"bin/busybox": b"busybox"}
    contents["iproute2"] = {"sbin/ip": b"ip", "usr/share/doc/iproute2/README": b"-", "usr/lib/tc/x": b"-"}
    contents["pci.ids"] = {"usr/share/misc/pci.ids": b"8086"}
    contents["extra"] = {"usr/sbin/extra": b"extra", "etc/extra.conf": b"c", "usr/share/man/man1/extra.1": b"-"}
    contents["unrelated"] = {"usr/bin/unrelated": b"-"}
    contents[f"linux-image-{RELEASE}"] = kernel_files(dict.fromkeys(MODULES, "") | {"igb": "dca", "dca": ""})

    def fetch(names: Iterable[str], *, suite: str | None, depends: bool, cache: Path, refresh: bool) -> list[Path]:
        asked.append(sorted(names))
        wanted = [*sorted(names), *(["unrelated"] if depends else [])]
        paths = [folder / f"{name}_1_amd64.deb" for name in wanted]
        for name, path in zip(wanted, paths, strict=True):
            if not path.exists():
                deb(path, contents.get(name, {}))
        return paths

    monkeypatch.setattr(debian, "fetch", fetch)
    monkeypatch.setattr(image, "_kernel_named_by", lambda meta: f"linux-image-{RELEASE}")
    return asked


def test_an_image_holds_the_tools_the_modules_and_virtfns_own_programs(packages: object, tmp_path: Path) -> None:
    built = build_image(cache=tmp_path / "cache")
    members = unpacked(built.initrd.read_bytes())
    assert built.version == RELEASE
    assert built.kernel.read_bytes() == b"kernel"
    assert members["usr/bin/busybox"] == (stat.S_IFREG | 0o755, b"busybox")
    assert members["usr/bin/ip"][1] == b"ip"
    assert members["usr/share/misc/pci.ids"][1] == b"8086"
    assert members["init"][0] == stat.S_IFREG | 0o755
    assert members["init"][1].startswith(b"#!/bin/sh")
    assert members["usr/lib/virtfn/agent.sh"][1].startswith(b"#!/bin/sh")
    assert members["sbin"] == (stat.S_IFLNK | 0o777, b"usr/bin")
    assert members["dev/console"][0] == stat.S_IFCHR | 0o600
    assert members["etc/modules"][1].decode().split() == sorted(MODULES)
    assert f"usr/lib/modules/{RELEASE}/kernel/drivers/dca.ko" in members
    assert not {"usr/bin/unrelated", "usr/lib/tc/x", "usr/share/doc/iproute2/README"} & set(members)


def test_folders_come_before_what_is_in_them(packages: object, tmp_path: Path) -> None:
    seen = {""}
    for path in unpacked(build_image(cache=tmp_path / "cache").initrd.read_bytes()):
        assert path.rpartition("/")[0] in seen
        seen.add(path)


def test_extra_packages_files_and_modules(packages: list[list[str]], tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_bytes(b"#!/bin/sh\n")
    script.chmod(0o700)
    built = build_image(
        cache=tmp_path / "cache", extra_packages=["extra"], extra_files={"/sbin/go": script}, extra_modules=["dca"]
    )
    members = unpacked(built.initrd.read_bytes())
    assert members["usr/bin/extra"][1] == b"extra"
    assert members["etc/extra.conf"][1] == b"c"
    assert "usr/share/man/man1/extra.1" not in members
    assert members["usr/bin/go"] == (stat.S_IFREG | 0o700, b"#!/bin/sh\n")
    assert "dca" in members["etc/modules"][1].decode().split()


def test_the_same_ingredients_make_one_image_and_others_another(packages: object, tmp_path: Path) -> None:
    first = build_image(cache=tmp_path / "cache")
    stamp = first.initrd.stat().st_mtime_ns
    assert build_image(cache=tmp_path / "cache") == first
    assert first.initrd.stat().st_mtime_ns == stamp
    assert build_image(cache=tmp_path / "cache", extra_modules=["dca"]).initrd != first.initrd
    assert json.loads((first.initrd.parent / "image.json").read_text())["version"] == RELEASE
    assert not list((tmp_path / "cache/images").glob(".building-*"))


@pytest.mark.parametrize("path", ["", "/", "../etc/passwd", "a/../../b"])
def test_a_file_outside_the_guest_is_refused(packages: object, tmp_path: Path, path: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(VirtfnError) as caught:
        build_image(cache=tmp_path / "cache", extra_files={path: tmp_path / "file"})
    assert caught.value.errno_name == "EINVAL"


def test_a_file_or_module_that_is_not_there_is_named(packages: object, tmp_path: Path) -> None:
    with pytest.raises(VirtfnError, match=r"extra file .*missing") as caught:
        build_image(cache=tmp_path / "cache", extra_files={"x": tmp_path / "missing"})
    assert caught.value.errno_name == "ENOENT"
    with pytest.raises(VirtfnError, match="no module nosuch") as caught:
        build_image(cache=tmp_path / "cache", extra_modules=["nosuch"])
    assert caught.value.errno_name == "ENOENT"


@pytest.fixture
def kernel(tmp_path: Path) -> Callable[[dict[str, bytes]], Path]:
    def make(files: dict[str, bytes]) -> Path:
        folder = tmp_path / RELEASE
        (folder / "kernel").mkdir(parents=True)
        (folder / "modules.builtin").write_text("kernel/net/packet/af_packet.ko\n")
        for name, content in files.items():
            (folder / "kernel" / name).write_bytes(content)
        return folder

    return make


def test_modules_bring_what_they_need_uncompressed(kernel: Callable[[dict[str, bytes]], Path]) -> None:
    plain = {name: elf(info) for name, info in {
        "a": b"depends=b-x,c\0softdep=pre: d crc32c post: e\0", "b": b"depends=\0", "c": b"depends=a,af_packet\0",
        "d": b"\0", "e": b"\0",
    }.items()}  # fmt: skip
    folder = kernel({
        "a.ko": plain["a"], "b-x.ko.xz": lzma.compress(plain["b"]), "c.ko.gz": gzip.compress(plain["c"]),
        "d.ko": plain["d"], "e.ko": plain["e"],
    })  # fmt: skip
    found = select(folder, ["a", "af-packet"])
    assert sorted(found) == ["a", "b_x", "c", "d"]
    assert found["b_x"].path == "kernel/b-x.ko"
    assert (found["b_x"].content, found["c"].content) == (plain["b"], plain["c"])


@pytest.mark.parametrize("content", [b"", b"\x7fELF", b"text" * 40, elf(b"depends=\xff\0")])
def test_what_is_no_module_is_refused(kernel: Callable[[dict[str, bytes]], Path], content: bytes) -> None:
    with pytest.raises(VirtfnError, match=r"a\.ko is not a kernel module") as caught:
        select(kernel({"a.ko": content}), ["a"])
    assert caught.value.errno_name == "EBADMSG"


def test_an_archive_is_what_cpio_reads(tmp_path: Path) -> None:
    packed = archive({"a/b/file": Member.file(b"12345", 0o640), "a/link": Member.link("b/file")})
    assert archive({"a/link": Member.link("b/file"), "a/b/file": Member.file(b"12345", 0o640)}) == packed
    assert unpacked(packed) == {
        "a": (stat.S_IFDIR | 0o755, b""),
        "a/b": (stat.S_IFDIR | 0o755, b""),
        "a/b/file": (stat.S_IFREG | 0o640, b"12345"),
        "a/link": (stat.S_IFLNK | 0o777, b"b/file"),
    }
    reader = shutil.which("cpio") or shutil.which("busybox")
    if reader is None:
        pytest.skip("neither cpio nor busybox to read it with")
    command = [reader, "-it"] if reader.endswith("/cpio") else [reader, "cpio", "-t"]
    listed = subprocess.run(command, input=gzip.decompress(packed), capture_output=True, check=True).stdout
    assert listed.decode().split() == ["a", "a/b", "a/b/file", "a/link"]


@pytest.mark.slow
def test_the_real_image_is_small_and_lacks_no_library() -> None:
    """Debian's own packages: 80 MB from the mirror the first time, nothing after."""
    try:
        built = build_image(cache=Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "virtfn")
    except VirtfnError as error:
        if error.errno_name in ("ENOTSUP", "ENETUNREACH", "ETIMEDOUT"):
            pytest.skip(f"not run: {error}")
        raise
    assert built.initrd.stat().st_size < 30 << 20
    members = unpacked(built.initrd.read_bytes())
    assert {f"usr/bin/{name}" for name in ("busybox", "ethtool", "iperf3", "ip", "lspci", "tc", "tcpdump")} < set(
        members
    )
    names = {path.rpartition("/")[2] for path in members}
    for path, (_, content) in members.items():
        if content[:4] == b"\x7fELF" and not path.endswith(".ko"):
            elf_file = ELFFile(io.BytesIO(content))
            dynamic = elf_file.get_section_by_name(".dynamic")
            for tag in dynamic.iter_tags("DT_NEEDED") if dynamic else ():
                assert tag.needed in names, f"{path} lacks {tag.needed}"

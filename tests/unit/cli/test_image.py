"""`virtfn image` and `virtfn shell`, and what a lab says where QEMU or the image is missing."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from virtfn.machine.ports import VirtfnError
from virtfn.vmm.qemu import Qemu
from virtfn.vmm.qemu.folder import GuestFolder
from virtfn.vmm.qemu.image import Image

EXAMPLE = Path(__file__).parents[3] / "examples" / "linux-vms.yaml"
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def virtfn(virtfn: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Calls the command line, with empty caches: (status, standard output, standard error)."""
    for name in ("XDG_CACHE_HOME", "XDG_RUNTIME_DIR"):
        (tmp_path / name).mkdir(mode=0o700)
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("VIRTFN_QEMU", raising=False)
    return virtfn


def an_image(cache: Path, **_: object) -> Image:
    folder = cache / "images" / "0123"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vmlinuz").write_bytes(bytes(5_000_000))
    (folder / "initrd.gz").write_bytes(bytes(1_000_000))
    packages = ("linux-image-6.1.0-9-amd64_6.1.9-1_amd64", "busybox_1%3a1.35.0-4_amd64")
    (folder / "image.json").write_text(json.dumps({"version": "6.1.0-9-amd64", "packages": packages}))
    return Image(folder / "vmlinuz", folder / "initrd.gz", "6.1.0-9-amd64", packages)


def test_an_image_that_was_built_is_the_one_that_labs_boot(virtfn: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}
    monkeypatch.setattr("virtfn.api.image.build_image", lambda **how: asked.update(how) or an_image(how["cache"]))
    status, out, _ = virtfn("image", "build", "--suite", "trixie", "--json", "-")
    document = json.loads(out)
    assert status == 0
    assert (asked["suite"], asked["refresh"]) == ("trixie", False)
    assert (document["version"], document["bytes"], document["suite"]) == ("6.1.0-9-amd64", 6_000_000, "trixie")
    status, out, _ = virtfn("image", "build", "--suite", "trixie", "--refresh")
    assert "6.0 MB, from 2 packages" in out
    assert asked["refresh"] is True
    from virtfn.api.image import current_image

    assert current_image().version == "6.1.0-9-amd64"
    assert current_image().kernel.parent == Path(document["folder"]).resolve()


def test_an_image_that_cannot_be_built(virtfn: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> Image:
        raise VirtfnError("the mirror cannot be reached", errno_name="ENETUNREACH")

    monkeypatch.setattr("virtfn.api.image.build_image", refuse)
    status, _, err = virtfn("image", "build", "--suite", "trixie")
    assert (status, err.splitlines()[-1]) == (1, "virtfn: the mirror cannot be reached (ENETUNREACH)")


def test_a_qemu_that_is_unpacked(virtfn: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "bios-256k.bin").touch()
    qemu = Qemu(tmp_path / "qemu-system-x86_64", ("qemu",), (11, 1, 3), data_folders=(tmp_path,))
    monkeypatch.setattr("virtfn.api.image.install_qemu", lambda: qemu)
    status, out, _ = virtfn("image", "qemu", "--json", "-")
    assert status == 0
    assert json.loads(out) == {"path": str(qemu.path), "version": "11.1.3", "firmware": ["bios-256k.bin"]}
    assert "11.1.3" in virtfn("image", "qemu")[1]


def test_a_lab_without_a_qemu_says_how_to_get_one(virtfn: Call) -> None:
    status, out, err = virtfn("run", str(EXAMPLE))
    assert (status, out) == (1, "")
    assert "no QEMU here has vfio-user" in err
    assert "virtfn image qemu" in err
    assert sum(line.startswith("virtfn: ") for line in err.splitlines()) == 1
    assert "    any Debian, no root needed:  virtfn image qemu" in err.splitlines()  # a line of its own


def test_a_lab_without_an_image_says_how_to_make_one(virtfn: Call, tmp_path: Path) -> None:
    program = tmp_path / "qemu-system-x86_64"
    program.write_text("#!/bin/sh\ncase $* in *-device*) echo vfio-user-pci options ;; *) echo version 11.0 ;; esac\n")
    program.chmod(0o755)
    status, _, err = virtfn("run", str(EXAMPLE))
    assert (status, err) == (1, "virtfn: there is no guest image; virtfn image build makes one (ENOENT)\n")


def test_consoles(virtfn: Call) -> None:
    assert virtfn("shell")[:2] == (0, "no Linux guest runs; virtfn run --keep keeps a lab up\n")
    status, _, err = virtfn("shell", "a")
    assert status == 1
    assert "no Linux guest called 'a' runs" in err
    folder = GuestFolder("a")
    try:
        with socket.socket(socket.AF_UNIX) as door:
            door.bind(str(folder.path / "console"))
            assert virtfn("shell")[1] == "a\n"
            assert json.loads(virtfn("shell", "--json", "-")[1]) == [
                {"guest": "a", "console": str(folder.path / "console")}
            ]
            assert "there is a (ENOENT)" in virtfn("shell", "b")[2]
            assert virtfn("shell", "a", "--json", "-")[0] == 2
    finally:
        folder.close()

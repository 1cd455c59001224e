from collections.abc import Callable
from pathlib import Path

import pytest

from virtfn.api.image import current_image
from virtfn.machine.ports import VirtfnError
from virtfn.vmm.qemu import find
from virtfn.vmm.qemu.find import find_qemu, install_qemu, unpacked_root

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a program that answers as a QEMU of some version does."""

    def write(version: str | None, *, vfio: bool = True, at: str = "bin/qemu-system-x86_64") -> Path:
        file = tmp_path / at
        file.parent.mkdir(parents=True, exist_ok=True)
        says = f"QEMU emulator version {version} (Debian 1:{version}+ds-1)" if version else "hello"
        options = "echo vfio-user-pci options:" if vfio else "echo \"Device 'vfio-user-pci' not found\" >&2; exit 1"
        data = tmp_path / "data"
        data.mkdir(exist_ok=True)
        (data / "bios-256k.bin").touch()
        (data / "keymaps").mkdir(exist_ok=True)
        file.write_text(
            '#!/bin/sh\ncase "$*" in\n'
            f"*-version) echo '{says}' ;;\n"
            f'*help) case "$*" in *vfio*) {options} ;; *) echo {data} ;; esac ;;\nesac\n'
        )
        file.chmod(0o755)
        return file

    return write


def unpacked(root: Path, version: str = "11.1.3") -> None:
    """Lay out what unpacking Debian's packages leaves; the loader is a script that runs what it is given."""
    libraries = root / "usr/lib/x86_64-linux-gnu"
    libraries.mkdir(parents=True)
    loader = libraries / "ld-linux-x86-64.so.2"
    loader.write_text('#!/bin/sh\nwhile [ "$1" != "qemu-system-x86_64" ]; do shift; done; shift; exec "$@"\n')
    binary = root / "usr/bin/qemu-system-x86_64"
    binary.parent.mkdir(parents=True)
    binary.write_text(
        '#!/bin/sh\ncase "$*" in *-version) echo "QEMU emulator version ' + version + '" ;;\n'
        '*vfio*) test -n "$QEMU_MODULE_DIR" && echo "vfio-user-pci options:" ;;\n*) echo "$2" ;; esac\n'
    )
    for file in (loader, binary):
        file.chmod(0o755)


def test_one_in_path(write: Write) -> None:
    file = write("10.1.0")
    qemu = find_qemu({"PATH": str(file.parent)})
    assert (qemu.path, qemu.command, qemu.version) == (file, (str(file),), (10, 1, 0))
    assert list(qemu.firmware()) == ["bios-256k.bin"]
    assert str(qemu) == f"QEMU 10.1.0 ({file})"


@pytest.mark.parametrize(
    ("version", "vfio", "complaint"),
    [
        ("7.2.22", False, "is version 7.2.22"),
        ("10.0.13", True, "is version 10.0.13"),
        ("11.1.3", False, "is version 11.1.3, but was built without vfio-user-pci"),
        (None, False, "does not say its version"),
    ],
)
def test_one_that_does_not_fit_is_named(write: Write, version: str | None, vfio: bool, complaint: str) -> None:
    file = write(version, vfio=vfio)
    with pytest.raises(VirtfnError) as caught:
        find_qemu({"PATH": str(file.parent)})
    assert f"{file} {complaint}" in str(caught.value)
    for advice in ("virtfn image qemu", "trixie-backports", "Debian 12", "VIRTFN_QEMU"):
        assert advice in caught.value.details


def test_none_at_all(tmp_path: Path) -> None:
    with pytest.raises(VirtfnError, match="no qemu-system-x86_64 in PATH"):
        find_qemu({"PATH": str(tmp_path)})


def test_the_environment_variable_decides(write: Write, tmp_path: Path) -> None:
    good, old = write("11.1.3"), write("7.2.0", at="old/qemu")
    assert find_qemu({"PATH": "", "VIRTFN_QEMU": str(good)}).version == (11, 1, 3)
    with pytest.raises(VirtfnError, match=r"VIRTFN_QEMU does not fit: .*old/qemu is version 7.2.0"):
        find_qemu({"PATH": str(good.parent), "VIRTFN_QEMU": str(old)})
    with pytest.raises(VirtfnError, match="/no/qemu is not there"):
        find_qemu({"VIRTFN_QEMU": "/no/qemu"})
    text = tmp_path / "text"
    text.write_text("not a program")
    text.chmod(0o755)
    with pytest.raises(VirtfnError, match="does not start: Exec format error"):
        find_qemu({"VIRTFN_QEMU": str(text)})


def test_an_unpacked_one_runs_from_its_folder(write: Write, tmp_path: Path) -> None:
    old = write("7.2.22", vfio=False)
    unpacked(unpacked_root())
    qemu = find_qemu({"PATH": str(old.parent)})
    root = unpacked_root()
    assert qemu.path == root / "usr/bin/qemu-system-x86_64"
    assert qemu.command[0] == str(root / "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2")
    assert qemu.environ == {"QEMU_MODULE_DIR": str(root / "usr/lib/x86_64-linux-gnu/qemu")}
    assert qemu.data_folders[0] == root / "usr/share/qemu"
    unpacked(tmp_path / "other", "10.2.0")
    assert find_qemu({"VIRTFN_QEMU": str(tmp_path / "other")}).version == (10, 2, 0)


def test_a_qemu_that_others_could_have_put_there_is_not_run(write: Write, tmp_path: Path) -> None:
    root = unpacked_root()
    unpacked(root)
    for file in root.rglob("*"):
        if file.is_file():
            file.write_text(f"#!/bin/sh\ntouch {tmp_path}/run\n")
    root.parent.chmod(0o777)
    with pytest.raises(VirtfnError, match=r"no QEMU here has vfio-user: .*others can write it"):
        find_qemu({"PATH": ""})
    with pytest.raises(VirtfnError, match="others can write it"):
        current_image()
    assert find_qemu({"PATH": str(write("11.1.3").parent)}).version == (11, 1, 3)
    assert not (tmp_path / "run").exists()


def test_a_program_named_by_the_working_folder_is_found_from_elsewhere(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write("11.1.3")
    monkeypatch.chdir(file.parent)
    assert find_qemu({"VIRTFN_QEMU": f"./{file.name}", "PATH": ""}).command == (str(file),)


def test_a_folder_that_is_no_qemu(tmp_path: Path) -> None:
    with pytest.raises(VirtfnError, match="no usr/bin/qemu-system-x86_64 in"):
        find_qemu({"VIRTFN_QEMU": str(tmp_path)})
    unpacked(tmp_path)
    (tmp_path / "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2").unlink()
    with pytest.raises(VirtfnError, match=r"no dynamic loader \(libc6\)"):
        find_qemu({"VIRTFN_QEMU": str(tmp_path)})


def test_install_replaces_the_one_before_only_by_one_that_runs() -> None:
    asked: list[object] = []

    def fetch(packages: object, **how: object) -> list[Path]:
        asked.extend((packages, how))
        return [Path("a.deb")]

    first = install_qemu(fetch=fetch, unpack=lambda _, root: unpacked(root, "11.0.0"))
    assert first.version == (11, 0, 0)
    assert asked[0] == find.PACKAGES
    assert asked[1] == {"suite": "trixie-backports", "depends": True, "cache": unpacked_root().parent / "packages"}
    assert install_qemu(fetch=fetch, unpack=lambda _, root: unpacked(root, "11.1.3")).version == (11, 1, 3)
    with pytest.raises(VirtfnError, match=r"does not fit: .* is version 7.2.0"):
        install_qemu(fetch=fetch, unpack=lambda _, root: unpacked(root, "7.2.0"))
    assert find_qemu({"PATH": ""}).version == (11, 1, 3)
    assert [entry.name for entry in unpacked_root().parent.iterdir()] == [unpacked_root().name]

"""`virtfn serve` and `virtfn qemu-args` from outside."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from virtfn.api.image import Platform
from virtfn.vmm.qemu import Acceleration, Qemu
from virtfn.vmm.qemu.image import Image

LAB = """\
name: l
pfs: [{name: p, sr-iov: {total-vfs: 2}}]
guests:
  - {name: a, vmm: qemu, nic: {pf: p, vf: 0}}
  - {name: b, vmm: qemu, nic: {pf: p, io: split}}
workload: {kind: none}
"""
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    for name in ("vmlinuz", "initrd.gz"):
        (tmp_path / name).touch()
    image = Image(tmp_path / "vmlinuz", tmp_path / "initrd.gz", "6.1", ())
    platform = Platform(Qemu(Path("/q"), ("/q",), (11, 1, 0)), image, Acceleration("tcg", ""))
    monkeypatch.setattr("virtfn.api.qemuargs.find_platform", lambda *_: platform)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "lab.yaml").write_text(LAB)
    return str(tmp_path / "lab.yaml")


def test_a_line_for_a_shell_and_its_words(virtfn: Call, lab: str) -> None:
    status, line, _ = virtfn("qemu-args", lab, "a", "--sockets", "/s s")
    assert status == 0
    assert line.count("\n") == 1
    status, words, _ = virtfn("qemu-args", lab, "a", "--sockets", "/s s", "--json", "-")
    assert status == 0
    assert shlex.split(line) == json.loads(words)
    assert "/s s/a.sock" in line


def test_a_domain(virtfn: Call, lab: str) -> None:
    status, out, _ = virtfn("qemu-args", lab, "b", "--libvirt")
    assert status == 0
    assert out.startswith('<domain type="qemu"')


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["qemu-args", "LAB"], 2, "Missing argument 'GUEST'"),
        (["qemu-args", "LAB", "x"], 1, "lab l has no guest called x; there are a, b (ENOENT)"),
        (["qemu-args", "/no/lab", "x"], 2, "/no/lab:1: cannot be read"),
        (["qemu-args", "LAB", "a", "--libvirt", "--json", "-"], 2, "give one"),
        (["serve"], 2, "Missing argument 'LAB.yaml'"),
        (["serve", "LAB", "--sockets", "/no/such/folder"], 1, "No such file or directory"),
        (["serve", "LAB", "--sockets", "/dev/null"], 1, "File exists"),
        (["serve", "LAB", "--json", "LAB"], 2, "is an input of this run"),
    ],
)
def test_what_cannot_be_is_one_line(virtfn: Call, lab: str, arguments: list[str], status: int, said: str) -> None:
    code, out, err = virtfn(*(lab if word == "LAB" else word for word in arguments))
    assert (code, out) == (status, "")
    assert said in err
    assert err.count("\n") == 1


def test_a_served_lab_says_where_its_sockets_are(virtfn: Call, lab: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from virtfn.api.session import Session

    def leave(self: Session, ready: Callable[[], None]) -> None:
        ready()

    monkeypatch.setattr(Session, "keep", leave)
    status, out, _ = virtfn("serve", lab)
    assert status == 0
    assert out.splitlines()[-1] == "ready: l is served"
    assert "vhost-user at" in out
    status, out, _ = virtfn("serve", lab, "--json", "-")
    assert status == 0
    assert [entry["guest"] for entry in json.loads(out)["sockets"]] == ["a", "b"]

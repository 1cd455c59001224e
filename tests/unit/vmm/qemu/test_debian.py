"""Packages by name, against an apt-get and packages made here: no network, no root."""

import os
import stat
from pathlib import Path

import pytest

from unit.vmm.qemu.fakedebs import deb
from virtfn.machine.ports import VirtfnError
from virtfn.vmm.qemu import debian
from virtfn.vmm.qemu.debian import fetch, own_suite, unpack

# Answers as apt-get does; what it is asked lands in $LOG, complaints come from $SAYS.
APT = r"""#!/bin/sh
echo "$*" >>"$LOG"
for word; do
    case $word in
        indextargets)
            echo "http://mirror.test/debian/ $OWN main"
            echo "http://mirror.test/debian/ $OWN non-free"
            echo "http://mirror.test/debian/ $OWN-updates main"
            echo "http://mirror.test/debian-security/ $OWN-security main"
            echo "https://elsewhere.test/ nodistro main"
            exit 0 ;;
        update) [ -z "$SAYS" ] || { echo "$SAYS" >&2; exit 100; } ;;
        install)
            echo "Reading package lists..."
            echo "Inst libtool2 (2.0 Debian:12/stable [amd64])"
            echo "Inst tool (1:1.0 Debian:12/stable [amd64])"
            echo "Conf tool (1:1.0 Debian:12/stable [amd64])"
            exit 0 ;;
        --print-uris) print=1 ;;
        tool) names="$names tool_1%3a1.0_amd64.deb" ;;
        libtool2) names="$names libtool2_2.0_amd64.deb" ;;
        debian-archive-keyring) names="$names debian-archive-keyring_3_all.deb" ;;
    esac
done
for name in $names; do
    if [ "$print" ]; then
        echo "'http://mirror.test/pool/$name' $name 10 SHA256:00"
    else
        cp "$DEBS/$name" .
    fi
done
"""


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine whose apt knows three packages; returns the log of what apt was asked."""
    programs, debs = tmp_path / "bin", tmp_path / "debs"
    programs.mkdir()
    debs.mkdir()
    (programs / "apt-get").write_text(APT)
    (programs / "apt-get").chmod(stat.S_IRWXU)
    deb(debs / "tool_1%3a1.0_amd64.deb", {"usr/bin/tool": b"#!/bin/sh\n"})
    deb(debs / "libtool2_2.0_amd64.deb", {"lib/libtool.so": b"so"})
    deb(debs / "debian-archive-keyring_3_all.deb", {"usr/share/keyrings/debian-archive-keyring.gpg": b"newer keys"})
    monkeypatch.setattr(debian, "own_suite", lambda: "bookworm")
    for name, value in {"LOG": tmp_path / "log", "DEBS": debs, "OWN": "bookworm", "SAYS": ""}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    (tmp_path / "log").touch()
    return tmp_path / "log"


def test_a_package_comes_with_what_it_depends_on(mirror: Path, tmp_path: Path) -> None:
    files = fetch(["tool"], depends=True, cache=tmp_path / "cache")
    assert [file.name for file in files] == ["libtool2_2.0_amd64.deb", "tool_1%3a1.0_amd64.deb"]
    assert all(file.is_file() for file in files)


def test_a_package_comes_alone(mirror: Path, tmp_path: Path) -> None:
    assert [file.name for file in fetch(["tool"], depends=False, cache=tmp_path / "c")] == ["tool_1%3a1.0_amd64.deb"]


def test_a_second_call_asks_nobody_and_refresh_asks_again(mirror: Path, tmp_path: Path) -> None:
    first = fetch(["tool"], depends=True, cache=tmp_path / "cache")
    mirror.write_text("")
    assert fetch(["tool"], depends=True, cache=tmp_path / "cache") == first
    assert mirror.read_text() == ""
    fetch(["tool"], depends=True, cache=tmp_path / "cache", refresh=True)
    assert " update" in mirror.read_text()


def test_a_file_that_is_gone_is_fetched_again(mirror: Path, tmp_path: Path) -> None:
    [file] = fetch(["tool"], depends=False, cache=tmp_path / "cache")
    file.unlink()
    assert fetch(["tool"], depends=False, cache=tmp_path / "cache") == [file]
    assert file.is_file()


def test_only_debians_main_of_the_machine_is_a_source(mirror: Path, tmp_path: Path) -> None:
    fetch(["tool"], depends=False, cache=tmp_path / "cache")
    assert (tmp_path / "cache/bookworm/sources.list").read_text().splitlines() == [
        "deb [target=Packages] http://mirror.test/debian-security/ bookworm-security main",
        "deb [target=Packages] http://mirror.test/debian/ bookworm main",
        "deb [target=Packages] http://mirror.test/debian/ bookworm-updates main",
    ]


def test_another_suite_comes_from_the_same_mirrors_and_is_checked_by_the_newer_keyring(
    mirror: Path, tmp_path: Path
) -> None:
    fetch(["tool"], suite="trixie-backports", depends=False, cache=tmp_path / "cache")
    folder = tmp_path / "cache/trixie-backports"
    assert [line.split()[-2] for line in (folder / "sources.list").read_text().splitlines()] == [
        "trixie-security", "trixie", "trixie-backports", "trixie-updates",
    ]  # fmt: skip
    assert (folder / "keyrings/debian-archive-keyring.gpg").read_bytes() == b"newer keys"
    last = mirror.read_text().splitlines()[-1]
    assert f"Dir::Etc::trustedparts={folder}/keyrings" in last
    assert "APT::Default-Release=trixie-backports" in last


def test_apt_never_touches_the_machines_own_state(mirror: Path, tmp_path: Path) -> None:
    fetch(["tool"], depends=True, cache=tmp_path / "cache")
    for line in mirror.read_text().splitlines():
        if "indextargets" not in line:
            assert f"Dir::State={tmp_path}/cache/bookworm/state" in line
            assert f"Dir::State::status={tmp_path}/cache/bookworm/state/status" in line
            assert f"Dir::Cache={tmp_path}/cache/bookworm" in line
            assert "Acquire::AllowInsecureRepositories=false" in line


@pytest.mark.parametrize(
    ("says", "errno_name"),
    [
        ("E: Unable to locate package tool", "ENOENT"),
        ("E: The repository 'http://mirror.test x Release' does not have a Release file.", "ENOENT"),
        ("W: GPG error: x: the following signatures couldn't be verified: NO_PUBKEY 0E98404D386FA1D9", "EKEYREJECTED"),
        ("E: Failed to fetch http://mirror.test/x  Hash Sum mismatch", "EBADMSG"),
        ("E: Failed to fetch http://mirror.test/x  Temporary failure resolving 'mirror.test'", "ENETUNREACH"),
        ("E: Failed to fetch http://mirror.test/x  Could not connect to mirror.test:80", "ENETUNREACH"),
        ("E: Failed to fetch http://mirror.test/x  404  Not Found", "ENOENT"),
        ("E: Something that nobody foresaw", "EIO"),
        ("", "EIO"),
    ],
)
def test_what_apt_complains_of_has_a_clear_word(
    mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str, errno_name: str
) -> None:
    monkeypatch.setenv("SAYS", says or " ")
    with pytest.raises(VirtfnError, match="packages of bookworm") as caught:
        fetch(["tool"], depends=True, cache=tmp_path / "cache")
    assert caught.value.errno_name == errno_name


@pytest.mark.parametrize("name", ["", "-o", "../tool", "a b", "tool=1", "~nx", "tool\n"])
def test_a_name_that_is_none_never_reaches_apt(mirror: Path, tmp_path: Path, name: str) -> None:
    for packages, suite in (([name], None), (["tool"], name or "-")):
        with pytest.raises(VirtfnError) as caught:
            fetch(packages, suite=suite, depends=False, cache=tmp_path / "cache")
        assert caught.value.errno_name == "EINVAL"
    assert mirror.read_text() == ""


def test_without_apt_it_says_so(mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(VirtfnError, match="apt-get and dpkg-deb not found") as caught:
        fetch(["tool"], depends=False, cache=tmp_path / "cache")
    assert caught.value.errno_name == "ENOENT"


def test_a_machine_without_a_mirror_says_so(mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OWN", "sid")
    with pytest.raises(VirtfnError, match="no mirror of bookworm"):
        fetch(["tool"], depends=False, cache=tmp_path / "cache")


def test_a_cache_that_cannot_be_written_is_an_error(mirror: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(VirtfnError, match="package cache") as caught:
        fetch(["tool"], depends=False, cache=tmp_path / "cache")
    assert caught.value.errno_name in ("ENOTDIR", "EEXIST")


def test_nothing_asked_is_nothing_fetched(mirror: Path, tmp_path: Path) -> None:
    assert fetch([], depends=True, cache=tmp_path / "cache") == []


def test_packages_are_unpacked_and_a_broken_one_is_named(tmp_path: Path) -> None:
    good = deb(tmp_path / "tool_1_all.deb", {"usr/bin/tool": b"program"})
    unpack([good], tmp_path / "root")
    assert (tmp_path / "root/usr/bin/tool").read_bytes() == b"program"
    bad = tmp_path / "bad_1_all.deb"
    bad.write_bytes(b"not a package")
    with pytest.raises(VirtfnError, match="bad_1_all") as caught:
        unpack([bad], tmp_path / "root")
    assert caught.value.errno_name == "EBADMSG"


@pytest.mark.parametrize("text", ['ID=fedora\nPRETTY_NAME="Fedora 40"\n', "", None, "ID=debian\n"])
def test_a_machine_that_is_not_debian_is_refused(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "etc").mkdir()
        (tmp_path / "etc/os-release").write_text(text)
    with pytest.raises(VirtfnError) as caught:
        own_suite(tmp_path)
    assert caught.value.errno_name == "ENOTSUP"


def test_the_own_suite_is_read_from_the_machine(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/os-release").write_text('ID=debian\nVERSION_CODENAME="bookworm"\n')
    assert own_suite(tmp_path) == "bookworm"

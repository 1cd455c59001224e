"""What other users of the machine could put where virtfn looks: it is neither run, nor followed, nor overwritten."""

from __future__ import annotations

import os
import re
import socket
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from virtfn import private
from virtfn.cli.outputs import claim, write_json
from virtfn.hw.vtd.regs import CAP, ECAP, IRTA
from virtfn.iovm.iommu.state import SavedPages, UnitState, save_state
from virtfn.machine.clock import VirtualClock
from virtfn.machine.ports import VirtfnError
from virtfn.machine.recorder import Recorder
from virtfn.machine.trace import Tracer
from virtfn.private import NotPrivateError, check, found, fresh_folder, kernel_cache, own_folder, runtime_folder
from virtfn.vmm.qemu import Console, Watch
from virtfn.vmm.uplink import StreamUplink

STRANGER = 12345
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="not run: only root can give a file to another user")


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """Make a folder that is like /tmp."""
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o1777)
    return folder


@pytest.fixture
def homeless(shared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Leave nothing to write but the shared folder; for root too, whom no mode stops."""
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setenv("HOME", os.devnull)
    monkeypatch.setattr("tempfile.tempdir", str(shared))
    return shared


def strangers(path: Path) -> Path:
    os.chown(path, STRANGER, STRANGER, follow_symlinks=False)
    return path


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# Folders of this user's own.


def test_a_folder_is_made_for_this_user_alone(shared: Path) -> None:
    before = os.umask(0)
    try:
        assert own_folder(shared / "a" / "b") == shared / "a" / "b"
    finally:
        os.umask(before)
    assert (mode(shared / "a"), mode(shared / "a" / "b")) == (0o700, 0o700)
    assert own_folder(shared / "a" / "b") == shared / "a" / "b"
    with pytest.raises(FileNotFoundError):
        own_folder(shared / "c" / "d", parents=False)
    assert own_folder(shared / "c", parents=False).is_dir()


def test_a_folder_that_others_can_only_read_is_closed(shared: Path) -> None:
    (shared / "a").mkdir()
    (shared / "a").chmod(0o755)
    own_folder(shared / "a")
    assert mode(shared / "a") == 0o700


@pytest.mark.parametrize("bits", [0o720, 0o702, 0o777, 0o1777])
def test_a_folder_that_others_can_write_is_refused_and_left_alone(shared: Path, bits: int) -> None:
    (shared / "a").mkdir()
    (shared / "a").chmod(bits)
    with pytest.raises(NotPrivateError, match="others can write it"):
        own_folder(shared / "a")
    assert mode(shared / "a") == bits


def test_no_file_is_taken_for_a_folder(shared: Path) -> None:
    (shared / "a").touch()
    for path in (shared / "a", shared / "a" / "b"):
        with pytest.raises(NotADirectoryError):
            own_folder(path)


def test_a_link_in_a_shared_folder_is_not_followed(shared: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (shared / "a").symlink_to(tmp_path / "elsewhere")
    for path in (shared / "a", shared / "a" / "b"):
        with pytest.raises(NotPrivateError, match="it is a link"):
            own_folder(path)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_links_of_this_user_elsewhere_are_followed(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir(mode=0o700)
    (tmp_path / "absolute").symlink_to(tmp_path / "far")
    (tmp_path / "relative").symlink_to("../" + tmp_path.name + "/absolute")
    own_folder(tmp_path / "relative" / "a")
    assert mode(tmp_path / "far" / "a") == 0o700
    (tmp_path / "round").symlink_to("round")
    with pytest.raises(OSError, match="symbolic links"):
        own_folder(tmp_path / "round")


def test_a_folder_that_somebody_could_replace_is_refused(shared: Path) -> None:
    shared.chmod(0o777)
    with pytest.raises(NotPrivateError, match="others can write the folder above"):
        own_folder(shared / "a" / "b")
    assert list(shared.iterdir()) == []


@needs_root
def test_nothing_of_a_stranger_is_used(shared: Path, tmp_path: Path) -> None:
    (shared / "a").mkdir(mode=0o700)
    strangers(shared / "a")
    (tmp_path / "b").symlink_to(shared)
    os.chown(tmp_path / "b", STRANGER, STRANGER, follow_symlinks=False)
    for path in (shared / "a", shared / "a" / "c", tmp_path / "b" / "c"):
        with pytest.raises(NotPrivateError, match="user 12345"):
            own_folder(path)
    assert list((shared / "a").iterdir()) == []
    assert not (shared / "c").exists()


@needs_root
@pytest.mark.parametrize("plant", ["folder", "link"])
def test_what_appears_between_look_and_use_is_judged(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plant: str
) -> None:
    """The stranger is quicker: the name is free when it is looked at, and taken when the folder is made."""
    (tmp_path / "mine").mkdir(mode=0o700)
    make = os.mkdir

    def late(path: str, bits: int = 0o777, *, dir_fd: int | None = None) -> None:
        monkeypatch.setattr(os, "mkdir", make)
        if plant == "link":
            (shared / "a").symlink_to(tmp_path / "mine")
        else:
            (shared / "a").mkdir(mode=0o700)
        strangers(shared / "a")
        make(path, bits, dir_fd=dir_fd)

    monkeypatch.setattr(os, "mkdir", late)
    with pytest.raises(OSError, match="user 12345" if plant == "folder" else "Not a directory|symbolic links"):
        own_folder(shared / "a")
    monkeypatch.setattr(os, "mkdir", late)
    with pytest.raises(NotPrivateError, match="user 12345" if plant == "folder" else "link"):
        own_folder(shared / "a" / "b")
    assert list((tmp_path / "mine").iterdir()) == []


def test_root_is_trusted_under_the_name_that_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a user namespace without root, /tmp and what is above it seem to belong to the overflow user."""
    texts = {"/proc/self/uid_map": "      1000    0   1\n", "/proc/sys/kernel/overflowuid": "65534\n"}
    monkeypatch.setattr(Path, "read_text", lambda path: texts[str(path)])
    assert private._trusted() == {os.geteuid(), 0, 65534}
    texts["/proc/self/uid_map"] = "1 100000 65536\n0 1000 1\n"
    assert private._trusted() == {os.geteuid(), 0}


# The cache of compiled kernels.


def test_kernels_are_kept_in_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert kernel_cache("build") == tmp_path / ".cache/virtfn/build"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # is to be ignored, says XDG
    assert kernel_cache("build") == tmp_path / ".cache/virtfn/build"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert kernel_cache("build") == tmp_path / "xdg/virtfn/build"


def test_without_a_home_they_are_kept_apart_from_sockets(homeless: Path) -> None:
    cache = homeless / f"virtfn-kernels-{os.geteuid()}"
    assert kernel_cache("build") == cache / "build"
    assert (mode(cache), mode(cache / "build")) == (0o700, 0o700)
    assert runtime_folder() == homeless / f"virtfn-{os.geteuid()}"


def test_a_user_without_any_home_has_a_cache(homeless: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nobody)
    assert kernel_cache("build").parent.parent == homeless


@pytest.mark.parametrize("level", ["home", "virtfn", "virtfn/build"])
def test_a_cache_in_the_home_that_others_can_write_is_not_used(
    homeless: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: str
) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    home.mkdir(mode=0o700)
    assert kernel_cache("build") == home / "virtfn/build"
    (home if level == "home" else home / level).chmod(0o777)
    assert kernel_cache("build").parent.parent == homeless


@needs_root
def test_a_cache_home_that_a_stranger_made_is_not_used(homeless: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (homeless / "x").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(strangers(homeless / "x")))
    assert kernel_cache("build").parent.name == f"virtfn-kernels-{os.geteuid()}"
    assert list((homeless / "x").iterdir()) == []


def test_a_cache_that_cannot_be_written_is_not_used(homeless: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a file system that is full, or mounted for reading."""
    real = private.tempfile.TemporaryFile

    def full(*, dir: Path) -> object:
        if "virtfn-kernels" in str(dir):
            raise OSError(28, "No space left on device")
        return real(dir=dir)

    monkeypatch.setattr(private.tempfile, "TemporaryFile", full)
    assert str(kernel_cache("build")).startswith("/proc/self/fd/")


PROBE = """
    from virtfn.kernels import _objects
    from virtfn.kernels.csum import swap16

    def files():
        return len(list(_objects.cache().glob("*.o")))

    had = files()
    assert swap16(0x1234) == 0x3412
    print(_objects.cache(), had, files(), len(_objects.compiled), sep="\\n")
"""


def probe(folder: Path, tmpdir: Path, **environ: str) -> list[str]:
    """Compile one kernel in a process of its own, without a home; return the cache and its files before and after."""
    script = folder / "probe.py"
    script.write_text(textwrap.dedent(PROBE))
    source = str(Path(private.__file__).parents[1])
    set_up = {"HOME": os.devnull, "TMPDIR": str(tmpdir), "PYTHONPATH": source, "PATH": os.environ["PATH"], **environ}
    done = subprocess.run(
        [sys.executable, str(script)], env=set_up, cwd=folder, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


@pytest.mark.parametrize("how", ["mode", pytest.param("owner", marks=needs_root)])
def test_planted_machine_code_is_not_run(tmp_path: Path, shared: Path, how: str) -> None:
    """The stranger has made the folder first, in the place that everybody knows."""
    assert probe(tmp_path, shared)[1:] == ["0", "1", "1"]
    assert probe(tmp_path, shared)[1:] == ["1", "1", "0"]
    for folder, _, files in os.walk(shared):
        for path in (Path(folder), *(Path(folder) / name for name in files)):
            if path == shared:
                continue
            if how == "owner":
                strangers(path)
            else:
                path.chmod(0o777)
    cache, *counts = probe(tmp_path, shared)
    assert cache.startswith("/proc/self/fd/")
    assert counts == ["0", "1", "1"]
    assert [entry.name for entry in shared.iterdir()] == [f"virtfn-kernels-{os.geteuid()}"]  # the fresh one is gone


def test_machine_code_in_a_folder_of_ones_own_counts(tmp_path: Path, shared: Path) -> None:
    """The test above would see a file that is run."""
    probe(tmp_path, shared)
    (planted,) = shared.rglob("*.o")
    planted.write_bytes(b"no code")
    with pytest.raises(AssertionError):
        probe(tmp_path, shared)


def test_numba_obeys_no_working_folder(tmp_path: Path, shared: Path) -> None:
    (tmp_path / ".numba_config.yaml").write_text("")
    (tmp_path / "yaml.py").write_text("def safe_load(file): return {'opt': '1'}\n")
    assert probe(tmp_path, shared)[0].startswith(str(shared))
    code = """
        import numba
        from virtfn.kernels import _compiler
        assert numba.config.OPT == 3, "the working folder is not obeyed"
        numba.njit(lambda: 1)()  # the configuration is read again
        print(int(numba.config.OPT))
    """
    (tmp_path / "again.py").write_text(textwrap.dedent(code))
    environ = {**os.environ, "PYTHONPATH": str(Path(private.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, str(tmp_path / "again.py")],
        env=environ,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr


def test_nothing_of_the_working_folder_compiles_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from virtfn.kernels import warm

    (tmp_path / "virtfn.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.environ.get("PYTHONPATH", ""), ""]))
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    start, codes = subprocess.Popen, []

    def start_short(command: list[str], **how: Any) -> subprocess.Popen[bytes]:
        """It finds what it needs, and does not begin to compile."""
        process = start([*command[:-1], command[-1].partition(";")[0]], **how)
        codes.append(process.wait(60))
        return process

    monkeypatch.setattr("subprocess.Popen", start_short)
    with warm._another(True, rest=False):
        pass
    assert codes == [0]
    assert not (tmp_path / "run").exists()


def test_a_fresh_folder_goes_with_its_process(shared: Path) -> None:
    code = """
        import os, sys
        from virtfn.private import fresh_folder
        folder = fresh_folder()
        (folder / "below").mkdir()
        (folder / "below" / "file").write_text("x")
        (folder / "file").write_text("x")
        if not os.fork():
            sys.exit()  # a child's exit is not its end
        os.wait()
        assert (folder / "file").exists()
        [entry] = os.listdir(sys.argv[1])
        print(oct(os.stat(folder).st_mode))
        if len(sys.argv) > 2:
            os.rename(f"{sys.argv[1]}/{entry}", f"{sys.argv[1]}/moved")
            os.mkdir(f"{sys.argv[1]}/{entry}")
            assert (folder / "file").read_text() == "x"
    """
    environ = {**os.environ, "TMPDIR": str(shared), "PYTHONPATH": str(Path(private.__file__).parents[1])}
    for extra in ([], ["moved"]):
        argv = [sys.executable, "-c", textwrap.dedent(code), str(shared), *extra]
        done = subprocess.run(argv, env=environ, capture_output=True, text=True, check=False)
        assert (done.stdout, done.stderr) == ("0o40700\n", "")
    assert list((shared / "moved").iterdir()) == []  # emptied, by its descriptor


def test_a_fresh_folder_that_was_exchanged_is_not_emptied(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = shared / "mine"
    mine.mkdir(mode=0o700)
    (mine / "work").touch()
    monkeypatch.setattr(private.tempfile, "mkdtemp", lambda prefix: str(mine))
    with pytest.raises(NotPrivateError, match="exchanged"):
        fresh_folder()
    (shared / "link").symlink_to(mine)
    monkeypatch.setattr(private.tempfile, "mkdtemp", lambda prefix: str(shared / "link"))
    with pytest.raises(OSError, match=r"directory|links"):
        fresh_folder()
    assert (mine / "work").exists()


# What the user names.


def write(path: Path) -> None:
    with open(path, "w", opener=private.opener) as file:
        file.write("new")


def test_files_are_written_as_open_writes_them(tmp_path: Path, shared: Path) -> None:
    for folder in (tmp_path, shared):
        (folder / "long").write_text("something long")
        (folder / "link").symlink_to("long")
        (folder / "dangling").symlink_to("made")
        for name in ("fresh", "link", "dangling"):
            write(folder / name)
        assert [(folder / name).read_text() for name in ("fresh", "long", "made")] == ["new"] * 3
        assert (folder / "link").is_symlink()
    with pytest.raises(IsADirectoryError):
        write(tmp_path)
    with pytest.raises(FileNotFoundError):
        write(tmp_path / "missing" / "file")
    with open(tmp_path / "long", "a", opener=private.opener) as file:
        file.write("er")
    assert (tmp_path / "long").read_text() == "newer"


def test_descriptors_and_devices_have_names_too(tmp_path: Path) -> None:
    write(Path(os.devnull))
    with open(tmp_path / "file", "wb") as file:
        write(Path(f"/proc/self/fd/{file.fileno()}"))
        write(Path(f"/dev/fd/{file.fileno()}"))
        check(f"/dev/fd/{file.fileno()}")
    assert (tmp_path / "file").read_text() == "new"
    reading, writing = os.pipe()
    write(Path(f"/dev/fd/{writing}"))
    assert os.read(reading, 10) == b"new"
    os.close(reading)
    os.close(writing)


@needs_root
@pytest.mark.parametrize("kind", ["link", "file", "hard link", "fifo", "folder"])
def test_what_a_stranger_planted_is_not_written(shared: Path, tmp_path: Path, kind: str) -> None:
    victim, planted = tmp_path / "victim", shared / "out"
    victim.write_text("dear")
    if kind == "link":
        planted.symlink_to(victim)
    elif kind == "hard link":
        planted.hardlink_to(victim)
    elif kind == "fifo":
        os.mkfifo(planted)
    elif kind == "folder":
        planted.mkdir()
        (planted / "out").symlink_to(victim)
    else:
        planted.write_text("his")
    if kind != "hard link":
        strangers(planted)
    path = planted / "out" if kind == "folder" else planted
    for attempt in (write, check, found):
        with pytest.raises(NotPrivateError):
            attempt(path)
    assert victim.read_text() == "dear"
    assert kind != "file" or planted.read_text() == "his"


def _trace(path: Path) -> None:
    Tracer(path, VirtualClock()).close()


def _save(path: Path) -> None:
    save_state(path, UnitState(SavedPages({}), 0, False, CAP(0), ECAP(0), IRTA(0), False, False, (), {}), {})


WRITERS: dict[str, Callable[[Path], object]] = {
    "--json": lambda path: write_json(str(path), {}),
    "--json, claimed": lambda path: claim({"--json": str(path)}),
    "--trace": _trace,
    "--capture": lambda path: Recorder(path, ["vf0"]).close(),
    "--save-iommu": _save,
    "log": lambda path: Console(lambda typed: None, Watch(), path).close(),
    "stream:": lambda path: StreamUplink(path, VirtualClock()).close(),
}


@needs_root
@pytest.mark.parametrize("writer", WRITERS)
def test_whatever_opens_what_the_user_names_asks_first(shared: Path, tmp_path: Path, writer: str) -> None:
    with socket.socket(socket.AF_UNIX) as door:
        victim = tmp_path / "victim"
        if writer == "stream:":
            door.bind(str(victim))
            door.listen()
        else:
            victim.write_text("dear")
        if writer != "stream:":
            WRITERS[writer](tmp_path / "other")
            assert writer.endswith("claimed") or (tmp_path / "other").exists()
        (shared / "out").symlink_to(victim)
        strangers(shared / "out")
        with pytest.raises((VirtfnError, click.ClickException), match="user 12345 put it there"):
            WRITERS[writer](shared / "out")
        assert writer == "stream:" or victim.read_text() == "dear"


def test_a_link_planted_after_the_look_is_not_followed(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "victim").write_text("dear")
    walk = private._walk

    def slow(path: Path, judge: private._Judge, *, parents: bool) -> tuple[int, str]:
        found = walk(path, judge, parents=parents)
        (shared / "out").symlink_to(tmp_path / "victim")
        return found

    monkeypatch.setattr(private, "_walk", slow)
    with pytest.raises(OSError, match="symbolic links"):
        write(shared / "out")
    assert (tmp_path / "victim").read_text() == "dear"


@needs_root
def test_a_strangers_own_folder_is_the_users_choice(tmp_path: Path) -> None:
    """Such as that of a service with a user of its own: only where anybody can write is it a question who did."""
    folder = tmp_path / "service"
    folder.mkdir()
    (folder / "file").touch()
    strangers(folder / "file")
    strangers(folder)
    write(folder / "file")
    assert (folder / "file").read_text() == "new"


def test_a_socket_is_reached_by_what_was_found(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as door, socket.socket(socket.AF_UNIX) as peer:
        door.bind(str(tmp_path / "door"))
        door.listen()
        there = found(tmp_path / "door")
        peer.connect(f"/proc/self/fd/{there}")
        os.close(there)


@needs_root
def test_a_socket_may_be_nobodys_but_not_a_strangers(shared: Path) -> None:
    """As root's passt becomes nobody; another user who was quicker at the name would see all frames."""
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(shared / "door"))
        os.close(found(shared / "door"))
        os.chown(shared / "door", 65534, 65534)
        os.close(found(shared / "door"))
        strangers(shared / "door")
        with pytest.raises(NotPrivateError, match="user 12345 put it there"):
            found(shared / "door")
    (shared / "file").touch()
    os.chown(shared / "file", 65534, 65534)
    with pytest.raises(NotPrivateError):
        found(shared / "file")


def test_nothing_stays_open(shared: Path, tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    own_folder(shared / "a" / "b")
    (shared / "c").mkdir()
    (shared / "c").chmod(0o777)
    (tmp_path / "link").symlink_to(shared)
    for path in (shared / "c", shared / "c" / "d", tmp_path / "link" / "c" / "e"):
        with pytest.raises(NotPrivateError):
            own_folder(path)
    write(tmp_path / "link" / "file")
    check(tmp_path / "file")
    for path in (tmp_path, tmp_path / "no" / "file"):
        with pytest.raises(OSError, match="directory"):
            write(path)
    assert len(os.listdir("/proc/self/fd")) == before


PLACES = re.compile(r"gettempdir|environ.*XDG_|getenv.*XDG_|Path\.home\(|expanduser|[\"']/(var/)?tmp\b|[\"']/dev/shm")
WRITES = re.compile(r"""\.open\(["'](w|a|x|r\+)|\bopen\([^)]*["'][wax]b?["'](?!.*opener=)""")


def test_there_is_no_second_place_for_places() -> None:
    """Whoever needs one more takes it from virtfn.private; what is opened for writing is opened by its opener.

    debian.py's lock and the null device are no files that a user names.
    """
    source = Path(private.__file__).parent
    found = [
        f"{path.relative_to(source)}: {line.strip()}"
        for path in sorted(source.rglob("*.py"))
        for line in path.read_text().splitlines()
        if path.name != "private.py" and (PLACES.search(line) or WRITES.search(line))
    ]
    assert [line for line in found if '"lock"' not in line and "os.devnull" not in line] == []

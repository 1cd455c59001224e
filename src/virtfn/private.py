"""What other local users can touch: every path outside the user's own folders, with its check, in one place.

    path                                   holds                       check
    CACHE/virtfn/qemu                      QEMU, packages, images      `own_folder`, or refused
    CACHE/virtfn/BUILD                     kernels' machine code       `own_folder`, each level; else the next line
    TMPDIR/virtfn-kernels-UID/BUILD        the same                    `own_folder`, each level; else the next line
    TMPDIR/virtfn-xxxxxxxx                 the same, until exit        `fresh_folder`
    $XDG_RUNTIME_DIR/virtfn, else          sockets of labs, guests'    `own_folder`, or refused; files by `write`
      TMPDIR/virtfn-UID                    consoles and functions,
                                           states, tokens for HTTP
    what --json, --capture, --trace and    results                     `opener`
      --save-iommu name, logs of consoles
    stream:PATH                            the uplink's peer           `found`; the peer is not trusted
    SOCKETS/GUEST.qmp                      a host's QEMU, that      `found`; it has to be the process that has the
                                           somebody else starts     function plugged in
    stream:listen:PATH                     a socket of ours            mode 0600 from the first moment; replaces nothing
                                                                       but a dead socket
    TMPDIR, without a name; memfd          words of QEMU, memory       none: there is no name to open it by
    /dev/kvm, /dev/net/tun                 devices                     none: root put them there
    $VIRTFN_QEMU, PATH                     programs                    none: the user's choice
    labs, captures, saved states           input                       none: nothing in them is run
    the working folder                     anything                    not looked at: QEMU, which would take firmware
                                                                       from it, starts in /, Numba does not obey a
                                                                       .numba_config.yaml, and a Python of ours starts
                                                                       with -P, in `environment`

CACHE is $XDG_CACHE_HOME or ~/.cache, TMPDIR Python's folder for temporary files. What the checks stand on: whoever may
write a folder may rename and replace what is in it; where it has the sticky bit, only what is one's own. So a path goes
on leading where it leads now, if each folder and link on it is this user's or root's, and has the sticky bit where
others may write.

Folders are walked by open descriptors: what was looked at is what is used. Errors are OSError, so that each floor tells
them in its own way.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

__all__ = [
    "NotPrivateError",
    "cache_home",
    "check",
    "environment",
    "found",
    "fresh_folder",
    "kernel_cache",
    "opener",
    "own_folder",
    "runtime_folder",
    "write",
]

_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_FOLDER = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_DIRECTORY
_MAX_LINKS = 40  # as Linux has it
_NOBODY = 65534
_SOURCES = Path(__file__).resolve().parents[1]

_Judge = Callable[[os.stat_result, os.stat_result | None], str]
"""Says what is wrong with an entry, given its folder's state and its own, None if it is missing; empty: nothing."""


class NotPrivateError(PermissionError):
    """Another user could change what is found at a path, or look into it. reason: how."""

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(errno.EPERM, reason, str(path))
        self.reason = reason


# Folders of this user's own.


def cache_home() -> Path:
    """Return the user's folder for what can be made again: $XDG_CACHE_HOME, or ~/.cache.

    Raises FileNotFoundError if this user has no home.
    """
    given = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(given):
        return Path(given)
    try:
        return Path.home().absolute() / ".cache"
    except RuntimeError:
        raise FileNotFoundError(errno.ENOENT, "this user has no home; set XDG_CACHE_HOME", "~") from None


def own_folder(path: Path, *, parents: bool = True) -> Path:
    """Make a folder that only this user can read and write, or find it; return `path`.

    parents: whether missing folders above are made as well. One that others could only read is closed to them. Raises
    NotPrivateError if it is another's, no folder, or others could have written it or could replace it; OSError if it
    cannot be made.
    """
    try:
        above, name = _walk(path, _safe, parents=parents)
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=above)
            folder = os.open(name, _FOLDER, dir_fd=above)  # what is there now, whoever made it
            try:
                if wrong := _safe(os.fstat(above), os.fstat(folder)):
                    raise NotPrivateError(path, wrong)
                _close_to_others(path, folder)
            finally:
                os.close(folder)
        finally:
            os.close(above)
    except NotPrivateError:
        raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    return path


def _close_to_others(path: Path, folder: int) -> None:
    """Judge an open folder by itself. Raises NotPrivateError."""
    state = os.fstat(folder)
    if state.st_uid != os.geteuid():
        raise NotPrivateError(path, f"belongs to user {state.st_uid}, not to this one")
    if state.st_mode & 0o022:
        raise NotPrivateError(path, "others can write it, so what is in it may not be this user's; remove it")
    if state.st_mode & 0o055:
        os.chmod(f"/proc/self/fd/{folder}", 0o700)  # fchmod wants more than O_PATH


def fresh_folder() -> Path:
    """Make a folder that is this process's alone, gone when it exits; return a path that leads nowhere else.

    Whoever may write TMPDIR may rename the folder, so it is reached by its descriptor, which stays open. Raises
    OSError.
    """
    made = tempfile.mkdtemp(prefix="virtfn-")
    folder = os.open(made, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    _close_to_others(Path(made), folder)
    path, maker = Path(f"/proc/self/fd/{folder}"), os.getpid()
    if os.listdir(folder):
        raise NotPrivateError(made, "it was exchanged for another folder as soon as it was made")

    def remove() -> None:
        if os.getpid() == maker:  # not at the exit of a child that was forked
            for entry in os.listdir(path):
                shutil.rmtree(path / entry, ignore_errors=True)
                with contextlib.suppress(OSError):
                    (path / entry).unlink()
            with contextlib.suppress(OSError):
                os.rmdir(made)

    atexit.register(remove)
    return path


def kernel_cache(build: str) -> Path:
    """Return a folder for the compiled kernels of one build that no other user can write.

    It is kept where the home or else TMPDIR has a place for it, and goes at exit where neither has. Raises OSError if
    nothing can be written anywhere.
    """
    parents: tuple[Callable[[], Path], ...] = (lambda: cache_home() / "virtfn", lambda: _in_tmpdir("virtfn-kernels"))
    for parent in parents:
        with contextlib.suppress(OSError):
            folder = own_folder(own_folder(parent()) / build)
            tempfile.TemporaryFile(dir=folder).close()  # it can be there and still not be written
            return folder
    return fresh_folder()


def runtime_folder() -> Path:
    """Return the folder for sockets, made if missing; it is the same for all of this user's processes.

    Raises NotPrivateError if there is no such place.
    """
    given = os.environ.get("XDG_RUNTIME_DIR", "")
    places = [Path(given) / "virtfn"] if os.path.isabs(given) else []
    places.append(_in_tmpdir("virtfn"))
    for place in places:
        with contextlib.suppress(OSError):
            folder = own_folder(place, parents=False)
            if os.access(folder, os.W_OK | os.X_OK):
                return folder
    tried = " or ".join(map(str, places))
    raise NotPrivateError(places[-1], f"no folder of this user's own for sockets: {tried}; set XDG_RUNTIME_DIR")


def write(path: Path, text: str) -> None:
    """Write a file in a folder of the user's own that nobody else can read: all of it, or nothing. Raises OSError."""
    fresh = path.with_name(f"{path.name}.new")
    fresh.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with open(os.open(fresh, flags, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    fresh.replace(path)


def _in_tmpdir(name: str) -> Path:
    return Path(tempfile.gettempdir()) / f"{name}-{os.geteuid()}"


def environment() -> dict[str, str]:
    """Return the environment for another Python with -P: what this one finds, it finds, wherever it starts."""
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]  # empty: the working folder
    if not _SOURCES.name.endswith("-packages"):  # what is installed is found anyway, behind Python's own modules
        paths.append(str(_SOURCES))
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, paths))}


# What the user names. It may lie anywhere, but is not taken from a stranger by mistake.


def check(path: Path | str) -> None:
    """Refuse a path that is another user's work: of a link or file in a folder that everybody can write.

    Raises NotPrivateError; OSError if a folder on it is missing.
    """
    os.close(_walk(Path(path), _not_planted, parents=False)[0])


def opener(path: str, flags: int) -> int:
    """Open a file for writing that passes `check`, as the opener of `open`; nothing is emptied before it passed.

    `-` is standard output; a file of that name is ./- with its folder written out. Raises NotPrivateError, OSError.
    """
    if path == "-":
        return os.dup(1)
    return _open(Path(path), flags, _not_planted)


def found(path: Path) -> int:
    """Open what is at a path that passes `check`, or is a socket of nobody's, to be reached by /proc/self/fd (O_PATH).

    Raises as `opener` does.
    """
    return _open(path, os.O_PATH | os.O_CLOEXEC, _not_posing)


def _open(path: Path, flags: int, judge: _Judge) -> int:
    folder, name = _walk(path, judge, parents=False)
    try:
        links = 0 if _is_proc(folder) else os.O_NOFOLLOW  # what is there now may be newer than what was looked at
        opened = os.open(name, (flags & ~os.O_TRUNC) | links, 0o666, dir_fd=folder)
        try:
            state = os.fstat(opened)
            if wrong := "" if _is_proc(folder) else judge(os.fstat(folder), state):
                raise NotPrivateError(path, wrong)
            if flags & os.O_TRUNC and stat.S_ISREG(state.st_mode):
                os.ftruncate(opened, 0)
        except BaseException:
            os.close(opened)
            raise
        return opened
    finally:
        os.close(folder)


# The walk.


def _walk(path: Path, judge: _Judge, *, parents: bool) -> tuple[int, str]:
    """Follow `path`, links too, up to its last name; return that name's folder, opened, and the name.

    The name is no link; it may be missing. parents: whether missing folders are made. A link in /proc leads where its
    text does not, and is left to the kernel: then the name is the rest of the path. Raises NotPrivateError, OSError.
    """
    here = os.open("/", _FOLDER)
    names = list(reversed(Path.cwd().joinpath(path).parts[1:])) or ["."]
    links = 0
    try:
        while True:
            name = names.pop()
            try:
                step = _step(here, name)
            except FileNotFoundError:
                if wrong := judge(os.fstat(here), None):
                    raise NotPrivateError(path, f"{wrong} (at {name})") from None
                if not names:
                    return here, name
                if not parents:
                    raise
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, 0o700, dir_fd=here)
                step = _step(here, name)
            try:
                state = os.fstat(step)
                if wrong := judge(os.fstat(here), state):
                    raise NotPrivateError(path, f"{wrong} (at {name})")
                if stat.S_ISLNK(state.st_mode):
                    if _is_proc(here):
                        return here, "/".join([name, *reversed(names)])
                    if (links := links + 1) > _MAX_LINKS:
                        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
                    target = Path(os.readlink("", dir_fd=step))
                    names += reversed(target.parts[1:] if target.is_absolute() else target.parts)
                    if target.is_absolute():
                        os.close(here)
                        here = os.open("/", _FOLDER)
                elif names:
                    step, here = here, step
                else:
                    return here, name
            finally:
                os.close(step)
    except BaseException:
        os.close(here)
        raise


def _step(here: int, name: str) -> int:
    """Open an entry of a folder to look at it; a link is not followed."""
    try:
        return os.open(name, _FOLDER, dir_fd=here)  # as a folder first: that mounts what is mounted on demand
    except NotADirectoryError:
        return os.open(name, _LOOK, dir_fd=here)


def _safe(folder: os.stat_result, entry: os.stat_result | None) -> str:
    """Judge a step that must lead to the same place for ever."""
    shared = folder.st_mode & 0o022
    if shared and not folder.st_mode & stat.S_ISVTX:
        return "others can write the folder above it, and replace it"
    if entry is None:
        return ""
    if shared and stat.S_ISLNK(entry.st_mode):  # it may be a second name of a link from elsewhere
        return "it is a link in a folder that others can write"
    if entry.st_uid not in _trusted():
        return f"user {entry.st_uid} can replace it"
    return ""


def _not_planted(folder: os.stat_result, entry: os.stat_result | None) -> str:
    """Judge a step of a path that the user named: it counts unless anybody could have put it there."""
    if entry is None or not folder.st_mode & stat.S_IWOTH:
        return ""
    if entry.st_uid not in _trusted():
        return f"user {entry.st_uid} put it there"
    if entry.st_nlink > 1 and not stat.S_ISDIR(entry.st_mode):
        return "it has another name elsewhere, and anybody could have put this one there"
    return ""


def _not_posing(folder: os.stat_result, entry: os.stat_result | None) -> str:
    """Judge a step to a service: one that root starts may become nobody before it makes its socket, as passt does."""
    if entry is not None and entry.st_uid == _NOBODY and stat.S_ISSOCK(entry.st_mode):
        return ""
    return _not_planted(folder, entry)


def _trusted() -> set[int]:
    """Return whose folders and links are as good as ours: this user's and root's.

    In a user namespace without root, root's are shown as those of the overflow user.
    """
    users = {os.geteuid(), 0}
    with contextlib.suppress(OSError):
        lines = [[int(word) for word in line.split()] for line in Path("/proc/self/uid_map").read_text().splitlines()]
        if not any(first == 0 for first, _, _ in lines):
            users.add(int(Path("/proc/sys/kernel/overflowuid").read_text()))
    return users


def _is_proc(folder: int) -> bool:
    return os.fstat(folder).st_dev == os.stat("/proc").st_dev

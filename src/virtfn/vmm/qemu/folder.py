"""Where things lie: what virtfn keeps between runs, and the private folder of each guest that runs.

    CACHE/virtfn/qemu/              $XDG_CACHE_HOME or ~/.cache
    RUNTIME/                        $XDG_RUNTIME_DIR/virtfn, else virtfn-UID in the temporary folder
        NAME.xxxxxxxx/console       the door to the console of guest NAME

`virtfn.private` checks both. A guest's folder is locked (flock) by the program that runs the guest. One that nobody
holds was left by a program that was killed, and goes when the next guest starts.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from virtfn import private
from virtfn.machine.places import runtime_folder
from virtfn.machine.ports import VirtfnError

__all__ = ["GuestFolder", "cache_folder", "console_doors"]

CONSOLE = "console"
MAX_SOCKET_PATH = 107  # sun_path, without the final NUL
_OF_A_GUEST = re.compile(r".+\.[a-z0-9_]{8}")  # as mkdtemp calls it
_RESERVE = len("/0123456789abcdef")  # room for the names of sockets in a guest's folder


def cache_folder() -> Path:
    """Return the folder of what is kept between runs for QEMU guests; made if missing.

    Raises VirtfnError if it cannot be made, or others could change what is in it: programs that are to be run.
    """
    try:
        return private.own_folder(private.own_folder(private.cache_home() / "virtfn") / "qemu")
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, "")
        raise VirtfnError(f"{error.filename}: {error.strerror}", errno_name=name) from None


@contextmanager
def _held(folder: Path, how: int) -> Iterator[int]:
    """Hold the lock of a folder. Raises OSError if it is gone or, with LOCK_NB, taken."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, how)
        yield descriptor
    finally:
        os.close(descriptor)


class GuestFolder:
    """The private folder of a guest that runs. It goes with `close`."""

    def __init__(self, name: str) -> None:
        """Make it. Raises VirtfnError if it cannot be made, or lies too deep for sockets."""
        runtime = runtime_folder()
        try:
            with _held(runtime, fcntl.LOCK_EX):
                _sweep(runtime)
                self.path = Path(tempfile.mkdtemp(prefix=f"{name}.", dir=runtime))
                self._descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        except OSError as error:
            raise VirtfnError(f"{runtime}: {error.strerror}") from error
        if len(os.fsencode(self.path)) + _RESERVE > MAX_SOCKET_PATH:
            self.close()
            raise VirtfnError(f"{self.path} is too long a path for sockets: set XDG_RUNTIME_DIR to a shorter one")

    def close(self) -> None:
        """Remove the folder with all in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _sweep(runtime: Path) -> None:
    for folder in runtime.iterdir():
        if not _OF_A_GUEST.fullmatch(folder.name):
            continue
        with suppress(OSError), _held(folder, fcntl.LOCK_EX | fcntl.LOCK_NB):
            shutil.rmtree(folder, ignore_errors=True)


def console_doors() -> dict[str, Path]:
    """Return the consoles of this user's running guests, by guest name: sockets, where `virtfn shell` connects."""
    doors: dict[str, Path] = {}
    for folder in sorted(runtime_folder().iterdir()):
        if not (folder / CONSOLE).is_socket():
            continue
        try:
            with _held(folder, fcntl.LOCK_SH | fcntl.LOCK_NB):
                pass  # nobody holds it: left by a program that was killed
        except BlockingIOError:
            doors[folder.name.rpartition(".")[0]] = folder / CONSOLE
        except OSError:
            continue
    return doors

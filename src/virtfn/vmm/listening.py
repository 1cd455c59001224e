"""UNIX sockets at a path: made so that only their owner can connect, and taken away by whoever made them."""

from __future__ import annotations

import contextlib
import errno
import socket
import stat
from os import fchmod
from pathlib import Path

from virtfn.machine.ports import VirtfnError

__all__ = ["Identity", "listen", "remove"]

_WAITING = 8  # connections that nobody has accepted yet

Identity = tuple[int, int]
"""What tells a socket's file from another's at the same path: device and inode."""


def listen(path: Path) -> tuple[socket.socket, Identity]:
    """Make a socket at `path`, mode 0600, that listens and never waits; one that a dead process left is replaced.

    Raises VirtfnError if the path cannot be had.
    """
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        # The mode of the descriptor becomes that of the file: there is no moment in which others could connect.
        fchmod(listening.fileno(), 0o600)
        _remove_stale(path)
        listening.bind(str(path))
        listening.listen(_WAITING)
        state = path.lstat()
    except OSError as e:
        listening.close()
        raise VirtfnError(
            f"cannot listen at {path}: {e.strerror or e}", errno_name=errno.errorcode.get(e.errno or 0, "")
        ) from None
    except VirtfnError:
        listening.close()
        raise
    return listening, (state.st_dev, state.st_ino)


def remove(path: Path, identity: Identity) -> None:
    """Remove the socket's file, unless another has taken its place."""
    with contextlib.suppress(OSError):
        state = path.lstat()
        if (state.st_dev, state.st_ino) == identity:
            path.unlink()


def _remove_stale(path: Path) -> None:
    """Remove the socket of a server that is dead.

    Raises VirtfnError if somebody listens there, or it is no socket.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise VirtfnError(f"{path} exists and is not a socket", errno_name="EEXIST")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except BlockingIOError:
            pass
    raise VirtfnError(f"another server listens at {path}", errno_name="EADDRINUSE")

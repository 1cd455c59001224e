"""UNIX sockets at a path: made so that only their owner can connect, taken away by whoever made them, and found."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import struct
from pathlib import Path

from virtfn import private
from virtfn.machine.ports import VirtfnError

__all__ = ["Identity", "connect", "listen", "peer_process", "remove"]

_WAITING = 8  # connections that nobody has accepted yet
_CREDENTIALS = struct.Struct("3i")  # process, user, group

Identity = tuple[int, int]
"""What tells a socket's file from another's at the same path: device and inode."""


def listen(path: Path) -> tuple[socket.socket, Identity]:
    """Make a socket at `path`, mode 0600, that listens and never waits; one that a dead process left is replaced.

    Raises VirtfnError if the path cannot be had.
    """
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        # The mode of the descriptor becomes that of the file: there is no moment in which others could connect.
        os.fchmod(listening.fileno(), 0o600)
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


def connect(path: Path) -> socket.socket:
    """Connect to a socket of somebody's whom `private.found` lets pass; who has a long line of others is a refusal.

    Raises OSError.
    """
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        there = private.found(path)
        try:
            peer.connect(f"/proc/self/fd/{there}")
        finally:
            os.close(there)
    except OSError:
        peer.close()
        raise
    return peer


def peer_process(sock: socket.socket) -> int:
    """Return the process at the other end, as it was when it connected or listened; 0: one that is not seen here."""
    return int(_CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))[0])


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

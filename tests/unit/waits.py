"""Calls on what a client, a guest or a peer holds, replaced by ones that fail where the true one could wait.

Sockets must be non-blocking, or the call be told so; who polls must not give it time. Descriptors that came through a
socket may be anything: until they are known to be memory or an eventfd, they are only asked for their seals, and closed
by the closer's thread. Calls of tests are not looked at, nor those of the side that asks a lab (`virtfn` the command).
"""

from __future__ import annotations

import array
import fcntl
import mmap
import os
import select
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

ASKER = {"_exchange"}
SOCKET_CALLS = {
    "recv": 1, "recv_into": 2, "recvmsg": 2, "recvmsg_into": 2, "send": 1, "sendmsg": 2, "sendall": 1, "accept": None,
    "connect": None,
}  # fmt: skip
FILE_CALLS = ("read", "readv", "write", "writev", "pread", "pwrite", "fstat", "fstatvfs", "ftruncate", "close")


def ours() -> bool:
    """Tell whether code of virtfn's makes the call that is being looked at."""
    frame = sys._getframe(2)
    while frame.f_globals["__name__"] in (__name__, "socket", "contextlib"):
        frame = frame.f_back
    return frame.f_globals["__name__"].startswith("virtfn.") and frame.f_code.co_name not in ASKER


def non_blocking(fd: int) -> bool:
    return bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK)


class Watched:
    """What is known of descriptors that came. wrong: calls that could have waited."""

    def __init__(self) -> None:
        self.came: set[int] = set()
        self.wrong: list[str] = []
        self.seen: set[str] = set()

    def look(self, name: str, fine: bool) -> None:
        self.seen.add(name)
        if not fine:
            frame = sys._getframe(2)
            self.wrong.append(f"{name} in {frame.f_code.co_filename}:{frame.f_lineno}")

    def known(self, fd: int) -> bool:
        """Tell whether a descriptor is ours, or what it is cannot make anybody wait."""
        if fd not in self.came:
            return True
        try:
            real_fcntl(fd, fcntl.F_GET_SEALS)
        except OSError:
            return os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:[eventfd]"
        return True


real_fcntl = fcntl.fcntl


@contextmanager
def watching() -> Iterator[Watched]:
    """Replace the calls for a while; those that could have waited fail the test at the end."""
    watched = Watched()
    with pytest.MonkeyPatch.context() as patch:
        for name, flags_at in SOCKET_CALLS.items():
            patch.setattr(socket.socket, name, _socket_call(watched, name, flags_at))
        for name in FILE_CALLS:
            patch.setattr(os, name, _file_call(watched, name))
        patch.setattr(fcntl, "fcntl", _fcntl(watched))
        patch.setattr(mmap, "mmap", _mapping(watched))
        for name in ("epoll", "poll"):
            patch.setattr(select, name, _poller(watched, name))
        yield watched
    assert not watched.wrong, f"calls that could have waited: {watched.wrong}"


def _socket_call(watched: Watched, name: str, flags_at: int | None) -> Callable[..., object]:
    real = getattr(socket.socket, name)

    def call(self: socket.socket, *args: object) -> object:
        if not ours():
            return real(self, *args)
        flags = args[flags_at] if flags_at is not None and len(args) > flags_at else 0
        free = isinstance(flags, int) and flags & socket.MSG_DONTWAIT
        watched.look(name, bool(free) or self.fileno() < 0 or non_blocking(self.fileno()))
        got = real(self, *args)
        if name in (
            "recv",
            "recv_into",
        ):  # what comes with the bytes, the kernel closes: a look, or where none can come
            watched.look(f"{name} alone", bool(isinstance(flags, int) and flags & socket.MSG_PEEK) or _refuses(self))
        if name in ("recvmsg", "recvmsg_into"):
            for _, _, content in got[1]:
                watched.came.update(array.array("i", content))
        return got

    return call


def _refuses(sock: socket.socket) -> bool:
    """Tell whether nobody can send descriptors to a socket; a kernel that does not know may not be asked."""
    try:
        return sock.getsockopt(socket.SOL_SOCKET, 83) == 0
    except OSError:
        return True


def _file_call(watched: Watched, name: str) -> Callable[..., object]:
    real = getattr(os, name)

    def call(fd: int, *args: object, **kwargs: object) -> object:
        if ours() and isinstance(fd, int):
            if name == "close":
                thread = threading.current_thread().name
                came = fd in watched.came
                watched.look("close of what came", not came or thread == "closer" or watched.known(fd))
                watched.came.discard(fd)
            else:
                watched.look(name, watched.known(fd))
        return real(fd, *args, **kwargs)

    return call


def _fcntl(watched: Watched) -> Callable[..., object]:
    def call(fd: int, command: int, *args: object) -> object:
        if ours():
            watched.look("fcntl", command in (fcntl.F_GET_SEALS, fcntl.F_GETFL) or watched.known(fd))
        return real_fcntl(fd, command, *args)

    return call


def _mapping(watched: Watched) -> Callable[..., object]:
    real = mmap.mmap

    class Checked(real):  # type: ignore[misc, valid-type]
        def __new__(cls, fd: int, *args: object, **kwargs: object) -> Checked:
            if ours():
                watched.look("mmap", watched.known(fd))
            return super().__new__(cls, fd, *args, **kwargs)

    return Checked


def _poller(watched: Watched, name: str) -> Callable[[], object]:
    real = getattr(select, name)

    class Checked:
        def __init__(self, *args: object) -> None:
            self._real = real(*args)

        def poll(self, timeout: float | None = None, *args: object) -> object:
            if ours():
                rests = sys._getframe(1).f_code.co_filename.endswith("/vmm/world.py")
                watched.look(f"{name}.poll", timeout == 0 or (rests and timeout is not None and timeout <= 20))
            return self._real.poll(timeout, *args)

        def __getattr__(self, wanted: str) -> object:
            return getattr(self._real, wanted)

    return Checked

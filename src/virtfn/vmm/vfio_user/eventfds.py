"""Signalling a client's eventfds without waiting for the client.

A write waits while an eventfd is full, unless O_NONBLOCK is set. That flag belongs to everybody who has the eventfd:
the client can clear it, and fill the eventfd, at any time between our look and our write. Linux knows no write to an
eventfd that never waits (RWF_NOWAIT is refused, /proc/self/fd/N cannot be opened anew). But it signals an eventfd by
itself when a file operation ends that was started with io_submit(2), and then a full one just stays full:

    io_submit: read a byte of a file of ours, then tell this eventfd   -->  count + 1, at most 2**64 - 1

Such a read is done when io_submit returns. Its outcome lands in a ring that is emptied when there is no room left.

Spec: io_submit(2), IOCB_FLAG_RESFD; eventfd(2).
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct

from virtfn.machine.ports import VirtfnError

__all__ = ["Signals", "is_eventfd"]

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

# setup, destroy, submit, getevents; newer machines share one list of numbers.
_NUMBERS = {"x86_64": (206, 207, 209, 208), "aarch64": (0, 1, 2, 4), "riscv64": (0, 1, 2, 4)}
_IOCB = struct.Struct(
    "<QIIHhIQQqQII"
)  # data, key, flags, operation, priority, file, buffer, bytes, offset, 0, flags, fd
_PREAD, _RESFD = 0, 1
_EVENT_BYTES = 32
_DEPTH = 64


def is_eventfd(fd: int) -> bool:
    """Tell whether a descriptor is an eventfd's. No file has such a name: the name of a file begins with a slash."""
    try:
        return os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:[eventfd]"
    except OSError:
        return False


class Signals:
    """Where eventfds are signalled from.

    Raises VirtfnError if the system has no asynchronous I/O, or too much of it is in use (fs.aio-max-nr).
    """

    def __init__(self) -> None:
        numbers = _NUMBERS.get(platform.machine())
        if numbers is None:
            raise VirtfnError(f"eventfds cannot be signalled on {platform.machine()}", errno_name="ENOSYS")
        setup, self._destroy, self._submit, self._getevents = numbers
        self._context = ctypes.c_ulong(0)
        if _libc.syscall(setup, _DEPTH, ctypes.byref(self._context)):
            number = ctypes.get_errno()
            raise VirtfnError(
                f"eventfds cannot be signalled: io_setup: {os.strerror(number)}",
                errno_name=errno.errorcode.get(number, ""),
            )
        self._file = os.memfd_create("virtfn-signals", os.MFD_CLOEXEC)
        self._byte = ctypes.create_string_buffer(1)
        self._request = ctypes.create_string_buffer(_IOCB.size)
        self._requests = (ctypes.c_void_p * 1)(ctypes.addressof(self._request))
        self._outcomes = ctypes.create_string_buffer(_EVENT_BYTES * _DEPTH)
        self._no_time = (ctypes.c_long * 2)(0, 0)

    def request(self, fd: int) -> bytes:
        """Return the request that signals an eventfd, for whoever submits it without Python."""
        request = bytearray(_IOCB.size)
        _IOCB.pack_into(request, 0, 0, 0, 0, _PREAD, 0, self._file, ctypes.addressof(self._byte), 1, 0, 0, _RESFD, fd)
        return bytes(request)

    @property
    def calls(self) -> tuple[int, int, int]:
        """Tell the numbers of io_submit and io_getevents, and the context of both, for the same."""
        return self._submit, self._getevents, int(self._context.value)

    def signal(self, fd: int) -> None:
        """Add 1 to an eventfd; a full one is signalled already."""
        at = ctypes.addressof(self._byte)
        _IOCB.pack_into(self._request, 0, 0, 0, 0, _PREAD, 0, self._file, at, 1, 0, 0, _RESFD, fd)
        while _libc.syscall(self._submit, self._context, 1, self._requests) < 0 and ctypes.get_errno() == errno.EAGAIN:
            if _libc.syscall(self._getevents, self._context, 0, _DEPTH, self._outcomes, self._no_time) <= 0:
                return

    def close(self) -> None:
        """Give everything back. Closing twice is harmless."""
        if self._file >= 0:
            _libc.syscall(self._destroy, self._context)
            os.close(self._file)
            self._file = -1

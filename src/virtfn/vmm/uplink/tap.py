"""A tap uplink: an interface of this machine's network stack; what it sends comes in by the wire, and the other way.

An interface that does not exist is made, brought up, and gone when the lab is; one that was made before, as by
`ip tuntap add dev NAME mode tap user USER`, needs no privilege and stays. Addresses, MTU and bridges are the user's to
set. The stack's own frames are whole when they come: no offload is offered to it.
Spec: Linux kernel documentation, "Universal TUN/TAP device driver"; netdevice(7).
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from collections import Counter

import numpy as np
import numpy.typing as npt

from virtfn.hw.eth import MIN_FRAME
from virtfn.kernels.streams import LENGTH_BYTES
from virtfn.machine.clock import MS_PS
from virtfn.machine.ports import Clock, VirtfnError
from virtfn.vmm.uplink.uplink import NOTHING, Burst

__all__ = ["TapUplink"]

# The kernel's numbers on all machines but a few with another encoding of ioctls.
_TUNSETIFF, _TUNGETIFF = 0x400454CA, 0x800454D2
_SIOCGIFFLAGS, _SIOCSIFFLAGS = 0x8913, 0x8914
_IFF_TAP, _IFF_NO_PI = 0x0002, 0x1000
_IFF_UP = 0x1
_REQUEST = struct.Struct("16sH22x")  # struct ifreq, as these calls use it: name, flags

_LOOK_PS = 100 * MS_PS
_BURST = 64
_SLOT = 16 << 10  # more than the NIC takes: a longer frame is cut, and dropped as too long
_HEADER = 14
_WHY = {
    errno.EPERM: "is for root, or for the user it was made for: ip tuntap add dev {name} mode tap user $USER",
    errno.EACCES: "is for root, or for the user it was made for: ip tuntap add dev {name} mode tap user $USER",
    errno.EBUSY: "is in use by another program; end it, or name another interface",
    errno.EINVAL: "is an interface of another kind; name a new one, or one made by ip tuntap add mode tap",
    errno.ENOENT: "needs /dev/net/tun; load the module: modprobe tun",
    errno.ENODEV: "needs /dev/net/tun; load the module: modprobe tun",
    errno.ENXIO: "needs /dev/net/tun; load the module: modprobe tun",
}


class TapUplink:
    """The tap interface `name`. It is up while the interface is.

    Raises VirtfnError if it cannot be had: EPERM without the right to it, EBUSY if another program has it.
    """

    live = True
    bare = False

    def __init__(self, name: str, clock: Clock) -> None:
        self.name = name
        self.counts: Counter[str] = Counter()
        self._clock = clock
        self._look_ps = 0
        self._up = False
        self._fd = self._open()
        self._store = np.zeros(_BURST * _SLOT, np.uint8)
        view = self._store.data
        self._slots = [view[n * _SLOT : (n + 1) * _SLOT] for n in range(_BURST)]
        self._offsets = np.arange(_BURST, dtype=np.int64) * _SLOT
        self._lengths = np.zeros(_BURST, np.int64)

    def _open(self) -> int:
        fd = -1
        try:
            fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            fcntl.ioctl(fd, _TUNSETIFF, _REQUEST.pack(self.name.encode(), _IFF_TAP | _IFF_NO_PI))
        except OSError as e:
            if fd >= 0:
                os.close(fd)
            why = _WHY.get(e.errno or 0, f"cannot be had: {e.strerror}").format(name=self.name)
            raise VirtfnError(f"tap {self.name} {why}", errno_name=errno.errorcode.get(e.errno or 0, "")) from None
        flags = self._flags()
        if flags is not None and not flags & _IFF_UP:
            self._flags(flags | _IFF_UP)
        return fd

    def _flags(self, new: int | None = None) -> int | None:
        """Get the interface's flags, or set them as far as that is allowed; None if there is no such interface here."""
        request = _REQUEST.pack(self.name.encode(), new or 0)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as any_socket:
            try:
                answer = fcntl.ioctl(any_socket, _SIOCGIFFLAGS if new is None else _SIOCSIFFLAGS, request)
            except OSError:
                return None
        return int(_REQUEST.unpack(answer)[1])

    def attend(self) -> bool:
        """Look, ten times a second, whether the interface is up; one that has gone and come back is opened again."""
        now = self._clock.now()
        if now < self._look_ps:
            return self._up
        self._look_ps = now + _LOOK_PS
        flags = self._flags()
        if self._fd >= 0 and flags is None:
            try:
                # It may have moved to another network namespace: then it is in use there, and up if its user wants.
                fcntl.ioctl(self._fd, _TUNGETIFF, bytes(_REQUEST.size))
                flags = _IFF_UP
            except OSError:
                self.counts["gone"] += 1
                os.close(self._fd)
                self._fd = -1
        elif self._fd < 0 and flags is not None:
            try:
                self._fd = self._open()
                flags = self._flags()
            except VirtfnError:
                self.counts["refused"] += 1
        self._up = self._fd >= 0 and bool((flags or 0) & _IFF_UP)
        return self._up

    def send(self, departures: npt.NDArray[np.uint8]) -> int:
        """Give frames to the network stack, one by one; those that it refuses are counted."""
        view = departures.data
        at = 0
        for _ in range(_BURST if self._fd >= 0 else 0):
            if at == len(view):
                break
            start = at + LENGTH_BYTES
            end = start + int.from_bytes(view[at:start], "big")
            try:
                os.write(self._fd, view[start:end])
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                self.counts["not taken"] += 1
            at = end
        return at

    def receive(self) -> Burst:
        """Take up to 64 frames of the network stack."""
        if self._fd < 0:
            return NOTHING
        count = 0
        while count < _BURST:
            slot = self._slots[count]
            try:
                length = os.readv(self._fd, [slot])
            except OSError:  # nothing there, or the interface is down or gone, which `attend` finds out
                break
            if _HEADER <= length < MIN_FRAME:
                slot[length:MIN_FRAME] = bytes(MIN_FRAME - length)
                length = MIN_FRAME
            self._lengths[count] = length
            count += 1
        return Burst(self._store, self._offsets[:count], self._lengths[:count])

    def fileno(self) -> int:
        """Return the descriptor of the interface, or -1 if it has gone."""
        return self._fd

    def close(self) -> None:
        """Let the interface go; one that was made here vanishes."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

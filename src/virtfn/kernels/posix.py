"""System calls for kernels that wait: descriptors, messages on sockets, the time.

Nothing here needs Python, so a loop that waits costs little beyond the calls themselves. `scratch` is the address of 16
bytes that a call may write to. Spec: POSIX.1-2017; Linux ppoll(2).
"""

from __future__ import annotations

from virtfn.kernels._jit import kernel, libc, load64, store64, touch

__all__ = [
    "MSGHDR_BYTES",
    "POLLIN",
    "REVENTS_LSB",
    "monotonic_ps",
    "peek_bytes",
    "poll",
    "receive_bytes",
    "send_bytes",
    "wake_promptly",
]

# The 64 bits that ask about a descriptor: its number 31:0, what is asked 47:32, what is the case 63:48.
POLLIN = 1 << 32
REVENTS_LSB = 48
_S_NS = 1_000_000_000
_CLOCK_MONOTONIC = 1
_PR_SET_TIMERSLACK = 29
_MSG_PEEK, _MSG_CTRUNC, _MSG_DONTWAIT, _MSG_NOSIGNAL = 0x2, 0x8, 0x40, 0x4000
# struct msghdr (name and its length, pieces and their number, control data and its length, flags), then one iovec.
_PIECES, _COUNT, _FLAGS, _IOVEC = 16, 24, 48, 56
MSGHDR_BYTES = 72

_ppoll = libc("ppoll", 64, 64, 64, 64, returns=32)
_recv = libc("recv", 32, 64, 64, 32)
_recvmsg = libc("recvmsg", 32, 64, 32)
_send = libc("send", 32, 64, 64, 32)
_prctl = libc("prctl", 32, 64, returns=32)
_clock_gettime = libc("clock_gettime", 32, 64, returns=32)


@kernel
def monotonic_ps(scratch: int) -> int:
    """Return monotonic time in ps: the same as `WallClock`."""
    touch(scratch, 16, 1)
    _clock_gettime(_CLOCK_MONOTONIC, scratch)
    return (load64(scratch) * _S_NS + load64(scratch + 8)) * 1000


@kernel
def wake_promptly() -> None:
    """Let this thread's waits end within a microsecond of their time, not within fifty."""
    _prctl(_PR_SET_TIMERSLACK, 1000)


@kernel
def poll(asked: int, count: int, limit_ps: int, scratch: int) -> int:
    """Wait until one of `count` descriptors can be read, or time is over. asked: address of what POLLIN describes.

    Returns how many can be read; below 0 after a signal.
    """
    nanoseconds = max(limit_ps, 0) // 1000
    store64(scratch, nanoseconds // _S_NS)
    store64(scratch + 8, nanoseconds % _S_NS)
    touch(asked, 8 * count, 1)
    return _ppoll(asked, count, scratch, 0)


@kernel
def peek_bytes(fd: int, target: int, size: int, scratch: int) -> int:
    """Look at what a socket has, without taking it. scratch: address of MSGHDR_BYTES.

    Returns the bytes that are there, below 0 if none, or if descriptors come with them: whoever takes such bytes and
    not the descriptors closes them, and may wait for that as long as the sender likes.
    """
    for at in range(0, MSGHDR_BYTES, 8):
        store64(scratch + at, 0)
    store64(scratch + _PIECES, scratch + _IOVEC)
    store64(scratch + _COUNT, 1)
    store64(scratch + _IOVEC, target)
    store64(scratch + _IOVEC + 8, size)
    touch(target, size, 1)
    got = _recvmsg(fd, scratch, _MSG_PEEK | _MSG_DONTWAIT)
    return -1 if load64(scratch + _FLAGS) & _MSG_CTRUNC else got


@kernel
def receive_bytes(fd: int, target: int, size: int) -> int:
    """Take up to `size` bytes from a socket, as many as are there; no descriptors may come with them."""
    touch(target, size, 1)
    return _recv(fd, target, size, _MSG_DONTWAIT)


@kernel
def send_bytes(fd: int, source: int, size: int) -> int:
    """Send bytes by a socket. Returns how many it took, below 0 if none."""
    touch(source, size, 0)
    return _send(fd, source, size, _MSG_DONTWAIT | _MSG_NOSIGNAL)

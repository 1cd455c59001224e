"""Ways to wake the other side, and when it wants to be woken.

A wake-up is a write to an eventfd, or a word in this process. Either side says when it wants one: by an index, where
EVENT_IDX was agreed on, else by a flag. Spec: virtio 1.3, 2.7.7 and 2.7.10; Linux eventfd(2).
"""

from __future__ import annotations

from virtfn.kernels._jit import inlined, kernel, libc, load64, store64, touch
from virtfn.kernels.virtio.state import channel_at

__all__ = ["let_sleep", "passed", "take_notice", "wake"]

_read = libc("read", 32, 64, 64)
_write = libc("write", 32, 64, 64)


@inlined
def passed(event: int, new: int, old: int) -> bool:
    """Tell whether an index, going from `old` to `new`, has passed the one that was to be told of."""
    return (new - event - 1) & 0xFFFF < (new - old) & 0xFFFF


@kernel
def wake(address: int) -> int:
    """Wake who waits at a channel. address: of a CHANNEL row, 0 if nobody does.

    Returns 1 if that is for Python to see to.
    """
    if address == 0:
        return 0
    c = channel_at(address)
    c.sent += 1
    c.pending = 1
    if c.fd < 0:
        return 1
    touch(address + 8, 8, 0)
    _write(c.fd, address + 8, 8)  # the row's own word, 1; a counter that is full wakes just as well
    return 0


@inlined
def let_sleep(address: int) -> None:
    """Count that the other side did not want to be woken."""
    if address:
        channel_at(address).suppressed += 1


@kernel
def take_notice(address: int, scratch: int) -> bool:
    """Tell whether a channel was used since the last time. scratch: address of 8 bytes, for what an eventfd counts."""
    if address == 0:
        return False
    c = channel_at(address)
    if c.fd >= 0:
        touch(scratch, 8, 1)
        if _read(c.fd, scratch, 8) == 8:
            return load64(scratch) != 0
        store64(scratch, 0)
        return False
    woken = c.pending != 0
    c.pending = 0
    return woken

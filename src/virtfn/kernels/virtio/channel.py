"""Ways to wake the other side, and when it wants to be woken.

A wake-up is a count of an eventfd, or a word in this process. Either side says when it wants one: by an index, where
EVENT_IDX was agreed on, else by a flag.

Who gave an eventfd can fill it, and let writes wait for room: so nobody writes to it. The kernel counts in it when a
read of a file of ours is done (`vmm/vfio_user/eventfds.py`), and a full one stays full. Nor is one read: an epoll tells
of each write to it, once. Spec: virtio 1.3, 2.7.7 and 2.7.10; Linux io_submit(2), epoll(7), EPOLLET.
"""

from __future__ import annotations

from virtfn.kernels._jit import Row, inlined, kernel, libc, load32, row_at, row_of, store32, touch
from virtfn.kernels.virtio.state import channel_at

__all__ = ["KICK_EVENTS", "KICK_EVENT_BYTES", "SIGNALS", "find_kicked", "let_sleep", "passed", "take_notice", "wake"]

# submit, getevents: numbers of the two system calls; context: of asynchronous I/O; request: address of what is
# submitted, and list: of its address; outcomes, room: where they are put, and for how many; no_time: address of 0, 0
SIGNALS = row_of("submit getevents context request list outcomes room no_time")
signals_at = row_at(SIGNALS)
_REQUEST_BYTES, _REQUEST_FD = 64, 60
_OUTCOME_BYTES = 32
KICK_EVENTS, KICK_EVENT_BYTES = 64, 12  # that are asked for at once
_FD_AT = 4

_syscall = libc("syscall", 64, 64, 64, 64, 64, 64)
_epoll_wait = libc("epoll_wait", 32, 64, 32, 32, returns=32)


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
    if c.signals:
        count(signals_at(c.signals), c.fd)
    return 0


@kernel
def count(s: Row, fd: int) -> None:
    """Add 1 to an eventfd, without waiting."""
    touch(s.request, _REQUEST_BYTES, 1)
    store32(s.request + _REQUEST_FD, fd)
    touch(s.outcomes, _OUTCOME_BYTES * s.room, 1)
    for _ in range(2):
        if _syscall(s.submit, s.context, 1, s.list, 0, 0) >= 0:
            return
        # There may be no room for outcomes: take them.
        _syscall(s.getevents, s.context, 0, s.room, s.outcomes, s.no_time)


@inlined
def let_sleep(address: int) -> None:
    """Count that the other side did not want to be woken."""
    if address:
        channel_at(address).suppressed += 1


@inlined
def take_notice(address: int) -> bool:
    """Tell whether a channel was used since the last time."""
    c = channel_at(address)
    woken = c.pending != 0
    c.pending = 0
    return woken


@kernel
def find_kicked(epoll: int, events: int) -> int:
    """Ask which eventfds were written to since the last time; return how many. events: address of room for them."""
    touch(events, KICK_EVENTS * KICK_EVENT_BYTES, 1)
    return _epoll_wait(epoll, events, KICK_EVENTS, 0)


@kernel
def kicked_fd(events: int, i: int) -> int:
    """Return the descriptor that one of the events is about."""
    return load32(events + i * KICK_EVENT_BYTES + _FD_AT)
